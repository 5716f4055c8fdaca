"""Metrics: what pictures took from their references, as numbers with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from instantstyle.lab.pairs import Pairs
from instantstyle.tiny.judges import Verdicts


Floats = NDArray[np.float64]
Scores = Mapping[str, Floats]
"""Name of a metric -> its value for each pair, shape (pairs,)."""

SHARES = (
    "content_right",
    "content_leaked",
    "unrecognised",
    "style",
    "palette",
    "background",
    "texture",
    "layout_copied",
)
PIXELS = ("distance", "line")
METRICS = (*SHARES, *PIXELS)
"""Those of `SHARES` are fractions of the pictures, those of `PIXELS` are lengths."""

NEAR = 4.0  # pixels between centres within which the position is copied
ALIKE = 3.0  # pixels between sizes within which the size is copied
RESAMPLES = 4000
SEED = 0
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return the three numbers, rounded to what can be told apart."""
        return {name: round(value, 5) for name, value in vars(self).items()}


def score(verdicts: Verdicts, pairs: Pairs) -> dict[str, Floats]:
    """Compare what is in the pictures with what was asked for and with the references.

    Args:
        verdicts: What the judges saw: n pairs x m seeds, of shape (n * m,) or (n, m).
        pairs: The n prompts and references.

    Returns:
        Metric -> mean over each pair's seeds, shape (n,). Pictures in which nothing is recognised count everywhere:
        their content is neither right nor leaked, the rest is what the judges made of them.
    """
    seen = {name: np.asarray(value).reshape(len(pairs), -1) for name, value in vars(verdicts).items()}
    shown = {name: np.asarray(value)[:, None] for name, value in pairs.references.columns().items()}
    matches = {name: seen[name] == shown[name] for name in ("palette", "background", "texture")}
    distance = np.hypot(seen["x"] - shown["x"], seen["y"] - shown["y"])
    found = {
        "content_right": seen["shape"] == np.asarray(pairs.prompts_shape)[:, None],
        "content_leaked": seen["shape"] == shown["shape"],
        "unrecognised": seen["shape"] < 0,
        "style": sum(match.astype(np.float64) for match in matches.values()) / len(matches),
        **matches,
        "layout_copied": (distance <= NEAR) & (np.abs(seen["size"] - shown["size"]) <= ALIKE),
        "distance": distance,
        "line": np.abs(seen["line"] - shown["line"]),
    }
    return {name: np.asarray(found[name], dtype=np.float64).mean(axis=1) for name in METRICS}


def estimate(scores: Scores) -> dict[str, Estimate]:
    """Return the mean of every metric, with its bootstrap interval over pairs."""
    return {name: proportion(values) if name in SHARES else average(values) for name, values in scores.items()}


def average(values: Floats) -> Estimate:
    """Return the mean with its bootstrap interval."""
    return interval(values.mean(), resampled(values))


def proportion(values: Floats) -> Estimate:
    """Return the mean of fractions with its interval, also where all pairs show none or all, which resampling cannot.

    The interval's open end is then what such a sample would still show once in twenty times.
    """
    end = (1 - LEVEL) ** (1 / len(values))
    if not values.any():
        return Estimate(0, 0, 1 - end)
    return Estimate(1, end, 1) if (values == 1).all() else average(values)


def difference(first: Scores, second: Scores) -> dict[str, Estimate]:
    """Return by how much `first` is above `second`, from the same pairs.

    The interval is of the differences within pairs, which is narrower than the two conditions' own.
    """
    return {name: average(first[name] - second[name]) for name in first}


def at_equal_style(point: Scores, curve: Sequence[Scores]) -> dict[str, Estimate] | None:
    """Return by how much `point` is above a curve where the curve has the same style.

    Between its points the curve is straight. It is followed as far as its style grows: a strength beyond that, which
    brings less style and more else, is nobody's choice. Where a resample of the pairs puts `point` beyond an end of
    the curve, that end is taken.

    Args:
        point: The scores of one condition.
        curve: The scores of another method at several strengths, the weakest first, from the same pairs.

    Returns:
        Metric -> difference, or None where the style of `point` is beyond the curve.
    """
    styles = np.array([one["style"].mean() for one in curve])
    most = int(styles.argmax()) + 1
    curve, styles = curve[:most], styles[:most]
    if not styles.min() <= point["style"].mean() <= styles.max():
        return None
    redrawn = stack_resampled(curve, "style")
    found = {}
    for name in point:
        level = on_curve(point["style"].mean(), styles, np.array([one[name].mean() for one in curve]))
        levels = on_curve(resampled(point["style"]), redrawn, stack_resampled(curve, name))
        found[name] = interval(point[name].mean() - level, resampled(point[name]) - levels)
    return found


def on_curve(x: Floats, xs: Floats, ys: Floats) -> Floats:
    """Return the heights of lines through points at `x`, level beyond their ends.

    Args:
        x: Where, of any shape.
        xs, ys: The points of each line, in any order: the shape of `x` with the number of points after it.
    """
    order = np.argsort(xs, axis=-1, kind="stable")
    xs, ys = np.take_along_axis(xs, order, axis=-1), np.take_along_axis(ys, order, axis=-1)
    right = np.clip((xs <= np.expand_dims(x, -1)).sum(axis=-1, keepdims=True), 1, xs.shape[-1] - 1)
    (x0, x1), (y0, y1) = (
        [np.take_along_axis(values, right + side, axis=-1)[..., 0] for side in (-1, 0)] for values in (xs, ys)
    )
    along = np.divide(x - x0, x1 - x0, out=np.zeros_like(x1), where=x1 > x0)
    return y0 + np.clip(along, 0, 1) * (y1 - y0)


def stack_resampled(curve: Sequence[Scores], name: str) -> Floats:
    """Return one metric's resampled means for every point of a curve: (RESAMPLES, points)."""
    return np.stack([resampled(one[name]) for one in curve], axis=-1)


def resampled(values: Floats) -> Floats:
    """Return the means of pairs drawn again with replacement, the same draws for every metric: (RESAMPLES,)."""
    return draws(len(values)) @ values


@cache
def draws(count: int) -> Floats:
    """Return how often each pair is drawn, as a share: (RESAMPLES, count)."""
    return np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def interval(mean: float, means: Floats) -> Estimate:
    """Put a mean and the percentiles of its resamples together."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(mean), float(low), float(high))
