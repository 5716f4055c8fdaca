"""Results of an evaluation: what it was made with, its rows and its curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from instantstyle.lab.conditions import Condition, digest
from instantstyle.lab.metrics import Estimate
from instantstyle.lab.pairs import Pairs, sample_pairs


FORMAT = 1  # of the saved verdicts; raised when the same condition would give other ones


@dataclass(frozen=True)
class Setup:
    """What a set of verdicts was made with, apart from the condition.

    Attributes:
        folder: Where the checkpoint is; no part of the key.
        fingerprint: What tells the checkpoint and the versions apart.
        split: Which pairs, as for `sample_pairs`.
        pairs: How many of them.
        seeds: Pictures of each pair.
        steps, guidance: Of the sampler.
    """

    folder: str
    fingerprint: str
    split: str
    pairs: int
    seeds: int
    steps: int
    guidance: float

    def to_json(self) -> dict[str, Any]:
        """Return all but the place as what JSON can hold."""
        return {name: value for name, value in vars(self).items() if name != "folder"}

    def key(self, condition: Condition) -> str:
        """Name the verdicts on a condition."""
        return digest({**self.to_json(), "format": FORMAT, "condition": condition.settings()})

    def chosen_pairs(self) -> Pairs:
        """Return the pairs of prompt and reference."""
        return sample_pairs(self.pairs, self.split)


@dataclass(frozen=True)
class Outcome:
    """One condition's results: its metrics, and by how much they are above the baseline's."""

    condition: Condition
    metrics: dict[str, Estimate]
    difference: dict[str, Estimate]
    examples: list[str]


@dataclass(frozen=True)
class Point:
    """One point of a curve, and by how much it is above another curve where that has the same style."""

    label: str
    condition: Condition
    metrics: dict[str, Estimate]
    at_equal_style: dict[str, Estimate] | None


@dataclass(frozen=True)
class Line:
    """A curve's results, and the name of the curve that it is compared with at equal style."""

    name: str
    against: str | None
    points: list[Point]


@dataclass(frozen=True)
class Evaluation:
    """All that the report tells.

    Attributes:
        setup: What the rows were made with.
        baseline: The name of the condition that the others are compared with.
        rows: The conditions.
        curve_setup: What the lines were made with.
        lines: The curves, if they were asked for.
    """

    setup: Setup
    baseline: str
    rows: list[Outcome]
    curve_setup: Setup
    lines: list[Line]
