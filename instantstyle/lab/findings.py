"""Findings of a probe: what is measured, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from instantstyle.lab.proposal import Groups, Proposal


Progress = Callable[[int], object]
"""Is told how many pictures were made."""


@dataclass(frozen=True)
class Finding:
    """What came of letting some groups see the reference.

    Attributes:
        groups: Which, in the UNet's order.
        scores: Metric -> mean over the pairs, and `low` and `high` of its 95 % interval.
        pictures: The pictures of the pairs that are shown.
    """

    groups: Groups
    scores: dict[str, dict[str, float]]
    pictures: list[Image.Image]


class Scorer(Protocol):
    """A way to measure groups.

    Attributes:
        name: What it is called in the report.
        notes: What must be known to read its numbers.
        columns: The metrics to print, and how.
        count: Pictures per measurement.
        shown: Reference and prompt of the pairs whose pictures are shown.
    """

    name: str
    notes: list[str]
    columns: dict[str, str]
    count: int
    shown: list[tuple[Image.Image, str]]

    def measure(self, groups: Groups, progress: Progress) -> Finding:
        """Make the pictures of all pairs, and score them."""

    def propose(self, scores: Mapping[Groups, Mapping[str, float]]) -> Proposal:
        """Conclude from the means."""


def plan(every: Groups) -> list[Groups]:
    """Return what is measured first: no group, all, each alone, and all but each."""
    return list(dict.fromkeys([(), every, *alone(every), *all_but_one(every)]))


def alone(every: Groups) -> list[Groups]:
    """Return each group by itself."""
    return [(group,) for group in every]


def all_but_one(every: Groups) -> list[Groups]:
    """Return, for each group, all the others."""
    return [tuple(other for other in every if other != group) for group in every]


def means(findings: Mapping[Groups, Finding]) -> dict[Groups, dict[str, float]]:
    """Return the means alone."""
    return {groups: {name: one["mean"] for name, one in f.scores.items()} for groups, f in findings.items()}


def name_of(groups: Groups, every: Groups) -> str:
    """Say which groups see the reference."""
    if not groups:
        return "no reference"
    if groups == every:
        return "all"
    if len(groups) > 1 and len(groups) == len(every) - 1:
        (missing,) = set(every) - set(groups)
        return f"all but {missing}"
    return " + ".join(groups)
