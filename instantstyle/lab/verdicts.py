"""Verdicts: what the judges see in the pictures of conditions, made in several processes and kept in files."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from instantstyle.console import calm
from instantstyle.files import atomically
from instantstyle.inference.request import Machine
from instantstyle.inference.session import Session
from instantstyle.lab.conditions import Condition
from instantstyle.lab.pictures import BATCH, make_pictures, png_base64
from instantstyle.lab.results import Setup
from instantstyle.tiny.judges import Judges, Verdicts
from instantstyle.tiny.world import to_picture


EXAMPLES = 8  # pairs whose first picture is kept for the report


class Task(NamedTuple):
    """Some pairs of one condition, small enough to be one batch."""

    setup: Setup
    condition: Condition
    rows: range


@dataclass(frozen=True)
class Saved:
    """What is kept of one condition.

    Attributes:
        verdicts: What the judges saw, each of shape (pairs, seeds).
        examples: The first pairs' pictures of the first seed, as PNG files in base64.
    """

    verdicts: Verdicts
    examples: list[str]


def judge(wanted: Sequence[tuple[Setup, Condition]], store: Path, processes: int, bars: bool) -> dict[str, Saved]:
    """Return the verdicts on each condition by `Setup.key`, made where the store has none.

    Args:
        wanted: Conditions, and what to make each with.
        store: An existing folder.
        processes: How many work at a time, each with one thread; 1 works in this process.
        bars: Whether to show how far it is.
    """
    by_key = {setup.key(condition): (setup, condition) for setup, condition in wanted}
    missing = {key: both for key, both in by_key.items() if not (store / f"{key}.json").is_file()}
    if missing:
        make_missing(missing, store, processes, bars)
    return {key: read_verdicts(store / f"{key}.json", setup) for key, (setup, _) in by_key.items()}


def make_missing(missing: Mapping[str, tuple[Setup, Condition]], store: Path, processes: int, bars: bool) -> None:
    """Make the pictures of some conditions, judge them, and save each condition's verdicts once they are complete."""
    tasks = {key: batches(setup, condition) for key, (setup, condition) in missing.items()}
    total = sum(setup.pairs * setup.seeds for setup, _ in missing.values())
    with (
        mapping(processes) as each,
        tqdm(total=total, unit="picture", smoothing=0, mininterval=1, disable=not bars) as bar,
    ):
        results = each(work, [task for own in tasks.values() for task in own])
        for key, own in tasks.items():
            setup, condition = missing[key]
            bar.set_description(condition.name)
            parts = []
            for task in own:
                parts.append(next(results))
                bar.update(len(task.rows) * setup.seeds)
            write_verdicts(parts, condition, setup, store / f"{key}.json")


def batches(setup: Setup, condition: Condition) -> list[Task]:
    """Return the batches of one condition's work, always the same."""
    size = max(1, BATCH // setup.seeds)
    starts = range(0, setup.pairs, size)
    return [Task(setup, condition, range(start, min(start + size, setup.pairs))) for start in starts]


# Processes


@contextmanager
def mapping(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Give a `map` that works in as many processes, in order; what has not begun when the block is left is dropped."""
    if processes == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=start_worker) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """Prepare a process: one thread, an interrupt left to the parent, and an end when the parent ends."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def work(task: Task) -> dict[str, list[Any]]:
    """Make and judge one task's pictures: columns of verdicts, each (pairs, seeds), and the examples among them."""
    setup = task.setup
    with calm(bars=False):
        session, judges = opened(setup.folder)
    pairs = setup.chosen_pairs()[task.rows.start : task.rows.stop]
    pictures = make_pictures(
        session,
        task.condition,
        pairs,
        range(setup.seeds),
        steps=setup.steps,
        guidance=setup.guidance,
        batch=len(pairs) * setup.seeds,
    )
    verdicts = judges(pictures.flatten(0, 1))
    columns = {name: rounded(value).reshape(len(pairs), -1).tolist() for name, value in vars(verdicts).items()}
    examples = [png_base64(to_picture(pictures[row, 0])) for row, number in enumerate(task.rows) if number < EXAMPLES]
    return {**columns, "examples": examples}


@cache
def opened(folder: str) -> tuple[Session, Judges]:
    """Open a checkpoint and its judges, once per process."""
    return Session(Machine(model=folder, device="cpu", dtype="float32")), Judges.load(folder)


def rounded(column: Tensor) -> Tensor:
    """Round lengths to what is worth keeping."""
    return torch.round(column.double(), decimals=3) if column.is_floating_point() else column


# Files


def write_verdicts(parts: Sequence[Mapping[str, list[Any]]], condition: Condition, setup: Setup, path: Path) -> None:
    """Write the verdicts on one condition, with what they were made with."""
    columns = {name: [row for part in parts for row in part[name]] for name in parts[0]}
    examples = columns.pop("examples")
    content = {
        "condition": condition.to_json(),
        "setup": setup.to_json(),
        "verdicts": columns,
        "examples": examples,
    }
    with atomically(path) as scratch:
        Path(scratch).write_text(json.dumps(content), encoding="utf-8")


def read_verdicts(path: Path, setup: Setup) -> Saved:
    """Read the verdicts on one condition."""
    content = json.loads(path.read_text(encoding="utf-8"))
    columns = {name: torch.tensor(rows) for name, rows in content["verdicts"].items()}
    assert all(column.shape == (setup.pairs, setup.seeds) for column in columns.values()), path
    return Saved(Verdicts(**columns), content["examples"])
