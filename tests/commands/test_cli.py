"""The command line: what it makes, what it writes down, and how it ends."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hosts import content_encoder, write_adapter, write_checkpoint
from PIL import Image
from safetensors.torch import save_file
from unets import SD15_UNET, SDXL_UNET

from instantstyle import Style, tiny
from instantstyle.commands import cli, generate
from instantstyle.commands.options import option
from instantstyle.inference import models, recipe
from instantstyle.inference.session import Session
from instantstyle.version import __version__


ROOT = Path(__file__).parents[2]
REFERENCE = str(ROOT / "examples" / "reference.png")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def pictures(tmp_path) -> dict[str, str]:
    """Files to give to the command line, by name."""
    drawn = {
        "image": Image.effect_noise((64, 48), 120).convert("RGB"),
        "mask": Image.linear_gradient("L").resize((64, 48)).point(lambda shade: 255 * (shade > 127)),
        "large_mask": Image.new("L", (65, 48)),
        "control": Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB"),
        "other": Image.new("RGB", (40, 60), "green"),
        "dot": Image.new("RGB", (3, 3)),
    }
    for name, picture in drawn.items():
        picture.save(tmp_path / f"{name}.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "image.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("not a picture")
    return {path.stem: str(path) for path in tmp_path.glob("*.png")}


def run(*words: str, style: str = REFERENCE, out: Path) -> list[Path]:
    """Run `instantstyle generate` and return the files it made."""
    before = set(out.parent.iterdir())
    assert cli.main(["generate", "--style", style, "--steps", "2", "--seed", "0", "-o", str(out), *words]) == 0
    return sorted(set(out.parent.iterdir()) - before)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.int16)


@pytest.fixture
def paint(tmp_path):
    """Run `instantstyle generate` for one picture and return its pixels."""

    def paint(*words: str, **kwargs) -> np.ndarray:
        out = tmp_path / "painted" / "picture.png"
        out.parent.mkdir()
        (made,) = run(*words, out=out, **kwargs)
        found = pixels(made)
        made.unlink()
        out.parent.rmdir()
        return found

    return paint


def test_one_picture(tmp_path, capsys):
    out = tmp_path / "heart.png"
    assert run("a heart", "--content", "a star", out=out) == [out]
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert captured.err == ""
    with Image.open(out) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))


def test_words_that_the_world_does_not_know_are_told(tmp_path, capsys):
    run("a fluffy heart", "--negative", "lowres, striped", "--content", "a boat", out=tmp_path / "heart.png")
    warning = capsys.readouterr().err
    assert "does not know 'fluffy', 'lowres', 'boat'; it knows: a an and" in warning
    assert warning.count("\n") == 1


@pytest.mark.parametrize("judges", [True, False])
def test_a_retrained_world_is_known_by_its_judges(judges, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    for part in tiny.path().iterdir():
        if judges or part.name != "judges.safetensors":
            (folder / part.name).symlink_to(part)
    words = ["--model", str(folder), "--adapter", str(folder), "--content", "a boat"]
    run("a heart", *words, out=tmp_path / "heart.png")
    assert ("--model mine does not know 'boat'; it knows: a an and" in capsys.readouterr().err) == judges
    assert cli.main(["encode", REFERENCE, *words, "-o", str(tmp_path / "style.safetensors")]) == 0
    assert ("--model mine does not know 'boat'; it knows: a an and" in capsys.readouterr().err) == judges


def test_the_same_words_give_the_same_pixels_and_others_do_not(paint, pictures):
    words = ["a heart", "--content", "a star"]
    picture = paint(*words)
    assert (paint(*words) == picture).all()
    for change in (
        {"--seed": "1"},
        {"--steps": "3"},
        {"--guidance": "2"},
        {"--negative": "a circle"},
        {"--content": "a ring"},
        {"--content-scale": "0"},
        {"--content-scale": "auto"},
        {"--scale": "0.5"},
        {"--target-blocks": "layout"},
        {"--style": pictures["other"]},
    ):
        changed = paint(*words, *(word for item in change.items() for word in item))
        assert abs(changed - picture).max() > 0, change


@pytest.mark.parametrize(
    "words",
    [
        ["--target-blocks", "style"],
        ["--target-blocks", "style=1"],
        ["--target-blocks", "up_blocks.1.attentions.2"],  # where the embedded adapter's own preset puts it
        ["--target-blocks", "style=0.5", "--scale", "2"],
    ],
    ids=" ".join,
)
def test_ways_to_say_style(paint, words):
    assert (paint("a heart", *words) == paint("a heart")).all()


def test_several_target_blocks(paint):
    both = paint("a heart", "--target-blocks", "style,layout=0.5")
    assert (paint("a heart", "--target-blocks", "style", "--target-blocks", "layout=0.5") == both).all()
    assert abs(paint("a heart", "--target-blocks", "style,layout") - both).max() > 0
    assert abs(paint("a heart", "--target-blocks", "style") - both).max() > 0


def test_several_pictures_are_numbered_and_each_has_its_seed(tmp_path, paint):
    made = run("a heart", "a ring", "--num-images", "2", out=tmp_path / "many.png")
    assert [path.name for path in made] == [f"many-{index}.png" for index in range(4)]
    own = [recipe.read_recipe(path) for path in made]
    assert [each["prompt"] for each in own] == ["a heart", "a heart", "a ring", "a ring"]
    assert [each["seed"] for each in own] == [0, 1, 2, 3]
    for path, each in zip(made, own, strict=True):
        # A row of a batch is computed in another order, so a channel may be rounded the other way.
        assert abs(paint(each["prompt"], "--seed", str(each["seed"])) - pixels(path)).max() <= 1
    assert abs(pixels(made[0]) - pixels(made[1])).max() > 10


def words_of(found: dict) -> list[str]:
    """Say a recipe in the words of the command line."""
    words = [found["prompt"]]
    for name in ("content", "negative", "steps", "guidance", "scale", "seed", "dtype", "content_scale"):
        if found[name] is not None:
            words += [option(name), str(found[name])]
    words += ["--size", "{}x{}".format(*found["size"])]
    return [*words, "--target-blocks", ",".join(f"{name}={scale}" for name, scale in found["target_blocks"].items())]


def test_a_recipe_makes_the_same_picture_again_and_a_broken_one_does_not(tmp_path, paint):
    words = ["a heart", "--content", "a star", "--content-scale", "0.7", "--negative", "a circle", "--scale", "0.9"]
    (made,) = run(*words, "--target-blocks", "style,layout=0.5", "--size", "64x48", out=tmp_path / "one.png")
    found = recipe.read_recipe(made)
    assert found["size"] == [64, 48]
    assert (paint(*words_of(found)) == pixels(made)).all()
    for name, value in (("seed", 9), ("content_scale", "auto"), ("target_blocks", {"all": 1.0}), ("guidance", 3.0)):
        assert abs(paint(*words_of({**found, name: value})) - pixels(made)).max() > 0, name


def test_a_picture_is_painted_again_with_options_in_place_of_its_values(tmp_path, paint, pictures):
    words = ["a heart", "--content", "a star", "--content-scale", "0.7", "--image", pictures["image"]]
    (made,) = run(*words, "--steps", "4", out=tmp_path / "one.png", style=pictures["other"])

    def again(*changes: str) -> np.ndarray:
        assert cli.main(["generate", "--from", str(made), "-o", str(tmp_path / "again.png"), *changes]) == 0
        return pixels(tmp_path / "again.png")

    assert (again() == pixels(made)).all()
    assert recipe.read_recipe(tmp_path / "again.png") == recipe.read_recipe(made)
    for change in (
        ["--seed", "1"],
        ["--style", REFERENCE],
        ["--content-scale", "auto"],
        ["a ring"],
        ["--strength", "0.9"],
    ):
        expected = paint(*_changed([*words, "--steps", "4"], change), style=_styled(change, pictures["other"]))
        found = again(*change)
        assert (found == expected).all(), change
        assert abs(found - pixels(made)).max() > 0, change


def _changed(words: list[str], change: list[str]) -> list[str]:
    """Put a change in the place of what it changes."""
    if len(change) == 1:
        return [*change, *words[1:]]
    return words if change[0] == "--style" else [*words, *change]


def _styled(change: list[str], style: str) -> str:
    return change[1] if change[0] == "--style" else style


def test_a_recipe_finds_its_files_or_says_which(tmp_path, pictures, style_file, capsys):
    (made,) = run("a heart", "--content", "a star", out=tmp_path / "one.png", style=pictures["other"])
    Path(pictures["other"]).write_bytes(Path(REFERENCE).read_bytes())  # of the same name, but another
    asked = ["generate", "--from", str(made), "-o", str(tmp_path / "again.png")]
    assert cli.main(asked) == 2
    assert "--style: the recipe names other.png with the SHA-256" in capsys.readouterr().err
    assert cli.main([*asked, "--style", REFERENCE]) == 0
    assert cli.main([*asked, "--style", style_file, "--fast", "turbo"]) == 0  # encoded already, in its own few steps
    found = recipe.read_recipe(tmp_path / "again.png")
    assert (found["content"], found["target_blocks"], found["steps"]) == (None, None, 1)


@pytest.fixture(scope="module")
def style_file(tmp_path_factory) -> str:
    """The reference as a style file, less a star."""
    path = tmp_path_factory.mktemp("styles") / "boats.safetensors"
    words = ["encode", REFERENCE, "--content", "a star", "--content-scale", "0.5"]
    assert cli.main([*words, "--target-blocks", "all=2,layout=0.5", "--dtype", "float32", "-o", str(path)]) == 0
    return str(path)


def test_a_style_file_takes_the_place_of_its_reference(paint, style_file):
    settings = ["--content", "a star", "--content-scale", "0.5", "--target-blocks", "all=2,layout=0.5"]
    for words in (["a heart"], ["a heart", "--scale", "0.5"]):
        # The keys of one reference are computed in another order than those of a batch.
        picture = paint(*words, *settings)
        assert abs(paint(*words, style=style_file) - picture).max() <= 1
        assert abs(paint(*words) - picture).max() > 1


def test_the_recipe_of_a_picture_holds_the_recipe_of_its_style(tmp_path, style_file):
    (made,) = run("a heart", style=style_file, out=tmp_path / "heart.png")
    found = recipe.read_recipe(made)
    assert (found["adapter"], found["content"], found["target_blocks"]) == (None, None, None)
    assert found["style"]["file"] == "boats.safetensors"
    assert found["style"]["sha256"] == hashlib.sha256(Path(style_file).read_bytes()).hexdigest()
    assert found["style"]["recipe"]["sources"][0]["content"] == "a star"


def test_a_style_file_is_in_float16_unless_told_otherwise(tmp_path, paint, style_file):
    out = tmp_path / "half.safetensors"
    words = ["encode", REFERENCE, "--content", "a star", "--content-scale", "0.5", "-o", str(out)]
    assert cli.main([*words, "--target-blocks", "all=2,layout=0.5"]) == 0
    half, whole = Style.load(out), Style.load(style_file)
    assert (half.dtype, whole.dtype) == (torch.float16, torch.float32)
    assert half.recipe == whole.recipe
    assert half.recipe.dtype == "float32"
    rounded = whole.to(torch.float16)
    assert half.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(tensor, rounded.tensors[name]) for name, tensor in half.tensors.items())
    assert not all(torch.equal(tensor.float(), whole.tensors[name]) for name, tensor in half.tensors.items())
    paint("a heart", style=str(out))


def test_a_style_of_another_family_is_refused_before_the_model_is_loaded(tmp_path, style_file, monkeypatch, capsys):
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "unet" / "config.json").write_text(json.dumps(SD15_UNET))
    monkeypatch.setattr(Session, "_loaded", lambda *_: pytest.fail("it was loaded"))
    assert cli.main(["generate", "a heart", "--style", style_file, "--model", str(tmp_path / "model")]) == 2
    assert (
        "boats.safetensors is of the family sdxl, but --model model is of the family sd15" in capsys.readouterr().err
    )


def test_no_file_can_steer_the_terminal(tmp_path, capsys):
    path = tmp_path / "style.safetensors"
    header = b'{"a":{"dtype":"\\u001b[2J","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert cli.main(["show", str(path)]) == 2
    assert capsys.readouterr().err.removesuffix("\n").isprintable()
    assert cli.one_line(ValueError("a\x1b[2J\nstar\u202e")) == r"a\x1b[2J star\u202e"


def test_several_references_make_one_style_file(tmp_path, paint, pictures, capsys):
    out = str(tmp_path / "both.safetensors")
    assert cli.main(["encode", REFERENCE, pictures["other"], "--weights", "1,0", "-o", out]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    picture = paint("a heart")
    assert abs(paint("a heart", style=out) - picture).max() <= 1
    assert cli.main(["encode", REFERENCE, pictures["other"], "-o", out]) == 0
    assert abs(paint("a heart", style=out) - picture).max() > 1


def test_a_style_file_is_shown(style_file, capsys):
    assert cli.main(["show", style_file]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "family sdxl" in shown
    assert "'a star' 0.5" in shown
    assert "up_blocks.0.attentions.1 2 2 " in f"{shown} "
    assert "up_blocks.1.attentions.1 1 0.5" in shown
    assert f"torch {torch.__version__}" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["generate", "a heart", "--style", "FILE", "--content", "a star"], "--content is for a reference picture"),
        (["generate", "a heart", "--style", "FILE", "--target-blocks", "all"], "--target-blocks is for a reference"),
        (["generate", "a heart", "--style", "FILE", "--adapter", "tiny"], "--adapter is for a reference picture"),
        (["generate", "a heart", "--style", "none.safetensors"], "--style: none.safetensors: there is no such file"),
        (["generate", "a heart", "--style", "TORN"], "--style: "),
        (["show", "TORN"], "cannot be read as a style"),
        (["show", "none.safetensors"], "FILE: none.safetensors: there is no such file"),
        (["encode", REFERENCE, "-o", "style.png"], "--output: style.png does not end in .safetensors"),
        (["encode", REFERENCE, "-o", "none/style.safetensors"], "--output: the folder none does not exist"),
        (["encode", REFERENCE, "--weights", "1,2"], "--weights has 2 numbers for 1 pictures"),
        (["encode", REFERENCE, "--weights", "1,x"], "--weights: expected numbers with commas between, got '1,x'"),
        (["encode", REFERENCE, "--weights", "0"], "`weights` must be finite and have a sum above 0"),
        (["encode", "none.png"], "PICTURE: none.png"),
    ],
)
def test_wrong_words_about_styles_end_in_one_line(words, says, style_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(Path(style_file).read_bytes()[:300])
    words = [{"FILE": style_file, "TORN": str(torn)}.get(word, word) for word in words]
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [torn]


def test_a_drawn_seed_is_written_down(tmp_path, paint):
    out = tmp_path / "drawn.png"
    assert cli.main(["generate", "a heart", "--style", REFERENCE, "--steps", "2", "-o", str(out)]) == 0
    assert (paint("a heart", "--seed", str(recipe.read_recipe(out)["seed"])) == pixels(out)).all()


def test_the_recipe_is_whole_and_tells_no_local_path(tmp_path, pictures):
    words = ["a heart", "--image", pictures["image"], "--mask", pictures["mask"]]
    controlled = ["--controlnet", "tiny", "--control-image", pictures["control"]]
    (made,) = run(*words, *controlled, "--adapter", str(tiny.path()), out=tmp_path / "one.png")
    found = recipe.read_recipe(made)
    assert found["versions"]["instantstyle"] == __version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["pipeline"] == "StableDiffusionXLInstantStyleControlNetInpaintPipeline"
    assert (found["model"], found["controlnet"]) == ("tiny", "tiny")
    assert found["adapter"] == "tiny:sdxl_models/ip-adapter_sdxl.safetensors"
    assert [found[name]["file"] for name in ("style", "image", "mask", "control_image")] == [
        "reference.png",
        "image.png",
        "mask.png",
        "control.png",
    ]
    assert found["style"]["sha256"] != found["image"]["sha256"]
    assert isinstance(found["strength"], float)
    content = made.read_bytes()
    assert b"tEXtinstantstyle\0{" in content
    for folder in (tmp_path, ROOT, tiny.path().parent):
        assert str(folder).encode() not in content


@pytest.mark.parametrize(
    ("kind", "names", "size"),
    [
        ("", [], (64, 64)),
        ("Img2Img", ["image"], (64, 48)),
        ("Inpaint", ["image", "mask"], (64, 48)),
        ("ControlNet", ["control"], (64, 64)),
        ("ControlNetImg2Img", ["image", "control"], (64, 48)),
        ("ControlNetInpaint", ["image", "mask", "control"], (64, 48)),
    ],
)
def test_the_pictures_choose_the_pipeline(kind, names, size, tmp_path, pictures):
    given = {"image": ["--image"], "mask": ["--mask"], "control": ["--controlnet", "tiny", "--control-image"]}
    words = ["a heart", "--content", "a star", "--steps", "4"]
    for name in names:
        words += [*given[name], pictures[name]]
    (plain,) = run(*words, out=tmp_path / "plain.png")
    (large,) = run(*words, "--size", "72x64", out=tmp_path / "large.png")
    assert recipe.read_recipe(plain)["pipeline"] == f"StableDiffusionXLInstantStyle{kind}Pipeline"
    assert Image.open(plain).size == size
    assert Image.open(large).size == (72, 64)
    for name in names:
        (other,) = run(*words, *given[name], swapped(pictures[name]), out=tmp_path / f"other-{name}.png")
        assert abs(pixels(other) - pixels(plain)).max() > 0, name


def swapped(path: str) -> str:
    """Turn a picture upside down, in a file of its own."""
    other = path.replace(".png", "-swapped.png")
    Image.open(path).rotate(180).save(other)
    return other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["generate", "a heart"], "--style: needed, unless --from names a picture"),
        (["generate", "--style", "{image}"], "PROMPT: needed, unless --from names a picture"),
        (["generate", "--from", "{image}"], "--from: `path` {image} holds no recipe"),
        (["generate", "--from", "{none}"], "--from: "),
        (["generate", "a heart", "--style", "{none}"], "--style: {none}: No such file"),
        (["generate", "a heart", "--style", "{text}"], "--style: {text} is not a picture that can be read"),
        (["generate", "a heart", "--style", "{torn}"], "--style: {torn} is not a picture that can be read"),
        (["generate", "a heart", "--style", "{folder}"], "--style: {folder}: Is a directory"),
        (["+", "--image", "{none}"], "--image: {none}: No such file"),
        (["+", "--image", "{dot}"], "--image is smaller than 8 pixels"),
        (["+", "--mask", "{mask}"], "--mask needs --image"),
        (["+", "--image", "{image}", "--mask", "{large_mask}"], "--mask is 65x48 pixels, but --image is 64x48"),
        (["+", "--strength", "0.5"], "--strength needs --image"),
        (["+", "--image", "{image}", "--strength", "1.5"], "--strength: expected a number from 0 to 1, got '1.5'"),
        (["+", "--controlnet", "tiny"], "--controlnet needs --control-image"),
        (["+", "--control-image", "{control}"], "--control-image needs --controlnet"),
        (["+", "--controlnet-scale", "1"], "--controlnet-scale needs --control-image"),
        (["+", "--controlnet", "{folder}", "--control-image", "{control}"], "--controlnet: {folder}: "),
        (["+", "--size", "65"], "--size: expected WxH or N in multiples of 8 pixels, got '65'"),
        (["+", "--size", "64x64x64"], "--size: expected WxH"),
        (["+", "--size", "64x"], "--size: expected WxH"),
        (["+", "--size", "0"], "--size: expected WxH"),
        (["+", "--steps", "0"], "--steps: expected a whole number above 0, got '0'"),
        (["+", "--num-images", "-1"], "--num-images: expected"),
        (["+", "--seed", "x"], "--seed: expected a whole number"),
        (["+", "--guidance", "nan"], "--guidance: expected a number, got 'nan'"),
        (["+", "--scale", "much"], "--scale: expected a number, got 'much'"),
        (["+", "--content", "a star", "--content-scale", "most"], '--content-scale: expected a number or "auto", got'),
        (["+", "--target-blocks", "sytle"], "names 'sytle'"),
        (["+", "--target-blocks", "up_blocks.7"], "names 'up_blocks.7'"),
        (["+", "--target-blocks", "style,,layout"], "--target-blocks: expected NAME or NAME=SCALE"),
        (["+", "--target-blocks", "style=x"], "--target-blocks: expected NAME or NAME=SCALE"),
        (["+", "-o", "{folder}/heart.jpg"], "does not end in .png"),
        (["+", "-o", "{folder}/none/heart.png"], "none does not exist"),
        (["+", "--model", "nothing"], "--model: 'nothing' is not a folder or file here"),
        (["+", "--model", "{folder}"], "--model: {folder} has no unet/config.json"),
        (["+", "--model", "{text}"], "--model: text.png is not a .safetensors file"),
        (["+", "--adapter", "nothing"], "--adapter: 'nothing' is not a folder or file here"),
        (["+", "--adapter", "{folder}"], "--adapter: {folder} has no sdxl_models/ip-adapter_sdxl.safetensors"),
        (["+", "--adapter", "{folder}:a/b.bin"], "--adapter: {folder} has no a/b.bin"),
        (["+", "--adapter", "{image}"], "--adapter: {image} is no file of weights"),
        (["+", "--content", " "], "--content: expected words (leave it out to remove nothing), got ' '"),
        (["+", "--contnet", "a star"], "unrecognized arguments: --contnet a star; see instantstyle --help"),
        (["encode", "{image}", "--content", ""], "--content: expected words (leave it out to remove nothing)"),
        (["+", "--content", "a star", "--content-encoder", "{folder}"], "--content-encoder: {folder}: "),
        (["+", "--device", "abacus"], "--device: 'abacus' cannot be used here"),
        (["+", "--device", "cpu", "--offload", "model"], "--offload model needs an accelerator"),
        (["+", "--dtype", "int8"], "--dtype: expected 'float32', 'float16' or 'bfloat16', got 'int8'"),
        (["blocks", "--model", "nothing"], "--model: 'nothing' is not a folder or file here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(words, message, tmp_path, pictures, capsys):
    places = {**pictures, "folder": str(tmp_path), "none": str(tmp_path / "none.png")}
    out = tmp_path / "out.png"
    if words[:1] == ["+"]:
        words = ["generate", "a heart", "--style", REFERENCE, "-o", str(out), *words[1:]]
    before = set(tmp_path.rglob("*"))
    assert cli.main([word.format(**places) for word in words]) == 2
    captured = capsys.readouterr()
    last = captured.err
    assert last.startswith("instantstyle: error: ")
    assert last.count("\n") == 1
    assert message.format(**places) in last
    assert captured.out == ""
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("model", "adapter"), [(SD15_UNET, None), (SDXL_UNET, "owner/name:sdxl_models/ip-adapter_sdxl_vit-h.safetensors")]
)
def test_content_wants_the_text_tower_of_its_adapter(model, adapter, tmp_path, capsys):
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "unet" / "config.json").write_text(json.dumps(model))
    words = ["generate", "a heart", "--style", REFERENCE, "--content", "a star", "-o", str(tmp_path / "x.png")]
    words += ["--model", str(tmp_path / "model"), *(["--adapter", adapter] if adapter else [])]
    assert cli.main(words) == 2
    assert "needs --content-encoder" in capsys.readouterr().err


def test_sd15_with_its_content_encoder(tmp_path, paint):
    model = write_checkpoint(tmp_path / "model", "sd15")
    folder, subfolder, file = write_adapter(tmp_path / "adapter", "sd15")
    for part in content_encoder():
        part.save_pretrained(tmp_path / "tower")
    words = ["a heart", "--model", model, "--adapter", f"{folder}:{subfolder}/{file}"]
    words += ["--content-encoder", str(tmp_path / "tower"), "--guidance", "2"]
    (made,) = run(*words, "--content", "a star", out=tmp_path / "one.png")
    found = recipe.read_recipe(made)
    assert found["pipeline"] == "StableDiffusionInstantStylePipeline"
    assert (found["model"], found["adapter"]) == ("model", "adapter:models/ip-adapter_sd15.safetensors")
    assert found["content_encoder"] == "tower"
    assert abs(paint(*words) - pixels(made)).max() > 0


def test_an_adapter_in_a_file(tmp_path, paint):
    folder = tmp_path / "adapter"
    shutil.copytree(tiny.path() / "sdxl_models", folder)
    (folder / "ip-adapter_sdxl.safetensors").rename(folder / "mine.safetensors")
    assert (paint("a heart", "--adapter", str(folder / "mine.safetensors")) == paint("a heart")).all()
    assert (paint("a heart", "--adapter", f"{folder}:mine.safetensors") == paint("a heart")).all()


@pytest.mark.parametrize(
    ("text", "family", "source", "file", "encoder"),
    [
        (None, "sdxl", "h94/IP-Adapter", "sdxl_models/ip-adapter_sdxl.safetensors", "image_encoder"),
        (None, "sd15", "h94/IP-Adapter", "models/ip-adapter_sd15.safetensors", "image_encoder"),
        ("a/b", "sdxl", "a/b", "sdxl_models/ip-adapter_sdxl.safetensors", "image_encoder"),
        ("a/b:c/d.bin", "sdxl", "a/b", "c/d.bin", "image_encoder"),
        ("a/b:d.bin", "sd15", "a/b", "d.bin", "image_encoder"),
        (
            "h94/IP-Adapter:sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
            "sdxl",
            "h94/IP-Adapter",
            "sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
            "models/image_encoder",
        ),
    ],
)
def test_where_adapters_are(text, family, source, file, encoder):
    adapter = models.find_adapter(text, models.Model("owner/name", "owner/name", family, False, {}))
    assert (adapter.source, adapter.label) == (source, f"{source}:{file}")
    assert "/".join(filter(None, (adapter.subfolder, adapter.weight_name))) == file
    assert adapter.image_encoder_folder == encoder


def test_a_model_that_has_an_adapter_brings_it(tmp_path):
    model = models.Model(str(tmp_path), "mine", "sdxl", False, {})
    assert models.find_adapter(None, model).source == models.ADAPTER_REPOSITORY
    (tmp_path / "sdxl_models").mkdir()
    (tmp_path / "sdxl_models" / "ip-adapter_sdxl.safetensors").touch()
    assert models.find_adapter(None, model).source == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "family"), [("conditioner.embedders.0.x", "sdxl"), ("cond_stage_model.transformer.x", "sd15")]
)
def test_the_family_of_a_single_file(name, family, tmp_path, monkeypatch):
    save_file({name: torch.zeros(1)}, tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(models, "read_unet_config", lambda source: asked.append(source) or {})
    model = models.find_model(str(tmp_path / "model.safetensors"))
    assert (model.family, model.label, model.single_file) == (family, "model.safetensors", True)
    assert asked == [models.BASE_REPOSITORIES[family]]


def test_a_single_file_that_is_no_safetensors(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_text("not one")
    assert cli.main(["blocks", "--model", str(tmp_path / "model.safetensors")]) == 2
    assert "model.safetensors is not a safetensors file" in capsys.readouterr().err


def test_an_interrupt(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "run", interrupt)
    assert cli.main(["generate", "a heart", "--style", REFERENCE]) == 130
    assert capsys.readouterr().err == "instantstyle: interrupted\n"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def fail(options):
        raise TypeError("a bug")

    monkeypatch.setattr(generate, "run", fail)
    with pytest.raises(TypeError):
        cli.main(["generate", "a heart", "--style", REFERENCE])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "heart.png"
    path.write_text("old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(recipe.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
        recipe.write_recipe(Image.new("RGB", (8, 8)), path, {})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_recipes_keep_every_letter(tmp_path):
    kept = {"prompt": 'ein "Herz" 心 \n', "scale": 0.1}
    recipe.write_recipe(Image.new("RGB", (8, 8)), tmp_path / "heart.png", kept)
    assert recipe.read_recipe(tmp_path / "heart.png") == kept


def test_a_file_without_a_recipe():
    with pytest.raises(ValueError, match="holds no recipe"):
        recipe.read_recipe(REFERENCE)


def blocks(tmp_path: Path, capsys, unet: dict) -> str:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(unet))
    assert cli.main(["blocks", "--model", str(tmp_path)]) == 0
    return re.sub(" +", " ", capsys.readouterr().out)


def test_blocks_of_sdxl_from_its_configuration_alone(tmp_path, capsys):
    table = blocks(tmp_path, capsys, SDXL_UNET)
    assert "up_blocks.0.attentions.1 10 52,428,800 104.86\n" in table
    assert "down_blocks.1.attentions.0 2 5,242,880 10.49\n" in table
    assert "total 70 340,787,200 681.57\n" in table
    assert "style up_blocks.0.attentions.1\n" in table
    assert "layout down_blocks.2.attentions.1\n" in table
    assert "all every block\n" in table


def test_blocks_of_a_model_with_an_adapter_are_those_that_it_carries(capsys):
    """They are in force where nothing else is asked for: the embedded one's are not SDXL's."""
    assert cli.main(["blocks"]) == 0
    table = re.sub(" +", " ", capsys.readouterr().out)
    assert "style up_blocks.1.attentions.2\n" in table
    assert "layout up_blocks.1.attentions.1\n" in table
    assert "style+layout up_blocks.1.attentions.1, up_blocks.1.attentions.2\n" in table
    assert "up_blocks.0.attentions.1\n" not in table


def test_blocks_of_sd15_from_its_configuration_alone(tmp_path, capsys):
    table = blocks(tmp_path, capsys, SD15_UNET)
    assert len(re.findall(r"^\w+\.?\d?\.attentions\.\d 1 ", table, re.MULTILINE)) == 16
    assert "style up_blocks.1.attentions.0, up_blocks.1.attentions.1, up_blocks.1.attentions.2\n" in table


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"instantstyle {__version__}\n"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from instantstyle.commands import cli\n"
        "try: cli.main(['generate', '--help'])\n"
        "except SystemExit: print({'torch', 'diffusers', 'transformers', 'PIL', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_nothing_imports_the_command_line_but_the_program():
    using = re.compile(r"import cli\b|\.cli\b")
    sources = [ROOT / "pipeline_instantstyle.py", *(ROOT / "instantstyle").rglob("*.py")]
    assert [path.name for path in sources if using.search(path.read_text(encoding="utf-8"))] == ["__main__.py"]


def test_as_a_program(tmp_path):
    words = ["generate", "a heart", "--style", REFERENCE, "--steps", "1", "-o", str(tmp_path / "heart.png")]
    done = subprocess.run([sys.executable, "-m", "instantstyle", *words], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert Image.open(tmp_path / "heart.png").size == (64, 64)


def test_the_readmes_first_code(monkeypatch):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line]) <= 6
    here = {
        "stabilityai/stable-diffusion-xl-base-1.0": str(tiny.path()),
        "h94/IP-Adapter": str(tiny.path()),
        "examples/reference.png": REFERENCE,
        "torch.float16": "torch.float32",
        '"cuda"': '"cpu"',
    }
    for real, small in here.items():
        assert real in code
        code = code.replace(real, small)
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture))
    exec(compile(code, "README.md", "exec"), {})
    assert [picture.size for picture in shown] == [(64, 64)]
