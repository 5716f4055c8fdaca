"""The edges of a picture, as ControlNets for them expect: thin, white on black."""

from __future__ import annotations

import numpy as np
from PIL import Image


WEAK, STRONG = 50, 200  # of the gradient of eight bits, as InstantStyle's own examples have them
NEIGHBOURS = ((0, 1), (1, 1), (1, 0), (1, -1))  # rows down and columns right, along each of four directions


def find_edges(picture: Image.Image, weak: float = WEAK, strong: float = STRONG) -> Image.Image:
    """Find edges as J. Canny does ("A Computational Approach to Edge Detection", 1986), without smoothing before.

    Args:
        picture: Any picture.
        weak: A ridge of the gradient (Sobel's, the sum of both directions) above this is an edge where it leads on
            from a stronger one.
        strong: A ridge above this is an edge.

    Returns:
        A picture of the same size in RGB.
    """
    down, right = gradient(np.asarray(picture.convert("L"), dtype=np.int32))
    ridge = np.where(on_ridge(down, right), abs(down) + abs(right), 0)
    edge = connected(ridge > strong, ridge > weak)
    return Image.fromarray(edge.astype(np.uint8) * 255).convert("RGB")


def gradient(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Sobel's gradient downwards and to the right, each of the picture's shape (height, width)."""
    padded = np.pad(grey, 1, mode="edge")
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    along = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return across[2:] - across[:-2], along[:, 2:] - along[:, :-2]


def on_ridge(down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Say where the gradient is steeper than on both sides of it, along its own direction."""
    steepness = abs(down) + abs(right)
    direction = np.round(np.arctan2(down, right) * 4 / np.pi).astype(int) % 4
    found = np.zeros(down.shape, dtype=bool)
    for number, (rows, columns) in enumerate(NEIGHBOURS):
        before, after = shifted(steepness, rows, columns), shifted(steepness, -rows, -columns)
        found |= (direction == number) & (steepness > before) & (steepness >= after)
    return found


def connected(seeds: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Grow seeds over what is allowed, into all eight neighbours, until nothing is added."""
    found = seeds
    while True:
        grown = found.copy()
        for rows, columns in NEIGHBOURS:
            grown |= shifted(found, rows, columns) | shifted(found, -rows, -columns)
        grown = grown & allowed | seeds
        if (grown == found).all():
            return found
        found = grown


def shifted(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Move an array down and right by at most one place; what comes in is zero."""
    height, width = values.shape
    return np.pad(values, 1)[1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]
