"""`instantstyle evaluate`: conditions compared, as tables and as a report in a folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from instantstyle.commands.options import called
from instantstyle.console import calm, need
from instantstyle.files import output_folder
from instantstyle.inference.request import told
from instantstyle.lab.conditions import Condition, curves, headline_conditions, quick_conditions
from instantstyle.lab.evaluation import PAIRS, SEEDS, check_targets, evaluate, find_judged
from instantstyle.lab.report import save_report
from instantstyle.lab.tables import evaluation_text


QUICK_PAIRS, QUICK_SEEDS = 24, 1


def run(options: argparse.Namespace) -> None:
    """Compare conditions and write the report; the tables and the paths of its files go to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    if options.quick and (options.curves or options.pairs or options.seeds):
        raise ValueError("--quick chooses its own few pictures; leave out --curves, --pairs and --seeds.")
    need("matplotlib", "evaluate", "evaluate draws with matplotlib")
    folder = output_folder("--output", options.output)
    pairs, seeds = (QUICK_PAIRS, QUICK_SEEDS) if options.quick else (PAIRS, SEEDS)
    with calm(bars=False), called(pairs="--pairs"):
        found = evaluate(
            choose_conditions(options),
            folder,
            curves=curves() if options.curves else (),
            model=options.machine.model,
            split=options.split,
            pairs=options.pairs or pairs,
            seeds=options.seeds or seeds,
            processes=options.processes,
            bars=sys.stderr.isatty() and not options.quiet,
        )
        print(evaluation_text(found))
        for path in save_report(found, folder):
            print(path)


def choose_conditions(options: argparse.Namespace) -> list[Condition]:
    """Return what to compare: the conditions of --conditions, or our own.

    Raises:
        ValueError, OSError: The file is missing, holds something else, or names blocks that the model does not have.
    """
    if options.conditions is None:
        return quick_conditions() if options.quick else headline_conditions()
    folder = find_judged(options.machine.model)
    try:
        conditions = read_conditions(Path(options.conditions))
        check_targets(folder, conditions)
    except ValueError as error:
        raise ValueError("--conditions: " + told(error, '"{}"'.format)) from error
    return conditions


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
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path} must hold a list of conditions.")
    conditions = [Condition.from_json(one) for one in found]
    names = [condition.name for condition in conditions]
    if len(set(names)) < len(names):
        raise ValueError(f"{path} gives a name twice; each condition needs its own.")
    return conditions
