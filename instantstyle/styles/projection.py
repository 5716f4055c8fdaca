"""Projection: from image embeddings and a loaded adapter to the keys and values that a style holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from instantstyle.core import (
    AdapterState,
    adapter_state,
    adapter_to_change,
    attention,
    bare_unet,
    fetch,
    ip_processors,
    offloading_suspended,
    text_layers,
)
from instantstyle.identity import fingerprint


def one_adapter(unet: Any) -> AdapterState:
    """The one adapter of a UNet that takes pictures. Raises ValueError where there is none, or another kind."""
    state = adapter_state(unet)
    if state is None:
        raise ValueError("A style is encoded with an IP-Adapter, but none is loaded. Call `load_ip_adapter` first.")
    if len(state.targets) != 1:
        raise ValueError(
            f"A style is encoded with one IP-Adapter, but {len(state.targets)} are loaded. Load one after the other; "
            "a tuple combines their styles in one picture."
        )
    if "FaceID" in type(state.projection.image_projection_layers[0]).__name__:
        raise ValueError(
            "A style is encoded from a picture, but this IP-Adapter takes a face recogniser's embeddings."
        )
    return state


def projections(unet: Any, state: AdapterState, layers: Collection[str]) -> dict[str, nn.ModuleList]:
    """What makes keys and values of image tokens: layer -> (key, value) projection, in the order of the UNet.

    Args:
        unet: The UNet.
        state: Its one adapter. Weights that are not in memory are read from the checkpoint.
        layers: The layers to give; those that the UNet does not have are left out.

    Raises:
        ValueError: The checkpoint is not there any more, or holds values that are not finite.
    """
    processors = ip_processors(unet)
    fetched = fetch(unet, state, [dict.fromkeys(layers, 1.0)], processors)
    return {
        layer: nn.ModuleList(fetched.get((layer, 0)) or (processor.to_k_ip[0], processor.to_v_ip[0]))
        for layer, processor in processors.items()
        if layer in layers
    }


@torch.no_grad()
def keys_and_values(pipe: Any, embeds: torch.Tensor, layers: Mapping[str, nn.ModuleList]) -> dict[str, torch.Tensor]:
    """The tensors of a style: keys and values of the image tokens in these layers, and `embeds` where it is small.

    Args:
        pipe: A variant with one adapter.
        embeds: Image embeddings of shape `(2, d)` or `(2, patches, d)`, row 0 unconditional.
        layers: What `projections` gives.

    Returns:
        For each layer `LAYER.keys` and `LAYER.values` of shape `(2, tokens, width)`; for embeddings of shape `(2, d)`
        also them.
    """
    unet = bare_unet(pipe)
    projection = one_adapter(unet).projection
    tensors = {"embeds": embeds.cpu().clone()} if embeds.ndim == 2 else {}
    with offloading_suspended(pipe):
        device = next(projection.parameters()).device
        (tokens,) = projection([embeds[:, None].to(device, unet.dtype)])
        for layer, pair in layers.items():
            for name, linear in zip(("keys", "values"), pair, strict=True):
                tensors[f"{layer}.{name}"] = linear(tokens[:, 0].to(linear.weight.device)).cpu()
    return tensors


def project_again(
    pipe: Any, adapter: str, embeds: torch.Tensor, layers: Collection[str]
) -> tuple[dict[str, torch.Tensor], str]:
    """What a style of other embeddings holds, by the adapter that is loaded.

    Args:
        pipe: A variant with one adapter.
        adapter: The fingerprint that the adapter must have.
        embeds: Image embeddings of shape `(2, d)`, row 0 unconditional.
        layers: The layers that see the style.

    Returns:
        The tensors, and the dtype that they were computed in.

    Raises:
        TypeError: `pipe` is no variant.
        ValueError: The adapter on it is another one.
        RuntimeError: A style is applied to it.
    """
    if not hasattr(pipe, "_instantstyle_host"):
        raise TypeError(
            "`pipe` must be an InstantStyle pipeline with the adapter that encoded the styles, but is a "
            f"{type(pipe).__name__}. `with_instantstyle` makes its class one."
        )
    adapter_to_change(pipe)
    unet = bare_unet(pipe)
    state = one_adapter(unet)
    chosen = projections(unet, state, layers)
    with offloading_suspended(pipe):
        found = fingerprint(state.projection, *chosen.values())
    if found != adapter:
        raise ValueError(
            f"`pipe` has the adapter {found[:8]}, but the styles were encoded with {adapter[:8]}. Load that one, or "
            "blend keys and values: without `pipe`."
        )
    return keys_and_values(pipe, embeds, chosen), dtype_of(unet)


def text_width_of(unet: Any) -> int:
    """Width of the text embeddings that the cross-attentions take."""
    return attention(unet, text_layers(unet)[0]).cross_attention_dim


def dtype_of(unet: Any) -> str:
    """The dtype that keys and values are computed in, such as "float16"."""
    return str(unet.dtype).removeprefix("torch.")
