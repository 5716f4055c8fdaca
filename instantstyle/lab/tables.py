"""The evaluation as text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from instantstyle.console import table
from instantstyle.lab.metrics import SHARES, Estimate
from instantstyle.lab.results import Evaluation, Setup


TITLES = {
    "content_right": "content right",
    "content_leaked": "content leaked",
    "unrecognised": "nothing recognisable",
    "style": "style match",
    "palette": "palette",
    "background": "background",
    "texture": "texture",
    "layout_copied": "layout copied",
    "distance": "px between centres",
    "line": "px off line weight",
}
MEANINGS = {
    "content right": "the picture shows the prompt's shape",
    "content leaked": "it shows the reference's shape instead, which is never the prompt's",
    "nothing recognisable": "the judges see no shape that they know",
    "style match": "the mean of palette, background and texture, each right where it is the reference's",
    "layout copied": "the centre is within 4 px of the reference's and the size within 3 px",
    "px between centres": "from the picture's shape to the reference's, in pixels of the 64",
    "px off line weight": "between the widths of the two outlines, which no prompt can name",
}
TEXT_TABLES = (
    ("content_right", "content_leaked", "unrecognised", "style", "layout_copied"),
    ("palette", "background", "texture", "line", "distance"),
)
CURVE_COLUMNS = ("style", "content_right", "content_leaked", "unrecognised", "layout_copied")
MINUS = "\N{MINUS SIGN}"


def evaluation_text(evaluation: Evaluation) -> str:
    """Return the tables that the command prints: percentages with their 95 % intervals, and pixels."""
    tables = [headline_rows(evaluation, names) for names in TEXT_TABLES]
    if len(evaluation.rows) > 1:
        tables.append([[f"above {evaluation.baseline}", *tables[0][0][1:]], *difference_rows(evaluation)])
    if evaluation.lines:
        tables += [curve_rows(evaluation), gain_rows(evaluation)]
    aligned = [table(rows, right=range(1, len(rows[0]))) for rows in tables]
    return "\n\n".join([summary(evaluation.setup), *aligned])


def summary(setup: Setup) -> str:
    """Say what the conditions were tried on."""
    return (
        f"{setup.pairs} pairs of prompt and reference ({setup.split} split) x {setup.seeds} "
        f"{'seed' if setup.seeds == 1 else 'seeds'}, {setup.steps} steps, guidance {setup.guidance:g}; "
        "% of the pictures or px, with 95 % intervals over pairs"
    )


def headline_rows(evaluation: Evaluation, names: Sequence[str]) -> list[list[str]]:
    """Return the rows of the table of conditions, the heading first."""
    heading = ["condition", *(TITLES[name] for name in names)]
    return [heading, *([row.condition.name, *cells(row.metrics, names)] for row in evaluation.rows)]


def difference_rows(evaluation: Evaluation) -> list[list[str]]:
    """Return the rows of the table of differences from the baseline, without a heading."""
    others = [row for row in evaluation.rows if row.condition.name != evaluation.baseline]
    return [[row.condition.name, *cells(row.difference, TEXT_TABLES[0], sign=True)] for row in others]


def curve_rows(evaluation: Evaluation) -> list[list[str]]:
    """Return the rows of the table of curves, the heading first."""
    heading = ["curve", "strength", *(TITLES[name] for name in CURVE_COLUMNS)]
    rows = [
        [line.name, point.label, *cells(point.metrics, CURVE_COLUMNS)]
        for line in evaluation.lines
        for point in line.points
    ]
    return [heading, *rows]


def gain_rows(evaluation: Evaluation) -> list[list[str]]:
    """Return the rows of the table of gains at equal style, the heading first."""
    names = [name for name in CURVE_COLUMNS if name != "style"]
    rows = [
        [line.name, point.label, line.against or "", *cells(point.at_equal_style, names, sign=True)]
        for line in evaluation.lines
        for point in line.points
        if point.at_equal_style is not None
    ]
    return [["at equal style", "strength", "above", *(TITLES[name] for name in names)], *rows]


def cells(metrics: Mapping[str, Estimate], names: Sequence[str], sign: bool = False) -> list[str]:
    """Write some metrics."""
    return [cell(metrics[name], name, sign) for name in names]


def cell(value: Estimate, name: str, sign: bool = False) -> str:
    """Write one metric and its interval, in percent where it is a share."""
    factor, digits = (100, 1) if name in SHARES else (1, 2)
    mean, low, high = (
        f"{factor * number:{'+' if sign else ''}.{digits}f}" for number in (value.mean, value.low, value.high)
    )
    return f"{mean} ({low} to {high})".replace("-", MINUS)
