"""Findings of a probe: which attention groups saw the reference, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from PIL import Image


Groups = tuple[str, ...]
"""The attention groups that see the reference, in the UNet's order."""


@dataclass(frozen=True)
class Finding:
    """What came of letting some groups see the reference.

    Attributes:
        groups: Which, in the UNet's order.
        pictures: The pictures of the examples that are shown.
        scores: Metric -> mean over the pairs, and `low` and `high` of its 95 % interval; empty where nobody judges.
    """

    groups: Groups
    pictures: list[Image.Image]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def plan(every: Groups) -> list[Groups]:
    """Return what is looked at first: no group, all, each alone, and all but each."""
    return list(dict.fromkeys([(), every, *alone(every), *all_but_one(every)]))


def alone(every: Groups) -> list[Groups]:
    """Return each group by itself."""
    return [(group,) for group in every]


def all_but_one(every: Groups) -> list[Groups]:
    """Return, for each group, all the others."""
    return [tuple(other for other in every if other != group) for group in every]


def in_order(every: Groups, chosen: Iterable[str]) -> Groups:
    """Put groups into the UNet's order."""
    chosen = set(chosen)
    return tuple(group for group in every if group in chosen)


def mean_scores(findings: Mapping[Groups, Finding]) -> dict[Groups, dict[str, float]]:
    """Return the means alone."""
    return {groups: {name: one["mean"] for name, one in f.scores.items()} for groups, f in findings.items()}


def title_of(groups: Groups, every: Groups) -> str:
    """Say which groups see the reference."""
    if not groups:
        return "no reference"
    if groups == every:
        return "all"
    if len(groups) > 1 and len(groups) == len(every) - 1:
        (missing,) = set(every) - set(groups)
        return f"all but {missing}"
    return " + ".join(groups)
