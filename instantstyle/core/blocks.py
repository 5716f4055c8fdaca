"""Where to inject: the names of attention blocks, presets, and the scale of each layer."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any


Scale = float | list[float]  # a list has a number for each masked picture
TargetBlocks = str | Sequence[str] | Mapping[str, Scale]  # of one adapter
# What the blocks of a family carry, by the stages that have attention (the middle block aside): SDXL from the paper,
# "Injecting into Style Blocks Only"; SD1.5 from its authors' example for it, which calls them experimental.
FAMILY_PRESETS = {
    ("down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1"): {
        "style": ["up_blocks.0.attentions.1"],
        "layout": ["down_blocks.2.attentions.1"],
    },
    ("down_blocks.0", "down_blocks.1", "down_blocks.2", "up_blocks.1", "up_blocks.2", "up_blocks.3"): {
        "style": ["up_blocks.1"],
        "layout": ["down_blocks.2", "mid_block"],
    },
}


def text_layers(unet: Any) -> list[str]:
    """Names of the UNet's text cross-attentions, without `.attn2`, in the order in which checkpoints number them."""
    names = [name.removesuffix(".attn2") for name, _ in unet.named_modules() if name.endswith(".attn2")]
    return [name for name in names if "motion_modules" not in name]


def attention_blocks(unet: Any) -> dict[str, list[str]]:
    """The UNet's attention groups, such as `up_blocks.0.attentions.1`, each with the names of its layers."""
    blocks: dict[str, list[str]] = {}
    for layer in text_layers(unet):
        blocks.setdefault(layer.partition(".transformer_blocks.")[0], []).append(layer)
    return blocks


def presets(unet: Any) -> dict[str, dict[str, Scale]]:
    """The named target blocks of a UNet: preset -> block -> scale. Only "all" where the topology is unknown.

    Those that an adapter's file carries are not among them; they win over these.
    """
    blocks = list(attention_blocks(unet))
    stages = {block.partition(".attentions.")[0] for block in blocks} - {"mid_block"}
    family = FAMILY_PRESETS.get(tuple(sorted(stages)), {})
    matches = {preset: [_match(name, blocks) for name in names] for preset, names in family.items()}
    found: dict[str, dict[str, Scale]] = {"all": dict.fromkeys(blocks, 1.0)}
    if family and all(map(all, matches.values())):
        found |= {preset: dict.fromkeys(sum(each, []), 1.0) for preset, each in matches.items()}
        found["style+layout"] = found["style"] | found["layout"]
    return found


def resolve_target_blocks(
    target_blocks: TargetBlocks, layers: Sequence[str], presets: Mapping[str, TargetBlocks]
) -> dict[str, Scale]:
    """Turn target blocks into layer name -> scale, without the layers at scale 0.

    Args:
        target_blocks: a preset, a block name, a list of them, or a dict of name -> scale: a number, or a list of
            numbers, one per masked picture. Names match whole dotted parts; where they overlap, the narrower one wins.
        layers: the names to choose from, as `text_layers` gives them.
        presets: preset name -> target blocks.

    Raises:
        TypeError: `target_blocks` or a scale is of another type.
        ValueError: no name, an unknown name, or a scale that is not finite.
    """
    if isinstance(target_blocks, str):
        target_blocks = [target_blocks]
    if isinstance(target_blocks, (list, tuple)):
        target_blocks = dict.fromkeys(map(_check_name, target_blocks), 1.0)
    if not isinstance(target_blocks, Mapping):
        expected = "a preset, a block name, a list of them or a dict of name -> scale"
        raise TypeError(f"`target_blocks` must be {expected}, but is {target_blocks!r}.")
    if not target_blocks:
        raise ValueError(f"`target_blocks` is empty. Name a preset ({', '.join(presets)}) or attention blocks.")
    parts = [_resolve_name(name, scale, layers, presets) for name, scale in target_blocks.items()]
    chosen: dict[str, Scale] = {}
    for part in sorted(parts, key=len, reverse=True):
        chosen |= part
    return {layer: chosen[layer] for layer in layers if not _is_zero(chosen.get(layer, 0.0))}


def _resolve_name(name: str, scale: Any, layers: Sequence[str], presets: Mapping[str, Any]) -> dict[str, Scale]:
    _check_name(name)
    check_scale(scale, f"The scale of {name!r} in `target_blocks`")
    if name in presets:
        try:
            inside = resolve_target_blocks(presets[name], layers, {})
        except (TypeError, ValueError) as error:
            raise ValueError(f"The preset {name!r}, which the adapter's file carries, is wrong: {error}") from error
        return {layer: times(weight, scale) for layer, weight in inside.items()}
    found = _match(name.removesuffix(".processor").removesuffix(".attn2"), layers)
    if not found:
        parts = [layer.split(".") for layer in layers]
        known = {".".join(part[:depth]): None for part in parts for depth in range(1, len(part) + 1)}
        near = difflib.get_close_matches(name, [*presets, *known], cutoff=0.5)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "`attention_blocks(pipe.unet)` lists them."
        raise ValueError(
            f"`target_blocks` names {name!r}, which is neither a preset of this UNet ({', '.join(presets) or 'none'}) "
            f"nor one of its attention blocks. {hint}"
        )
    return dict.fromkeys(found, scale)


def _match(name: str, layers: Sequence[str]) -> list[str]:
    return [layer for layer in layers if layer == name or layer.startswith(name + ".")]


def by_block(blocks: Mapping[str, list[str]], scales: Mapping[str, Scale]) -> dict[str, Scale]:
    found: dict[str, Scale] = {}
    for block, layers in blocks.items():
        inside = {layer: scales[layer] for layer in layers if layer in scales}
        alike = len(inside) == len(layers) and all(scale == inside[layers[0]] for scale in inside.values())
        found |= {block: inside[layers[0]]} if alike else inside
    return {name: scale for name, scale in found.items() if not _is_zero(scale)}


def _check_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"`target_blocks` names blocks by strings, but one of the names is {name!r}.")
    return name


def check_scale(scale: Any, what: str) -> None:
    for number in scale if isinstance(scale, list) and scale else [scale]:
        check_number(number, what, "a number, or a list of numbers, one per masked picture")


def check_number(value: Any, what: str, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be {expected}, but is {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, but is {value!r}.")


def times(weight: Scale, scale: Scale) -> Scale:
    if not isinstance(weight, list) and not isinstance(scale, list):
        return weight * scale
    count = len(weight if isinstance(weight, list) else scale)  # type: ignore[arg-type]
    weights, scales = (one if isinstance(one, list) else [one] * count for one in (weight, scale))
    if len(weights) != len(scales):
        raise ValueError(f"`scale` has {len(scales)} numbers where `target_blocks` has {len(weights)} per block.")
    return [w * s for w, s in zip(weights, scales, strict=True)]


def _is_zero(scale: Scale) -> bool:
    return not any(scale) if isinstance(scale, list) else scale == 0
