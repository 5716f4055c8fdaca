"""Attention processors: the host's for IP-Adapters, and what stands where no weights are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import (
    AttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    IPAdapterXFormersAttnProcessor,
    XFormersAttnProcessor,
)
from torch import nn

from .blocks import text_layers


class MutedProjection(nn.Module):
    """Stands, without weights, where a block that does not see the reference would hold a projection."""

    def __init__(self, layer: str):
        super().__init__()
        self.layer = layer

    def forward(self, *_: Any) -> torch.Tensor:
        """Raise RuntimeError: a stock pipeline set a scale on a block without weights."""
        raise RuntimeError(
            f"{self.layer!r} is no target block, so it holds no IP-Adapter weights. Name it in `set_target_blocks` of "
            "an InstantStyle pipeline, or in `load_ip_adapter(..., target_blocks=...)`."
        )


def bare_unet(pipe: Any) -> Any:
    """The UNet of a pipeline, out of what `torch.compile` wraps around it."""
    return getattr(pipe.unet, "_orig_mod", pipe.unet)


def ip_processors(unet: Any) -> dict[str, Any]:
    """Layer name -> IP-Adapter processor, for the layers that have one."""
    kinds = (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0, IPAdapterXFormersAttnProcessor)
    processors = {layer: attention(unet, layer).processor for layer in text_layers(unet)}
    return {layer: processor for layer, processor in processors.items() if isinstance(processor, kinds)}


def attention(unet: Any, layer: str) -> Any:
    return unet.get_submodule(f"{layer}.attn2")


def is_xformers(processor: Any) -> bool:
    return isinstance(processor, (XFormersAttnProcessor, IPAdapterXFormersAttnProcessor))


def plain_processor(processor: Any) -> Any:
    if is_xformers(processor):
        return XFormersAttnProcessor(attention_op=processor.attention_op)
    return AttnProcessor2_0()


def make_processor(attn: Any, tokens: Sequence[int], plain: Any) -> Any:
    """An IP-Adapter processor of scale 0 without projections, in the backend of a plain one."""
    kind: Any = IPAdapterAttnProcessor2_0
    if is_xformers(plain):
        kind = functools.partial(IPAdapterXFormersAttnProcessor, attention_op=plain.attention_op)
    processor = kind(attn.inner_kv_dim, attn.cross_attention_dim, num_tokens=[], scale=[])  # it draws no weights
    processor.num_tokens, processor.scale = list(tokens), [0.0] * len(tokens)
    return processor


def is_muted(projection: nn.Module) -> bool:
    # Not `isinstance`: the plugin file can be loaded twice in one process, under two module names.
    return not hasattr(projection, "weight")


def first_linear(layer: nn.Module) -> nn.Linear:
    return next(module for module in layer.modules() if isinstance(module, nn.Linear))
