"""Shares: weights of pictures or styles, divided by their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real


def shares(weights: Sequence[float] | None, count: int, of: str) -> list[float]:
    """Divide `weights` by their sum; None means that all `count` are the same.

    Args:
        weights: A finite number for each.
        count: How many there must be.
        of: The argument whose entries they weigh, for errors.

    Raises:
        TypeError, ValueError: Another number of weights, something that is no finite number, or a sum not above 0.
    """
    given = [1.0] * count if weights is None else weights
    if not isinstance(given, (list, tuple)) or any(isinstance(w, bool) or not isinstance(w, Real) for w in given):
        raise TypeError(f"`weights` must be a list of numbers, but is {weights!r}.")
    if len(given) != count:
        raise ValueError(f"`weights` must have a number for each of the {count} in {of}, but has {len(given)}.")
    total = math.fsum(given)
    if not math.isfinite(total) or total <= 0:
        raise ValueError(f"`weights` must be finite and have a sum above 0, but are {list(given)!r}.")
    return [float(weight) / total for weight in given]
