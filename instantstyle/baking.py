"""Encoding: from a reference and a loaded adapter to a `Style`."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from instantstyle.style import Style
from instantstyle.style_recipe import Recipe, Source
from instantstyle.version import versions
from instantstyle.weights import shares
from pipeline_instantstyle import (
    AdapterState,
    _attention,
    _resolve_each,
    _times,
    _upright,
    adapter_state,
    fetch,
    ip_processors,
    text_layers,
)


SAMPLE = 256  # numbers of each tensor that a fingerprint looks at
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
    unet = pipe._bare_unet
    state = _one_adapter(unet)
    pictures = [_upright(_check_picture(one), depth=0) for one in (image if isinstance(image, list) else [image])]
    if not pictures:
        raise ValueError("`image` is an empty list. Pass a picture, or several.")
    contents = neg_content_prompt if isinstance(neg_content_prompt, list) else [neg_content_prompt] * len(pictures)
    if len(contents) != len(pictures):
        raise ValueError(f"`neg_content_prompt` has {len(contents)} entries for {len(pictures)} pictures in `image`.")
    parts = shares(weights, len(pictures), "`image`")
    scales = scales_for(unet, state, target_blocks)
    if pipe._component("image_encoder") is None:
        raise ValueError("`image` needs an image encoder, but the pipeline has none. `load_ip_adapter` brings one.")
    with pipe._offloading_suspended():
        adapter, encoder = fingerprint(state.projection), fingerprint(pipe.image_encoder)
    every = [
        pipe._embed_reference(text, neg_content_scale, ip_adapter_image_embeds=[embed_picture(pipe, one, encoder)])
        for one, text in zip(pictures, contents, strict=True)
    ]
    conditional = torch.stack([part * embeds[1:].float() for embeds, part in zip(every, parts, strict=True)]).sum(0)
    mean = torch.cat([every[0][:1], conditional.to(every[0].dtype)])[:, 0]
    described = zip(pictures, parts, contents, strict=True)
    recipe = Recipe(
        family=family_of(unet),
        text_width=text_width_of(unet),
        scales=scales,
        sources=tuple(Source(_size(one), part, text, neg_content_scale) for one, part, text in described),
        adapter=adapter,
        image_encoder=encoder,
        versions=versions(),
    )
    return Style(bake(pipe, mean, scales), recipe)


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
        (targets,) = _resolve_each(target_blocks, unet, state)
        scales = {layer: _times(weight, state.scales[0]) for layer, weight in targets.items()}
    if any(isinstance(scale, list) for scale in scales.values()):
        raise ValueError("`target_blocks` must have one scale per block, not one per masked picture: a style is one.")
    chosen = {layer: float(scale) for layer, scale in scales.items() if scale}
    if not chosen:
        raise ValueError("`target_blocks` leaves no block with a scale other than 0, so there is nothing to encode.")
    return chosen


# --- Image embeddings ------------------------------------------------------------------------------------------------

_remembered: OrderedDict[str, torch.Tensor] = OrderedDict()


def embed_picture(pipe: Any, picture: Any, encoder: str) -> torch.Tensor:
    """Embeddings of one picture, shape `(2, 1, ...)`, unconditional first; the last ones are remembered by content."""
    projection = type(_one_adapter(pipe._bare_unet).projection.image_projection_layers[0]).__name__
    how = f"{encoder} {pipe.feature_extractor} {projection} {pipe._execution_device} {pipe.image_encoder.dtype}"
    pixels = np.asarray(picture)
    head = f"{how} {type(picture)} {getattr(picture, 'mode', '')} {pixels.dtype} {pixels.shape}"
    key = hashlib.sha256(head.encode() + pixels.tobytes()).hexdigest()
    if key not in _remembered:
        _remembered[key] = pipe._embed_reference(None, 1.0, ip_adapter_image=[picture]).cpu()
    _remembered.move_to_end(key)
    while len(_remembered) > REMEMBERED:
        _remembered.popitem(last=False)
    return _remembered[key]


# --- Keys and values -------------------------------------------------------------------------------------------------


@torch.no_grad()
def bake(pipe: Any, embeds: torch.Tensor, scales: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """The tensors of a style: keys and values of the layers in `scales`, and `embeds` where it is small.

    Args:
        pipe: A variant with one adapter.
        embeds: Image embeddings of shape `(2, d)` or `(2, patches, d)`, row 0 unconditional.
        scales: The layers; weights that are not in memory are read from the checkpoint.
    """
    unet = pipe._bare_unet
    state, processors = _one_adapter(unet), ip_processors(unet)
    fetched = fetch(unet, state, [scales], processors)
    tensors = {"embeds": embeds.cpu().clone()} if embeds.ndim == 2 else {}
    with pipe._offloading_suspended():
        device = next(state.projection.parameters()).device
        (tokens,) = state.projection([embeds[:, None].to(device, unet.dtype)])
        for layer in scales:
            processor = processors[layer]
            pair = fetched.get((layer, 0)) or (processor.to_k_ip[0], processor.to_v_ip[0])
            for name, linear in zip(("keys", "values"), pair, strict=True):
                tensors[f"{layer}.{name}"] = linear(tokens[:, 0].to(linear.weight.device)).cpu()
    return tensors


def bake_again(pipe: Any, recipe: Recipe, mixed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a style with other embeddings.

    Raises:
        ValueError: The adapter on `pipe` is not the one that the recipe names.
    """
    state = _one_adapter(pipe._bare_unet)
    with pipe._offloading_suspended():
        found = fingerprint(state.projection)
    if found != recipe.adapter:
        raise ValueError(
            f"`pipe` has the adapter {found[:8]}, but the styles were encoded with {recipe.adapter[:8]}. Load that "
            "one, or blend keys and values: without `pipe`."
        )
    return bake(pipe, mixed["embeds"], recipe.scales)


# --- Identity --------------------------------------------------------------------------------------------------------


def fingerprint(module: nn.Module) -> str:
    """Tell modules apart, in 64 hexadecimal digits, by names, shapes and a sample of the weights in float16."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLE)].to("cpu", torch.float16)
        digest.update(f"{name} {tuple(parameter.shape)} ".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def family_of(unet: Any) -> str:
    """The family whose checkpoints share a style: "sdxl", "sd15" or "kolors", which has SDXL's blocks."""
    if getattr(unet.config, "encoder_hid_dim", None):
        return "kolors"
    return "sdxl" if getattr(unet.config, "addition_embed_type", None) == "text_time" else "sd15"


def text_width_of(unet: Any) -> int:
    """Width of the text embeddings that the cross-attentions take."""
    return _attention(unet, text_layers(unet)[0]).cross_attention_dim
