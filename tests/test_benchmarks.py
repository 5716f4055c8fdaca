"""The benchmarks run, and their sides do the same work."""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path

import diffusers
import pytest
import transformers


ROOT = Path(__file__).parents[1]


def test_the_benchmark_of_styles_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny UNet: every side is there, and only the plain one paints something else than the style."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.__main__ import main

    out = tmp_path / "styles.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--tiny", "--only", "styles", "--json", str(out)])
    for library in (diffusers, transformers):  # later tests listen to them
        monkeypatch.setattr(library.logging, "set_verbosity_error", lambda: None)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # half of the time; it only matters to who reads the clock
    main()
    found = json.loads(out.read_text())
    sides = {side for row in found["rows"].values() for side in row}
    assert sides >= {"stock, encoder", "stock, embeddings", "ours, embeddings", "ours, style file"}
    assert {goal["verdict"] for goal in found["goals"]} == {"not judged"}
    notes = "\n".join(found["notes"])
    differences = dict(re.findall(r"largest difference of (.+) from ours, embeddings, .*: (\S+)", notes))
    assert float(differences["ours, style file"]) < 0.1 * float(differences["no adapter"])
