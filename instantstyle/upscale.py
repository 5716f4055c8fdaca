"""A second pass: pictures are enlarged and painted over in the same style, for details that were not there before."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from PIL import Image

from instantstyle import fast
from instantstyle.reading import PIXELS, changed
from instantstyle.sharing import sibling


STRENGTH = 0.3


def strength(options: argparse.Namespace) -> float | None:
    """How much of the enlarged picture is painted over; None without --upscale."""
    if options.upscale is None:
        return None
    return STRENGTH if options.upscale_strength is None else options.upscale_strength


def check(options: argparse.Namespace) -> None:
    """Refuse a second pass without a step, before the first."""
    fast.check_part("--upscale-strength", strength(options), options)


def repaint(
    options: argparse.Namespace,
    pipe: Any,
    family: str,
    given: dict[str, Image.Image],
    style: Any,
    pictures: Sequence[Image.Image],
) -> list[Image.Image]:
    """Make the second pass of each picture, one after another.

    Args:
        options: Those of `generate`.
        pipe: The pipeline that painted; the second pass shares its parts.
        family: "sdxl" or "sd15".
        given: The pictures that were given, by option.
        style: The encoded style in place of a reference, or None.
        pictures: What was painted.
    """
    from instantstyle import generate  # which imports this file

    passes = [second_pass(options, given, picture, index) for index, picture in enumerate(pictures)]
    second = sibling(pipe, generate.variant_name(passes[0][0], family))
    calls = [generate.call_arguments(own, second, larger, style) for own, larger in passes]
    return [image for call in calls for image in second(**call).images]


def second_pass(
    options: argparse.Namespace, given: dict[str, Image.Image], picture: Image.Image, index: int = 0
) -> tuple[argparse.Namespace, dict[str, Image.Image]]:
    """Say the second pass of the picture of this index as `generate --image` would be told it.

    Returns:
        The options, with the picture's own prompt and seed, and the pictures that they name, enlarged.
    """
    own = changed(
        options,
        prompt=[options.prompt[index // options.num_images]],
        seed=options.seed + index,
        num_images=1,
        image="enlarged",
        strength=strength(options),
    )
    return own, enlarge({**given, "image": picture}, options.upscale)


def enlarge(given: dict[str, Image.Image], factor: float) -> dict[str, Image.Image]:
    """Enlarge the picture and bring all others to its size; the reference stays as it is."""
    width, height = (round(side * factor / PIXELS) * PIXELS for side in given["image"].size)
    return {
        name: image if name == "style" else image.resize((width, height), Image.Resampling.LANCZOS)
        for name, image in given.items()
    }
