"""Reference pictures that are not square, fitted to the square that an image encoder sees."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from .nesting import flatten


FITS = ("crop", "pad", "squash", "tiles")


def check_fit(fit: Any, pictures: Any, name: str) -> None:
    """Refuse a fit that is none, or that these pictures cannot have; say what the host's own cuts off.

    Args:
        fit: `reference_fit`.
        pictures: nested lists, or None.
        name: the argument that gave the pictures, for errors.

    Raises:
        ValueError: no such fit, or no pictures.
        TypeError: a picture is an array or a tensor, of which only the host's fit is taken.
    """
    if fit not in FITS:
        raise ValueError(f"`reference_fit` must be one of {', '.join(map(repr, FITS))}, but is {fit!r}.")
    if fit != "crop" and pictures is None:
        raise ValueError(f"`reference_fit` is about `{name}`, which is missing.")
    for picture in flatten(pictures):
        is_image = hasattr(picture, "getexif")
        if fit != "crop" and not is_image:
            came = type(picture).__name__
            raise TypeError(f"`reference_fit` {fit!r} needs PIL images in `{name}`, but it holds a {came}.")
        if fit == "crop" and is_image:
            _say_what_is_cut(*picture.size)


@functools.cache  # once for each size
def _say_what_is_cut(width: int, height: int) -> None:
    if width != height:
        cut = 1 - min(width, height) / max(width, height)
        logging.getLogger(__name__).warning(
            f"A reference of {width} x {height} is cropped to its middle square: {cut:.0%} of it, at two edges, "
            "has no influence. With `reference_fit` 'pad', 'squash' or 'tiles' all of it has."
        )


def squares(picture: Any, fit: str, encoder: Any, extractor: Any) -> list[Any]:
    """The square pictures whose embeddings, as a mean, stand for this one.

    Args:
        picture: a PIL image.
        fit: "pad" with the mean colour of the encoder's training, which it sees as zeros; "squash" to its side;
            "tiles": squares of the shorter side from end to end, each overlapping the next by a half or more; "crop"
            leaves the picture to the host.
        encoder, extractor: the image encoder and its feature extractor.
    """
    (width, height), side = picture.size, encoder.config.image_size
    longer, shorter = max(width, height), min(width, height)
    if fit == "crop" or width == height:
        return [picture]
    picture = picture.convert("RGB")
    if fit == "squash":
        return [picture.resize((side, side))]
    if fit == "pad":
        square = picture.resize((longer, longer))
        square.paste(tuple(round(255 * mean) for mean in extractor.image_mean), (0, 0, longer, longer))
        square.paste(picture, ((longer - width) // 2, (longer - height) // 2))
        return [square]
    last = math.ceil(2 * (longer - shorter) / shorter)
    starts = sorted({round(i * (longer - shorter) / last) for i in range(last + 1)})
    corners = [(start, 0) if width > height else (0, start) for start in starts]
    return [picture.crop((x, y, x + shorter, y + shorter)) for x, y in corners]


def mean_of_squares(rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Embeddings of pictures from those of their squares: of the last row, the conditional, the mean.

    Args:
        rows: shape `(1 or 2, squares, ...)`.
        counts: the number of squares of each picture.

    Returns:
        Shape `(1 or 2, pictures, ...)`.
    """
    if len(counts) == rows.shape[1]:
        return rows
    parts = rows.split(list(counts), dim=1)
    means = [torch.cat([part[:-1, :1], part[-1:].float().mean(1, keepdim=True).to(part.dtype)]) for part in parts]
    return torch.cat(means, dim=1)
