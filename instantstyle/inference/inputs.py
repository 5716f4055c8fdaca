"""Pictures and style files: opened, and brought to the size of the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from instantstyle.inference.edges import find_edges
from instantstyle.inference.request import Request
from instantstyle.inference.values import PIXELS, Named, Picture, Source, is_style_file
from instantstyle.styles.style import Style


REMEMBERED = 64  # pictures and style files
STARTS = ("image", "mask", "control_image")  # what is brought to the size of the result


@dataclass(frozen=True)
class StyleFile(Named):
    """A style file at hand."""

    style: Style = field(compare=False, repr=False)

    @property
    def written(self) -> dict[str, Any]:
        """What a recipe keeps: also what the style was made of."""
        return {**super().written, "recipe": asdict(self.style.recipe)}


class Reader:
    """Opens what requests name. They share files, so the last ones are remembered, and the names of all."""

    def __init__(self) -> None:
        self._picture = lru_cache(REMEMBERED)(open_picture)
        self._style = lru_cache(REMEMBERED)(open_style)
        self._named = cache(name_file)

    def opened(self, request: Request) -> Request:
        """Return the request with its files at hand.

        Raises:
            ValueError, OSError: One is missing, damaged or of the wrong size. The message names the field.
        """
        return with_files(request, self._open)

    def named(self, request: Request) -> Request:
        """Return the request with its files as recipes keep them; none is opened as a picture."""
        return with_files(request, lambda name, one: self._named(f"`{name}`", one) if isinstance(one, str) else one)

    def _open(self, name: str, source: Source) -> Source:
        if not isinstance(source, str):
            return source
        return (self._style if is_style_file(source) else self._picture)(f"`{name}`", source)


def with_files(request: Request, change: Callable[[str, Source], Source]) -> Request:
    """Return a request with other files. `change` gets the field and what is there."""
    starts = {name: change(name, source) for name in STARTS if (source := getattr(request, name)) is not None}
    style = tuple(
        replace(one, picture=change("style", one.picture), mask=one.mask and change("style", one.mask))
        for one in request.style
    )
    return request.but(**starts, **({"style": style} if style else {}))


def open_picture(who: str, path: str) -> Picture:
    """Read a picture whole, so that a broken file is found now.

    Args:
        who: What names it, for errors: a field between backticks, an option, a control.
        path: The file.

    Raises:
        ValueError: It is not a picture, or is damaged.
        OSError: It cannot be read.
    """
    named = name_file(who, path)
    try:
        image = Image.open(path)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{who}: {path} is not a picture that can be read ({type(error).__name__}).") from error
    return Picture(named.file, named.sha256, image)


def open_style(who: str, path: str) -> StyleFile:
    """Read a style file. Arguments and errors are those of `open_picture`."""
    if not Path(path).is_file():
        raise OSError(f"{who}: {path}: there is no such file.")
    named = name_file(who, path)
    try:
        return StyleFile(named.file, named.sha256, Style.load(path))
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from error


def name_file(who: str, path: str) -> Named:
    """Name a file as recipes do, by its name and SHA-256. Arguments and errors are those of `open_picture`."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise OSError(f"{who}: {path}: {error.strerror}.") from error
    return Named(Path(path).name, hashlib.sha256(content).hexdigest())


def find_files(request: Request, folders: Iterable[Path]) -> Request:
    """Return a request out of a recipe with its files found, by their names and contents, in some folders.

    Raises:
        ValueError: One is in none of them.
    """
    places = list(folders)

    def find(name: str, source: Source) -> Source:
        if type(source) is not Named:
            return source
        for path in (place / source.file for place in places):
            if path.is_file() and name_file(f"`{name}`", str(path)) == source:
                return str(path)
        raise ValueError(
            f"`{name}`: the recipe names {source.file} with the SHA-256 {source.sha256[:12]}..., which is not in "
            f"{' or '.join(map(str, places))}; say where it is with `{name}`."
        )

    return with_files(request, find)


# Sizes


def fitted(request: Request) -> dict[str, Image.Image]:
    """Return what is started from and steered by, as the pipeline takes it, by field.

    All are upright. The result has the size that was asked for, or else that of `image`, in multiples of 8 pixels.

    Args:
        request: A request with its files at hand.

    Raises:
        ValueError: `mask` and `image` are of different sizes, or `image` is too small.
    """
    images = {name: upright(picture.image) for name in STARTS if (picture := getattr(request, name)) is not None}
    size = request.size
    if "image" in images:
        _check_mask(images)
        size = size or _own_size(images["image"])
    if size is not None:
        images = {name: cropped(image, size) for name, image in images.items()}
    return images | ({"control_image": find_edges(images["control_image"])} if request.edges else {})


def _check_mask(images: dict[str, Image.Image]) -> None:
    image, mask = images["image"].size, images.get("mask", images["image"]).size
    if mask != image:
        raise ValueError(
            "`mask` is {}x{} pixels, but `image` is {}x{}; give both the same size.".format(*mask, *image)
        )


def _own_size(image: Image.Image) -> tuple[int, int]:
    width, height = (side // PIXELS * PIXELS for side in image.size)
    if not width or not height:
        raise ValueError(f"`image` is smaller than {PIXELS} pixels; give a larger `size`.")
    return width, height


def upright(image: Image.Image) -> Image.Image:
    """Turn and convert a picture as the pipelines do."""
    from diffusers.utils import load_image

    return load_image(image)


def cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bring a picture to a size; what does not fit is cut off on both sides alike."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def enlarged(images: dict[str, Image.Image], factor: float) -> dict[str, Image.Image]:
    """Enlarge the picture that is started from, and bring the others to its size."""
    width, height = (round(side * factor / PIXELS) * PIXELS for side in images["image"].size)
    return {name: image.resize((width, height), Image.Resampling.LANCZOS) for name, image in images.items()}
