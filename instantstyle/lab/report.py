"""The evaluation's files: JSON, plot and page."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instantstyle.files import atomically
from instantstyle.lab.metrics import Estimate
from instantstyle.lab.page import page
from instantstyle.lab.plot import draw_plot
from instantstyle.lab.results import Evaluation
from instantstyle.version import versions


def save_report(evaluation: Evaluation, out: Path) -> list[Path]:
    """Write `evaluation.json`, `evaluation.png` and `evaluation.html`, and return their paths.

    Args:
        evaluation: What was found.
        out: An existing folder.

    Raises:
        OSError: A file cannot be written.
    """
    plot = draw_plot(evaluation)
    contents = {
        "evaluation.json": (json.dumps(evaluation_json(evaluation), indent=1) + "\n").encode(),
        "evaluation.png": plot,
        "evaluation.html": page(evaluation, plot).encode(),
    }
    for name, content in contents.items():
        with atomically(out / name) as scratch:
            Path(scratch).write_bytes(content)
    return [out / name for name in contents]


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as what JSON can hold, without pictures."""

    def numbers(metrics: Mapping[str, Estimate] | None) -> dict[str, Any] | None:
        return None if metrics is None else {name: one.to_json() for name, one in metrics.items()}

    return {
        "versions": versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "conditions": {
            "setup": evaluation.setup.to_json(),
            "baseline": evaluation.baseline,
            "rows": [
                {
                    "condition": row.condition.to_json(),
                    "metrics": numbers(row.metrics),
                    "above_baseline": numbers(row.difference),
                }
                for row in evaluation.rows
            ],
        },
        "curves": {
            "setup": evaluation.curve_setup.to_json(),
            "lines": [
                {
                    "name": line.name,
                    "against": line.against,
                    "points": [
                        {
                            "strength": point.label,
                            "condition": point.condition.to_json(),
                            "metrics": numbers(point.metrics),
                            "above_the_other_at_equal_style": numbers(point.at_equal_style),
                        }
                        for point in line.points
                    ],
                }
                for line in evaluation.lines
            ],
        },
    }
