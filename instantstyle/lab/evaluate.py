"""`instantstyle evaluate`: how much style, content and layout of a reference each way of using it brings along."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from instantstyle import tiny
from instantstyle.console import calm, need
from instantstyle.files import output_folder
from instantstyle.inference.models import ADAPTER_FILES, TINY, read_unet_config
from instantstyle.inference.session import load_pipeline
from instantstyle.lab import report
from instantstyle.lab.conditions import PLAIN, Condition, Curve, curves, headline_conditions, quick_conditions
from instantstyle.lab.metrics import Scores, at_equal_style, difference, estimate, score
from instantstyle.lab.pictures import make_pictures, png_base64
from instantstyle.lab.results import Evaluation, Line, Point, Row, Setup
from instantstyle.lab.tables import text
from instantstyle.tiny.judges import FILE, Judges, Verdicts
from instantstyle.tiny.world import to_picture
from instantstyle.version import versions


STEPS, GUIDANCE = 16, 3.5
PAIRS, SEEDS = 512, 3
CURVE_PAIRS, CURVE_SEEDS = 192, 1
QUICK_PAIRS, QUICK_SEEDS = 24, 1
BATCH = 32  # pictures at a time
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


def run(options: argparse.Namespace) -> None:
    """Compare conditions on the embedded checkpoint and write the report.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    check(options)
    bars = sys.stderr.isatty() and not options.quiet
    out = output_folder("--output", options.output)
    with calm(bars=False):
        folder = find_checkpoint(options.machine.model)
        conditions = find_conditions(options)
        drawn = curves() if options.curves else []
        check_targets(folder, [*conditions, *(condition for curve in drawn for _, condition in curve.points)])
        setup, curve_setup = make_setups(options, folder)
        (out / "verdicts").mkdir(parents=True, exist_ok=True)
        evaluation = evaluate(setup, conditions, curve_setup, drawn, out, options.processes, bars)
        print(text(evaluation))
        for path in report.save(evaluation, out):
            print(path)


def check(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other, and a missing package, before anything is computed."""
    if options.quick and (options.curves or options.pairs or options.seeds):
        raise ValueError("--quick chooses its own few pictures; leave out --curves, --pairs and --seeds.")
    need("matplotlib", "evaluate", "evaluate draws with matplotlib")


def find_checkpoint(model: str) -> Path:
    """Return the folder of a model that has judges.

    Args:
        model: "tiny", or the folder of a checkpoint with judges, such as a training of the embedded one makes.

    Raises:
        ValueError: The model has none.
    """
    folder = tiny.path() if model == TINY else Path(model)
    if not (folder / FILE).is_file():
        raise ValueError(
            f"--model: {model} has no judges ({FILE}). What is in a picture is known only in the embedded "
            "checkpoint's world, so evaluate takes that one; `instantstyle probe` works on any model."
        )
    return folder


def find_conditions(options: argparse.Namespace) -> list[Condition]:
    """Return what to compare: the conditions of --conditions, or our own."""
    if options.conditions is not None:
        return read_conditions(Path(options.conditions))
    return quick_conditions() if options.quick else headline_conditions()


def read_conditions(path: Path) -> list[Condition]:
    """Read conditions from a JSON file: a list of objects.

    Raises:
        ValueError, OSError: The file is missing, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"--conditions: {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"--conditions: {path} is not JSON ({error}).") from error
    if not isinstance(found, list) or not found:
        raise ValueError(f"--conditions: {path} must hold a list of conditions.")
    try:
        conditions = [Condition.from_json(one) for one in found]
    except ValueError as error:
        raise ValueError(f"--conditions: {error}") from error
    names = [condition.name for condition in conditions]
    if len(set(names)) < len(names):
        raise ValueError(f"--conditions: {path} gives a name twice; each condition needs its own.")
    return conditions


def check_targets(folder: Path, conditions: Iterable[Condition]) -> None:
    """Refuse target blocks that the checkpoint does not have, without loading weights.

    Raises:
        ValueError: Which condition, and why.
    """
    from diffusers import UNet2DConditionModel

    from instantstyle.core import AdapterFile, presets, resolve_target_blocks, text_layers

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_unet_config(str(folder)))
    layers, named = text_layers(unet), presets(unet) | AdapterFile(folder / ADAPTER_FILES["sdxl"]).presets
    for condition in conditions:
        try:
            resolve_target_blocks(condition.target_blocks, layers, named)
        except (TypeError, ValueError) as error:
            raise ValueError(f"condition {condition.name!r}: {error}") from error


def make_setups(options: argparse.Namespace, folder: Path) -> tuple[Setup, Setup]:
    """Put together what the conditions and what the curves are made with."""
    pairs, seeds = (QUICK_PAIRS, QUICK_SEEDS) if options.quick else (PAIRS, SEEDS)
    setup = Setup(
        folder=str(folder),
        fingerprint=fingerprint(folder),
        split=options.split,
        pairs=options.pairs or pairs,
        seeds=options.seeds or seeds,
        steps=STEPS,
        guidance=GUIDANCE,
    )
    setup.chosen_pairs()  # raises for more than there are
    return setup, replace(setup, pairs=CURVE_PAIRS, seeds=CURVE_SEEDS)


def fingerprint(folder: Path) -> str:
    """Name a checkpoint, by the content of its files, and the libraries that run it."""
    found = hashlib.sha256(json.dumps(versions()).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0")
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:20]


def evaluate(
    setup: Setup,
    conditions: Sequence[Condition],
    curve_setup: Setup,
    drawn: Sequence[Curve],
    out: Path,
    processes: int,
    bars: bool = False,
) -> Evaluation:
    """Judge every condition and curve, apart from those whose verdicts are already in `out`, and compare them.

    Args:
        setup: What to make the conditions with.
        conditions: What to compare.
        curve_setup: What to make the curves with.
        drawn: The curves.
        out: Where verdicts are kept, in the folder "verdicts".
        processes: How many work at a time, each with one thread; 1 works in this process.
        bars: Whether to show how far it is.
    """
    wanted = [(setup, condition) for condition in conditions]
    wanted += [(curve_setup, condition) for curve in drawn for _, condition in curve.points]
    saved = judge_all(wanted, out / "verdicts", processes, bars)
    return compare(setup, conditions, curve_setup, drawn, saved)


def judge_all(wanted: Sequence[tuple[Setup, Condition]], store: Path, processes: int, bars: bool) -> dict[str, Saved]:
    """Return the verdicts on each condition by key, made where the store has none."""
    by_key = {setup.key(condition): (setup, condition) for setup, condition in wanted}
    missing = {key: both for key, both in by_key.items() if not (store / f"{key}.json").is_file()}
    if missing:
        make_missing(missing, store, processes, bars)
    return {key: load(store / f"{key}.json", setup) for key, (setup, _) in by_key.items()}


def make_missing(missing: Mapping[str, tuple[Setup, Condition]], store: Path, processes: int, bars: bool) -> None:
    """Make the pictures of some conditions, judge them, and save each condition's verdicts once they are complete."""
    tasks = {key: cut(setup, condition) for key, (setup, condition) in missing.items()}
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
            save(parts, condition, setup, store / f"{key}.json")


def cut(setup: Setup, condition: Condition) -> list[Task]:
    """Cut one condition's work into batches, always the same."""
    size = max(1, BATCH // setup.seeds)
    starts = range(0, setup.pairs, size)
    return [Task(setup, condition, range(start, min(start + size, setup.pairs))) for start in starts]


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
        pipe, judges = opened(setup.folder)
    pairs = setup.chosen_pairs()[task.rows.start : task.rows.stop]
    pictures = make_pictures(
        pipe,
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
def opened(folder: str) -> tuple[Any, Any]:
    """Load the pipeline and the judges of a checkpoint, once per process."""
    return load_pipeline(folder), Judges.load(folder)


def rounded(column: Tensor) -> Tensor:
    """Round lengths to what is worth keeping."""
    return torch.round(column.double(), decimals=3) if column.is_floating_point() else column


def save(parts: Sequence[Mapping[str, list[Any]]], condition: Condition, setup: Setup, path: Path) -> None:
    """Write the verdicts on one condition, with what they were made with."""
    columns = {name: [row for part in parts for row in part[name]] for name in parts[0]}
    examples = columns.pop("examples")
    made_with = {name: value for name, value in vars(setup).items() if name != "folder"}
    content = {"condition": condition.to_json(), "setup": made_with, "verdicts": columns, "examples": examples}
    report.write(path, json.dumps(content).encode())


def load(path: Path, setup: Setup) -> Saved:
    """Read the verdicts on one condition."""
    content = json.loads(path.read_text(encoding="utf-8"))
    columns = {name: torch.tensor(rows) for name, rows in content["verdicts"].items()}
    assert all(column.shape == (setup.pairs, setup.seeds) for column in columns.values()), path
    return Saved(Verdicts(**columns), content["examples"])


def compare(
    setup: Setup,
    conditions: Sequence[Condition],
    curve_setup: Setup,
    drawn: Sequence[Curve],
    saved: Mapping[str, Saved],
) -> Evaluation:
    """Turn verdicts into metrics, differences from the baseline, and gains over other curves."""

    def scores(setup: Setup, condition: Condition) -> Scores:
        return score(saved[setup.key(condition)].verdicts, setup.chosen_pairs())

    baseline = next((one for one in conditions if one.key() == PLAIN.key()), conditions[0])
    against = scores(setup, baseline)
    rows = [
        Row(one, estimate(own), difference(own, against), saved[setup.key(one)].examples)
        for one, own in ((one, scores(setup, one)) for one in conditions)
    ]
    of_curve = {curve.name: [scores(curve_setup, one) for _, one in curve.points] for curve in drawn}
    lines = []
    for curve in drawn:
        other = of_curve.get(curve.against or "")
        gains = [at_equal_style(own, other) if other else None for own in of_curve[curve.name]]
        each = zip(curve.points, of_curve[curve.name], gains, strict=True)
        points = [Point(label, one, estimate(own), gain) for (label, one), own, gain in each]
        lines.append(Line(curve.name, curve.against, points))
    return Evaluation(setup, baseline.name, rows, curve_setup, lines)
