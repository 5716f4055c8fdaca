"""Recipes: how a picture was made, kept as JSON in the PNG file itself."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from instantstyle.files import atomically, label_of, label_of_file
from instantstyle.inference.inputs import Picture
from instantstyle.inference.models import Adapter, Model
from instantstyle.inference.request import sampling, target_blocks, upscale_strength, variant_name
from instantstyle.pipelines.distilled import DISTILLED, default_file
from instantstyle.version import versions


KEY = "instantstyle"


def write(picture: Image.Image, path: str | os.PathLike[str], recipe: dict[str, Any]) -> None:
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


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the recipe of a PNG file that `write` made.

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
    return recipe


def describe_fast(options: argparse.Namespace, family: str) -> dict[str, Any] | None:
    """What a picture's recipe keeps of --fast, beside steps and guidance."""
    if options.fast is None:
        return None
    recipe = DISTILLED[options.fast]
    text = options.fast_weights or recipe.weights[family]
    return {
        "name": recipe.name,
        "weights": text and label_of_file(text, default_file(recipe, family)),
        "scheduler": recipe.scheduler,
        "settings": dict(recipe.settings),
        **recipe.more,
    }


def describe(
    options: argparse.Namespace,
    pictures: dict[str, Picture],
    pipe: Any,
    model: Model,
    adapter: Adapter | None,
    style: dict[str, Any] | None,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    """Write the recipe that all pictures of this run share: names and fingerprints, but no local path."""
    files = {name: picture.written for name, picture in pictures.items()}
    return {
        "versions": versions(),
        **asked(options, model, adapter, files if style is None else {**files, "style": style}, arguments),
        "device": pipe._execution_device.type,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "offload": options.offload,
    }


def asked(
    options: argparse.Namespace,
    model: Model,
    adapter: Adapter | None,
    files: Mapping[str, Mapping[str, Any]],
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the part of the recipe that can be known before anything is loaded.

    Args:
        options: What the user asked for.
        model: The model.
        adapter: The adapter; None with a style file.
        files: What is kept of each file that was given, by option.
        arguments: At least what `strengths` gives.
    """
    labels = {
        name: label_of(value) if (value := getattr(options, name)) else None
        for name in ("controlnet", "content_encoder")
    }
    steps, guidance = sampling(options)
    return {
        "pipeline": variant_name(options, model.family),
        "model": model.label,
        "adapter": adapter.label if adapter else None,
        **labels,
        "prompts": options.prompt,
        "negative": options.negative,
        **files,
        "content": options.content,
        "content_scale": options.content_scale if options.content is not None else None,
        "target_blocks": target_blocks(options) if adapter else None,
        "scale": options.scale,
        "seed": options.seed,
        "fast": describe_fast(options, model.family),
        "steps": steps,
        "guidance": guidance,
        "num_images": options.num_images,
        "asked_size": options.size,
        "strength": arguments.get("strength"),
        "controlnet_scale": arguments.get("controlnet_conditioning_scale"),
        "hires": options.hires,
        "upscale": options.upscale,
        "upscale_strength": upscale_strength(options),
        "vae_tiling": options.vae_tiling,
    }


def keep(
    image: Image.Image, path: Path, options: argparse.Namespace, common: Mapping[str, Any], index: int = 0
) -> None:
    """Save the picture of this index with its recipe."""
    own = {"index": index, "prompt": options.prompt[index // options.num_images], "seed": options.seed + index}
    write(image, path, {**common, "size": list(image.size), "picture": own})
