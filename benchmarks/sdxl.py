# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured on: a UNet and an adapter file of SDXL's dimensions, with random weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from instantstyle import StableDiffusionXLInstantStylePipeline


ADAPTER_NAME = "ip-adapter.safetensors"
TOKENS = 4  # image tokens per picture


@dataclass(frozen=True)
class Dimensions:
    """The widths and depths of a UNet of SDXL's topology, and of what it is conditioned on."""

    channels: tuple[int, int, int] = (320, 640, 1280)
    depth: tuple[int, int, int] = (1, 2, 10)
    heads: tuple[int, int, int] = (5, 10, 20)
    text: int = 2048
    pooled: int = 1280
    time: int = 256
    clip: int = 1280


SDXL = Dimensions()
TINY = Dimensions((32, 64, 128), (1, 1, 2), (1, 2, 4), text=48, pooled=40, time=8, clip=56)


def shallow(size: Dimensions) -> Dimensions:
    """The same widths with one transformer layer wherever there are more."""
    return replace(size, depth=(1, 1, 1))


def build_unet(size: Dimensions, dtype: torch.dtype, device: str, filled: bool) -> UNet2DConditionModel:
    """A UNet with random weights, or with memory that is reserved and never touched where only loading is measured."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=size.channels,
            transformer_layers_per_block=size.depth,
            attention_head_dim=size.heads,
            cross_attention_dim=size.text,
            addition_embed_type="text_time",
            addition_time_embed_dim=size.time,
            projection_class_embeddings_input_dim=size.pooled + 6 * size.time,
            use_linear_projection=True,
        )
    unet = unet.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    if filled:
        fill(unet)
    return unet


def fill(module: nn.Module, seed: int = 0) -> None:
    """Give weights the variance that keeps activations finite, from a pool whose prime length fits no row."""
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
    for name, weight in module.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            scaled = (pool / math.sqrt(weight[0].numel())).to(weight)
            for part in weight.view(-1).split(len(pool)):
                part.copy_(scaled[: len(part)])


def build_pipeline(kind: str, unet: UNet2DConditionModel) -> Any:
    """A pipeline of the stock class or ours around a UNet alone: its other parts play no role here."""
    cls = StableDiffusionXLInstantStylePipeline if kind == "ours" else StableDiffusionXLPipeline
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return cls(**dict.fromkeys(names), unet=unet, scheduler=EulerDiscreteScheduler())


def write_adapter(folder: Path, size: Dimensions, seed: int = 0) -> Path:
    """Write an IP-Adapter in the published layout, in float16 as published."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])).half()

    tensors = {
        "image_proj.proj.weight": draw(TOKENS * size.text, size.clip),
        "image_proj.proj.bias": torch.zeros(TOKENS * size.text).half(),
        "image_proj.norm.weight": torch.ones(size.text).half(),
        "image_proj.norm.bias": torch.zeros(size.text).half(),
    }
    for index, width in enumerate(cross_attention_widths(size)):
        for name in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * index + 1}.{name}.weight"] = draw(width, size.text)
    save_file(tensors, folder / ADAPTER_NAME)
    return folder / ADAPTER_NAME


def cross_attention_widths(size: Dimensions) -> list[int]:
    """Widths of the cross-attentions in the order of checkpoints: down, up, middle."""
    (_, middle, deep), (_, few, many) = size.channels, size.depth
    down = [middle] * 2 * few + [deep] * 2 * many
    up = [deep] * 3 * many + [middle] * 3 * few
    return [*down, *up, *[deep] * many]
