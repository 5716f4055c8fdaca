"""What `instantstyle evaluate` found, as text, JSON, a plot and a page that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from instantstyle.blocks import table
from instantstyle.conditions import Condition
from instantstyle.files import atomically
from instantstyle.metrics import METRICS, SHARES, Estimate
from instantstyle.painting import reference_pictures
from instantstyle.tiny import world
from instantstyle.version import versions


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    from instantstyle.evaluate import Setup


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
MARKER, BESIDE = 6, 5  # in the plot: width of a marker, and its centre's distance from its label, in points
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
"""Where a label may stand, seen from its point, the best first."""


Points = Sequence[tuple[str, Mapping[str, Estimate]]]
"""The labels and metrics of a series of the plot."""


@dataclass(frozen=True)
class Row:
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
    rows: list[Row]
    curve_setup: Setup
    lines: list[Line]


def save(evaluation: Evaluation, out: Path) -> list[Path]:
    """Write `evaluation.json`, `evaluation.png` and `evaluation.html`, and return their paths.

    Args:
        evaluation: What was found.
        out: An existing folder.

    Raises:
        OSError: A file cannot be written.
    """
    plot = draw_plot(evaluation)
    contents = {
        "evaluation.json": (json.dumps(describe(evaluation), indent=1) + "\n").encode(),
        "evaluation.png": plot,
        "evaluation.html": page(evaluation, plot).encode(),
    }
    for name, content in contents.items():
        write(out / name, content)
    return [out / name for name in contents]


# --- Text ------------------------------------------------------------------------------------------------------------


def text(evaluation: Evaluation) -> str:
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


# --- Plot ------------------------------------------------------------------------------------------------------------


def draw_plot(evaluation: Evaluation) -> bytes:
    """Draw style against leakage, and style against content right, as a PNG file.

    With curves every method is one line over its strengths, otherwise every condition is one point.
    """
    file = io.BytesIO()
    draw_figure(evaluation).savefig(file, format="png", dpi="figure", metadata={"Software": None})
    return file.getvalue()


def draw_figure(evaluation: Evaluation) -> Figure:
    """Draw the plot's lines, legend and labels."""
    # Not pyplot, which keeps figures and picks a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    series = list(plotted(evaluation))
    panels = ((left, "content_leaked"), (right, "content_right"))
    for axes, metric in panels:
        for number, (name, points) in enumerate(series):
            draw_line(axes, metric, name, points, number)
        axes.set_xlabel("style match, %")
        axes.set_ylabel(f"{TITLES[metric]}, %")
        axes.grid(alpha=0.3)
    setup = evaluation.curve_setup if evaluation.lines else evaluation.setup
    figure.suptitle(f"{summary(setup)}", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.draw_without_rendering()  # gives everything its place
    for axes, metric in panels:
        draw_labels(axes, metric, series)
    return figure


def plotted(evaluation: Evaluation) -> Iterator[tuple[str, Points]]:
    """Yield what is drawn as one series: its name, and the label and metrics of its points."""
    for line in evaluation.lines:
        yield line.name, [(point.label, point.metrics) for point in line.points]
    for row in [] if evaluation.lines else evaluation.rows:
        yield row.condition.name, [("", row.metrics)]


def draw_line(axes: Axes, metric: str, name: str, points: Points, number: int) -> None:
    """Draw one series with the intervals of its points; a strength that is a word stands apart from the line."""
    colour, marker = colour_of(number), "osD^vP*X"[number % 8]
    x, y = ([metrics[which] for _, metrics in points] for which in ("style", metric))
    axes.errorbar(
        means(x), means(y), xerr=errors(x), yerr=errors(y), fmt="none", ecolor=colour, alpha=0.35, elinewidth=1
    )
    joined = [place for place, (label, _) in enumerate(points) if label != "auto"]
    axes.plot(
        means([x[place] for place in joined]),
        means([y[place] for place in joined]),
        color=colour,
        linestyle=("-", "--")[number // 10 % 2],
        marker=marker,
        markersize=MARKER,
        label=name,
    )
    for place in range(len(points)):
        if place not in joined:
            axes.plot(
                100 * x[place].mean,
                100 * y[place].mean,
                color=colour,
                marker=marker,
                markersize=MARKER,
                fillstyle="none",
            )


def draw_labels(axes: Axes, metric: str, series: Sequence[tuple[str, Points]]) -> None:
    """Write the strengths beside their points, the earlier series first, as far as there is room.

    A label that would cover a point, a line or another label is left out: the tables have every strength.
    """
    labels = [
        (label, (100 * metrics["style"].mean, 100 * metrics[metric].mean), colour_of(number))
        for number, (_, points) in enumerate(series)
        for label, metrics in points
    ]
    lines = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
    taken = [around(axes, at) for _, at, _ in labels]
    for label, at, colour in labels:
        for side in SIDES if label else ():
            text = write_beside(axes, label, at, side, colour)
            box = text.get_window_extent()
            within = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if (
                within
                and not box.count_overlaps(taken)
                and not any(line.intersects_bbox(box, False) for line in lines)
            ):
                taken.append(box)
                break
            text.remove()


def around(axes: Axes, at: tuple[float, float]) -> Bbox:
    """Return the square that a point's marker takes, in pixels."""
    from matplotlib.transforms import Bbox

    return Bbox([axes.transData.transform(at)] * 2).padded(axes.figure.dpi / 72 * MARKER / 2)


def write_beside(axes: Axes, label: str, at: tuple[float, float], side: tuple[int, int], colour: str) -> Annotation:
    """Write a label on one side of a point."""
    return axes.annotate(
        label,
        at,
        xytext=(BESIDE * side[0], BESIDE * side[1]),
        textcoords="offset points",
        horizontalalignment=("right", "center", "left")[side[0] + 1],
        verticalalignment=("top", "center", "bottom")[side[1] + 1],
        fontsize=7,
        color=colour,
        in_layout=False,
    )


def colour_of(number: int) -> str:
    """Return the colour of a series."""
    return f"C{number % 10}"


def means(values: Sequence[Estimate]) -> list[float]:
    """Return the means in percent."""
    return [100 * value.mean for value in values]


def errors(values: Sequence[Estimate]) -> list[list[float]]:
    """Return the lengths of the intervals' two sides in percent, as matplotlib takes them."""
    sides = [(value.mean - value.low, value.high - value.mean) for value in values]
    return [[100 * max(0.0, side) for side in both] for both in zip(*sides, strict=True)]


# --- Page ------------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1250px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; }
th, td { padding: .25em .6em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { white-space: normal; vertical-align: bottom; }
small { color: #777; }
.scroll { overflow-x: auto; }
.pictures td { border: 0; padding: 2px; text-align: center; }
.pictures img { width: 96px; height: 96px; image-rendering: pixelated; display: block; margin: auto; }
.plot { max-width: 100%; }
"""


def page(evaluation: Evaluation, plot: bytes) -> str:
    """Return the whole report as one HTML page, with the pictures in it."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>InstantStyle, evaluated</title>',
        f"<style>{STYLE}</style></head><body>",
        "<h1>InstantStyle, evaluated</h1>",
        f"<p>{escape(summary(evaluation.setup))}. Checkpoint and versions {escape(evaluation.setup.fingerprint)}: "
        f"{escape(', '.join(map(' '.join, versions().items())))}.</p>",
        picture_html(base64.b64encode(plot).decode(), "style match against content leaked and content right", "plot"),
        "<h2>Conditions</h2>",
        table_html(headline_rows(evaluation, METRICS)),
        definitions(evaluation),
        *difference_html(evaluation),
        "<h2>Pictures</h2>",
        examples_html(evaluation),
        *curves_html(evaluation),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def escape(value: object) -> str:
    """Write a value so that HTML shows it as it is."""
    return html.escape(str(value))


def picture_html(png: str, alt: str, kind: str = "") -> str:
    """Show a PNG file given in base64."""
    return f'<img class="{kind}" alt="{escape(alt)}" src="data:image/png;base64,{png}">'


def png_base64(picture: Image.Image) -> str:
    """Write a picture as a PNG file in base64."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def table_html(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is its heading; intervals are set smaller."""

    def line(cells: Sequence[str], tag: str, shown: Callable[[str], str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{shown(one)}</{tag}>" for one in cells) + "</tr>"

    def with_interval(one: str) -> str:
        mean, bracket, rest = one.rpartition(" (")
        return f"{escape(mean)} <small>({escape(rest)}</small>" if bracket and rest.endswith(")") else escape(one)

    body = [line(rows[0], "th", escape), *(line(row, "td", with_interval) for row in rows[1:])]
    return '<div class="scroll"><table>' + "\n".join(body) + "</table></div>"


def definitions(evaluation: Evaluation) -> str:
    """Explain the columns and the intervals."""
    terms = "; ".join(f"<b>{escape(title)}</b>: {escape(meaning)}" for title, meaning in MEANINGS.items())
    return (
        f"<p>{terms}.</p>"
        "<p>Intervals are 95 % bootstrap intervals over pairs; the seeds of a pair are averaged first. Where none or "
        "all of the pairs show something, resampling tells nothing, and the interval is the exact one. All conditions "
        "see the same pairs, and those that start from noise start from the same.</p>"
    )


def difference_html(evaluation: Evaluation) -> list[str]:
    """Return the table of differences from the baseline."""
    if len(evaluation.rows) < 2:
        return []
    heading = ["condition", *(TITLES[name] for name in TEXT_TABLES[0])]
    return [
        f"<h2>Above {escape(evaluation.baseline)}</h2>",
        "<p>In points, with intervals of the differences within pairs.</p>",
        table_html([heading, *difference_rows(evaluation)]),
    ]


def examples_html(evaluation: Evaluation) -> str:
    """Return the first pairs' pictures: the references, and a row for each condition."""
    count = len(evaluation.rows[0].examples)
    pairs = evaluation.setup.chosen_pairs()[:count]
    prompts = "".join(f"<th>{escape(pairs.prompt(row))}</th>" for row in range(count))
    references = reference_pictures(pairs.references, world.PIXELS)
    rows = [("reference", [png_base64(one) for one in references])]
    rows += [(row.condition.name, row.examples) for row in evaluation.rows]
    body = "\n".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{picture_html(png, f'{name}, pair {n}')}</td>" for n, png in enumerate(pictures))
        + "</tr>"
        for name, pictures in rows
    )
    return f'<div class="scroll"><table class="pictures"><tr><th>prompt</th>{prompts}</tr>\n{body}</table></div>'


def curves_html(evaluation: Evaluation) -> list[str]:
    """Return the table of curves, and what each point gains over another curve at equal style."""
    if not evaluation.lines:
        return []
    return [
        "<h2>Curves</h2>",
        f"<p>{escape(summary(evaluation.curve_setup))}. ComfyUI's presets name SDXL's blocks, by SDXL's numbers; "
        "its two \u201cprecise\u201d presets cannot be expressed as scales of blocks. img2img runs as many steps as "
        "the others, whatever its strength.</p>",
        table_html(curve_rows(evaluation)),
        "<h2>Above another curve at equal style</h2>",
        "<p>In points: each point of a curve against another curve where that has the same style match. Points whose "
        "style is beyond the other curve are left out.</p>",
        table_html(gain_rows(evaluation)),
    ]


# --- Files -----------------------------------------------------------------------------------------------------------


def describe(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as what JSON can hold, without pictures."""

    def numbers(metrics: Mapping[str, Estimate] | None) -> dict[str, Any] | None:
        return None if metrics is None else {name: one.to_json() for name, one in metrics.items()}

    def made_with(setup: Setup) -> dict[str, Any]:
        return {name: value for name, value in vars(setup).items() if name != "folder"}

    return {
        "versions": versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "conditions": {
            "setup": made_with(evaluation.setup),
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
            "setup": made_with(evaluation.curve_setup),
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


def write(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    with atomically(path) as scratch:
        Path(scratch).write_bytes(content)
