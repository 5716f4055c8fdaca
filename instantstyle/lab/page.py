"""The evaluation as one HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence

from instantstyle.lab.metrics import METRICS
from instantstyle.lab.pictures import png_base64
from instantstyle.lab.results import Evaluation
from instantstyle.lab.tables import (
    MEANINGS,
    TEXT_TABLES,
    TITLES,
    curve_rows,
    difference_rows,
    gain_rows,
    headline_rows,
    summary,
)
from instantstyle.tiny import world
from instantstyle.tiny.world import reference_pictures
from instantstyle.version import versions


CSS = """
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
        f"<style>{CSS}</style></head><body>",
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
        f"<p>{escape(summary(evaluation.curve_setup))}. img2img runs as many steps as the others, whatever its "
        "strength.</p>",
        table_html(curve_rows(evaluation)),
        "<h2>Above another curve at equal style</h2>",
        "<p>In points: each point of a curve against another curve where that has the same style match. Points whose "
        "style is beyond the other curve are left out.</p>",
        table_html(gain_rows(evaluation)),
    ]
