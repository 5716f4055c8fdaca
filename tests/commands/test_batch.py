"""`instantstyle batch`: rows are what `generate` makes, once each, whatever fails, dies, or how many work."""

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from PIL import Image
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

import instantstyle
from instantstyle.commands import cli
from instantstyle.commands.batch import manifest, painter, processes
from instantstyle.commands.options import option
from instantstyle.inference import grid, models, recipe, session
from instantstyle.inference.request import Machine, Request
from instantstyle.inference.session import Painting, Session
from instantstyle.inference.sheet import Sheet


ROOT = Path(__file__).parents[2]
Table = list[dict[str, Any]]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, str]:
    """Files to name in manifests: pictures and style files."""
    folder = tmp_path_factory.mktemp("given")
    for number, reference in enumerate(grid.draw_references()[:2]):
        reference.image.save(folder / f"style{number}.png")
        words = ["encode", str(folder / f"style{number}.png"), "-o", str(folder / f"style{number}.safetensors")]
        assert cli.main([*words, "--device", "cpu"]) == 0
    for number in range(2):
        Image.effect_noise((64, 48), 60 + 60 * number).convert("RGB").save(folder / f"image{number}.png")
        Image.linear_gradient("L").resize((64, 48)).rotate(180 * number).save(folder / f"mask{number}.png")
    (folder / "torn.png").write_bytes((folder / "style0.png").read_bytes()[:200])
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture
def painted(monkeypatch) -> list[list[int]]:
    """Record which rows go into each call of a pipeline."""
    calls: list[list[int]] = []
    original = painter.paint

    def paint(job, numbers):
        calls.append(list(numbers))
        return original(job, numbers)

    monkeypatch.setattr(painter, "paint", paint)
    return calls


def write(folder: Path, table: Table, name: str = "rows.jsonl") -> str:
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
        return str(path)
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(column for row in table for column in row)))
        writer.writeheader()
        writer.writerows(table)
    return str(path)


def words(path: str, *more: str, out: Path | None = None) -> list[str]:
    folder = out or Path(path).with_name("out")
    return ["batch", path, "-o", str(folder), "--steps", "2", "--device", "cpu", *more]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.int16)


def pictures(folder: Path) -> dict[str, np.ndarray]:
    """Read what a folder holds, down to hidden files."""
    return {path.name: pixels(path) for path in sorted((folder / "out").iterdir())}


def four(given: dict[str, str]) -> Table:
    """Four rows that can be made in one call."""
    style = [given["style0.png"], given["style1.png"]]
    return [
        {"prompt": prompt, "style": style[number % 2], "seed": number}
        for number, prompt in enumerate(["a heart", "a ring", "a star", "a moon"])
    ]


# --- What rows are ---------------------------------------------------------------------------------------------------


def every_kind(given: dict[str, str]) -> Table:
    """Two rows of each kind, which go into one call, and one that is alone."""
    table = []
    for number, prompt in enumerate(["a heart", "a ring"]):
        row = {"prompt": prompt, "style": given[f"style{number}.png"], "seed": number}
        removed = {"content": ["a star", "a moon"][number], "negative": ["a circle", "a cross"][number]}
        image = {"image": given[f"image{number}.png"], "strength": 0.9, "steps": 3}
        table += [
            row,
            row | removed,
            row | {"style": given[f"style{number}.safetensors"]},
            row | image,
            row | image | {"mask": given[f"mask{number}.png"]},
        ]
    return [
        *table,
        row | {"target_blocks": "style,layout=0.5", "scale": 0.8, "size": "64x48", "content_scale": "auto"},
    ]


def as_generate(row: dict[str, Any], out: Path) -> list[str]:
    """Say a row in the words of `generate`."""
    options = [word for name, value in row.items() if name != "prompt" for word in (option(name), str(value))]
    return ["generate", row["prompt"], "--steps", "2", *options, "--device", "cpu", "-o", str(out)]


def alike(first: Path, second: Path, tolerance: int = 1) -> bool:
    """Whether pictures are equal: a row of a batch is computed in another order, so a channel may be rounded up."""
    return pixels(first).shape == pixels(second).shape and abs(pixels(first) - pixels(second)).max() <= tolerance


def test_a_row_is_what_generate_makes_of_it(tmp_path, given, painted):
    table = every_kind(given)
    assert cli.main(words(write(tmp_path, table))) == 0
    assert painted == [*([first, first + 5] for first in range(5)), [10]]
    for number, row in enumerate(table):
        made, alone = tmp_path / "out" / f"{number + 1:06}.png", tmp_path / "alone.png"
        assert cli.main(as_generate(row, alone)) == 0
        assert recipe.read_recipe(made) == recipe.read_recipe(alone)
        assert alike(made, alone), number
    assert cli.main(as_generate(row | {"seed": 99}, alone)) == 0
    assert not alike(made, alone)


def test_a_row_with_a_controlnet_is_what_generate_makes_of_it(tmp_path, given):
    table = [row | {"control_image": given[f"image{number}.png"]} for number, row in enumerate(four(given)[:2])]
    assert cli.main(words(write(tmp_path, table), "--controlnet", "tiny")) == 0
    alone = tmp_path / "alone.png"
    assert cli.main([*as_generate(table[1], alone), "--controlnet", "tiny"]) == 0
    assert alike(tmp_path / "out" / "000002.png", alone)
    assert not alike(tmp_path / "out" / "000001.png", alone)


def test_rows_are_painted_over_together_as_generate_does_it_alone(tmp_path, given, painted, monkeypatch):
    """And a large picture may be decoded in tiles. A rounded channel of the first pass goes into the second."""
    calls, joined = [], session.joined
    monkeypatch.setattr(session, "joined", lambda each: calls.append(len(each)) or joined(each))
    large = {"upscale": 1.5, "upscale_strength": 0.5, "steps": 4}
    table = [row | (large if number else {}) for number, row in enumerate(four(given)[:3])]
    assert cli.main(words(write(tmp_path, table), "--vae-tiling")) == 0
    assert (painted, calls) == ([[0], [1, 2]], [1, 2, 2])
    alone = tmp_path / "alone.png"
    for number, row in enumerate(table):
        made = tmp_path / "out" / f"{number + 1:06}.png"
        assert cli.main([*as_generate(row, alone), "--vae-tiling"]) == 0
        assert recipe.read_recipe(made) == recipe.read_recipe(alone)
        assert alike(made, alone, 4), number
    assert cli.main([*as_generate(row | {"upscale_strength": 0.8}, alone), "--vae-tiling"]) == 0
    assert not alike(made, alone, 20)


def test_calls_are_no_larger_than_asked_and_files_have_their_names(tmp_path, given, painted, capsys):
    table = four(given)
    table[2]["output"] = "star.png"
    assert cli.main(words(write(tmp_path, table), "--batch-size", "3")) == 0
    assert painted == [[0, 1, 2], [3]]
    assert list(pictures(tmp_path)) == ["000001.png", "000002.png", "000004.png", "star.png"]
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"{tmp_path / 'out'}: 4 made in ")
    assert captured.out.endswith(" a second; 0 were there; 0 failed\n")


def test_a_column_is_an_option_of_generate_and_all_others_are_for_the_command_line():
    (commands,) = (one for one in cli.build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    options = {name: {one.dest for one in commands.choices[name]._actions} for name in ("generate", "batch")}
    columns = set(manifest.COLUMNS)
    assert columns == {*Request.model_fields, "output"}
    assert columns <= options["generate"]
    assert columns - {"prompt"} <= options["batch"]
    assert options["generate"] - columns <= options["batch"] | {"num_images", "recipe"}


# --- What is done stays done -----------------------------------------------------------------------------------------


def test_what_is_made_is_not_made_again(tmp_path, given, painted, capsys):
    path = write(tmp_path, four(given), "rows.csv")
    assert cli.main(words(path)) == 0
    before = {one: one.stat().st_mtime_ns for one in (tmp_path / "out").iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_loaded", lambda *_: pytest.fail("the model was loaded"))
        assert cli.main(words(path)) == 0
    assert painted == [[0, 1, 2, 3]]
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "out").iterdir()} == before
    assert "0 made; 4 were there; 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda table, out: table[1].update(seed=9), [1]),
        (lambda table, out: table[1].update(prompt="a cross"), [1]),
        (lambda table, out: table[1].update(content="a star"), [1]),
        (lambda table, out: table[1].update(target_blocks="layout"), [1]),
        (lambda table, out: table[1].update(scale=0.5), [1]),
        (lambda table, out: table[3].pop("size"), [3]),
        (lambda table, out: table.append(table[0] | {"seed": 7}), [5]),
        (lambda table, out: (out / "000003.png").unlink(), [2]),
        (lambda table, out: (out / "000003.png").write_bytes((out / "000002.png").read_bytes()[:40]), [2]),
        (lambda table, out: Image.open(out / "000003.png").save(out / "000003.png"), [2]),  # without its recipe
        (lambda table, out: (out / "000003.png").write_bytes((out / "000002.png").read_bytes()), [2]),
        (lambda table, out: Image.new("RGB", (40, 60), "green").save(table[0]["style"]), [0, 2, 4]),
        (lambda table, out: table[0].update(style=str(Path(table[0]["style"]).with_name("renamed.png"))), []),
        (lambda table, out: table[4].pop("seed"), []),
        (lambda table, out: table[4].update(scale="1"), []),
    ],
)
def test_a_change_makes_only_what_it_changes(change, again, tmp_path, given, blank, painted):
    for name in ("style0.png", "style1.png"):
        (tmp_path / name).write_bytes(Path(given[name]).read_bytes())
    (tmp_path / "renamed.png").write_bytes(Path(given["style0.png"]).read_bytes())
    here = {name: str(tmp_path / name) for name in ("style0.png", "style1.png")}
    table = [*four(here), {"prompt": "a heart", "style": here["style0.png"], "seed": 5}]
    table[3]["size"] = "64x64"

    def make() -> list[int]:
        painted.clear()
        assert cli.main(words(write(tmp_path, table))) == 0
        return sum(painted, [])

    assert make() == [0, 1, 2, 4, 3]
    change(table, tmp_path / "out")
    assert make() == again
    assert make() == []


class Blank:
    """Stands for a pipeline, and makes white pictures."""

    _execution_device, dtype, unet = torch.device("cpu"), torch.float32, torch.nn.Identity()

    def set_progress_bar_config(self, disable: bool) -> None: ...

    def set_target_blocks(self, *_, scale: float) -> None: ...

    def load_ip_adapter(self, *_, **__) -> None: ...

    def to(self, device: torch.device) -> "Blank":
        return self

    def __call__(self, prompt, **_) -> argparse.Namespace:
        return argparse.Namespace(images=[Image.new("RGB", (64, 64), "white") for _ in prompt])


Blank.__name__ = "StableDiffusionXLInstantStylePipeline"


@pytest.fixture
def blank(monkeypatch) -> None:
    """Load a pipeline that takes no time."""
    monkeypatch.setattr(Session, "_loaded", lambda *_: Blank())


def test_the_command_line_stands_in_where_a_row_says_nothing(tmp_path, given, blank):
    table = four(given)
    del table[1]["seed"], table[1]["style"], table[2]["seed"]
    path = write(tmp_path, table)
    stand_in = ["--style", given["style0.png"], "--negative", "a cross"]

    def found() -> list[dict]:
        return [recipe.read_recipe(tmp_path / "out" / f"{number:06}.png") for number in range(1, 5)]

    assert cli.main(words(path, *stand_in)) == 0
    seeds = [one["seed"] for one in found()]
    assert (seeds[0], seeds[3], len(set(seeds))) == (0, 3, 4)  # what no one says is drawn
    assert [one["style"]["file"] for one in found()] == ["style0.png", "style0.png", "style0.png", "style1.png"]
    assert {one["negative"] for one in found()} == {"a cross"}
    assert cli.main(words(path, *stand_in, "--seed", "5")) == 0
    assert [one["seed"] for one in found()] == [0, 5, 5, 3]


def test_what_a_style_file_has_behind_it_is_its_own(tmp_path, given):
    table = [row | {"style": given["style0.safetensors"]} for row in four(given)[:1]]
    path = write(tmp_path, [*table, four(given)[1]])
    assert cli.main(words(path, "--content", "a star", "--target-blocks", "all")) == 0
    first, second = (recipe.read_recipe(tmp_path / "out" / f"00000{number}.png") for number in (1, 2))
    assert (first["content"], first["target_blocks"], first["adapter"]) == (None, None, None)
    assert (second["content"], second["target_blocks"]) == ("a star", {"all": 1.0})


# --- Many processes, some of them killed -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, given) -> tuple[str, dict[str, np.ndarray]]:
    """A manifest of six rows, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = write(folder, [*four(given), *(row | {"size": "72x64"} for row in four(given)[:2])])
    assert cli.main(words(path, "--batch-size", "1")) == 0
    return path, pictures(folder)


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def work(asked: list[str], log: Path, dies_at: int | None) -> None:
    """Run in a process of its own that writes down what it paints; at a certain row it dies in the midst of saving.

    No handler can catch the signal that it dies by.
    """
    torch.set_num_threads(1)  # the other threads were not copied
    accelerate.PartialState._reset_state()
    paint, save = painter.paint, Painting.save

    def noting(job, numbers):
        with log.open("a") as file:
            file.write(f"{numbers[0]}\n")
        return paint(job, numbers)

    def dying(painting, path):
        if path.name == f"{(dies_at or 0) + 1:06}.png" and dies_at is not None:
            painting.image.save = lambda scratch, **_: (Path(scratch).write_bytes(b"torn"), os.kill(os.getpid(), 9))
        save(painting, path)

    painter.paint, Painting.save = noting, dying
    assert cli.main(asked) == 0


def launch(count: int, asked: list[str], log: Path, dies_at: int | None = None) -> list[int]:
    """Run in so many processes, as Accelerate starts them, and return the rows that were painted."""
    log.write_text("")
    died = pytest.raises((ProcessExitedException, ProcessRaisedException))  # itself, or one that waited for it
    with contextlib.nullcontext() if dies_at is None else died:
        accelerate.debug_launcher(work, (asked, log, dies_at), count)
    return sorted(map(int, log.read_text().split()))


def test_each_row_is_made_once_by_three_processes(tmp_path, undisturbed, capfd):
    path, whole = undisturbed
    asked = words(path, "--batch-size", "1", out=tmp_path / "out")
    assert launch(3, asked, tmp_path / "log") == [0, 1, 2, 3, 4, 5]
    assert same(pictures(tmp_path), whole)
    assert capfd.readouterr().out.count(": 6 made in ") == 1
    assert launch(3, asked, tmp_path / "log") == []


def killed(count: int, path: str, folder: Path) -> list[str]:
    """Run until one of so many processes dies at the fifth row, and return the names of what is there then."""
    launch(count, words(path, "--batch-size", "1", out=folder / "out"), folder / "log", dies_at=4)
    return [one.name for one in (folder / "out").iterdir()]


def check_whole(names: list[str], folder: Path, whole: dict[str, np.ndarray]) -> list[int]:
    """Check that what a killed run left is whole, and return the rows that are missing."""
    assert [name for name in names if name.startswith(".000005.png-")]  # what was torn has another name
    made = {name for name in names if not name.startswith(".")}
    assert made < whole.keys()
    assert all((pixels(folder / "out" / name) == whole[name]).all() for name in made)
    return [number for number, name in enumerate(whole) if name not in made]


def test_a_killed_run_leaves_whole_pictures_and_the_next_makes_the_rest(tmp_path, undisturbed):
    path, whole = undisturbed
    missing = check_whole(killed(1, path, tmp_path), tmp_path, whole)
    assert missing == [4, 5]
    asked = words(path, "--batch-size", "1", out=tmp_path / "out")
    assert launch(2, asked, tmp_path / "log") == missing
    assert same(pictures(tmp_path), whole)


def test_accelerate_launch_goes_on_where_other_processes_were_killed(tmp_path, undisturbed):
    path, whole = undisturbed
    missing = check_whole(killed(3, path, tmp_path), tmp_path, whole)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    settings = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    asked = ["-m", "instantstyle", *words(path, "--batch-size", "1", out=tmp_path / "out")]
    done = subprocess.run([*launcher, *settings, *asked], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f": {len(missing)} made in " in done.stdout
    assert f"; {6 - len(missing)} were there; 0 failed\n" in done.stdout
    assert done.stdout.count("\n") == 1
    assert same(pictures(tmp_path), whole)


def test_neighbours_go_to_different_processes(monkeypatch):
    """So that a part of the table that takes long is shared by all."""
    state = accelerate.PartialState(cpu=True)
    monkeypatch.setattr(state, "num_processes", 3)
    parts = []
    for index in range(3):
        monkeypatch.setattr(state, "process_index", index)
        parts.append(processes.share(state, list(range(8))))
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


def fail_at(number: int, asked: list[str], row: str) -> None:
    """Run where one process, and it alone, cannot read a file."""
    accelerate.PartialState._reset_state()
    original, index = manifest.read, torch.distributed.get_rank()
    manifest.read = lambda path: original(row if index == number else path)
    sys.exit(cli.main(asked))


@pytest.mark.parametrize("number", [0, 1])
def test_a_mistake_that_one_process_finds_ends_all_and_is_told_once(number, tmp_path, undisturbed, capfd):
    asked = words(undisturbed[0], out=tmp_path / "out")
    with pytest.raises(ProcessExitedException, match="process 0 terminated with exit code 2"):
        accelerate.debug_launcher(fail_at, (number, asked, str(tmp_path / "none.csv")), 2)
    assert capfd.readouterr().err.count("none.csv: No such file") == 1
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:1"}, "`device`: cuda:1 is one device"),
        ({"device_map": "balanced"}, "wants one process, not 2"),
    ],
)
def test_processes_have_devices_of_their_own(options, message):
    two = argparse.Namespace(num_processes=2, device=torch.device("cuda:1"))
    with pytest.raises(ValueError, match=message):
        processes.place(Machine(**options), two)
    assert processes.place(Machine(device="cuda"), two).device == "cuda:1"


# --- Rows that fail --------------------------------------------------------------------------------------------------


def test_a_row_that_fails_takes_no_other_with_it(tmp_path, given, painted, capsys):
    table = [*four(given), *four(given)]
    table[1]["style"] = "none.png"
    table[2]["content"] = "a star " * 40
    table[3]["content"] = "a star"
    table[4]["target_blocks"] = "sytle"
    table[5]["style"] = given["torn.png"]
    assert cli.main(words(write(tmp_path, table))) == 2
    captured = capsys.readouterr()
    told = captured.err.splitlines()
    assert [line.partition(": ")[2].partition(": ")[0] for line in told[:-1]] == [
        f"rows.jsonl, line {number}" for number in (2, 3, 5, 6)
    ]
    for line, reason in zip(told, ("none.png: No such file", "tokens", "'sytle'", "torn.png is not a"), strict=False):
        assert reason in line
    assert told[-1].startswith("instantstyle: error: 4 of 8 rows failed")
    assert "4 made in" in captured.out
    assert "; 0 were there; 4 failed" in captured.out
    assert list(pictures(tmp_path)) == [f"{number:06}.png" for number in (1, 4, 7, 8)]

    painted.clear()
    del table[2]["content"], table[4]["target_blocks"]  # mended
    assert cli.main(words(write(tmp_path, table))) == 2
    assert sum(painted, []) == [2, 4]
    assert "2 made in" in capsys.readouterr().out


def test_what_a_failed_call_held_is_free_when_its_rows_are_tried_alone(tmp_path, given, blank, monkeypatch):
    """Memory above all, of which there was not enough."""
    held: list[weakref.ref] = []

    def call(pipe, prompt, **_):
        large = Image.new("RGB", (64, 64))
        if len(prompt) > 1:
            held.append(weakref.ref(large))
            raise MemoryError
        assert held[0]() is None
        return argparse.Namespace(images=[large])

    monkeypatch.setattr(Blank, "__call__", call)
    assert cli.main(words(write(tmp_path, four(given)))) == 0
    assert len(pictures(tmp_path)) == 4


def test_a_disk_that_is_full_ends_the_run(tmp_path, given, blank, painted, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recipe, "write_recipe", fail)
    assert cli.main(words(write(tmp_path, four(given)), "--batch-size", "1")) == 2
    assert painted == [[0]]
    assert "No space left on device" in capsys.readouterr().err


# --- Manifests -------------------------------------------------------------------------------------------------------


def test_a_manifest_is_read_alike_from_both_kinds(tmp_path):
    table = [
        {"prompt": "a heart, \u2028 red", "seed": 3, "content-scale": "auto"},
        {"prompt": "a ring", "size": "64x48"},
    ]
    lines, cells = (manifest.read(write(tmp_path, table, name)) for name in ("rows.jsonl", "rows.csv"))
    assert [(row.name, row.given) for row in lines] == [(row.name, row.given) for row in cells]
    assert lines[0].given == {"prompt": "a heart, \u2028 red", "seed": "3", "content_scale": "auto"}
    assert [row.place for row in lines] == ["rows.jsonl, line 1", "rows.jsonl, line 2"]
    assert [row.place for row in cells] == ["rows.csv, line 2", "rows.csv, line 3"]


def test_a_manifest_may_be_what_windows_writes(tmp_path):
    """With a mark of the byte order, line ends of two letters, and spaces after commas."""
    (tmp_path / "rows.csv").write_bytes('\ufeffprompt, hires\r\n"a heart, \u2665", TRUE\r\n'.encode())
    (tmp_path / "rows.jsonl").write_bytes('\ufeff{"prompt": "a heart, \u2665", "hires": true}\r\n\r\n'.encode())
    for name in ("rows.csv", "rows.jsonl"):
        (row,) = manifest.read(str(tmp_path / name))
        assert row.request({"style": "a.png", "size": 128}, Machine()).hires is True
        assert row.given["prompt"] == "a heart, \u2665"


GOOD = '{"prompt": "a heart", "style": "REFERENCE"}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,stile\na heart,x.png\n", "a.csv, line 1: 'stile' is no column; expected prompt, output"),
        ("a.csv", "prompt,seed,seed\na heart,1,2\n", "a.csv, line 1: the column 'seed' is there twice"),
        ("a.csv", "prompt,seed\n\na heart,x\n", "a.csv, line 3: seed: expected a whole number"),
        ("a.csv", "prompt,seed\na heart, red,1\n", "a.csv, line 2 has more cells than columns"),
        ("a.csv", 'prompt\n"a heart\n', "a.csv, line 2: unexpected end of data"),
        ("a.csv", "prompt\n", "a.csv has no rows"),
        ("a.csv", "", "a.csv has no rows"),
        ("a.csv", "prompt,style\n,x.png\n", "a.csv, line 2 has no prompt"),
        ("a.jsonl", GOOD + '{"prompt": "a heart", "model": "x"}\n', "a.jsonl, line 2: 'model' is no column"),
        ("a.jsonl", GOOD + "\n\n{,}\n", "a.jsonl, line 4 is not JSON"),
        ("a.jsonl", GOOD + '["a heart"]\n', "a.jsonl, line 2: expected an object"),
        ("a.jsonl", '{"prompt": "a heart"}\n', "a.jsonl, line 1: no style"),
        ("a.jsonl", '{"prompt": ["a heart"]}\n', "a.jsonl, line 1: prompt: expected text or a number"),
        ("a.jsonl", GOOD[:-2] + ', "steps": 0}\n', "a.jsonl, line 1: steps: expected a whole number above 0"),
        (
            "a.jsonl",
            GOOD[:-2] + ', "steps": true}\n',
            "a.jsonl, line 1: steps: expected a whole number above 0, got 'true'",
        ),
        ("a.jsonl", GOOD[:-2] + ', "guidance": NaN}\n', "a.jsonl, line 1: guidance: expected a number"),
        ("a.jsonl", GOOD[:-2] + ', "size": 65}\n', "a.jsonl, line 1: size: expected WxH"),
        ("a.jsonl", GOOD[:-2] + ', "mask": "x.png"}\n', "a.jsonl, line 1: mask needs --image"),
        ("a.jsonl", GOOD[:-2] + ', "output": "../x.png"}\n', "a.jsonl, line 1: output: expected a name in the"),
        ("a.jsonl", GOOD[:-2] + ', "output": "x.jpg"}\n', "a.jsonl, line 1: output: expected a name in the"),
        ("a.jsonl", GOOD[:-2] + ', "output": "a\\u0000.png"}\n', "a.jsonl, line 1: output: expected a name in the"),
        ("a.jsonl", GOOD[:-2] + f', "output": "{"x" * 240}.png"}}\n', "a.jsonl, line 1: output: expected a name in"),
        (
            "a.jsonl",
            GOOD[:-2] + ', "hires": "large"}\n',
            "a.jsonl, line 1: hires: expected true or false, got 'large'",
        ),
        ("a.jsonl", GOOD[:-2] + ', "hires": true}\n', "a.jsonl, line 1: hires needs a --size"),
        ("a.jsonl", GOOD[:-2] + ', "upscale": 2, "steps": 3}\n', "a.jsonl, line 1: --upscale-strength 0.3 of 3 steps"),
        (
            "a.jsonl",
            GOOD[:-2] + ', "output": "000002.PNG"}\n' + GOOD,
            "line 2: output: '000002.png' is made at a.jsonl",
        ),
        (
            "a.jsonl",
            '{"prompt": "a heart", "style": "x.safetensors", "content": "a star"}\n',
            "a.jsonl, line 1: content is for a reference picture",
        ),
        ("a.txt", GOOD, "a.txt does not end in .csv or .jsonl"),
        ("a.csv", b"prompt\n\xff\n", "a.csv is not text in UTF-8"),
    ],
)
def test_a_wrong_manifest_is_refused_before_anything_is_loaded(
    name, text, message, tmp_path, monkeypatch, assert_refused
):
    content = text if isinstance(text, bytes) else text.replace("REFERENCE", "style.png").encode()
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(models, "find_model", lambda *_: pytest.fail("a model was looked for"))
    assert_refused(["batch", str(tmp_path / name), "-o", str(tmp_path / "out"), "--device", "cpu"], message, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{folder}/none.csv"], "MANIFEST: {folder}/none.csv: No such file"),
        (["{rows}", "-o", "{rows}"], "--output: {rows} is not a folder"),
        (["{rows}", "-o", "{folder}/none/out"], "none does not exist"),
        (["{rows}", "--sheet", "{folder}/sheet.jpg"], "--sheet: {folder}/sheet.jpg does not end in .png"),
        (["{rows}", "--sheet", "{folder}/000001.png", "-o", "{folder}"], "000001.png is the picture of a row"),
        (
            ["{many}", "--sheet", "{folder}/sheet.png"],
            "--sheet shows at most 1,024 pictures, but there are 1,025 rows",
        ),
        (["{rows}", "--batch-size", "0"], "--batch-size: expected a whole number above 0"),
        (["{rows}", "--model", "nothing"], "--model: 'nothing' is not a folder or file here"),
        (["{rows}", "--content", "a star", "--adapter", "a/b:ip-adapter_vit-h.bin"], "line 1: --content with a/b"),
        (["{rows}", "--device-map", "balanced"], "--device-map balanced places the model itself; leave --device out"),
    ],
)
def test_wrong_words_are_told_in_one_line(options, message, tmp_path, given, assert_refused):
    places = {"folder": str(tmp_path), "rows": write(tmp_path, four(given)), "many": str(tmp_path / "many.jsonl")}
    write(tmp_path, four(given)[:1] * 1025, "many.jsonl")
    assert_refused(["batch", "-o", "{folder}/out", "--device", "cpu", *options], message, places)


# --- The rest --------------------------------------------------------------------------------------------------------


def test_a_sheet_shows_all_pictures_in_their_order(tmp_path, given, capsys):
    table = [*four(given), *four(given)[:1]]
    table[1]["style"] = "none.png"
    assert cli.main(words(write(tmp_path, table), "--sheet", str(tmp_path / "sheet.png"))) == 2
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'sheet.png'}\n")
    labels = ["000001.png -\n000003.png", "000004.png -\n000005.png"]
    plan = Sheet([[Image.new("RGB", (64, 64))] * 3] * 2, columns=[""] * 3, rows=labels)
    drawn = Image.open(tmp_path / "sheet.png")
    assert drawn.size == plan.size
    for place, number in enumerate([1, None, 3, 4, 5, None]):
        shown = np.asarray(drawn.crop(plan.box(*divmod(place, 3))))[:: plan.factor, :: plan.factor]
        file = tmp_path / "out" / f"{number:06}.png" if number else None
        assert (shown == (pixels(file) if file else 255)).all(), place
    assert recipe.read_recipe(tmp_path / "sheet.png")["manifest"]["file"] == "rows.jsonl"


@pytest.mark.parametrize("command", ["generate", "batch"])
def test_a_model_can_be_spread_over_devices(command, tmp_path, given, monkeypatch):
    asked = []
    original = instantstyle.StableDiffusionXLInstantStylePipeline.from_pretrained

    def from_pretrained(source, **kwargs):
        asked.append(kwargs.get("device_map"))
        return original(source, **kwargs)

    monkeypatch.setattr(instantstyle.StableDiffusionXLInstantStylePipeline, "from_pretrained", from_pretrained)
    row, out = four(given)[0], tmp_path / "out" / "000001.png"
    spread = ["--device-map", "balanced"]
    assert cli.main(as_generate(row, tmp_path / "alone.png")) == 0
    if command == "batch":
        given_words = [word for word in words(write(tmp_path, [row])) if word not in ("--device", "cpu")]
    else:
        out.parent.mkdir()
        given_words = [word for word in as_generate(row, out) if word not in ("--device", "cpu")]
    assert cli.main([*given_words, *spread]) == 0
    assert asked == [None, "balanced"]
    assert alike(out, tmp_path / "alone.png")


def test_a_single_file_cannot_be_spread_over_devices():
    model = models.Model("owner/name", "owner/name", "sdxl", True, {})
    with pytest.raises(ValueError, match="diffusers cannot spread `model`, which is a single file"):
        session.check_place(Machine(device_map="balanced"), torch.device("cuda"), model)
    session.check_place(Machine(device_map="balanced"), torch.device("cuda"), replace(model, single_file=False))
