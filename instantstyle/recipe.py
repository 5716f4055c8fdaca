"""Recipes: how a picture was made, kept as JSON in the PNG file itself."""

from __future__ import annotations

import json
import os
from typing import Any

from PIL import Image, PngImagePlugin

from instantstyle.files import atomically


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
