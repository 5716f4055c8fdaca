"""`instantstyle probe`: what it measures, what it concludes, what it keeps, and what it writes into an adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from instantstyle import tiny
from instantstyle.commands import cli
from instantstyle.core import AdapterFile
from instantstyle.inference import grid
from instantstyle.inference.recipe import read_recipe
from instantstyle.inference.request import Machine, Request
from instantstyle.inference.session import Session
from instantstyle.lab import ablation, findings, observers, presets, probe, probe_report
from instantstyle.lab.pairs import make_seed
from instantstyle.lab.proposal import Proposal, propose


EVERY = ("down", "mid", "up.0", "up.1")
ADAPTER = tiny.path() / "sdxl_models" / "ip-adapter_sdxl.safetensors"


def effect(palette=0.0, background=0.0, texture=0.0, wrong=0.0, leaked=0.0, nearer=0.0) -> dict[str, float]:
    """Say what one group does to the scores."""
    return {
        "palette": palette,
        "background": background,
        "texture": texture,
        "content_right": -wrong,
        "content_leaked": leaked,
        "distance": -nearer,
    }


NOTHING = {**effect(), "content_right": 0.99, "distance": 12.0}
WORLD = {
    "down": effect(palette=0.05, wrong=0.1, leaked=0.08, nearer=6.0),
    "mid": effect(palette=0.003, nearer=0.2),
    "up.0": effect(texture=0.4, background=0.1, nearer=2.0),
    "up.1": effect(palette=0.6, background=0.3, wrong=0.01, nearer=1.0),
}


def measure(groups: tuple[str, ...], world=WORLD) -> dict[str, float]:
    """Score groups whose effects add up."""
    return {name: value + sum(world[group][name] for group in groups) for name, value in NOTHING.items()}


def conclude(world=WORLD) -> tuple[Proposal, list[tuple[str, ...]]]:
    """Propose and measure what is wanted, as the probe does; also give what was wanted."""
    scores = {groups: measure(groups, world) for groups in findings.plan(tuple(world))}
    wanted = []
    while (proposal := propose(scores)).wanted:
        wanted += proposal.wanted
        scores |= {groups: measure(groups, world) for groups in proposal.wanted}
    return proposal, wanted


def test_style_grows_by_what_adds_most():
    proposal, wanted = conclude()
    assert proposal.style == ("up.0", "up.1")
    assert proposal.layout == ("down",)
    # Every pair with the best group; that group with each other two is all but one, which is measured already.
    assert set(wanted) == {("down", "up.1"), ("mid", "up.1"), ("up.0", "up.1")}
    assert [reason.split()[0] for reason in proposal.reasons[:2]] == ["up.1", "up.0"]


def test_a_group_that_breaks_content_is_passed_over():
    world = WORLD | {"up.1": effect(palette=0.9, leaked=0.016)}
    assert conclude(world)[0].style == ("up.0",)
    world = WORLD | {"up.1": effect(palette=0.9, wrong=0.031)}
    assert conclude(world)[0].style == ("up.0",)
    world = WORLD | {"up.0": effect(texture=0.4, wrong=0.025)}  # each is well alone, together they are not
    assert conclude(world)[0].style == ("up.1",)


def test_a_small_gain_ends_the_search():
    assert conclude(WORLD | {"mid": effect(palette=0.029)})[0].style == ("up.0", "up.1")
    assert conclude(WORLD | {"mid": effect(palette=0.031)})[0].style == ("mid", "up.0", "up.1")


def test_nothing_acceptable():
    proposal, wanted = conclude({group: effect(palette=0.5, leaked=0.1, nearer=0.1) for group in EVERY})
    assert (proposal.style, proposal.layout, wanted) == ((), (), [])
    assert "No group keeps content right" in proposal.reasons[0]
    proposal, _ = conclude({group: effect(palette=0.02) for group in EVERY})
    assert proposal.style == ()
    assert "the best adds 0.007" in proposal.reasons[0]


def test_all_groups_may_be_style():
    proposal, _ = conclude({group: effect(palette=0.1, nearer=3.0) for group in EVERY})
    assert (proposal.style, proposal.layout) == (EVERY, ())
    assert conclude({"only": effect(palette=0.1)})[0].style == ("only",)


def test_layout_is_not_taken_from_style():
    world = WORLD | {"up.1": {**WORLD["up.1"], "distance": -9.0}}
    assert conclude(world)[0].layout == ("down",)
    assert conclude(world | {"down": effect(nearer=0.4)})[0].layout == ()


@pytest.mark.parametrize("missing", [(), ("mid",)])
def test_a_table_that_lacks_an_entry_is_refused(missing):
    entries = [(), EVERY, *((group,) for group in EVERY)]
    scores = {groups: measure(groups) for groups in entries if groups != missing}
    for table in (scores, {(): measure(())}, {}):
        with pytest.raises(ValueError, match="`scores` must hold"):
            propose(table)


def differ(first: list[Image.Image], second: list[Image.Image]) -> bool:
    return any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(first, second, strict=True))


@pytest.fixture
def watching(session) -> dict[str, observers.Observer]:
    """Let the judges look at drawn pairs, and a person at two references of another size."""
    base = Request(prompt="", seed=5, steps=1, guidance=5.0)
    examples = [(reference, "a heart") for reference in grid.draw_references()[:2]]
    return {"judges": observers.Jury(session, 2, base), "person": observers.Viewer(session, examples, base)}


@pytest.mark.parametrize("kind", ["judges", "person"])
def test_one_group_is_what_set_target_blocks_does(kind, watching, pipe):
    observer = watching[kind]
    told = []
    group = "up_blocks.1.attentions.2"
    assert group in ablation.attention_groups(pipe)
    finding = observer.look((group,), told.append)
    assert sum(told) == observer.count == len(finding.pictures) == 2
    pipe.set_target_blocks(group)
    seeds = [5, 5]
    if kind == "judges":
        seeds = [make_seed("selection", int(number), 5) for number in observer.pairs.numbers]
    for picture, (reference, prompt), seed in zip(finding.pictures, observer.shown, seeds, strict=True):
        own = pipe(
            prompt,
            ip_adapter_image=reference,
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        # The judges' pictures are made in batches, where a channel may be rounded the other way.
        distance = np.abs(np.asarray(own, dtype=int) - np.asarray(picture, dtype=int)).max()
        assert distance <= (kind == "judges")
    everything = observer.look(ablation.attention_groups(pipe), told.append)
    nothing = observer.look((), told.append)
    for first, second in ((finding, everything), (finding, nothing), (everything, nothing)):
        assert differ(first.pictures, second.pictures)
    assert set(finding.scores) >= (set(probe_report.COLUMNS) if kind == "judges" else set())
    assert bool(finding.scores) == (kind == "judges")


class Additive:
    """An observer of made-up numbers that can be interrupted."""

    count, settings = 1, {}

    def __init__(self, patience: int = 1000) -> None:
        self.shown = [(Image.new("RGB", (8, 8)), "a heart")] * 2
        self.patience, self.measured = patience, []

    def look(self, groups, progress) -> findings.Finding:
        if len(self.measured) == self.patience:
            raise KeyboardInterrupt
        self.measured.append(groups)
        progress(1)
        scores = {name: {"mean": mean, "low": mean, "high": mean} for name, mean in measure(groups).items()}
        shade = len(self.measured)
        return findings.Finding(groups, [Image.new("RGB", (8, 8), (shade, 0, n)) for n in range(2)], scores)

    def propose(self, scores) -> Proposal:
        return propose(scores)


def test_an_interrupted_probe_goes_on_where_it_was(tmp_path):
    whole = Additive()
    for name in ("whole", "kept"):
        (tmp_path / name).mkdir()
    findings, proposal = ablation.search(whole, EVERY, tmp_path / "whole")
    first, second, third = Additive(patience=4), Additive(patience=8), Additive()
    for part in (first, second):
        with pytest.raises(KeyboardInterrupt):
            ablation.search(part, EVERY, tmp_path / "kept")
    resumed, again = ablation.search(third, EVERY, tmp_path / "kept")
    assert first.measured + second.measured + third.measured == whole.measured
    assert len(set(whole.measured)) == len(whole.measured)
    assert again == proposal
    assert {groups: one.scores for groups, one in resumed.items()} == {g: one.scores for g, one in findings.items()}
    last = Additive()
    kept, _ = ablation.search(last, EVERY, tmp_path / "kept")
    assert last.measured == []
    for groups, finding in resumed.items():
        assert not differ(finding.pictures, kept[groups].pictures)


def test_the_picture_shows_each_group_alone_and_all_but_it(tmp_path):
    found, proposal = ablation.search(Additive(), EVERY, tmp_path)
    probed = ablation.Probed({}, Additive().shown, EVERY, found, proposal)
    drawn = {colour for _, colour in probe_report.draw_probe(probed).getcolors(2**24)}
    shown = {groups for groups in found if any(one.getpixel((0, 0)) in drawn for one in found[groups].pictures)}
    assert shown == set(findings.plan(EVERY)) < set(found)
    for groups in shown:
        assert all(one.getpixel((0, 0)) in drawn for one in found[groups].pictures)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("reference") / "drawn.png"
    grid.draw_references()[0].image.save(path)
    return str(path)


def test_examples_from_the_command_line(tmp_path, reference, capsys, monkeypatch, pipe):
    """One sheet to look at, with its recipe, and no number; nothing is painted twice."""
    words = ["probe", "--reference", reference, "--prompt", "a heart", "--steps", "1", "--device", "cpu"]
    words += ["-o", str(tmp_path / "out")]
    made = []
    paint = Session.paint
    monkeypatch.setattr(Session, "paint", lambda self, requests: made.extend(requests) or paint(self, requests))
    assert cli.main(words) == 0
    every = ablation.attention_groups(pipe)
    assert len(made) == 2 + 2 * len(every)
    assert capsys.readouterr().out == f"{tmp_path}/out/probe.png\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["conditions", "probe.png"]
    found = read_recipe(tmp_path / "out" / "probe.png")
    assert tuple(found["groups"]) == every
    assert (found["examples"][0]["prompt"], found["examples"][0]["reference"]["file"]) == ("a heart", "drawn.png")
    assert str(Path(reference).parent) not in json.dumps(found)
    with Image.open(tmp_path / "out" / "probe.png") as picture:
        assert picture.width > 128 * (3 + len(every))

    made.clear()
    assert cli.main(words) == 0
    assert made == []


def test_without_examples_and_judges_there_is_nothing_to_see(tmp_path):
    (tmp_path / "model").mkdir()
    for part in ("unet", "sdxl_models"):
        (tmp_path / "model" / part).symlink_to(tiny.path() / part)
    with pytest.raises(ValueError, match="`examples`: needed with `model` model, which has no judges"):
        probe(Session(Machine(model=str(tmp_path / "model"))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_example_is_a_picture_whatever_it_comes_as(session, reference):
    base = Request(prompt="", seed=5, steps=1)
    with Image.open(reference) as opened:
        pictures = [observers.Viewer(session, [(one, "a heart")], base).shown[0][0] for one in (reference, opened)]
    assert not differ(pictures[:1], pictures[1:])
    with pytest.raises(ValueError, match="`examples`: a style file is encoded for some blocks already"):
        style = session.encode(Request(prompt="", style=reference))
        style.save(Path(reference).with_suffix(".safetensors"))
        observers.Viewer(session, [(str(Path(reference).with_suffix(".safetensors")), "a heart")], base)


def test_what_decides_the_result_has_its_own_folder(tmp_path, reference, monkeypatch):
    kept = []
    monkeypatch.setattr(ablation, "search", lambda scorer, every, folder, bars: kept.append(folder) or 1 / 0)
    words = ["probe", "--reference", reference, "--prompt", "a heart", "--device", "cpu", "-o", str(tmp_path)]
    for change in ([], [], ["--seed", "1"], ["--prompt", "a star"], ["--guidance", "2"], ["--steps", "2"]):
        with pytest.raises(ZeroDivisionError):
            cli.main([*words, *change])
    assert kept[0] == kept[1]
    assert len(set(kept[1:])) == len(kept) - 1


def test_with_judges_from_the_command_line(tmp_path, capsys):
    words = ["probe", "--pairs", "1", "--steps", "1", "--device", "cpu", "-o", str(tmp_path / "out")]
    assert cli.main(words) == 0
    assert "Scored by the judges" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert (found["scored_by"], found["split"], found["pairs"]) == ("judges", "selection", 1)
    assert {"content_right", "content_leaked", "style", "palette", "background", "texture", "layout_copied"} <= set(
        found["conditions"][0]["scores"]
    )


@pytest.mark.parametrize("in_place", [False, True])
def test_presets_are_carried_and_nothing_else_changes(in_place, tmp_path, pipe):
    source = tmp_path / "adapter.safetensors"
    before = {
        "format": "pt",
        "author": "ünï",
        presets.KEY: json.dumps({"mine": ["mid_block"], "style": ["up_blocks.0"]}),
    }
    save_file(load_file(ADAPTER), source, metadata=before)
    tensors = {name: tensor.clone() for name, tensor in load_file(source).items()}  # the file is let go
    target = source if in_place else tmp_path / "saved.safetensors"
    proposed = {"style": ["up_blocks.1.attentions.2"], "layout": {"mid_block": 0.5}}
    presets.write_presets(source, target, proposed)
    with safe_open(target, framework="pt") as file:
        metadata = file.metadata()
    assert metadata.pop(presets.KEY) != before.pop(presets.KEY)
    assert metadata == before
    read = AdapterFile(target)
    assert read.presets == {"mine": ["mid_block"], **proposed}
    assert list(load_file(target)) == list(tensors)
    for name, tensor in load_file(target).items():
        assert tensor.dtype == tensors[name].dtype
        assert tensor.numpy().tobytes() == tensors[name].numpy().tobytes()
    shutil.copytree(ADAPTER.parent / "image_encoder", tmp_path / "image_encoder")
    try:
        pipe.load_ip_adapter(tmp_path, subfolder="", weight_name=target.name)
        assert pipe.target_blocks == {"up_blocks.1.attentions.2": 1.0}
        pipe.set_target_blocks("layout")
        assert pipe.target_blocks == {"mid_block.attentions.0": 0.5}
    finally:
        pipe.load_ip_adapter(ADAPTER.parent, subfolder="", weight_name=ADAPTER.name, target_blocks="all")


def test_a_copy_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "saved.safetensors"
    target.write_text("old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(presets.shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        presets.write_presets(ADAPTER, target, {"style": ["mid_block"]})
    assert target.read_text() == "old"
    for content in (b"", b"\xff" * 30, b"\x02" + bytes(7) + b"[]"):
        (tmp_path / "torn.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="torn.safetensors is not a safetensors file"):
            presets.write_presets(tmp_path / "torn.safetensors", target, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved.safetensors", "torn.safetensors"]


def test_style_and_layout_together_are_never_another_models(pipe):
    both = Proposal(style=("a", "b"), layout=("c",))
    assert presets.named_presets(both, pipe.unet) == {
        "style": ["a", "b"],
        "layout": ["c"],
        "style+layout": ["a", "b", "c"],
    }
    named = presets.named_presets(Proposal(style=("a",)), pipe.unet)
    assert named["style"] == ["a"]
    assert {"a"} < set(named["style+layout"])
    assert presets.named_presets(Proposal(layout=("c",)), pipe.unet) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "{folder}/none.png"], "--reference: {folder}/none.png: No such file"),
        (["--prompt", "a heart", "--pairs", "3"], "--pairs: only judges draw pairs"),
        (["--model", "{model}"], "--reference and --prompt: needed with --model model"),
        (["--model", "nothing"], "--model: 'nothing' is not a folder or file here"),
        (["--adapter", "{text}"], "text.png"),
        (["-o", "{text}"], "--output: {text} is not a folder"),
        (["-o", "{folder}/none/out"], "--output: the folder {folder}/none does not exist"),
        (["--save", "{folder}/adapter.bin"], "does not end in .safetensors"),
        (["--save", "{folder}/none/a.safetensors"], "--save: the folder {folder}/none does not exist"),
        (["--save", "{folder}/a.safetensors", "--adapter", "{bin}"], "--save: adapter.bin is not a .safetensors file"),
        (
            ["--prompt", "a heart", "--save", "{folder}/a.safetensors"],
            "--save: presets are concluded from what judges",
        ),
        (["--pairs", "0"], "--pairs: expected a whole number above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_anything_is_made(words, message, tmp_path, monkeypatch, assert_refused):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "adapter.bin").write_text("not an adapter")
    (tmp_path / "model").mkdir()
    for part in ("unet", "sdxl_models"):
        (tmp_path / "model" / part).symlink_to(tiny.path() / part)
    places = {name: str(tmp_path / name) for name in ("model", "none")}
    places |= {"folder": str(tmp_path), "text": str(tmp_path / "text.png"), "bin": str(tmp_path / "adapter.bin")}
    monkeypatch.setattr(ablation, "search", lambda *_: pytest.fail("it was probed"))
    assert_refused(["probe", "-o", "{folder}/out", *words], message, places)
