"""Encoding: from a reference and a loaded adapter to a `Style`."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from instantstyle.identity import fingerprint, style_family_of
from instantstyle.styles.provenance import Provenance, Source
from instantstyle.styles.style import Style, shares
from instantstyle.version import versions
from pipeline_instantstyle import (
    AdapterState,
    adapter_state,
    adapter_to_change,
    attention,
    bare_unet,
    component,
    embed_reference,
    fetch,
    ip_processors,
    offloading_suspended,
    read_call,
    resolve_each,
    text_layers,
    times,
    upright,
)


REMEMBERED = 32  # pictures


def encode(
    pipe: Any,
    image: Any,
    neg_content_prompt: Any,
    neg_content_scale: float | str,
    target_blocks: Any,
    weights: Sequence[float] | None,
) -> Style:
    """Encode a reference: see `InstantStyleMixin.encode_style`."""
    unet = bare_unet(pipe)
    state, pictures = _one_adapter(unet), _pictures(image)
    contents = _one_each(neg_content_prompt, len(pictures))
    parts = shares(weights, len(pictures), "`image`")
    scales = scales_for(unet, state, target_blocks)
    if component(pipe, "image_encoder") is None:
        raise ValueError("`image` needs an image encoder, but the pipeline has none. `load_ip_adapter` brings one.")
    pixels = [pipe.feature_extractor(one, return_tensors="pt").pixel_values for one in pictures]
    amount: dict[str, Any] = {"neg_content_scale": neg_content_scale}
    for one, text in zip(pixels, contents, strict=True):  # all of them before the first is encoded
        read_call(pipe, {"ip_adapter_image": [one]}, state, neg_content_prompt=text, **amount)
    layers = projections(unet, state, scales)
    with offloading_suspended(pipe):
        adapter, encoder = fingerprint(state.projection, *layers.values()), fingerprint(pipe.image_encoder)
        weights_now = fingerprint(pipe.image_encoder, exact=True)
    strength = neg_content_scale if isinstance(neg_content_scale, str) else float(neg_content_scale)
    described = zip(pictures, parts, contents, strict=True)
    recipe = Provenance(
        family=style_family_of(unet),
        text_width=text_width_of(unet),
        scales=scales,
        sources=tuple(Source(_size(one), part, text, strength) for one, part, text in described),
        adapter=adapter,
        image_encoder=encoder,
        dtype=dtype_of(unet),
        versions=versions(),
    )
    every = [
        embed_reference(pipe, text, **amount, ip_adapter_image_embeds=[embed_picture(pipe, one, weights_now)])
        for one, text in zip(pixels, contents, strict=True)
    ]
    conditional = torch.stack([part * embeds[1:].float() for embeds, part in zip(every, parts, strict=True)]).sum(0)
    mean = torch.cat([every[0][:1], conditional.to(every[0].dtype)])[:, 0]
    return Style(bake(pipe, mean, layers), recipe)


def _pictures(image: Any) -> list[Any]:
    pictures = [upright(_check_picture(one), depth=0) for one in (image if isinstance(image, list) else [image])]
    if not pictures:
        raise ValueError("`image` is an empty list. Pass a picture, or several.")
    return pictures


def _one_each(contents: Any, count: int) -> list[Any]:
    each = contents if isinstance(contents, list) else [contents] * count
    if len(each) != count:
        raise ValueError(f"`neg_content_prompt` has {len(each)} entries for {count} pictures in `image`.")
    return each


def _one_adapter(unet: Any) -> AdapterState:
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


def _check_picture(picture: Any) -> Any:
    if not hasattr(picture, "getexif") and not (isinstance(picture, np.ndarray) and picture.ndim in (2, 3)):
        expected = "a picture (PIL image, or array of the shape (height, width[, channels])), or a list of them"
        raise TypeError(f"`image` must be {expected}, but holds {picture!r:.80}.")
    return picture


def _size(picture: Any) -> tuple[int, int]:
    if hasattr(picture, "getexif"):
        return picture.size
    return picture.shape[1], picture.shape[0]


def scales_for(unet: Any, state: AdapterState, target_blocks: Any) -> dict[str, float]:
    """The layers that a call with these target blocks would show the reference to, with their scales.

    Raises:
        ValueError, TypeError: No such blocks, none at all, or scales for several masked pictures.
    """
    if target_blocks is None:
        scales = {layer: processor.scale[0] for layer, processor in ip_processors(unet).items()}
    else:
        (targets,) = resolve_each(target_blocks, unet, state)
        scales = {layer: times(weight, state.scales[0]) for layer, weight in targets.items()}
    if any(isinstance(scale, list) for scale in scales.values()):
        raise ValueError("`target_blocks` must have one scale per block, not one per masked picture: a style is one.")
    chosen = {layer: float(scale) for layer, scale in scales.items() if scale}
    if not chosen:
        raise ValueError(
            "`target_blocks` leaves no block with a scale other than 0, or `set_ip_adapter_scale` set 0 for all, so "
            "there is nothing to encode."
        )
    return chosen


# --- Image embeddings ------------------------------------------------------------------------------------------------

_remembered: OrderedDict[str, torch.Tensor] = OrderedDict()


def embed_picture(pipe: Any, pixels: torch.Tensor, encoder: str) -> torch.Tensor:
    """Embeddings of one picture, shape `(2, 1, ...)`, unconditional first; the last ones are remembered.

    Args:
        pipe: A variant with one adapter.
        pixels: The picture as the image encoder sees it, shape `(1, 3, height, width)`.
        encoder: Exact fingerprint of the image encoder.
    """
    projection = type(_one_adapter(bare_unet(pipe)).projection.image_projection_layers[0]).__name__
    how = f"{encoder} {projection} {pipe._execution_device} {pipe.image_encoder.dtype} {tuple(pixels.shape)}"
    key = hashlib.sha256(how.encode() + pixels.numpy().tobytes()).hexdigest()
    if key not in _remembered:
        _remembered[key] = embed_reference(pipe, None, 1.0, ip_adapter_image=[pixels]).cpu()
    _remembered.move_to_end(key)
    while len(_remembered) > REMEMBERED:
        _remembered.popitem(last=False)
    return _remembered[key]


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
def bake(pipe: Any, embeds: torch.Tensor, layers: Mapping[str, nn.ModuleList]) -> dict[str, torch.Tensor]:
    """The tensors of a style: keys and values of these layers, and `embeds` where it is small.

    Args:
        pipe: A variant with one adapter.
        embeds: Image embeddings of shape `(2, d)` or `(2, patches, d)`, row 0 unconditional.
        layers: What `projections` gives.
    """
    unet = bare_unet(pipe)
    projection = _one_adapter(unet).projection
    tensors = {"embeds": embeds.cpu().clone()} if embeds.ndim == 2 else {}
    with offloading_suspended(pipe):
        device = next(projection.parameters()).device
        (tokens,) = projection([embeds[:, None].to(device, unet.dtype)])
        for layer, pair in layers.items():
            for name, linear in zip(("keys", "values"), pair, strict=True):
                tensors[f"{layer}.{name}"] = linear(tokens[:, 0].to(linear.weight.device)).cpu()
    return tensors


def bake_again(pipe: Any, recipe: Provenance, embeds: torch.Tensor) -> Style:
    """A style of other embeddings, of shape `(2, d)`.

    Raises:
        TypeError: `pipe` is no variant.
        ValueError: The adapter on it is not the one that the recipe names.
        RuntimeError: A style is applied to it.
    """
    if not hasattr(pipe, "_instantstyle_host"):
        raise TypeError(
            "`pipe` must be an InstantStyle pipeline with the adapter that encoded the styles, but is a "
            f"{type(pipe).__name__}. `with_instantstyle` makes its class one."
        )
    adapter_to_change(pipe)
    unet = bare_unet(pipe)
    state = _one_adapter(unet)
    layers = projections(unet, state, recipe.scales)
    with offloading_suspended(pipe):
        found = fingerprint(state.projection, *layers.values())
    if found != recipe.adapter:
        raise ValueError(
            f"`pipe` has the adapter {found[:8]}, but the styles were encoded with {recipe.adapter[:8]}. Load that "
            "one, or blend keys and values: without `pipe`."
        )
    return Style(bake(pipe, embeds, layers), replace(recipe, dtype=dtype_of(unet)))


def text_width_of(unet: Any) -> int:
    """Width of the text embeddings that the cross-attentions take."""
    return attention(unet, text_layers(unet)[0]).cross_attention_dim


def dtype_of(unet: Any) -> str:
    """The dtype that keys and values are computed in, such as "float16"."""
    return str(unet.dtype).removeprefix("torch.")
