"""The probe's report: picture, JSON and tables."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from instantstyle.console import table
from instantstyle.files import atomically
from instantstyle.inference import grid, recipe
from instantstyle.inference.sheet import Sheet
from instantstyle.lab.findings import Finding, Scorer, all_but_one, alone, name_of, plan
from instantstyle.lab.proposal import Groups, Proposal


WIDTH = 100  # letters in a line of prose


def report(
    folder: Path,
    scorer: Scorer,
    findings: Mapping[Groups, Finding],
    proposal: Proposal,
    presets: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write the picture and the JSON, and print the table."""
    every = max(findings, key=len)
    written = {
        **settings,
        "scored_by": scorer.name,
        "notes": scorer.notes,
        "groups": every,
        "conditions": [
            {"name": name_of(groups, every), "groups": groups, "scores": finding.scores}
            for groups, finding in findings.items()
        ],
        "proposal": {"presets": presets, "reasons": proposal.reasons},
    }
    recipe.write_recipe(draw(scorer, findings, every), folder / "probe.png", {**settings, "scored_by": scorer.name})
    with atomically(folder / "probe.json") as scratch:
        Path(scratch).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    notes = [textwrap.fill(note, WIDTH) for note in scorer.notes]
    print("\n\n".join([write_tables(scorer, findings, every), *notes, write_proposal(proposal, presets)]))
    print(f"\n{folder / 'probe.png'}\n{folder / 'probe.json'}")


def draw(scorer: Scorer, findings: Mapping[Groups, Finding], every: Groups) -> Image.Image:
    """Draw the pairs that are shown: reference, no reference, all groups, and each group alone; below, all but it."""
    size = findings[()].pictures[0].size
    cells, labels = [], []
    for number, (reference, prompt) in enumerate(scorer.shown):
        for title, each in (("alone", alone(every)), ("all but it", all_but_one(every))):
            pictures = [findings[groups].pictures[number] for groups in ((), every, *each)]
            cells.append([grid.beside(reference, size), *pictures])
            labels.append(f"{prompt}: {title}")
    return Sheet(cells, columns=["reference", "no reference", "all", *every], rows=labels).draw()


def write_tables(scorer: Scorer, findings: Mapping[Groups, Finding], every: Groups) -> str:
    """Write the scores as tables: one group at a time, all but one, and what else was tried."""
    first = plan(every)
    parts = {
        "alone": first[: 2 + len(every)],
        "all but one": first[2 + len(every) :],
        "together": [groups for groups in findings if groups not in first],
    }
    heading = [name.replace("_", " ") for name in scorer.columns]
    tables = []
    for title, chosen in parts.items():
        rows = [
            [
                name_of(groups, every),
                *(format(findings[groups].scores[c]["mean"], f) for c, f in scorer.columns.items()),
            ]
            for groups in chosen
        ]
        if rows:
            tables.append(table([[title, *heading], *rows], right=range(1, len(heading) + 1)))
    return "\n\n".join(tables)


def write_proposal(proposal: Proposal, presets: Mapping[str, Any]) -> str:
    """Write the presets and why."""
    named = [f"{name}: {', '.join(blocks)}" for name, blocks in presets.items()]
    return "\n".join([*(named or ["No style block is proposed."]), *proposal.reasons])
