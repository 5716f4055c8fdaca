# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""Loading an adapter: the bytes it leaves on the UNet, the bytes read, the memory it takes, the time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from benchmarks import apart
from benchmarks.clock import Times, rounds, timed
from benchmarks.sdxl import TINY, Dimensions, build_pipeline, build_unet, write_adapter
from benchmarks.sides import LOADING, adapter_modules, kind_of, load


MB = 1e6


def held_bytes(unet: UNet2DConditionModel) -> dict[str, int]:
    """Bytes of parameters and buffers of the adapter on a UNet: keys and values, and the image projection."""

    def count(*modules: torch.nn.Module) -> int:
        return sum(t.numel() * t.element_size() for m in modules for t in (*m.parameters(), *m.buffers()))

    projection = count(unet.encoder_hid_proj)
    return {"keys and values": count(*adapter_modules(unet)) - projection, "image projection": projection}


def use(unet: UNet2DConditionModel) -> None:
    """Read every weight of the adapter once, as the first step does: files are mapped, and read when used."""
    for module in adapter_modules(unet):
        for weight in module.parameters():
            weight.sum()


def time_loading(
    size: Dimensions, adapter: Path, dtype: torch.dtype, device: str, count: int
) -> dict[str, tuple[Times, Times]]:
    """Wall and CPU seconds of loading, and of loading until every weight was read, on one UNet in turns."""
    unet = build_unet(size, dtype, device, filled=False)
    pipes = {side: build_pipeline(kind_of(side), unet) for side in LOADING}
    cuda, first_use = device == "cuda", {side: [] for side in LOADING}

    def turn(side: str) -> tuple[float, float]:
        loading = timed(lambda: load(side, pipes[side], adapter), cuda)
        using = timed(lambda: use(unet), cuda)
        first_use[side].append([a + b for a, b in zip(loading, using, strict=True)])
        pipes[side].unload_ip_adapter()
        return loading

    wall_and_cpu = rounds(count, LOADING, turn, f"loading in {dtype}")
    until_used = tuple({side: [s[i] for s in first_use[side][1:]] for side in LOADING} for i in (0, 1))
    return {"load": wall_and_cpu, "load and first use": until_used}


def status(field: str) -> float:
    """A memory figure of this process in bytes, from Linux' `/proc`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(field))


def mark_peak() -> float:
    """Let the peak of memory start here; return what this process has now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return status("VmRSS")


def read_from_storage() -> float:
    """Bytes that this process has made the storage deliver so far."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def evict(file: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def rehearse(side: str) -> None:
    """Load a tiny adapter first, so that imports at first use are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        pipe = build_pipeline(kind_of(side), build_unet(TINY, torch.float32, "cpu", filled=False))
        load(side, pipe, write_adapter(Path(folder), TINY))


def measure_here(side: str, size: Dimensions, adapter: Path, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Bytes held, read from a cold page cache, and the growth of peak memory, of one load in this process."""
    rehearse(side)
    unet = build_unet(size, dtype, device, filled=False)
    pipe = build_pipeline(kind_of(side), unet)
    evict(adapter)
    memory, storage = mark_peak(), read_from_storage()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        on_device = torch.cuda.memory_allocated()
    load(side, pipe, adapter)
    found = {
        **{f"held: {name}": count / MB for name, count in held_bytes(unet).items()},
        "read from a cold cache": (read_from_storage() - storage) / MB,
        "peak memory": (status("VmHWM") - memory) / MB,
    }
    use(unet)
    found["peak memory with first use"] = (status("VmHWM") - memory) / MB
    if device == "cuda":
        found["peak memory on the GPU"] = (torch.cuda.max_memory_allocated() - on_device) / MB
    return found


def measure_apart(
    tiny: bool, adapter: Path, dtype: torch.dtype, device: str, count: int
) -> dict[str, dict[str, list[float]]]:
    """`measure_here` for every side in turns, each time in a process of its own: measure -> side -> samples."""
    return apart.measure("benchmarks.loading", LOADING, apart.Order(tiny, adapter, dtype, device), count)


if __name__ == "__main__":
    apart.obey(measure_here)
