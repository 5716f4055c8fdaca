# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""Each side in a process of its own, where memory is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers

from benchmarks.sdxl import SDXL, TINY, Dimensions


@dataclass(frozen=True)
class Order:
    """What every process measures with."""

    tiny: bool
    adapter: Path
    dtype: torch.dtype
    device: str


def measure(module: str, sides: Sequence[str], order: Order, count: int) -> dict[str, dict[str, list[float]]]:
    """Run a module once for every side, in `count` rounds; measure -> side -> samples."""
    found: dict[str, dict[str, list[float]]] = {}
    root = Path(__file__).parents[1]
    search = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = {"tiny": order.tiny, "adapter": str(order.adapter), "dtype": str(order.dtype), "device": order.device}
    for _ in range(count):
        for side in sides:
            command = [sys.executable, "-m", module, json.dumps({"side": side, **words})]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": search}
            )
            for name, value in json.loads(done.stdout.splitlines()[-1]).items():
                found.setdefault(name, {s: [] for s in sides})[side].append(value)
    return found


def obey(measure_here: Callable[[str, Dimensions, Path, torch.dtype, str], dict[str, float]]) -> None:
    """Be one of the processes of `measure`: print what was found as JSON."""
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    order = json.loads(sys.argv[1])
    dtype = getattr(torch, order["dtype"].removeprefix("torch."))
    size = TINY if order["tiny"] else SDXL
    print(json.dumps(measure_here(order["side"], size, Path(order["adapter"]), dtype, order["device"])))
