"""A probe's report: its picture, and where there are judges its tables and JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from instantstyle.console import table
from instantstyle.files import atomically
from instantstyle.inference import grid
from instantstyle.inference.recipe import write_recipe
from instantstyle.inference.sheet import Sheet
from instantstyle.lab.ablation import Probed
from instantstyle.lab.findings import Groups, all_but_one, alone, plan, title_of
from instantstyle.lab.metrics import SHARES


WIDTH = 100  # letters in a line of prose
NOTE = "Scored by the judges on the selection split; quote numbers from `instantstyle evaluate`, on the other."
COLUMNS = {**dict.fromkeys(SHARES, ".3f"), "distance": ".1f"}
"""The metrics that are printed, and how."""


def save_probe(probed: Probed, folder: Path, presets: Mapping[str, Any]) -> list[Path]:
    """Write the picture and, where there are judges, their numbers; return the paths.

    Args:
        probed: What was found.
        folder: An existing folder.
        presets: What the proposal is named, as `presets.named_presets` gives it.
    """
    picture, numbers = folder / "probe.png", folder / "probe.json"
    write_recipe(draw_probe(probed), picture, {**probed.settings, "groups": probed.every})
    if not probed.judged:
        return [picture]
    with atomically(numbers) as scratch:
        Path(scratch).write_text(json.dumps(probe_json(probed, presets), indent=2) + "\n", encoding="utf-8")
    return [picture, numbers]


def probe_json(probed: Probed, presets: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the judges counted and what follows as what JSON can hold."""
    return {
        **probed.settings,
        "scored_by": "judges",
        "notes": [NOTE],
        "groups": probed.every,
        "conditions": [
            {"name": title_of(groups, probed.every), "groups": groups, "scores": finding.scores}
            for groups, finding in probed.findings.items()
        ],
        "proposal": {"presets": presets, "reasons": probed.proposal.reasons},
    }


def probe_text(probed: Probed, presets: Mapping[str, Any]) -> str:
    """Return what the command prints of the judges' numbers."""
    return "\n\n".join([write_tables(probed), textwrap.fill(NOTE, WIDTH), write_proposal(probed, presets)])


def draw_probe(probed: Probed) -> Image.Image:
    """Draw the examples: reference, no reference, all groups, and each group alone; below, all but it."""
    findings, every = probed.findings, probed.every
    size = findings[()].pictures[0].size
    cells, labels = [], []
    for number, (reference, prompt) in enumerate(probed.shown):
        for title, each in (("alone", alone(every)), ("all but it", all_but_one(every))):
            pictures = [findings[groups].pictures[number] for groups in ((), every, *each)]
            cells.append([grid.beside(reference, size), *pictures])
            labels.append(f"{prompt}: {title}")
    return Sheet(cells, columns=["reference", "no reference", "all", *every], rows=labels).draw()


def write_tables(probed: Probed) -> str:
    """Write the scores as tables: one group at a time, all but one, and what else was tried."""
    first, every = plan(probed.every), probed.every
    parts = {
        "alone": first[: 2 + len(every)],
        "all but one": first[2 + len(every) :],
        "together": [groups for groups in probed.findings if groups not in first],
    }
    heading = [name.replace("_", " ") for name in COLUMNS]
    tables = []
    for title, chosen in parts.items():
        rows = [[title_of(groups, every), *numbers(probed, groups)] for groups in chosen]
        if rows:
            tables.append(table([[title, *heading], *rows], right=range(1, len(heading) + 1)))
    return "\n\n".join(tables)


def numbers(probed: Probed, groups: Groups) -> list[str]:
    """Write the means of one finding."""
    scores = probed.findings[groups].scores
    return [format(scores[name]["mean"], how) for name, how in COLUMNS.items()]


def write_proposal(probed: Probed, presets: Mapping[str, Any]) -> str:
    """Write the presets and why."""
    named = [f"{name}: {', '.join(blocks)}" for name, blocks in presets.items()]
    return "\n".join([*(named or ["No style block is proposed."]), *probed.proposal.reasons])
