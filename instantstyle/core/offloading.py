"""Offloading, suspended while modules change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .private import disable_offloading, group_offloading, offload_device
from .processors import bare_unet


@contextmanager
def offloading_suspended(pipe: Any, needed: bool = True) -> Iterator[None]:
    """Without the hooks of model, sequential and group offloading, which come back as they were."""
    if not needed:
        yield
        return
    # What is loaded under these hooks they do not place (diffusers issue 3922).
    before, device = modules(pipe), offload_device(pipe)
    by_model, sequential, by_group = disable_offloading(pipe)
    put = group_offloading(bare_unet(pipe)) if by_group else None
    try:
        yield
    finally:
        if by_model:
            pipe.enable_model_cpu_offload(device=device)
        elif sequential:
            pipe.enable_sequential_cpu_offload(device=device)
        elif put is not None:
            for name, module in modules(pipe).items():
                put(module, name not in before)


def modules(pipe: Any) -> dict[str, nn.Module]:
    """The components of a pipeline that are modules."""
    return {name: module for name, module in pipe.components.items() if isinstance(module, nn.Module)}
