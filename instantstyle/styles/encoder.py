"""Encoder: from a reference and a loaded adapter to a `Style`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from instantstyle.core import (
    AdapterState,
    InstantStyleMixin,
    adapter_to_change,
    bare_unet,
    check_fit,
    component,
    embed_reference,
    ip_processors,
    offloading_suspended,
    read_call,
    resolve_each,
    times,
    upright,
)
from instantstyle.identity import fingerprint, style_family_of
from instantstyle.styles.projection import dtype_of, keys_and_values, one_adapter, projections, text_width_of
from instantstyle.styles.provenance import Provenance, Source
from instantstyle.styles.style import Style, shares
from instantstyle.version import versions


def encode(
    pipe: Any,
    image: Any,
    neg_content_prompt: Any = None,
    neg_content_scale: float | str = 1.0,
    target_blocks: Any = None,
    weights: Sequence[float] | None = None,
    reference_fit: str = "crop",
) -> Style:
    """Encode a reference once: see `InstantStyleMixin.encode_style`, which is this function.

    Args:
        pipe: A variant with one IP-Adapter and its image encoder.
        image, neg_content_prompt, neg_content_scale, target_blocks, weights, reference_fit: See there.
    """
    adapter_to_change(pipe)
    unet = bare_unet(pipe)
    state, pictures = one_adapter(unet), _pictures(image)
    check_fit(reference_fit, pictures, "image")
    contents = _one_each(neg_content_prompt, len(pictures))
    parts = shares(weights, len(pictures), "`image`")
    scales = scales_for(unet, state, target_blocks)
    if component(pipe, "image_encoder") is None:
        raise ValueError("`image` needs an image encoder, but the pipeline has none. `load_ip_adapter` brings one.")
    how: dict[str, Any] = {"neg_content_scale": neg_content_scale, "reference_fit": reference_fit}
    for one, text in zip(pictures, contents, strict=True):  # all of them before the first is encoded
        read_call(pipe, {"ip_adapter_image": [one]}, state, neg_content_prompt=text, **how)
    layers = projections(unet, state, scales)
    with offloading_suspended(pipe):
        adapter, encoder = fingerprint(state.projection, *layers.values()), fingerprint(pipe.image_encoder)
    strength = neg_content_scale if isinstance(neg_content_scale, str) else float(neg_content_scale)
    described = zip(pictures, parts, contents, strict=True)
    recipe = Provenance(
        family=style_family_of(unet),
        text_width=text_width_of(unet),
        scales=scales,
        sources=tuple(Source(_size(one), part, text, strength, reference_fit) for one, part, text in described),
        adapter=adapter,
        image_encoder=encoder,
        dtype=dtype_of(unet),
        versions=versions(),
    )
    each = zip(pictures, contents, strict=True)
    embeds = [embed_reference(pipe, [one], neg_content_prompt=text, **how) for one, text in each]
    return Style(keys_and_values(pipe, _mean(embeds, parts), layers), recipe)


def _mean(embeds: Sequence[torch.Tensor], parts: Sequence[float]) -> torch.Tensor:
    """One pair of rows of many, each `(2, 1, ...)`: the first's unconditional one, and the conditional ones' mean."""
    conditional = torch.stack([part * rows[1:].float() for rows, part in zip(embeds, parts, strict=True)]).sum(0)
    return torch.cat([embeds[0][:1], conditional.to(embeds[0].dtype)])[:, 0]


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


# The core knows no styles; here its variants learn to encode them.
InstantStyleMixin.encode_style = encode  # type: ignore[assignment,method-assign]
