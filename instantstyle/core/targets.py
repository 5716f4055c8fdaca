"""Targets in force: chosen, scaled as the host does, or those of one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .adapter import AdapterState, apply_targets, drop_muted, fetch
from .blocks import Scale, attention_blocks, by_block, check_scale, resolve_target_blocks, text_layers, times
from .offloading import offloading_suspended
from .private import expand_scales
from .processors import bare_unet, ip_processors


def read_scales(unet: Any, state: AdapterState, scale: Any) -> tuple[list[dict[str, Scale]], list[Any]]:
    """What `set_ip_adapter_scale` is told, as targets and scales: a number is about those that were chosen."""
    configs = scale if isinstance(scale, list) else [scale] * len(state.targets)
    targets, scales = list(state.chosen), list(configs)
    for i, config in enumerate(configs[: len(targets)]):
        if isinstance(config, Mapping):
            targets[i] = resolve_target_blocks(expand_scales(unet, config), text_layers(unet), {})
            scales[i] = 1.0
    return targets, scales


def in_force(unet: Any, state: AdapterState) -> list[dict[str, Scale]]:
    """For each adapter the blocks that see the reference, as name -> scale."""
    blocks, processors = attention_blocks(unet), ip_processors(unet)
    scales = [{layer: p.scale[i] for layer, p in processors.items()} for i in range(len(state.targets))]
    return [by_block(blocks, one) for one in scales]


def retarget(
    pipe: Any,
    state: Any,
    targets: list[dict[str, Scale]],
    scales: list[Any],
    chosen: list[dict[str, Scale]],
) -> None:
    """Put targets with these scales in force.

    Raises:
        ValueError, TypeError: a wrong scale, or weights that cannot be read again. Nothing is changed then.
    """
    if len(scales) != len(targets):
        raise ValueError(
            f"`scale` has {len(scales)} entries for {len(targets)} IP-Adapters. Pass one number, or one each."
        )
    for weights, scale in zip(targets, scales, strict=True):
        check_scale(scale, "`scale`")
        for weight in weights.values():
            times(weight, scale)  # raises before anything changes
    unet = bare_unet(pipe)
    fetched = fetch(unet, state, targets, ip_processors(unet))
    with offloading_suspended(pipe, bool(fetched) or list(map(set, targets)) != list(map(set, state.targets))):
        state.targets, state.scales, state.chosen = targets, scales, chosen
        apply_targets(unet, state, fetched, targets)
        drop_muted(unet, state)
        unet._instantstyle = state


@contextmanager
def targets_for_call(pipe: Any, state: AdapterState, targets: Sequence[Mapping[str, Scale]]) -> Iterator[None]:
    """Put targets in force for the length of the `with`."""
    unet = bare_unet(pipe)
    processors = ip_processors(unet)
    fetched = fetch(unet, state, targets, processors)
    before = {layer: (p.scale, list(p.to_k_ip), list(p.to_v_ip)) for layer, p in processors.items()}
    try:
        with offloading_suspended(pipe, bool(fetched)):
            apply_targets(unet, state, fetched, targets)
        yield
    finally:
        with offloading_suspended(pipe, bool(fetched)):
            for layer, (scale, _, _) in before.items():
                processors[layer].scale = scale
            for layer, i in fetched:
                _, keys, values = before[layer]
                processors[layer].to_k_ip[i], processors[layer].to_v_ip[i] = keys[i], values[i]
