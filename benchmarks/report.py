# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""What was found, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.stats import Estimate, estimate


@dataclass
class Report:
    """Rows of measurements, one column per side, and the goals with their verdicts."""

    conditions: dict[str, Any]
    judged: bool = True
    rows: list[tuple[str, dict[str, Estimate], int]] = field(default_factory=list)
    goals: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def add(self, measure: str, samples: Mapping[str, Sequence[float]], digits: int = 3) -> None:
        """Add a measurement by its samples."""
        self.samples[measure] = samples
        self.rows.append((measure, {side: estimate(values) for side, values in samples.items()}, digits))

    def judge(self, goal: str, found: Estimate, verdict: str, digits: int = 3) -> None:
        """Add a goal, what was found, and the verdict, which is kept back where the goals do not apply."""
        self.goals.append((goal, found.show(digits), verdict if self.judged else "not judged"))

    def text(self) -> str:
        """All of it as Markdown; what was measured in one table for each set of sides."""
        parts = [
            _table(["condition", "value"], [[name, str(value)] for name, value in self.conditions.items()]),
            *map(self._measured, dict.fromkeys(tuple(cells) for _, cells, _ in self.rows)),
            _table(["goal", "found", "verdict"], [list(goal) for goal in self.goals]),
            "\n".join(f"- {note}" for note in self.notes),
        ]
        return "\n\n".join(filter(None, parts))

    def _measured(self, sides: tuple[str, ...]) -> str:
        rows = [
            [name, *(cell.show(digits) for cell in cells.values())]
            for name, cells, digits in self.rows
            if tuple(cells) == sides
        ]
        return _table(["median [95 % interval]", *sides], rows)

    def json(self) -> dict[str, Any]:
        """All of it with every sample."""
        return {
            "conditions": self.conditions,
            "rows": {name: {side: asdict(cell) for side, cell in cells.items()} for name, cells, _ in self.rows},
            "goals": [dict(zip(("goal", "found", "verdict"), goal, strict=True)) for goal in self.goals],
            "notes": self.notes,
            "samples": self.samples,
        }


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
