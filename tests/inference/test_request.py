"""Requests and machines: what they take, what contradicts each other, and that everybody is told in his own words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from instantstyle.commands.batch.manifest import COLUMNS, Row
from instantstyle.commands.options import option
from instantstyle.inference import values
from instantstyle.inference.inputs import StyleFile
from instantstyle.inference.request import Machine, Reference, Request, check, laid_over, sampling, told, worded
from instantstyle.inference.values import Named, Picture, kind_of


def ask(**given: Any) -> Request:
    return Request(**{"prompt": "a heart", **given})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "4", 4),
        ("guidance", "2.5", 2.5),
        ("seed", "0", 0),
        ("size", "64x48", (64, 48)),
        ("size", "64", (64, 64)),
        ("content_scale", "auto", "auto"),
        ("content_scale", "0.5", 0.5),
        ("target_blocks", "style, layout=0.5", {"style": 1.0, "layout": 0.5}),
        ("target_blocks", ["style", "layout=0.5"], {"style": 1.0, "layout": 0.5}),
        ("target_blocks", "layout", ["layout"]),
        ("style", "a.png", Path("a.png")),
        ("style", "a.png", [Reference("a.png")]),
    ],
)
def test_a_text_is_the_value_that_it_says(name, text, value):
    assert ask(**{name: text}) == ask(**{name: value})
    assert hash(ask(**{name: text})) == hash(ask(**{name: value}))
    assert ask(**{name: text}) != ask()


scales = st.floats(allow_nan=False, allow_infinity=False)
names = st.text("abcdefghijklmnopqrstuvwxyz._0123456789+", min_size=1)


@given(st.dictionaries(names, scales, min_size=1))
def test_target_blocks_are_read_as_they_are_written(blocks):
    assert dict(ask(target_blocks=values.write_targets(blocks.items())).target_blocks) == blocks


@given(st.tuples(st.integers(1, 999), st.integers(1, 999)))
def test_sizes_are_read(size):
    size = tuple(values.PIXELS * side for side in size)
    assert ask(size="{}x{}".format(*size)).size == size


WRONG = {
    "steps": [0, -1, True, 1.5, "x", ""],
    "seed": [-1, 2**63, "x"],
    "guidance": ["nan", float("inf"), "much", True],
    "scale": ["much"],
    "content": ["", "  "],
    "content_scale": ["most", "nan"],
    "target_blocks": ["", "style,,layout", "style=x", "style=nan", [], {}, {"style": "x"}, 3],
    "reference_fit": ["stretch"],
    "size": [65, "64x", "64x64x64", "0", "x", (64,) * 3, (64, 0), -64],
    "style": [3, ["a.png", "b.safetensors"], ""],
    "image": [3, ""],
    "strength": [1.5, -0.1],
    "upscale": [1, "inf"],
    "hires": ["large", 2],
    "prompt": [None, ["a heart"]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, wrong in WRONG.items() for value in wrong])
def test_a_wrong_value_is_refused_by_the_name_that_the_caller_knows(name, value):
    with pytest.raises(ValueError) as refused:
        ask(**{"image": "a.png", name: value})
    for write in (option, str.upper):
        message = told(refused.value, write)
        assert message.startswith(f"{write(name)}: expected ")
        assert message.endswith(f", got {value!r}")
        assert "\n" not in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": "a.png"}, "--mask needs --image."),
        ({"strength": 0.5}, "--strength needs --image."),
        ({"edges": True}, "--edges needs --control-image."),
        ({"controlnet_scale": 1}, "--controlnet-scale needs --control-image."),
        ({"upscale_strength": 0.5}, "--upscale-strength needs --upscale."),
        ({"hires": True}, "--hires needs a --size larger than the model's own, or a picture of such a size."),
        ({"hires": True, "upscale": 2, "size": 64}, "--hires and --upscale are two ways to a large picture"),
        ({"style": "a.safetensors", "content": "a star"}, "--content is for a reference picture, but --style is"),
        ({"style": "a.safetensors", "target_blocks": "all"}, "--target-blocks is for a reference picture"),
    ],
)
def test_contradictions_are_refused_in_the_words_of_who_asks(given, message):
    with pytest.raises(ValueError) as refused:
        ask(**given)
    assert told(refused.value, option).startswith(message)
    with pytest.raises(ValueError) as refused:
        Row("rows.csv, line 2", "a.png", {"prompt": "a heart", **given}).request(
            {"style": given.get("style", "a.png")}, Machine()
        )
    assert str(refused.value).startswith("rows.csv, line 2: ")
    assert not any(f"{option(name)} " in str(refused.value) for name in given)  # columns are no options


@pytest.mark.parametrize(
    ("request_", "machine", "message"),
    [
        ({"control_image": "a.png"}, {}, "`control_image` needs `controlnet`."),
        ({"negative": "x"}, {"fast": "lightning-4"}, "`negative` says nothing at guidance 0"),
        ({"steps": 2}, {"fast": "hyper-1-unet"}, "`fast` hyper-1-unet is one step from noise"),
        ({"image": "a.png", "strength": 0.2, "steps": 4}, {}, "`strength` 0.2 of 4 steps leaves none"),
        ({"upscale": 2, "steps": 3}, {}, "`upscale_strength` 0.3 of 3 steps leaves none"),
        ({"upscale": 2}, {"fast": "turbo"}, "`upscale_strength` 0.3 of 1 steps leaves none"),
        ({"hires": True, "size": 64}, {"offload": "sequential"}, "`hires` changes parts of the UNet"),
    ],
)
def test_what_a_machine_cannot_paint_is_refused(request_, machine, message):
    with pytest.raises(ValueError) as refused:
        check(ask(**request_), Machine(**machine))
    assert str(refused.value).startswith(message)
    check(ask(), Machine(**machine))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fast": "faster"}, "--fast: expected one of lightning-1, "),
        ({"fast_weights": "a/b"}, "--fast-weights needs --fast."),
        ({"dtype": "int8"}, "--dtype: expected 'float32', 'float16' or 'bfloat16', got 'int8'"),
        ({"device_map": "balanced", "device": "cpu"}, "--device-map balanced places the model itself; leave --device"),
        ({"device_map": "balanced", "offload": "model"}, "--device-map balanced places the model itself; leave --off"),
        ({"device_map": "balanced", "controlnet": "tiny"}, "--device-map: diffusers cannot spread --controlnet"),
    ],
)
def test_machines_that_contradict_themselves_are_refused(given, message):
    with pytest.raises(ValueError) as refused:
        Machine(**given)
    assert told(refused.value, option).startswith(message)


def test_steps_and_guidance_are_those_asked_for_else_of_the_distilled_model_else_the_usual():
    assert sampling(ask(), Machine()) == (30, 5.0)
    assert sampling(ask(), Machine(fast="lcm")) == (4, 1.0)
    assert sampling(ask(steps=8, guidance=0), Machine(fast="lcm")) == (8, 0.0)


def test_a_request_cannot_be_changed_but_another_made_of_it():
    request = ask(steps=4, style="a.png")
    with pytest.raises(ValidationError):
        request.steps = 5
    with pytest.raises(ValidationError):
        ask(stepps=4)
    assert request.but(steps=None) == request.but(steps=None) == ask(style="a.png", steps=None)
    assert request.but(prompt="a ring").given == {**request.given, "prompt": "a ring"}
    with pytest.raises(ValueError):
        request.but(mask="a.png")


def test_files_are_equal_where_their_contents_are():
    picture = Image.new("RGB", (8, 8))
    assert ask(style=picture) == ask(style=picture.copy()) == ask(style=Picture("other", _sha(picture), picture))
    assert ask(style=picture) != ask(style=Image.new("RGB", (8, 8), "red"))
    assert Named("a.png", "1") == Named("b.png", "1") != Named("a.png", "2")
    assert StyleFile("a.safetensors", "1", None) == StyleFile("a.safetensors", "1", 3)


def _sha(picture: Image.Image) -> str:
    return values.as_given(picture).sha256


def test_what_steers_the_encoding_stands_in_for_pictures_alone():
    defaults = {"style": "a.png", "content": "a star", "scale": 0.5}
    assert laid_over(defaults, {"seed": 1}) == {**defaults, "seed": 1}
    assert laid_over(defaults, {"style": "a.safetensors"}) == {"style": "a.safetensors", "scale": 0.5}
    assert laid_over({"style": "a.safetensors"}, {"content": "a star"})["content"] == "a star"  # and is refused then


def test_a_field_says_what_it_is_in_one_place():
    for value in (Request, Machine):
        for name, field in value.model_fields.items():
            assert field.description, name
            assert kind_of(field).expected, name
            assert "--" not in field.description, name
    assert set(COLUMNS) == {*Request.model_fields, "output"}
    assert worded("see `steps` and `nothing`", option) == "see --steps and `nothing`"


def test_asking_needs_nothing_heavy():
    code = (
        "import sys; from instantstyle.inference.request import Request, Machine; Request(prompt='a', style='b.png')\n"
        "print({'torch', 'diffusers', 'transformers', 'PIL', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
