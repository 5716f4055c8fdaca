"""`instantstyle blocks`: where a model can see the reference, as a table."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any

from instantstyle.console import calm, table
from instantstyle.inference.models import find_model, own_adapter
from instantstyle.inference.values import write_targets


BYTES_PER_HALF = 2


def run(options: argparse.Namespace) -> None:
    """Print the attention groups and presets of `--model`."""
    with calm(bars=False):
        from instantstyle.core import AdapterFile

        model = find_model(options.machine.model)
        adapter = own_adapter(model)
        print(f"{model.label} ({model.family})\n")
        print(describe(model.unet, AdapterFile(adapter).presets if adapter else {}))


def describe(config: dict[str, Any], carried: Mapping[str, Any]) -> str:
    """Describe a UNet: its attention groups with the sizes of an adapter, and its presets.

    The UNet is built without storage, so nothing is read but the configuration.

    Args:
        config: The UNet's configuration.
        carried: Presets that the model's own adapter carries, which win over the family's.
    """
    import torch
    from diffusers import UNet2DConditionModel

    from instantstyle.core import attention_blocks, presets, resolve_target_blocks

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    blocks = attention_blocks(unet)
    sizes = {block: sum(adapter_size(unet, layer) for layer in layers) for block, layers in blocks.items()}
    rows = [size_row(block, len(layers), sizes[block]) for block, layers in blocks.items()]
    rows.append(size_row("total", sum(map(len, blocks.values())), sum(sizes.values())))
    known: dict[str, Any] = {**presets(unet), **carried}
    named = [[name, targets(resolve_target_blocks(name, list(blocks), known), blocks)] for name in known]
    heading = ["block", "layers", "adapter parameters", "MB in fp16"]
    return "\n".join([table([heading, *rows], right=(1, 2, 3)), "", table([["preset", "blocks"], *named])])


def targets(scales: Mapping[str, Any], blocks: Collection[str]) -> str:
    """Write blocks and their scales, in short where they are all."""
    return "every block" if scales == dict.fromkeys(blocks, 1.0) else write_targets(scales.items())


def adapter_size(unet: Any, layer: str) -> int:
    """Count the parameters that an adapter adds to one cross-attention: a key and a value projection, without bias."""
    attention = unet.get_submodule(f"{layer}.attn2")
    return 2 * attention.inner_dim * attention.cross_attention_dim


def size_row(name: str, layers: int, parameters: int) -> list[str]:
    """Write one line of the table of sizes."""
    return [name, str(layers), f"{parameters:,}", f"{BYTES_PER_HALF * parameters / 1e6:.2f}"]
