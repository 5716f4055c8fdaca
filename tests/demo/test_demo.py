"""The demo: its studio, its library, and what `gradio_client` reaches of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import differ
from demos import MACHINE, REFERENCE, ROOT, served
from PIL import Image, ImageDraw

import pipeline_instantstyle
from instantstyle import Style
from instantstyle.commands import cli
from instantstyle.demo.actions import DAY, Actions, message
from instantstyle.demo.library import Library
from instantstyle.demo.preview import previews
from instantstyle.demo.reading import needed, read_recipe, read_request, read_requests, read_start, write_request
from instantstyle.demo.studio import NO_REFERENCE, OURS, PLAIN, Step, Studio
from instantstyle.inference import recipe, session
from instantstyle.inference.edges import find_edges
from instantstyle.inference.grid import METHODS
from instantstyle.inference.inputs import open_picture
from instantstyle.inference.request import Reference, Request
from instantstyle.inference.session import Session
from instantstyle.inference.values import Picture, as_given


STEPS = 3
ONE_LEVEL = 1 / 255  # what is computed in another order may be rounded the other way


@pytest.fixture(scope="module")
def studio() -> Studio:
    """Load the studio on the embedded checkpoint."""
    return Studio(MACHINE)


@pytest.fixture(scope="module")
def other_file(tmp_path_factory) -> Path:
    """A second reference."""
    path = tmp_path_factory.mktemp("pictures") / "other.png"
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(path)
    return path


def asked(*references: Path, **changes) -> Request:
    """Ask for a heart in the style of references, by default of one."""
    given = tuple(Reference(open_picture("Reference", str(path))) for path in references or [REFERENCE])
    defaults = {"prompt": "a heart", "size": (64, 64), "style": given, "steps": STEPS, "guidance": 3.5, "seed": 5}
    return Request(**{**defaults, **changes})


def plain(studio: Studio) -> Any:
    """The pipeline without pictures to start from."""
    return studio.session.pipeline(asked())


def levels(picture: Image.Image) -> np.ndarray:
    """A picture's values from 0 to 1."""
    return np.asarray(picture.convert("RGB"), dtype=np.float64) / 255


def painted(studio: Studio, request: Request) -> np.ndarray:
    """Paint one picture."""
    (painting,) = studio.paint([request])
    return levels(painting.image)


def half(side: str) -> Picture:
    """A mask of one half."""
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle({"left": (0, 0, 31, 63), "right": (32, 0, 63, 63)}[side], fill=255)
    return Picture(f"{side}.png", hashlib.sha256(mask.tobytes()).hexdigest(), mask)


def shaded(level: int) -> Picture:
    """A mask of one shade."""
    return Picture("mask.png", f"{level:064}", Image.new("L", (64, 64), level))


def small() -> Picture:
    """The reference as large as the masks."""
    with Image.open(REFERENCE) as picture:
        return as_given(picture.resize((64, 64), Image.Resampling.LANCZOS))


# The studio


def test_the_studio_paints_what_the_command_line_paints(studio, tmp_path):
    request = asked(content="a star", content_scale=0.5, scale=0.8, target_blocks=(("style", 1.0), ("layout", 0.3)))
    out = tmp_path / "heart.png"
    words = f"--steps {STEPS} --guidance 3.5 --seed 5 --content-scale 0.5 --scale 0.8 --target-blocks style,layout=0.3"
    words = ["generate", "a heart", "--style", str(REFERENCE), "--content", "a star", *words.split()]
    assert cli.main([*words, "--device", "cpu", "-q", "-o", str(out)]) == 0
    (painting,) = studio.paint([request])
    with Image.open(out) as picture:
        assert (levels(picture) == levels(painting.image)).all()
        # The demo always names the size, which the command line leaves to the model here.
        assert recipe.read_recipe(out) == json.loads(json.dumps({**painting.recipe, "asked_size": None}))
        for change in ({"seed": 6}, {"scale": 0.7}, {"content": None}, {"target_blocks": "all"}):
            assert differ(painted(studio, request.but(**change)), levels(picture)), change


def test_a_comparison_is_of_the_host_the_plain_adapter_and_the_settings(studio):
    request = asked(content="a star")
    compared = studio.compare(request)
    assert tuple(compared) == METHODS
    found = {name: levels(one.image) for name, one in compared.items()}
    generator = [torch.Generator().manual_seed(5)]
    arguments = {"num_inference_steps": STEPS, "guidance_scale": 3.5, "generator": generator}
    host = plain(studio)(["a heart"], **arguments, width=64, height=64).images[0]
    assert (levels(host) == found[NO_REFERENCE]).all()
    assert (painted(studio, asked(target_blocks="all")) == found[PLAIN]).all()
    assert (painted(studio, request) == found[OURS]).all()
    assert differ(found[NO_REFERENCE], found[OURS])
    assert differ(found[PLAIN], found[OURS])


def test_other_blocks_and_scales_load_nothing(studio, monkeypatch):
    for loader in (Session, "_loaded"), (Session, "_load_adapter"), (pipeline_instantstyle.AdapterFile, "read"):
        monkeypatch.setattr(*loader, lambda *_: pytest.fail("something was loaded"))
    parts = {id(module) for module in pipeline_instantstyle.modules(plain(studio)).values()}
    pictures = [
        painted(studio, asked(target_blocks=((name, scale),)))
        for name, scale in (("style", 1.0), ("layout", 1.0), ("all", 0.5), ("up_blocks.0", 1.0))
    ]
    assert all(differ(one, other) for n, one in enumerate(pictures) for other in pictures[:n])
    assert {id(module) for module in pipeline_instantstyle.modules(plain(studio)).values()} == parts


def test_pipelines_share_their_parts_and_a_controlnet_runs_only_with_a_picture(studio):
    runs = []
    handle = studio.session.pipe.controlnet.register_forward_hook(lambda *_: runs.append(1))
    star = small()
    try:
        without = painted(studio, asked())
        started = painted(studio, asked(image=star, strength=0.7))
        repainted = painted(studio, asked(image=star, mask=half("left"), strength=0.7))
        assert runs == []
        controlled = painted(studio, asked(control_image=star, edges=True, controlnet_scale=1.0))
        assert len(runs) == STEPS
        muted = painted(studio, asked(control_image=star, edges=True, controlnet_scale=0.0))
    finally:
        handle.remove()
    names = {re.sub("StableDiffusionXLInstantStyle|Pipeline", "", name) for name in studio.session._pipes}
    assert names >= {"", "Img2Img", "Inpaint", "ControlNet"}
    assert {id(pipe.unet) for pipe in studio.session._pipes.values()} == {id(studio.session.pipe.unet)}
    assert np.abs(muted - without).max() <= ONE_LEVEL
    pictures = [without, started, repainted, controlled]
    assert all(differ(one, other) for n, one in enumerate(pictures) for other in pictures[:n])


def test_a_picture_to_start_from_stays_where_it_is_not_repainted(studio):
    star = small()
    result = painted(studio, asked(image=star, mask=half("left"), strength=1.0, steps=8))
    source = levels(star.image)
    left, right = (np.abs(result - source)[:, part].mean() for part in (slice(0, 28), slice(36, 64)))
    assert right < 0.05 < left


def test_several_references_are_mixed_by_their_weights(studio, other_file):
    first, second = asked(REFERENCE, other_file).style
    both = asked(style=(first, replace(second, weight=3.0)))
    style = plain(studio).encode_style(
        [first.picture.image, second.picture.image], weights=[1, 3], target_blocks="style"
    )
    generator = [torch.Generator().manual_seed(5)]
    sampling = {"num_inference_steps": STEPS, "guidance_scale": 3.5, "generator": generator, "width": 64, "height": 64}
    expected = levels(plain(studio)(["a heart"], style=style, **sampling).images[0])
    assert np.abs(painted(studio, both) - expected).max() <= ONE_LEVEL
    assert differ(painted(studio, asked(style=(first, second))), expected)
    assert differ(painted(studio, asked()), expected)


def test_masks_say_where_references_act(studio, other_file):
    first, second = asked(REFERENCE, other_file).style
    alone = painted(studio, asked())
    hidden = painted(studio, asked(style=(first, replace(second, mask=shaded(0)))))
    assert np.abs(hidden - alone).max() <= ONE_LEVEL
    assert differ(painted(studio, asked(style=(first, replace(second, mask=shaded(255))))), alone)
    sides = tuple(replace(one, mask=half(side)) for one, side in ((first, "left"), (second, "right")))
    swapped = tuple(replace(one, mask=half(side)) for one, side in ((first, "right"), (second, "left")))
    assert differ(painted(studio, asked(style=sides)), painted(studio, asked(style=swapped)))
    (painting,) = studio.paint([asked(style=sides)])
    assert [one["mask"]["file"] for one in painting.recipe["references"]] == ["left.png", "right.png"]


def test_an_encoded_style_paints_what_its_references_do(studio, other_file, tmp_path):
    request = asked(REFERENCE, other_file, content="a star", target_blocks=(("layout", 0.5), ("style", 1.0)))
    path = tmp_path / "both.safetensors"
    studio.encode(request).save(path)
    with_file = asked(style=str(path))
    assert np.abs(painted(studio, with_file) - painted(studio, request)).max() <= 4 * ONE_LEVEL  # it is in float16
    (painting,) = studio.paint([with_file])
    assert painting.recipe["style"]["file"] == "both.safetensors"
    assert tuple(studio.compare(with_file)) == (NO_REFERENCE, OURS)
    mask = tmp_path / "left.png"
    half("left").image.save(mask)
    values = {**empty_values(), "reference": str(REFERENCE), "mask": str(mask)}
    masked, beside = (read_request({**values, "style": style}) for style in (None, str(path)))
    assert (painted(studio, beside) == painted(studio, with_file)).all()  # it stands for whatever references there are
    assert differ(painted(studio, masked), painted(studio, with_file))


def test_every_step_is_told_and_what_is_stopped_ends(studio):
    told: list[Step] = []
    stop = threading.Event()

    def tell(step: Step) -> None:
        assert studio._lock.locked()  # whoever else paints waits
        told.append(step)

    studio.paint([asked(steps=6)], tell)
    assert [(step.done, step.total) for step in told] == [(n + 1, 6) for n in range(6)]
    told.clear()
    studio.paint([asked(steps=6)], lambda step: (tell(step), stop.set()), stop)
    assert len(told) == 2  # the one that stopped, and the one that saw it
    told.clear()
    studio.compare(asked(), tell)
    assert [(step.done, step.total) for step in told] == [(n + 1, 9) for n in range(9)]
    assert not studio._lock.locked()


def test_previews_come_to_be_the_picture(studio):
    told: list[Step] = []
    (painting,) = studio.paint([asked(steps=8)], told.append, preview=True)
    shown = [levels(step.previews[0].resize((64, 64))) for step in told]
    distances = [np.abs(picture - levels(painting.image)).mean() for picture in shown]
    assert distances[-1] < 0.1 < distances[0]
    told.clear()
    studio.paint([asked(steps=2 * 12 + 1)], told.append)
    assert not any(step.previews for step in told)
    studio.paint([asked(steps=2 * 12 + 1, seed=seed) for seed in (5, 6)], told.append, preview=True)
    assert [len(step.previews) for step in told if step.previews] == [2] * 9


def test_previews_are_small(studio):
    pipe = plain(studio)
    (preview,) = previews(pipe, torch.zeros(1, 4, 96, 64))
    assert max(preview.size) == 32 * pipe.vae_scale_factor


def test_a_recipe_sets_the_controls_as_they_were(studio):
    shown = {
        **empty_values(),
        "reference": str(REFERENCE),
        "content": "a star",
        "content_scale": "auto",
        "target_blocks": "style=0.7, layout=0.25",
        "reference_fit": "pad",
        "num_images": 2,
        "negative": "a ring",
    }
    _, painting = studio.paint(read_requests(shown))
    kept = json.loads(json.dumps(painting.recipe))
    values = {**empty_values(), **write_request(read_recipe(kept))}
    assert (values["seed"], values["num_images"], values["randomise"]) == (6, 1, False)
    again = read_request({**values, "reference": str(REFERENCE)})
    assert again == read_requests(shown)[1]
    assert np.abs(painted(studio, again) - levels(painting.image)).max() <= ONE_LEVEL
    assert differ(painted(studio, again.but(seed=5)), levels(painting.image))
    assert needed(read_recipe(kept)) == ["reference.png"]


def recipe_of(painter: Session, request: Request) -> dict:
    """Write the recipe of a picture, without painting it."""
    place = {"device": "cpu", "dtype": "float32", "size": request.size}
    said = recipe.describe(painter.reader.named(request), painter.machine, painter.model, painter.adapter)
    return json.loads(json.dumps({**said, **place}))


@pytest.fixture
def actions(studio, tmp_path):
    """What the buttons do."""
    pytest.importorskip("gradio", reason="the demo is made with Gradio")
    from instantstyle.demo.actions import Actions

    return Actions(studio, Library(tmp_path), tmp_path)


def restored(actions, kept: dict) -> dict:
    """The controls' values after a picture with this recipe was dropped; what is not set, is left out."""
    import gradio as gr

    from instantstyle.demo.actions import RESTORED

    path = actions.folder / "dropped.png"
    recipe.write_recipe(Image.new("RGB", (8, 8)), path, kept)
    found, *values = actions.restore(str(path))
    assert found == kept
    return {name: value for name, value in zip(RESTORED, values, strict=False) if value != gr.skip()}


@pytest.mark.parametrize("amount", [0.0, 0.25, "auto"])
def test_every_amount_is_restored(studio, amount):
    kept = recipe_of(studio.session, asked(content="a star", content_scale=amount))
    values = {**empty_values(), "reference": str(REFERENCE), **write_request(read_recipe(kept))}
    assert read_request(values).content_scale == amount


def test_references_are_restored_but_for_their_files(studio, actions, other_file, capsys):
    first, second = asked(REFERENCE, other_file).style
    request = asked(style=(replace(first, weight=0.5, mask=half("left")), replace(second, weight=2.0)))
    dirty = dict.fromkeys(("weight", "weight_2", "weight_3"), 1.5) | {"mask_2": str(REFERENCE)}
    values = {**empty_values(), **dirty, **restored(actions, recipe_of(studio.session, request))}
    assert "again, a recipe only names them: reference.png, left.png, other.png." in capsys.readouterr().out
    assert values["weight_3"] == 1.0
    again = read_request({**values, "reference": str(REFERENCE), "reference_2": str(other_file)})
    masked = replace(again.style[0], mask=request.style[0].mask)
    assert [(one.picture.sha256, one.weight, one.mask) for one in (masked, again.style[1])] == [
        (one.picture.sha256, one.weight, one.mask) for one in request.style
    ]


def test_files_that_a_recipe_does_not_know_are_taken_away(studio, actions):
    star = str(REFERENCE)
    start = {"background": Image.new("RGBA", (8, 8)), "layers": []}
    old = dict.fromkeys(("reference", "reference_2", "mask", "mask_3", "control_image", "style"), star)
    touched = {**empty_values(), **old, "start": start}
    request = asked()
    again = read_request({**touched, **restored(actions, recipe_of(studio.session, request))})
    assert (again.style_file, again.image, again.control_image) == (None, None, None)
    assert [(one.picture.sha256, one.mask) for one in again.style] == [(request.style[0].picture.sha256, None)]


def test_edges_are_found_where_they_were(studio):
    star = asked().style[0].picture
    for edges in (True, False):
        kept = recipe_of(studio.session, asked(control_image=star, edges=edges))
        assert write_request(read_recipe(kept))["edges"] == edges
    del kept["edges"]  # the command line looked for none
    assert write_request(read_recipe(kept))["edges"] is False
    assert "edges" not in write_request(read_recipe(recipe_of(studio.session, asked())))


def by_command(*words: str) -> dict:
    """The recipe of what `instantstyle generate` paints with these options."""
    typed = ["generate", "a heart", "--style", str(REFERENCE), "--seed", "5", "--size", "128", *words]
    options = vars(cli.read(typed))
    given = {name: value for name, value in options.items() if name in Request.model_fields and name != "prompt"}
    return recipe_of(Session(options["machine"]), Request(prompt="a heart", **given))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--fast lcm", "--fast"),
        ("--hires", "--hires"),
        ("--upscale 2", "--upscale"),
        ("--vae-tiling", "--vae-tiling"),
        ("--content-encoder some/towers", "--content-encoder some/towers"),
        (f"--controlnet some/canny --control-image {REFERENCE}", "--controlnet some/canny"),
        ("--content-encoder some/towers --fast lcm --upscale 2", "--content-encoder some/towers, --fast, --upscale"),
    ],
)
def test_what_cannot_be_repeated_is_told(actions, words, says):
    with pytest.warns(UserWarning, match=f"^It was painted with what is not here: {says}\\.$"):
        restored(actions, by_command(*words.split()))


@pytest.mark.filterwarnings("error")
def test_what_can_be_repeated_is_not_warned_of(studio, actions):
    star = asked().style[0].picture
    for kept in (
        by_command(),
        by_command("--controlnet", "tiny", "--control-image", str(REFERENCE)),
        recipe_of(studio.session, asked(control_image=star)),
    ):
        restored(actions, kept)


def test_another_model_is_told_before_its_blocks_are_missed(studio, actions):
    kept = {
        **recipe_of(studio.session, asked()),
        "model": "some/xl",
        "target_blocks": {"up_blocks.7.attentions.1": 1.0},
    }
    with (
        pytest.warns(UserWarning, match=r"what is not here: --model some/xl\.$"),
        pytest.raises(Exception, match="up_blocks.7.attentions.1"),
    ):
        restored(actions, kept)


def test_whole_sides_may_be_written_as_fractions():
    values = {**empty_values(), "reference": str(REFERENCE), "width": 64.0, "height": 128.0}
    assert read_request(values).size == (64, 128)


def empty_values() -> dict:
    """The values of controls that nobody has touched."""
    ends = ("", "_2", "_3")
    pictures = dict.fromkeys(f"{name}{end}" for name in ("reference", "mask") for end in ends)
    weights = {f"weight{end}": 1.0 for end in ends}
    others = dict.fromkeys(("style", "control_image", "start", "content", "negative"))
    sampling = {
        "steps": STEPS,
        "guidance": 3.5,
        "num_images": 1,
        "width": 64,
        "height": 64,
        "seed": 5,
        "strength": 0.9,
    }
    more = {"prompt": "a heart", "target_blocks": "style", "scale": 1.0, "content_scale": "1.0", "preview": False}
    return {
        **pictures,
        **weights,
        **others,
        **sampling,
        **more,
        "edges": True,
        "controlnet_scale": 0.6,
        "reference_fit": "crop",
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": "  "}, "Prompt: it is empty"),
        ({"reference": None}, "there is neither a picture nor a style file"),
        ({"reference": str(ROOT / "README.md")}, "Reference: .*README.md is not a picture that can be read"),
        ({"mask": str(ROOT / "README.md")}, "Mask: .*README.md is not a picture"),
        ({"control_image": str(ROOT / "README.md")}, "Layout picture: .*README.md is not a picture"),
        ({"style": str(REFERENCE)}, "^Style file: .*reference.png cannot be read as a style"),
        ({"style": "gone.safetensors"}, "^Style file: gone.safetensors: there is no such file"),
        ({"target_blocks": ""}, "Target blocks: expected NAME or NAME=SCALE"),
        ({"target_blocks": "stile"}, "Did you mean 'style'"),
        ({"content_scale": "much"}, "Amount: expected a number or \"auto\", got 'much'"),
        ({"width": 65}, "Size: expected WxH"),
        ({"width": 64.5}, "Size: expected WxH .* got '64.5x64'"),
        ({"steps": None}, "^steps: expected a number, got none"),
        ({"height": None}, "^height: expected a number, got none"),
        ({"weight_2": None}, "^weight_2: expected a number, got none"),
        ({"seed": -1}, "Seed: expected a whole number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_refused_before_anything_is_painted(studio, changes, says, monkeypatch):
    monkeypatch.setattr(type(studio.session.pipe.unet), "forward", lambda *_, **__: pytest.fail("it was painted"))
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        studio.paint(read_requests({**empty_values(), "reference": str(REFERENCE), **changes}))
    assert re.search(says, message(caught.value))
    assert not studio._lock.locked()


def test_a_style_of_another_family_is_refused(studio, tmp_path):
    path = tmp_path / "old.safetensors"
    style = studio.encode(asked())
    Style(style.tensors, replace(style.recipe, family="sd15")).save(path)
    with pytest.raises(ValueError, match="family sd15") as caught:
        studio.paint([asked(style=str(path))])
    says = r"^Style file: .*old.safetensors is of the family sd15, but --model tiny"
    assert re.match(says, message(caught.value))


def test_what_cannot_be_encoded_is_refused(studio):
    for request in (
        asked(style=(replace(asked().style[0], mask=half("left")),)),
        asked(style="a.safetensors"),
    ):
        with pytest.raises(ValueError, match="a style is made of pictures alone"):
            studio.encode(request)
    with pytest.raises(ValueError, match="neither a picture nor a style file"):
        read_request(empty_values())


def test_a_controlnet_of_another_family_is_refused(monkeypatch):
    class Other:
        config = type("Config", (), {"cross_attention_dim": 7})

    monkeypatch.setattr(session, "load_controlnet", lambda *_: Other)
    with pytest.raises(ValueError, match="`controlnet`: tiny takes text embeddings of width 7, but `model` tiny has"):
        Studio(MACHINE)


def test_words_that_the_world_does_not_know_are_remarked_upon(actions):
    values = {**empty_values(), "content": "a star"}
    assert actions.remarks(values, asked(content="a star")) == []
    assert "does not know 'boat'" in actions.remarks(values, asked(prompt="a boat"))[0]
    assert "nothing is removed from a style file" in actions.remarks(values, asked(style="a.safetensors"))[0]


def test_sliders_follow_presets_and_blocks(studio):
    assert studio.modes == ["style", "layout", "style+layout", "all"]
    assert set(studio.scales((("all", 1.0),)).values()) == {1.0}
    style = studio.scales((("style", 0.5),))
    assert {scale for scale in style.values()} == {0.0, 0.5}
    (block, *_) = [name for name, scale in style.items() if scale]
    assert studio.scales(((block, 0.5),))[block] == 0.5
    assert studio.scales(((f"{block}.transformer_blocks.0", 0.25),))[block] == 0.25


# The small parts


def test_edges_are_where_the_shade_or_the_colour_changes():
    picture = Image.new("RGB", (40, 40), (20, 20, 20))
    ImageDraw.Draw(picture).rectangle((10, 10, 29, 29), fill=(220, 220, 220))
    other = Image.new("RGB", (40, 40), (0, 118, 0))  # as light as the square in it
    ImageDraw.Draw(other).rectangle((10, 10, 29, 29), fill=(232, 0, 0))
    for drawn in (picture, other):
        edges = find_edges(drawn)
        assert (edges.mode, edges.size) == ("RGB", (40, 40))
        found = np.asarray(edges)[20, :, 0]
        assert set(found) == {0, 255}
        assert np.abs(np.flatnonzero(found) - [9.5, 29.5]).max() <= 1
    assert not np.asarray(find_edges(Image.new("L", (40, 40), 90))).any()


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'edges are found with OpenCV, .* pip install "instantstyle\[demo\]"'):
        find_edges(Image.new("L", (8, 8)))


def test_strokes_and_masks_say_what_to_repaint():
    background = Image.new("RGBA", (8, 8), "white")
    untouched = Image.new("RGBA", (8, 8))
    stroke = untouched.copy()
    ImageDraw.Draw(stroke).rectangle((0, 0, 3, 7), fill=(225, 29, 72, 255))
    drawn = Image.new("RGBA", (8, 8), "black")
    ImageDraw.Draw(drawn).rectangle((0, 0, 3, 7), fill="white")
    assert read_start(None) == read_start({"background": None, "layers": []}) == (None, None)
    assert read_start({"background": background, "layers": [untouched]})[1] is None
    for layer in (stroke, drawn):
        _, mask = read_start({"background": background, "layers": [untouched, layer]})
        assert mask.image.getbbox() == (0, 0, 4, 8)


def test_a_library_keeps_styles_by_name(studio, tmp_path):
    library = Library(tmp_path / "styles")
    assert library.names() == []
    style = studio.encode(asked())
    library.save(" dots ", style)
    library.save("Stars 2", style)
    assert library.names() == ["Stars 2", "dots"]
    assert Style.load(library.path("dots")).recipe == style.recipe
    for name, says in (
        ("dots", "already"),
        ("../x", "cannot be a name"),
        ("", "cannot be a name"),
        (".x", "cannot be"),
    ):
        with pytest.raises(ValueError, match=says):
            library.save(name, style)
    with pytest.raises(ValueError, match="no style 'stars'; there are: Stars 2, dots"):
        library.path("stars")
    assert [path.name for path in tmp_path.iterdir()] == ["styles"]


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    assert 'pip install "instantstyle[demo]"' in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "x"])
def test_a_port_that_is_none_is_refused(port, capsys):
    assert cli.main(["demo", "--port", port]) == 2
    assert "expected a port from 1 to 65535" in capsys.readouterr().err


# By `gradio_client`


@pytest.fixture(scope="module")
def address(studio, tmp_path_factory):
    """Serve the page."""
    pytest.importorskip("gradio", reason="the demo is made with Gradio")
    with served(studio, tmp_path_factory.mktemp("library")) as found:
        yield found


@pytest.fixture
def client(address):
    """Connect to the page as one user."""
    gradio_client = pytest.importorskip("gradio_client", reason="the demo is reached by gradio_client")
    return gradio_client.Client(address, verbose=False)


def given(path: Path) -> dict:
    """A file as a parameter."""
    import gradio_client

    return gradio_client.handle_file(str(path))


def quick(**changes) -> dict:
    """The parameters of one picture."""
    chosen = {
        "prompt": "a heart",
        "content": "",
        "content_scale": "1.0",
        "steps": STEPS,
        "seed": 5,
        "randomise": False,
    }
    return {**chosen, "reference": given(REFERENCE), **changes}


def test_the_api_is_what_its_documentation_says(client):
    text = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    actions = set(re.findall(r"^\| `/(\w+)` \|", text, flags=re.MULTILINE))
    found = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name.removeprefix("/") for name in found} == actions
    _, controls = text.split("| control | meaning |")
    documented = {
        name
        for cell in re.findall(r"^\| (`.*?) \|", controls, flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    for action in ("generate", "compare", "encode"):
        parameters = found[f"/{action}"]["parameters"]
        assert {one["parameter_name"] for one in parameters} == documented
        assert all(one["parameter_has_default"] for one in parameters)
    assert [one["parameter_name"] for one in found["/save_style"]["parameters"]] == ["style", "name"]


def test_a_client_gets_the_studios_picture_with_its_recipe(client, studio):
    job = client.submit(**quick(), api_name="/generate")
    gallery, kept, status = job.result()
    path = gallery[0]["image"]
    with Image.open(path) as picture:
        assert (levels(picture) == painted(studio, asked())).all()
    assert recipe.read_recipe(path) == kept
    assert kept["style"]["file"] == "reference.png"
    assert (kept["prompt"], kept["seed"]) == ("a heart", 5)
    assert re.fullmatch(r"Done in .* s, seed 5\.", status)
    steps = [re.sub("<.*>", "", output[2]).strip() for output in job.outputs()[:-1]]
    assert steps == [f"Step {number} of {STEPS}" for number in range(1, STEPS + 1)]
    assert all(output[0] for output in job.outputs())


def test_a_seed_is_drawn_when_it_is_asked_for(client):
    drawn = [client.predict(**quick(randomise=True, steps=1), api_name="/generate")[1] for _ in range(2)]
    assert drawn[0]["seed"] != drawn[1]["seed"]


def test_a_client_compares(client, studio):
    gallery, pair, kept, *_ = client.predict(**quick(content="a star"), api_name="/compare")
    assert [one["caption"] for one in gallery] == list(METHODS)
    expected = studio.compare(asked(content="a star"))
    for one in gallery:
        with Image.open(one["image"]) as picture:
            assert (levels(picture) == levels(expected[one["caption"]].image)).all()
        assert recipe.read_recipe(one["image"]) == json.loads(json.dumps(expected[one["caption"]].recipe))
    assert kept == recipe.read_recipe(gallery[-1]["image"])
    assert [Path(path).name for path in pair] == [Path(one["image"]).name for one in gallery[1:]]


def test_styles_go_out_and_in_and_are_kept(client, studio):
    style = client.predict(**quick(content="a star"), api_name="/encode")
    assert Path(style).name == "reference.safetensors"
    assert Style.load(style).recipe == studio.encode(asked(content="a star")).recipe
    assert "'a star'" in client.predict(given(style), api_name="/describe")
    client.predict(given(style), "dots", api_name="/save_style")
    assert client.predict(api_name="/library") == ["dots"]
    taken = client.predict("dots", api_name="/load_style")
    gallery, kept, *_ = client.predict(**quick(reference=None, style=given(taken)), api_name="/generate")
    assert kept["style"]["file"] == "dots.safetensors"
    with Image.open(gallery[0]["image"]) as picture:
        assert np.abs(levels(picture) - painted(studio, asked(content="a star"))).max() <= 4 * ONE_LEVEL


def test_a_recipe_is_restored_from_its_picture(client, studio):
    gallery, kept, *_ = client.predict(
        **quick(content="a star", scale=0.6, target_blocks="layout=0.5"), api_name="/generate"
    )
    found, *values = client.predict(given(gallery[0]["image"]), api_name="/restore")
    assert found == kept
    assert "a heart" in values and "a star" in values and "layout=0.5" in values and 0.6 in values
    scales = studio.scales([("layout", 0.5)])
    assert values[-len(scales) - 1 :] == [None, *scales.values()]  # no preset, and the sliders
    with pytest.raises(Exception, match="^Recipe: there is none in reference.png; drop a PNG"):
        client.predict(given(REFERENCE), api_name="/restore")


def test_a_picture_is_repainted_where_it_is_painted_over(client):
    layer = Path(client.predict(**quick(), api_name="/generate")[0][0]["image"]).with_name("layer.png")
    half("left").image.convert("RGB").save(layer)
    start = {"background": given(REFERENCE), "layers": [given(layer)], "composite": None}
    _, kept, *_ = client.predict(**quick(start=start), api_name="/generate")
    assert kept["pipeline"] == "StableDiffusionXLInstantStyleInpaintPipeline"
    assert (kept["image"]["file"], kept["mask"]["file"], kept["strength"]) == ("painted", "painted", 0.9)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": ""}, "Prompt: it is empty"),
        ({"reference": None}, "Reference: there is neither a picture nor a style file"),
        ({"reference": ROOT / "README.md"}, "Reference: README.md is not a picture that can be read"),
        ({"style": ROOT / "README.md"}, "cannot be read as a style|Invalid file type"),
        ({"style": REFERENCE}, "cannot be read as a style|Invalid file type"),
        ({"target_blocks": "stile"}, "Did you mean 'style'"),
        ({"content": "a star", "content_scale": "<b>"}, "expected a number or \"auto\", got '&lt;b&gt;'"),
        ({"steps": 1000}, "1000 is greater than maximum value 100"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_a_client_is_told_what_is_wrong(client, changes, says):
    files = {name: given(value) if isinstance(value, Path) else value for name, value in changes.items()}
    with pytest.raises(Exception, match=says) as caught:
        client.predict(**quick(**files), api_name="/generate")
    assert "/tmp" not in str(caught.value)


def test_what_a_client_cancels_ends(client, studio, monkeypatch):
    runs, hurry = [], threading.Event()
    forward = type(studio.session.pipe.unet).forward

    def counted(*args, **kwargs):
        runs.append(1)
        hurry.wait(0.25)  # a run that is still going when the cancelling arrives
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(studio.session.pipe.unet), "forward", counted)
    job = client.submit(**quick(steps=100), api_name="/generate")
    next(job)  # what the client has not heard of, it cannot cancel
    job.cancel()
    with studio._lock:  # it comes to an end
        assert len(runs) < 100
    hurry.set()
    runs.clear()
    client.predict(**quick(), api_name="/generate")
    assert len(runs) == STEPS


def test_two_users_at_once_get_each_their_own(address, client, studio):
    from gradio_client import Client

    asked_for = [quick(prompt="a heart", target_blocks="style"), quick(prompt="a ring", target_blocks="all")]
    users = [client, Client(address, verbose=False)]
    jobs = [user.submit(**words, api_name="/generate") for user, words in zip(users, asked_for, strict=True)]
    results = [job.result()[0][0]["image"] for job in jobs]
    for path, request in zip(results, (asked(), asked(prompt="a ring", target_blocks="all")), strict=True):
        with Image.open(path) as picture:
            assert (levels(picture) == painted(studio, request)).all()


# What is left behind


@pytest.mark.parametrize("age", [0, 2], ids=["new", "old"])
def test_files_are_kept_for_a_day(studio, tmp_path, age):
    actions = Actions(studio, Library(tmp_path / "library"), tmp_path)
    kept = actions._scratch()
    (kept / "picture.png").touch()
    made = time.time() - age * DAY
    os.utime(kept, (made, made))
    assert actions._scratch().is_dir()
    assert kept.exists() == (age == 0)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_comparison_that_is_stopped_leaves_the_other_methods_out(studio, stopped):
    stop, told = threading.Event(), []

    def tell(step):
        told.append(step)
        if stopped:
            stop.set()

    found = studio.compare(asked(), tell, stop)
    assert list(found) == list(METHODS[:1] if stopped else METHODS)
    assert {step.done > STEPS for step in told} == ({False} if stopped else {False, True})
