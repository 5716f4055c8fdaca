"""Evaluation: how much style, content and layout of a reference each way of using it brings along."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from instantstyle import tiny
from instantstyle.core import AdapterFile, presets, resolve_target_blocks, text_layers
from instantstyle.inference.models import ADAPTER_FILES, TINY, read_unet_config
from instantstyle.lab.conditions import PLAIN, Condition, Curve
from instantstyle.lab.metrics import Scores, at_equal_style, difference, estimate, score
from instantstyle.lab.results import Evaluation, Line, Outcome, Point, Setup
from instantstyle.lab.verdicts import Saved, judge
from instantstyle.tiny.judges import FILE
from instantstyle.version import versions


PAIRS, SEEDS = 512, 3
CURVE_PAIRS, CURVE_SEEDS = 192, 1


def evaluate(
    conditions: Sequence[Condition],
    output: str | os.PathLike[str],
    *,
    curves: Sequence[Curve] = (),
    model: str = TINY,
    split: str = "reporting",
    pairs: int = PAIRS,
    seeds: int = SEEDS,
    processes: int = 1,
    bars: bool = False,
) -> Evaluation:
    """Judge conditions and curves, and compare them. Verdicts that are in `output` already are not made again.

    Args:
        conditions: What to compare, each with a name of its own. Differences are from a plain adapter, or the first.
        output: A folder, which is made if it is not there; verdicts are kept in it, in "verdicts".
        curves: What to try at several strengths besides, on `CURVE_PAIRS` pairs.
        model: "tiny", or the folder of a checkpoint with judges, such as a training of the embedded one makes.
        split: "reporting", or "selection" to choose by.
        pairs: Prompts with a reference each, at most `pairs.POOL`.
        seeds: Pictures of each pair.
        processes: How many work at a time, each with one thread; 1 works in this process.
        bars: Whether to show how far it is.

    Raises:
        ValueError: The model has no judges or no such target blocks, or there are not so many pairs.
        OSError: The folder cannot be written.

    Example:
        >>> style = Condition("style", target_blocks="style")
        >>> found = evaluate([Condition("plain"), style], "evaluation", pairs=24, seeds=1)
        >>> found.rows[1].difference["content_leaked"].mean
    """
    folder = find_judged(model)
    check_targets(folder, [*conditions, *(condition for curve in curves for _, condition in curve.points)])
    setup = Setup(str(folder), digest_of(folder), split, pairs, seeds, **tiny.SAMPLING)
    setup.chosen_pairs()  # raises for more than there are
    curve_setup = replace(setup, pairs=CURVE_PAIRS, seeds=CURVE_SEEDS)
    wanted = [(setup, condition) for condition in conditions]
    wanted += [(curve_setup, condition) for curve in curves for _, condition in curve.points]
    store = Path(output) / "verdicts"
    store.mkdir(parents=True, exist_ok=True)
    return compare(setup, conditions, curve_setup, curves, judge(wanted, store, processes, bars))


def find_judged(model: str) -> Path:
    """Return the folder of a model that has judges.

    Raises:
        ValueError: The model has none.
    """
    folder = tiny.path() if model == TINY else Path(model)
    if not (folder / FILE).is_file():
        raise ValueError(
            f"`model`: {model} has no judges ({FILE}). What is in a picture is known only in the embedded "
            "checkpoint's world, so evaluate takes that one; `instantstyle probe` works on any model."
        )
    return folder


def check_targets(folder: Path, conditions: Iterable[Condition]) -> None:
    """Refuse target blocks that the checkpoint does not have, without loading weights.

    Raises:
        ValueError: Which condition, and why.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_unet_config(str(folder)))
    layers, named = text_layers(unet), presets(unet) | AdapterFile(folder / ADAPTER_FILES["sdxl"]).presets
    for condition in conditions:
        try:
            resolve_target_blocks(condition.target_blocks, layers, named)
        except (TypeError, ValueError) as error:
            raise ValueError(f"condition {condition.name!r}: {error}") from error


def digest_of(folder: Path) -> str:
    """Name a checkpoint, by the content of its files, and the libraries that run it."""
    found = hashlib.sha256(json.dumps(versions()).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0")
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:20]


def compare(
    setup: Setup,
    conditions: Sequence[Condition],
    curve_setup: Setup,
    curves: Sequence[Curve],
    saved: Mapping[str, Saved],
) -> Evaluation:
    """Turn verdicts into metrics, differences from the baseline, and gains over other curves."""

    def scores(setup: Setup, condition: Condition) -> Scores:
        return score(saved[setup.key(condition)].verdicts, setup.chosen_pairs())

    baseline = next((one for one in conditions if one.key() == PLAIN.key()), conditions[0])
    against = scores(setup, baseline)
    rows = [
        Outcome(one, estimate(own), difference(own, against), saved[setup.key(one)].examples)
        for one, own in ((one, scores(setup, one)) for one in conditions)
    ]
    of_curve = {curve.name: [scores(curve_setup, one) for _, one in curve.points] for curve in curves}
    lines = []
    for curve in curves:
        other = of_curve.get(curve.against or "")
        gains = [at_equal_style(own, other) if other else None for own in of_curve[curve.name]]
        each = zip(curve.points, of_curve[curve.name], gains, strict=True)
        points = [Point(label, one, estimate(own), gain) for (label, one), own, gain in each]
        lines.append(Line(curve.name, curve.against, points))
    return Evaluation(setup, baseline.name, rows, curve_setup, lines)
