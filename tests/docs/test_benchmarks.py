"""The benchmarks run, and their sides do the same work."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import transformers

from instantstyle.inference.session import Painting


ROOT = Path(__file__).parents[2]


def measure(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a part in a small way, and return what it found."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.__main__ import main

    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--tiny", "--only", part, "--json", str(out)])
    for library in (diffusers, transformers):  # later tests listen to them
        monkeypatch.setattr(library.logging, "set_verbosity_error", lambda: None)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # half of the time; it only matters to who reads the clock
    main()
    return json.loads(out.read_text())


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a process of its own for the first side alone: most of the time is to import everything once more."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import apart, styles

    start, started = subprocess.run, []

    def run(command: list[str], **settings: Any) -> Any:
        if not started:
            started.append(command)
            return start(command, **settings)
        monkeypatch.setattr(sys, "argv", command[2:])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            apart.obey(styles.measure_here)
        return subprocess.CompletedProcess(command, 0, said.getvalue())

    monkeypatch.setattr(subprocess, "run", run)


def test_the_benchmark_of_styles_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: None) -> None:
    """On a tiny UNet: every side is there, and only the plain one paints something else than the style."""
    found = measure("styles", tmp_path, monkeypatch)
    sides = {side for row in found["rows"].values() for side in row}
    assert sides >= {"stock, encoder", "stock, embeddings", "ours, embeddings", "ours, style file"}
    assert {goal["verdict"] for goal in found["goals"]} == {"not judged"}
    notes = "\n".join(found["notes"])
    differences = dict(re.findall(r"largest difference of (.+) from ours, embeddings, .*: (\S+)", notes))
    assert float(differences["ours, style file"]) < 0.1 * float(differences["no adapter"])


def test_the_benchmark_of_batches_makes_the_same_pictures_in_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, list[Any]] = {}
    save = Painting.save

    def note(painting: Painting, path: Path) -> None:
        picture = np.asarray(painting.image, dtype=np.int16)
        made.setdefault(str(path.parent), []).append((painting.recipe["seed"], picture))
        save(painting, path)

    monkeypatch.setattr(Painting, "save", note)
    found = measure("batch", tmp_path, monkeypatch)
    assert all(len(row) == 3 and all(one["median"] > 0 for one in row.values()) for row in found["rows"].values())
    first, *others = made.values()
    assert len(others) == 5  # three ways, in a round that does not count and in one that does
    assert [seed for seed, _ in first] == [0, 1]
    assert abs(first[0][1] - first[1][1]).max() > 10
    for other in others:
        assert all(abs(a - b).max() <= 1 for (_, a), (_, b) in zip(first, other, strict=True))
