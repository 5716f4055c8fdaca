"""Recipes: how a picture was made, kept as JSON in the PNG file itself."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin


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
    path = Path(path)
    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, json.dumps(recipe))
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            picture.save(file, format="PNG", pnginfo=text)
        # A scratch file is private; the picture gets the permissions that any new file of this user has.
        os.chmod(scratch, 0o666 & ~current_umask())
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def current_umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


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
