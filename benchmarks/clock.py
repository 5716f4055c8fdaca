# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""Timing in rounds: every round runs every side once, in an order drawn anew."""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Sequence

import torch


Times = dict[str, list[float]]


def timed(action: Callable[[], object], cuda: bool) -> tuple[float, float]:
    """Seconds on the wall and seconds of CPU time that an action takes, until the device is done."""
    if cuda:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def rounds(
    count: int, sides: Sequence[str], turn: Callable[[str], tuple[float, float]], label: str
) -> tuple[Times, Times]:
    """Let each side have its turn in each of `count` rounds, after one that does not count: wall and CPU seconds."""
    wall: Times = {side: [] for side in sides}
    cpu: Times = {side: [] for side in sides}
    order = random.Random(0)
    for number in range(count + 1):
        for side in order.sample(sides, len(sides)):
            gc.collect()
            gc.disable()
            try:
                seconds = turn(side)
            finally:
                gc.enable()
            if number:
                wall[side].append(seconds[0])
                cpu[side].append(seconds[1])
        print(f"{label}: round {number} of {count}", file=sys.stderr, flush=True)
    return wall, cpu
