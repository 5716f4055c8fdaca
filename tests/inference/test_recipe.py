"""Recipes: kept whole, read back as what was asked for, and painted again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from test_session import REFERENCE, apart, ask, every_kind, files  # noqa: F401

from instantstyle.inference.inputs import find_files
from instantstyle.inference.recipe import KEY, read_recipe, read_request, write_recipe
from instantstyle.inference.request import Machine, Request
from instantstyle.inference.session import Session
from instantstyle.inference.values import Named


def folders(files: dict[str, str]) -> list[Path]:  # noqa: F811
    return [Path(REFERENCE).parent, Path(files["image"]).parent]


def test_a_recipe_is_its_request_again(session, files):  # noqa: F811
    for request in every_kind(files):
        named = session.reader.named(session.complete(request))
        again, machine = read_request(
            json.loads(json.dumps({**session.describe(request), "device": "cpu", "dtype": None}))
        )
        assert machine == session.machine
        assert {**dict(again), **_unsaid(request)} == {**dict(named), **_unsaid(request)}
        assert again.but(prompt="other") != again


def _unsaid(request: Request) -> dict[str, None]:
    """What a recipe does not keep, as it changes nothing."""
    names = ("content_scale",) if request.content is None else ()
    return dict.fromkeys(names if request.style else ("content_scale", "target_blocks", "reference_fit"))


def test_a_recipe_is_painted_again_and_another_is_not(session, files, tmp_path):  # noqa: F811
    for number, request in enumerate(every_kind(files)[:11]):
        (painting,) = session.paint([request])
        path = tmp_path / f"{number}.png"
        painting.save(path)
        found, machine = read_request(read_recipe(path))
        found = find_files(found, folders(files))
        (again,) = Session(machine).paint([found])
        assert apart(again.image, painting.image) == 0
        assert again.recipe == painting.recipe
        assert apart(session.paint([found.but(seed=9)])[0].image, painting.image) > 10


def test_files_are_found_by_name_and_content(files, tmp_path):  # noqa: F811
    kept = Named("reference.png", "0" * 64)
    request = ask(style=kept, image=files["image"])
    with pytest.raises(
        ValueError, match=r"`style`: the recipe names reference.png with the SHA-256 000000000000\.\.\."
    ):
        find_files(request, folders(files))
    (tmp_path / "reference.png").write_bytes(Path(REFERENCE).read_bytes())
    (right,) = find_files(ask(style=REFERENCE), []).style
    named = replace(kept, sha256=_sha(REFERENCE))
    assert find_files(ask(style=named), [tmp_path / "none", tmp_path]).style[0].picture == str(
        tmp_path / "reference.png"
    )
    assert right.picture == REFERENCE


def _sha(path: str) -> str:
    return Session(Machine(device="cpu")).reader.named(ask(style=path)).style[0].picture.sha256


FIRST = {
    "versions": {"instantstyle": "0.1.0"},
    "pipeline": "StableDiffusionXLInstantStylePipeline",
    "model": "tiny",
    "adapter": "tiny:sdxl_models/ip-adapter_sdxl.safetensors",
    "controlnet": None,
    "content_encoder": None,
    "prompts": ["a heart", "a ring"],
    "negative": None,
    "style": {"file": "reference.png", "sha256": "1"},
    "content": None,
    "content_scale": None,
    "target_blocks": {"style": 1.0},
    "scale": 1.0,
    "seed": 5,
    "fast": None,
    "steps": 2,
    "guidance": 5.0,
    "num_images": 2,
    "asked_size": [64, 48],
    "strength": None,
    "controlnet_scale": None,
    "hires": False,
    "upscale": None,
    "upscale_strength": None,
    "vae_tiling": False,
    "device": "cpu",
    "dtype": "float32",
    "offload": "none",
    "size": [64, 48],
    "picture": {"index": 3, "prompt": "a ring", "seed": 8},
}


def test_a_recipe_of_the_first_format_is_read_as_one_of_today(tmp_path, session):
    write_recipe(Image.new("RGB", (64, 48)), tmp_path / "ring.png", FIRST)
    request, machine = read_request(read_recipe(tmp_path / "ring.png"))
    named = Named("reference.png", "1")
    assert request == ask(prompt="a ring", style=named, seed=8, size=(64, 48), guidance=5.0, **_as_it_was(request))
    assert machine == Machine(device="cpu", dtype="float32", **_as_it_was(machine))
    today = session.describe(request)
    assert today.keys() <= read_recipe(tmp_path / "ring.png").keys() | {"image", "mask", "control_image"}


def _as_it_was(value) -> dict:
    """Fields that were written with their defaults."""
    return {name: one for name, one in value.given.items() if one == type(value).model_fields[name].default}


def test_what_is_no_recipe_of_a_picture_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no recipe"):
        read_recipe(REFERENCE)
    with pytest.raises(ValueError, match="is not of one picture"):
        read_request({"prompts": ["a heart"], "methods": {}})
    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, "{")
    Image.new("RGB", (8, 8)).save(tmp_path / "torn.png", pnginfo=text)
    with pytest.raises(ValueError, match="its recipe is not JSON"):
        read_recipe(tmp_path / "torn.png")
