"""Offloading, suspended while modules change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks.group_offloading import (
    _apply_group_offloading,
    _get_top_level_group_offload_hook,
    _maybe_remove_and_reapply_group_offloading,
)
from diffusers.loaders.lora_base import _func_optionally_disable_offloading
from torch import nn

from .processors import bare_unet


@contextmanager
def offloading_suspended(pipe: Any, needed: bool = True) -> Iterator[None]:
    """Without the hooks of model, sequential and group offloading, which come back as they were."""
    if not needed:
        yield
        return
    before, device = modules(pipe), None
    if any(hasattr(module, "_hf_hook") for module in before.values()):
        # A pipeline that shares another's modules shares their hooks, but has no `_offload_device`.
        device = getattr(pipe, "_offload_device", pipe._execution_device)
    by_model, sequential, by_group = _func_optionally_disable_offloading(pipe)
    try:
        yield
    finally:
        if by_model:
            pipe.enable_model_cpu_offload(device=device)
        elif sequential:
            pipe.enable_sequential_cpu_offload(device=device)
        elif by_group:
            hook = _get_top_level_group_offload_hook(bare_unet(pipe))
            for name, module in modules(pipe).items():
                if name in before:
                    _maybe_remove_and_reapply_group_offloading(module)
                elif hook is not None:
                    _apply_group_offloading(module, hook.config)


def modules(pipe: Any) -> dict[str, nn.Module]:
    """The components of a pipeline that are modules."""
    return {name: module for name, module in pipe.components.items() if isinstance(module, nn.Module)}
