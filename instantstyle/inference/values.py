"""Values as texts, as an option, a manifest's cell or a field of the page gives them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping
from typing import Any


PIXELS = 8  # what the autoencoders of both families need sides to be a multiple of


def number(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def words(text: str) -> str:
    """Read a text that says something."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected words, got none; leave it out to remove nothing")
    return text


def numbers(text: str) -> list[float]:
    """Read numbers with commas between."""
    return [number(part) for part in text.split(",")]


def fraction(text: str) -> float:
    """Read a number from 0 to 1."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def changed(options: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    """Return options of which some are changed."""
    return argparse.Namespace(**{**vars(options), **changes})


def enlargement(text: str) -> float:
    """Read a number above 1."""
    value = number(text)
    if value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 1, got {text!r}")
    return value


def truth(text: str) -> bool:
    """Read "true" or "false"."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def content_scale(text: str) -> float | str:
    """Read a number or "auto"."""
    return text if text == "auto" else number(text)


def count(text: str) -> int:
    """Read a positive whole number."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """Read a seed, with room above it for one per picture."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def port(text: str) -> int:
    """Read the number of a port."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to {2**16 - 1}, got {text!r}")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """Read "WIDTHxHEIGHT", or one number for both."""
    parts = text.lower().split("x")
    sides = [int(part) for part in parts if part.isdecimal()]
    if len(parts) > 2 or len(sides) != len(parts) or any(side == 0 or side % PIXELS for side in sides):
        raise argparse.ArgumentTypeError(f"expected WxH or N in multiples of {PIXELS} pixels, got {text!r}")
    return sides[0], sides[-1]


def targets(text: str) -> list[tuple[str, float]]:
    """Read "NAME" or "NAME=SCALE", one or several with commas between."""
    return [target(part.strip()) for part in text.split(",")]


def target(text: str) -> tuple[str, float]:
    """Read one "NAME" or "NAME=SCALE"."""
    name, equals, scale = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"expected NAME or NAME=SCALE, got {text!r}")
    return name, number(scale) if equals else 1.0


def write_targets(scales: Mapping[str, Any], blocks: Collection[str]) -> str:
    """Write blocks and, where they are not 1, their scales, as `--target-blocks` takes them."""
    if scales == dict.fromkeys(blocks, 1.0):
        return "every block"
    return ", ".join(name if scale == 1 else f"{name}={scale}" for name, scale in scales.items())
