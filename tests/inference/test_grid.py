"""Contact sheets and `instantstyle grid`: where everything is, and that every cell is what the pipeline makes."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from instantstyle import tiny
from instantstyle.commands import cli
from instantstyle.commands.grid import spread
from instantstyle.inference import grid, sheet
from instantstyle.inference.inputs import open_picture
from instantstyle.inference.recipe import read_recipe
from instantstyle.inference.request import Request
from instantstyle.inference.session import Painting, Session
from instantstyle.inference.sheet import Sheet
from instantstyle.tiny import world


PROMPTS = ["a heart", "a star"]
METHODS = {"no reference": None, "plain": "all", "up_blocks.1,mid_block=0.5": {"up_blocks.1": 1.0, "mid_block": 0.5}}
LONG = "a picture of a striped shape on a lilac background, up_blocks.0.attentions.1+up_blocks.1.attentions.2=0.25"


def shades(rows: int, columns: int, size: tuple[int, int] = (64, 48)) -> list[list[Image.Image]]:
    """Make pictures of noise, no two alike."""
    noise = np.random.default_rng(0).integers(0, 256, (rows, columns, size[1], size[0], 3), dtype=np.uint8)
    return [[Image.fromarray(picture) for picture in row] for row in noise]


def boxes(made: Sheet) -> tuple[list[sheet.Box], list[sheet.Box]]:
    """Return where the cells and the labels of a sheet are."""
    rows, columns = range(len(made.rows)), range(len(made.columns))
    labels = [*map(made.column_box, columns), *map(made.row_box, rows)]
    return [made.box(row, column) for row in rows for column in columns], labels


def apart(first: sheet.Box, second: sheet.Box) -> bool:
    return first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=np.int16)


def test_a_cell_is_its_picture_enlarged_by_a_whole_number():
    pictures = shades(2, 3)
    made = Sheet(pictures, columns=["one", LONG, "three"], rows=["a heart", LONG * 2])
    drawn = made.draw()
    assert made.factor == 2
    assert drawn.size == made.size
    for row, column in np.ndindex(2, 3):
        shown = pixels(drawn.crop(made.box(row, column)))
        assert (shown[::2, ::2] == pixels(pictures[row][column])).all()
        assert (shown[1::2, 1::2] == pixels(pictures[row][column])).all()
    swapped = Sheet(pictures[::-1], columns=made.columns, rows=made.rows).draw()
    assert (pixels(swapped) != pixels(drawn)).any()


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (100, 40), (512, 512)])
@pytest.mark.parametrize("columns", [["a", ""], [LONG, "x" * 200], ["two\nlines", "W" * 30]])
def test_labels_are_whole_and_overlap_nothing(size, columns):
    blank = Image.new("RGB", size, "white")
    made = Sheet([[blank] * 2] * 3, columns=columns, rows=["a heart", LONG * 3, ""])
    width, height = made.size
    cells, labels = boxes(made)
    for left, top, right, bottom in cells + labels:
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height
    assert all(apart(*pair) for pair in combinations(cells + labels, 2))
    ink = pixels(made.draw()).min(axis=2) < 255
    assert ink.any()
    for left, top, right, bottom in labels:
        ink[top:bottom, left:right] = False
    assert not ink.any()


@pytest.mark.parametrize("text", ["", "a heart", LONG, "W" * 100, "two\nlines", "  a  star "])
def test_wrapping_loses_no_letter_and_fits(text):
    font = ImageFont.load_default(14)
    lines = sheet.wrap(text, 100, font)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(font.getlength(line) <= 100 for line in lines)


def test_names_of_blocks_break_after_their_signs():
    assert sheet.wrap("up_blocks.0.attentions.1", 128, ImageFont.load_default(14)) == ["up_blocks.0.", "attentions.1"]


def test_letters_grow_with_the_pictures():
    heights = [
        Sheet([[Image.new("L", (side, side))]], columns=["a"], rows=["b"]).row_box(0) for side in (64, 128, 1024)
    ]
    small, same, large = (bottom - top for _, top, _, bottom in heights)
    assert small == same < large / 2


def test_a_smaller_picture_stands_in_the_middle():
    (wide, small), tall = shades(1, 2, (64, 64))[0], Image.new("RGB", (32, 64), "red")
    made = Sheet([[wide, tall], [small, wide]], columns=["a", "b"], rows=["c", "d"])
    shown = pixels(made.draw().crop(made.box(0, 1)))
    assert (shown[:, 32:96] == (255, 0, 0)).all()
    assert (shown[:, :32] == 255).all()
    assert (shown[:, 96:] == 255).all()


@pytest.mark.parametrize(
    ("cells", "columns", "rows", "message"),
    [
        ([], [], [], "`cells` holds no pictures"),
        ([[]], [], ["a"], "`cells` holds no pictures"),
        (shades(2, 2), ["a"], ["c", "d"], "`columns` has 1 labels"),
        (shades(2, 2), ["a", "b"], ["c"], "`rows` has 1 labels"),
        ([*shades(1, 2), *shades(1, 3)], ["a", "b"], ["c", "d"], r"\[2, 3\] pictures"),
    ],
)
def test_a_wrong_number_of_cells_is_refused(cells, columns, rows, message):
    with pytest.raises(ValueError, match=message):
        Sheet(cells, columns=columns, rows=rows)


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> list[str]:
    """Write two references that differ in everything."""
    folder = tmp_path_factory.mktemp("references")
    for number, reference in enumerate(grid.draw_references()[:2]):
        reference.image.save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(2)]


def make(out: Path, references: list[str], *words: str) -> Path:
    """Run `instantstyle grid` with one step."""
    given = ["--reference", *references, "--prompt", *PROMPTS, "--method", *METHODS]
    assert cli.main(["grid", *given, "--steps", "1", "--device", "cpu", "-o", str(out), *words]) == 0
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory, references) -> Path:
    return make(tmp_path_factory.mktemp("made") / "grid.png", references, "--scale", "0.8", "--seed", "3")


def paint(pipe, prompt: str, reference: str, targets, **arguments) -> np.ndarray:
    """Make one picture the way a user would."""
    arguments = {"num_inference_steps": 1, "guidance_scale": 5.0, **arguments}
    if targets is not None:
        pipe.set_target_blocks(targets, scale=0.8)
        arguments["ip_adapter_image"] = Image.open(reference)
    return pixels(pipe(prompt, generator=torch.Generator().manual_seed(3), **arguments).images[0])


def cut(path: Path, row: int, column: int, rows: int = 4, columns: int = 4) -> np.ndarray:
    """Cut one cell out of a grid, at its picture's own size."""
    shown = read_recipe(path)
    labels = [prompt for _ in shown["references"] for prompt in shown["prompts"]]
    plan = Sheet(
        [[Image.new("RGB", (64, 64))] * columns] * rows, columns=["reference", *shown["methods"]], rows=labels
    )
    with Image.open(path) as picture:
        assert picture.size == plan.size
        return pixels(picture.crop(plan.box(row, column)))[:: plan.factor, :: plan.factor]


def test_every_cell_is_what_the_pipeline_makes(made, pipe, references):
    rows = [(reference, prompt) for reference in references for prompt in PROMPTS]
    found = {}
    for row, (reference, prompt) in enumerate(rows):
        assert (cut(made, row, 0) == pixels(Image.open(reference))).all()
        for column, targets in enumerate(METHODS.values(), start=1):
            found[row, column] = cut(made, row, column)
            assert (found[row, column] == paint(pipe, prompt, reference, targets)).all(), (row, column)
    # So swapped rows or columns would have been found: all cells differ, but those without a reference.
    for first, second in combinations(found, 2):
        twins = first[1] == second[1] == 1 and first[0] % 2 == second[0] % 2
        assert (found[first] == found[second]).all() == twins, (first, second)


def test_the_same_command_gives_the_same_bytes(made, references, tmp_path):
    again = make(tmp_path / "grid.png", references, "--scale", "0.8", "--seed", "3")
    assert again.read_bytes() == made.read_bytes()


def test_the_recipe_is_whole_and_tells_no_local_path(made, references):
    found = read_recipe(made)
    assert (found["model"], found["adapter"]) == ("tiny", "tiny:sdxl_models/ip-adapter_sdxl.safetensors")
    assert [reference["file"] for reference in found["references"]] == ["0.png", "1.png"]
    assert found["references"][0]["sha256"] != found["references"][1]["sha256"]
    assert found["prompts"] == PROMPTS
    assert found["methods"]["plain"] == {"all": 1.0}
    assert (found["scale"], found["seed"], found["steps"], found["guidance"]) == (0.8, 3, 1, 5.0)
    for place in (*references, str(made.parent), str(tiny.path())):
        assert str(Path(place).parent).encode() not in made.read_bytes()


def test_each_reference_has_its_content(session, pipe, references):
    pictures = [open_picture("--reference", references[0])] * 3
    base = Request(prompt="", seed=3, steps=1, guidance=5.0, scale=0.8, content_scale=0.5)
    contents = ("a ring", "a square", None)
    rows = grid.requests(base, pictures, contents, ["a heart"], [(("all", 1.0),)])
    painted = [pixels(row[0].image) for row in grid.paint(session, rows)]
    removed = {"neg_content_prompt": "a ring", "neg_content_scale": 0.5}
    assert (painted[0] == paint(pipe, "a heart", references[0], "all", **removed)).all()
    assert all((first != second).any() for first, second in combinations(painted, 2))
    assert spread(["a ring"], 2) == ["a ring", "a ring"]
    assert spread(["a ring", "a square"], 2) == ["a ring", "a square"]


def test_cells_that_are_equal_are_painted_once(session, references, monkeypatch):
    asked, original = [], Session.paint
    monkeypatch.setattr(Session, "paint", lambda *given: asked.extend(given[1]) or original(*given))
    pictures = [open_picture("--reference", path) for path in (*references, references[0])]
    base = Request(prompt="", seed=3, steps=1)
    methods = [None, (("all", 1.0),)]
    rows = grid.requests(base, pictures, [None] * 3, ["a heart"], methods)
    painted = grid.paint(session, rows)
    assert len(asked) == 3  # one without a reference, and two references
    assert painted[0][0] is painted[1][0] and painted[0][1] is painted[2][1] is not painted[1][1]


def test_the_worlds_own_references_and_prompts():
    drawn = grid.draw_references()
    assert [one.written for one in grid.draw_references()] == [one.written for one in drawn]
    words = [word for one in drawn for word in one.written["drawn"].values()]
    assert len(drawn) == grid.DRAWN
    assert len(set(words)) == len(words) == 4 * grid.DRAWN
    prompted = " ".join(grid.PROMPTS)
    assert not set(words) & set(prompted.split())
    assert not world.unknown_words(" ".join([*words, prompted]))


def test_the_default_needs_no_arguments(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = []

    def paint(session, cells, progress):
        asked.extend(cells)
        return [[Painting(Image.new("RGB", (64, 64)), {}) for _ in row] for row in cells]

    monkeypatch.setattr(grid, "paint", paint)
    assert cli.main(["grid"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("grid.png\n", "")
    assert [cell.prompt for row in asked for cell in row] == [p for p in grid.PROMPTS for _ in range(3)] * 3
    assert [bool(cell.style) for cell in asked[0]] == [False, True, True]
    assert [cell.target_blocks for cell in asked[0][1:]] == [(("all", 1.0),), (("style", 1.0),)]


def test_a_wide_sheet_has_a_row_for_each_reference(references, tmp_path, monkeypatch):
    """And the same pictures as one with a row for each prompt."""
    painted = [[Painting(picture, {}) for picture in row] for row in shades(4, 3, (64, 64))]
    monkeypatch.setattr(grid, "paint", lambda *_: painted)
    make(tmp_path / "tall.png", references)
    make(tmp_path / "wide.png", references, "--wide")
    tall = [[cut(tmp_path / "tall.png", row, column) for column in range(4)] for row in range(4)]
    columns = ["reference", *(f"{method}\n{prompt}" for method in METHODS for prompt in PROMPTS)]
    plan = Sheet([[Image.new("RGB", (64, 64))] * 7] * 2, columns=columns, rows=["", ""])
    with Image.open(tmp_path / "wide.png") as picture:
        assert picture.size == plan.size
        wide = [[pixels(picture.crop(plan.box(row, column)))[::2, ::2] for column in range(7)] for row in range(2)]
    for row, column in np.ndindex(2, 7):
        method, prompt = divmod(column - 1, 2) if column else (-1, 0)
        assert (wide[row][column] == tall[2 * row + prompt][1 + method]).all(), (row, column)
    assert (wide[0][1] != wide[0][2]).any() and (wide[0][1] != wide[1][1]).any()  # no two alike that could be swapped


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "{folder}/none.png"], "--reference: {folder}/none.png: No such file"),
        (["--reference", "{text}"], "--reference: {text} is not a picture"),
        (["--method", "plain", "sytle"], "names 'sytle'"),
        (["--method", "up_blocks.7"], "names 'up_blocks.7'"),
        (["--method", "style=x"], "--method: expected NAME or NAME=SCALE"),
        (["--method", "style,,layout"], "--method: expected NAME or NAME=SCALE"),
        (
            ["--content", "a ring", "a star"],
            "--content: expected one text, or one for each of the 3 references, got 2",
        ),
        (["--model", "{model}"], "--reference and --prompt: needed with --model model"),
        (["--model", "{model}", "--prompt", "a heart"], "--reference: needed with --model model"),
        (["-o", "{folder}/grid.jpg"], "does not end in .png"),
        (["-o", "{folder}/none/grid.png"], "none does not exist"),
        (["-o", "{text}/grid.png"], "text.png does not exist"),
        (["--steps", "0"], "--steps: expected a whole number above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_anything_is_painted(words, message, tmp_path, monkeypatch, assert_refused):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "unet").symlink_to(tiny.path() / "unet")
    (tmp_path / "model" / "sdxl_models").symlink_to(tiny.path() / "sdxl_models")
    places = {"folder": str(tmp_path), "text": str(tmp_path / "text.png"), "model": str(tmp_path / "model")}
    monkeypatch.setattr(grid, "paint", lambda *_: pytest.fail("it was painted"))
    assert_refused(["grid", "-o", "{folder}/grid.png", *words], message, places)
