"""Pictures and style files that are given, opened, and the names of files to write."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from instantstyle.files import check_output
from instantstyle.inference.request import is_style_file
from instantstyle.inference.values import PIXELS


PICTURES = ("style", "image", "mask", "control_image")


@dataclass(frozen=True)
class Picture:
    """A picture that was given, with what the recipe keeps of it."""

    image: Image.Image
    file: str
    sha256: str

    @property
    def written(self) -> dict[str, str]:
        """What the recipe keeps."""
        return {"file": self.file, "sha256": self.sha256}


def picture_paths(options: argparse.Namespace) -> dict[str, str]:
    """Name the picture files that the options give; a style file is none."""
    names = [name for name in PICTURES if name != "style" or not is_style_file(options)]
    return {name: getattr(options, name) for name in names if getattr(options, name)}


def load_style(path: str, name: str = "--style") -> tuple[Any, dict[str, Any]]:
    """Read a style file: the style, and what the recipe keeps of it. Errors say the name of what gave it."""
    from instantstyle.styles.style import Style

    if not Path(path).is_file():
        raise OSError(f"{name}: {path}: there is no such file.")
    try:
        style = Style.load(path)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return style, {**describe_file(name, path), "recipe": asdict(style.recipe)}


def open_picture(name: str, path: str) -> Picture:
    """Read a picture whole, so that a broken file is found now.

    Args:
        name: The option that gave it, for errors.
        path: The file.

    Raises:
        ValueError: It is not a picture, or is damaged.
        OSError: It cannot be read.
    """
    described = describe_file(name, path)
    try:
        image = Image.open(path)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: {path} is not a picture that can be read ({type(error).__name__}).") from error
    return Picture(image, **described)


def describe_file(name: str, path: str) -> dict[str, str]:
    """Say what the recipe keeps of a file: its name and its fingerprint.

    Args:
        name: The option that gave it, for errors.
        path: The file.

    Raises:
        OSError: It cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise OSError(f"{name}: {path}: {error.strerror}.") from error
    return {"file": Path(path).name, "sha256": hashlib.sha256(content).hexdigest()}


def fit(pictures: dict[str, Picture], size: tuple[int, int] | None) -> dict[str, Image.Image]:
    """Turn and convert the pictures as the host does, and bring those to start from to the size of the result.

    The reference stays as it is: the pipeline turns it and knows its mode.
    """
    from diffusers.utils import load_image

    images = {
        name: picture.image if name == "style" else load_image(picture.image) for name, picture in pictures.items()
    }
    if "image" in images:
        if "mask" in images and images["mask"].size != images["image"].size:
            raise ValueError(
                "--mask is {}x{} pixels, but --image is {}x{}; give both the same size.".format(
                    *images["mask"].size, *images["image"].size
                )
            )
        width, height = size or (side // PIXELS * PIXELS for side in images["image"].size)
        if not width or not height:
            raise ValueError(f"--image is smaller than {PIXELS} pixels; give a larger --size.")
        for name in images.keys() - {"style"}:
            images[name] = images[name].resize((width, height), Image.Resampling.LANCZOS)
    return images


def output_paths(output: str, number: int) -> list[Path]:
    """Name the files to write: FILE.png, or FILE-0.png, FILE-1.png, ... for several pictures.

    Raises:
        ValueError: The name does not end in .png, or its folder is missing or cannot be written.
    """
    path = check_output("--output", output, ".png", "the recipe")
    return [path] if number == 1 else [path.with_stem(f"{path.stem}-{index}") for index in range(number)]
