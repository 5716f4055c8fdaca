# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""Many pictures by the embedded checkpoint: `instantstyle batch`, and a loop over `instantstyle generate`."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.clock import Times, rounds, timed
from instantstyle.commands import cli
from instantstyle.inference import grid


BATCH, SINGLY, LOOP = "batch, 8 at a time", "batch, 1 at a time", "generate, once each"
PROMPTS = ("a heart", "a ring", "a star", "a moon")


def time_batch(folder: Path, rows: int, steps: int, device: str, count: int) -> tuple[Times, Times]:
    """Make the same pictures in each way, in turns, in this process: models are loaded, Python is not started."""
    style, table = folder / "style.png", folder / "rows.jsonl"
    grid.draw_references()[0].image.save(style)
    seeds = range(rows)
    asked = [{"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed} for seed in seeds]
    table.write_text("".join(json.dumps(row) + "\n" for row in asked))
    common = ["--style", str(style), "--steps", str(steps), "--device", device, "--quiet"]

    def make(side: str) -> None:
        out = Path(tempfile.mkdtemp(dir=folder))
        if side == LOOP:
            for row in asked:
                own = [str(row["prompt"]), "--seed", str(row["seed"]), "-o", str(out / f"{row['seed']}.png")]
                run(["generate", *own, *common])
        else:
            run(["batch", str(table), "-o", str(out), "--batch-size", "8" if side == BATCH else "1", *common])

    return rounds(count, (BATCH, SINGLY, LOOP), lambda side: timed(lambda: make(side), device == "cuda"), "batch")


def run(words: Sequence[str]) -> None:
    """Run the command line without its summary.

    Raises:
        RuntimeError: It failed.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        if cli.main(words):
            raise RuntimeError(" ".join(words))
