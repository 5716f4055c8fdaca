"""The evaluation's plot: style against leakage, and against content right."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from instantstyle.lab.metrics import Estimate
from instantstyle.lab.results import Evaluation
from instantstyle.lab.tables import TITLES, summary


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox


MARKER, BESIDE = 6, 5  # in the plot: width of a marker, and its centre's distance from its label, in points
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
"""Where a label may stand, seen from its point, the best first."""


Points = Sequence[tuple[str, Mapping[str, Estimate]]]
"""The labels and metrics of a series of the plot."""


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
