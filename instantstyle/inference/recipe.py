"""Recipes: how a picture was made, kept as JSON in the PNG file itself, and read back as a request."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from PIL import Image, PngImagePlugin
from pydantic import ValidationError

from instantstyle.files import atomically, label_of, label_of_file
from instantstyle.inference import models
from instantstyle.inference.calls import variant_name, way
from instantstyle.inference.inputs import STARTS
from instantstyle.inference.request import Machine, Reference, Request
from instantstyle.inference.values import Named
from instantstyle.pipelines.distilled import DISTILLED, default_file


KEY = "instantstyle"
FORMAT = 2
# What a recipe keeps of a request under its own name, but for files.
SAME = tuple(Request.model_fields.keys() - {"style", "size", "target_blocks", *STARTS})


def write_recipe(picture: Image.Image, path: str | os.PathLike[str], recipe: Mapping[str, Any]) -> None:
    """Save `picture` as a PNG file with its recipe. The file appears whole or not at all.

    Args:
        picture: The picture.
        path: The file to write; an older one is replaced.
        recipe: What JSON can hold.

    Raises:
        OSError: The file cannot be written.
    """
    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, json.dumps(recipe))
    with atomically(path) as scratch:
        picture.save(scratch, format="PNG", pnginfo=text)


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the recipe of a PNG file that `write_recipe` made; one of the first format in the words of today's.

    Raises:
        ValueError: The file holds no recipe.
        OSError: The file is missing or not a picture.
    """
    with Image.open(path) as picture:
        text = picture.info.get(KEY)
    try:
        recipe = json.loads(text or "null")
    except json.JSONDecodeError as error:
        raise ValueError(f"`path` {path}: its recipe is not JSON ({error}).") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"`path` {path} holds no recipe; expected a PNG file made by `instantstyle generate`.")
    return _of_today(recipe) if "picture" in recipe else recipe


def _of_today(first: dict[str, Any]) -> dict[str, Any]:
    """Say a recipe of the first format, which was that of a run with the picture's own part in it."""
    kept = {name: value for name, value in first.items() if name not in ("prompts", "num_images", "picture")}
    own = {name: first["picture"].get(name) for name in ("prompt", "seed")}
    return {"edges": False, "reference_fit": "crop" if first.get("adapter") else None, **kept, **own, "format": FORMAT}


# Requests


def describe(
    request: Request, machine: Machine, model: models.Model, adapter: models.Adapter | None
) -> dict[str, Any]:
    """Write what of a recipe is known before anything is loaded: names and fingerprints, but no local path.

    Args:
        request: The completed request, with its files named or at hand.
        machine: What paints it.
        model: What is known of its model.
        adapter: What is known of its adapter, where the request needs it.
    """
    controlnet = machine.controlnet if request.control_image else None
    return {
        "format": FORMAT,
        "pipeline": variant_name(request, model.family),
        "model": model.label,
        "adapter": adapter and adapter.label,
        "content_encoder": machine.content_encoder and label_of(machine.content_encoder),
        "controlnet": controlnet and label_of(controlnet),
        "fast": machine.fast and _distilled(machine, model.family),
        **{name: getattr(request, name) for name in Request.model_fields if name in SAME},
        "asked_size": request.size and list(request.size),
        **{name: source.written for name in STARTS if (source := getattr(request, name))},
        **_styles(request),
        "reference_fit": request.reference_fit if adapter else None,
        "target_blocks": dict(request.target_blocks) if adapter else None,
        "content_scale": None if request.content is None else request.content_scale,
        "vae_tiling": machine.vae_tiling,
    }


def _styles(request: Request) -> dict[str, Any]:
    if not request.style:
        return {}
    if way(request) in ("file", "picture"):
        return {"style": request.style[0].picture.written}  # type: ignore[union-attr]
    return {
        "references": [
            {**one.picture.written, "weight": one.weight, "mask": one.mask and one.mask.written}  # type: ignore[union-attr]
            for one in request.style
        ]
    }


def _distilled(machine: Machine, family: str) -> dict[str, Any]:
    recipe = DISTILLED[str(machine.fast)]
    text = machine.fast_weights or recipe.weights[family]
    return {
        "name": recipe.name,
        "weights": text and label_of_file(text, default_file(recipe, family)),
        "scheduler": recipe.scheduler,
        "settings": dict(recipe.settings),
        **recipe.more,
    }


def read_request(recipe: Mapping[str, Any]) -> tuple[Request, Machine]:
    """Read what a recipe asks for. Its files are only named: see `inputs.find_files`.

    Raises:
        ValueError: It is not the recipe of one picture.
    """
    try:
        values = {name: recipe[name] for name in SAME if recipe.get(name) is not None}
        files = {name: _named(recipe[name]) for name in STARTS if recipe.get(name)}
        others = {"size": recipe.get("asked_size"), "target_blocks": recipe.get("target_blocks")}
        others = {name: value for name, value in others.items() if value is not None}
        return Request(**values, **files, **others, style=_references(recipe)), _machine(recipe)
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ValueError("the recipe is not of one picture, as `generate`, `batch` and `demo` make them.") from error


def _named(file: Mapping[str, str]) -> Named:
    return Named(file["file"], file["sha256"])


def _references(recipe: Mapping[str, Any]) -> list[Reference]:
    if recipe.get("references"):
        return [
            Reference(_named(one), one["weight"], one["mask"] and _named(one["mask"])) for one in recipe["references"]
        ]
    return [Reference(_named(recipe["style"]))] if recipe.get("style") else []


def _machine(recipe: Mapping[str, Any]) -> Machine:
    same = ("model", "adapter", "content_encoder", "controlnet", "vae_tiling", "device", "dtype")
    values = {name: recipe[name] for name in same if recipe[name] is not None}
    if recipe["adapter"] in {f"{recipe['model']}:{file}" for file in models.ADAPTER_FILES.values()}:
        del values["adapter"]  # the model's own, which it brings
    if fast := recipe["fast"]:
        published = DISTILLED[fast["name"]].weights.values()
        values["fast"] = fast["name"]
        values |= {} if fast["weights"] in published else {"fast_weights": fast["weights"]}
    return Machine(**values)
