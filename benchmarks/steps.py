# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""The time of one UNet step, eager and compiled, and its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clock import Times, rounds, timed
from benchmarks.sdxl import Dimensions, build_unet
from benchmarks.sides import AGAIN, ALL, OURS, PLAIN, STEPPING, STYLE, Attachment, attachments


FULL_LATENTS = 128  # of a picture of 1024 x 1024 pixels
ROWS = 2  # unconditional and conditional: one picture under guidance


@dataclass
class Steps:
    """What was found: wall and CPU seconds, how far outputs differ, and the arithmetic at full size."""

    wall: Times
    cpu: Times
    differences: dict[str, float]
    flops: dict[str, float]


def inputs(size: Dimensions, latents: int, unet: UNet2DConditionModel, adapter: bool) -> dict[str, Any]:
    """The arguments of one step, the same for every side but for the image embeddings."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(unet.device, unet.dtype)

    sample, text, pooled, ids = draw(ROWS, 4, latents, latents), draw(ROWS, 77, size.text), draw(ROWS, size.pooled), 6
    added: dict[str, Any] = {"text_embeds": pooled, "time_ids": torch.full((ROWS, ids), 1024.0).to(pooled)}
    if adapter:
        added["image_embeds"] = [draw(ROWS, 1, size.clip)]
    timestep = torch.tensor(500, device=unet.device)
    return {"sample": sample, "timestep": timestep, "encoder_hidden_states": text, "added_cond_kwargs": added}


def time_steps(
    size: Dimensions, adapter: Path, dtype: torch.dtype, device: str, latents: int, count: int, compiled: bool
) -> Steps:
    """Time steps of all sides in turns, on one UNet whose adapter is exchanged between turns."""
    unet = build_unet(size, dtype, device, filled=True)
    found = attachments(unet, adapter)
    arguments = {side: inputs(size, latents, unet, side not in (PLAIN, AGAIN)) for side in STEPPING}
    cuda = device == "cuda"
    # Static: a scale that differs between sides must not make one graph serve, and slow down, all of them.
    model = torch.compile(unet, fullgraph=True, dynamic=False) if compiled else unet
    outputs: dict[str, torch.Tensor] = {}

    def turn(side: str) -> tuple[float, float]:
        def step() -> None:
            outputs[side] = model(**arguments[side], return_dict=False)[0]

        found[side].put(unet)
        if (
            cuda or compiled
        ):  # the first call after an exchange looks for its graph and warms what the last side cooled
            step()
        return timed(step, cuda)

    with torch.no_grad():
        wall, cpu = rounds(count, STEPPING, turn, "compiled steps" if compiled else "eager steps")
    differences = {
        "ours from stock, style dict": _difference(outputs[OURS], outputs[STYLE]),
        "ours from no adapter": _difference(outputs[OURS], outputs[PLAIN]),
        "stock, all blocks, from no adapter": _difference(outputs[ALL], outputs[PLAIN]),
    }
    return Steps(wall, cpu, differences, {} if compiled else count_flops(size, unet, found))


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.float() - other.float()).abs().max() / other.float().abs().max()).item()


def count_flops(size: Dimensions, unet: UNet2DConditionModel, found: dict[str, Attachment]) -> dict[str, float]:
    """Floating-point operations of one step at full size. The UNet's weights are given up for it."""
    counts = {}
    for side in STEPPING:
        found[side].put(unet)
        unet.to("meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(**inputs(size, FULL_LATENTS, unet, side not in (PLAIN, AGAIN)))
        counts[side] = float(counter.get_total_flops())
    return counts
