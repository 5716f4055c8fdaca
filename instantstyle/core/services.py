"""Services of the host that swap attention processors or cast weights, and an adapter that is to outlive them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)

from .blocks import text_layers
from .processors import attention, ip_processors


# What slicing, fused projections and the like put on every attention of a UNet. None of them can take image tokens
# (diffusers 7263, 8863, 9901).
PLAIN = (AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)

# What layerwise casting leaves alone, as it does norms: the host's image projection casts its input to the type in
# which its weights are stored.
UNCAST = (r"^encoder_hid_proj\.image_projection_layers\.", r"\.processor\.to_[kv]_ip\.")


def is_displaced(unet: Any) -> bool:
    """Whether a service put its processors in the place of an adapter's."""
    state = unet.__dict__.get("_instantstyle")
    ours = state.processors if state is not None and state.projection is unet.encoder_hid_proj else ()
    return any(type(attention(unet, layer).processor) in PLAIN for layer in ours)


def mend_unfusing(unet: Any, state: Any) -> None:
    """Let `unfuse_qkv_projections` leave what it would without the adapter of this `AdapterState`."""
    # It puts back what `fuse_qkv_projections` found, the adapter's own too, and wants one for each attention there is.
    found = unet.__dict__.get("original_attn_processors")
    if found:
        own = {f"{layer}.attn2.processor": layer for layer in state.processors}
        plain = {n: state.plain[layer] for n, layer in own.items() if found.get(n) is state.processors[layer]}
        known = found | plain
        unet.original_attn_processors = {name: known.get(name, now) for name, now in unet.attn_processors.items()}


def check_whole(unet: Any, projection: Any) -> None:
    """Raise ValueError where a service left what another loader had put on this UNet unfit to run."""
    if projection is not unet.encoder_hid_proj:  # a modular pipeline puts it there while the UNet runs
        return
    for layer in text_layers(unet):
        kind = type(attention(unet, layer).processor)
        if kind in PLAIN:
            raise ValueError(
                f"The IP-Adapter on this UNet lost its weights for {layer!r}: {kind.__name__} was put in their place. "
                "Call `load_ip_adapter` again; what an InstantStyle pipeline has loaded outlives that."
            )
    for parameter in projection.parameters():
        if parameter.dtype.itemsize == 1:
            raise ValueError(
                f"The IP-Adapter on this UNet was cast to {parameter.dtype}, in which its projection cannot run. "
                "Call `load_ip_adapter` again; what an InstantStyle pipeline has loaded is not cast."
            )


@contextmanager
def naming_strangers(unet: Any) -> Iterator[None]:
    """Name a processor of the user's that fails on what an adapter has it given: text and image tokens, as a tuple."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        strangers = [layer for layer in text_layers(unet) if layer not in ip_processors(unet)]
        if not strangers:
            raise
        kind = type(attention(unet, strangers[0]).processor).__name__
        raise RuntimeError(
            f"The attention processor {kind} at {strangers[0]!r} failed. While an IP-Adapter is loaded it is given "
            "text and image tokens, as a tuple. Set one that takes both, or call `unload_ip_adapter` first."
        ) from error
