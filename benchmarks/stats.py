# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""Medians with 95 % bootstrap intervals, and what they say about a goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A median, and the bounds of its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    def show(self, digits: int = 3) -> str:
        """`median [low, high]`, or one number where they are the same."""
        numbers = [f"{number:.{digits}f}" for number in (self.median, self.low, self.high)]
        return numbers[0] if len(set(numbers)) == 1 else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def estimate(samples: Sequence[float], seed: int = 0) -> Estimate:
    """The median of samples with its percentile bootstrap interval."""
    values = np.asarray(samples, dtype=float)
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), (2.5, 97.5))
    return Estimate(float(np.median(values)), float(low), float(high))


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """The median of the ratios within rounds: what disturbed a whole round cancels."""
    return estimate([a / b for a, b in zip(above, below, strict=True)])


def at_least(goal: float, found: Estimate) -> str:
    """Whether a value reaches a goal: "met", "missed", or "inconclusive" where the interval includes the goal."""
    return "met" if found.low >= goal else "missed" if found.high < goal else "inconclusive"


def at_most(goal: float, found: Estimate) -> str:
    """Whether a value stays below a goal: "met", "missed", or "inconclusive" where the interval includes the goal."""
    return "met" if found.high <= goal else "missed" if found.low > goal else "inconclusive"
