"""What to remove: content as CLIP text embeddings, and their subtraction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import ImageProjection
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from .checkpoint import TOWER_DTYPE, hub_arguments
from .processors import bare_unet


def remove_content(image_embeds: torch.Tensor, content_embeds: torch.Tensor, scale: float | str = 1.0) -> torch.Tensor:
    """Subtract content from CLIP image embeddings: `e - scale * t`, as a new tensor.

    Source: arXiv 2404.02733, "Separating Content from Image".

    Args:
        image_embeds: `e`, shape `(..., d)`, any dtype. The result has its shape and dtype.
        content_embeds: `t`, the projected, un-normalised CLIP text embedding, broadcastable to `(..., d)`.
        scale: the strength, or "auto": `max(0, <e, t> / <t, t>)` for each embedding, the orthogonal projection; it is
            computed in float32, and zero where `t` is zero.
    """
    e, t = image_embeds.float(), content_embeds.to(image_embeds.device, torch.float32)  # (..., d)
    strength: Any = scale
    if scale == "auto":
        norm = (t * t).sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)  # (..., 1)
        strength = ((e * t).sum(-1, keepdim=True) / norm).clamp_min(0)
    return (e - strength * t).to(image_embeds.dtype)


@dataclass
class ContentEncoder:
    """The text tower of the CLIP that an adapter's image encoder belongs to."""

    text_encoder: CLIPTextModelWithProjection
    tokenizer: Any
    placed: bool = False  # by the pipeline whose component it is; otherwise on the device only while it encodes

    @property
    def width(self) -> int:
        """Length of its embeddings."""
        return self.text_encoder.config.projection_dim

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids of shape `(len(texts), model_max_length)`. Raises ValueError for a text that does not fit."""
        limit = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        for text in texts:
            length = len(self.tokenizer(text).input_ids)
            if length > limit:
                raise ValueError(f"`neg_content_prompt` has {length} tokens, its text tower takes {limit}: {text!r}.")
        return self.tokenizer(list(texts), padding="max_length", max_length=limit, return_tensors="pt").input_ids

    @torch.no_grad()
    def encode(self, texts: Sequence[str], device: torch.device) -> torch.Tensor:
        """Projected, un-normalised text embeddings of shape `(len(texts), width)`, with LoRAs off."""
        ids, home = self.tokenize(texts), self.text_encoder.device
        if not self.placed:
            self.text_encoder.to(device)
        try:
            with _loras_off(self.text_encoder):
                embeds = self.text_encoder(ids.to(device)).text_embeds
        finally:
            if not self.placed:
                self.text_encoder.to(home)
        if not torch.isfinite(embeds).all():
            raise ValueError(f"`neg_content_prompt` has embeddings that are not finite in {embeds.dtype}.")
        return embeds


@contextmanager
def _loras_off(model: nn.Module) -> Iterator[None]:
    # A fused LoRA is part of the weights; switching it off would unfuse it for good.
    modules: Any = model.modules()
    layers = [m for m in modules if getattr(m, "_disable_adapters", None) is False and not m.merged]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def read_content_encoder(
    source: Any, subfolder: str, tokenizer_subfolder: str | None, dtype: torch.dtype, **kwargs: Any
) -> ContentEncoder:
    """Load a text tower. Arguments and errors are those of `InstantStyleMixin.load_content_encoder`."""
    missing = set()
    if isinstance(source, (tuple, list)) and len(source) == 2:
        encoder, tokenizer = source
    elif isinstance(source, (str, Path)):
        place = subfolder if tokenizer_subfolder is None else tokenizer_subfolder
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, subfolder=place, **hub_arguments(kwargs))
        except HFValidationError as error:  # before 4.56 transformers lets it through
            raise FileNotFoundError(f"`source` {str(source)!r} is no folder and no repository's name.") from error
        kwargs = {TOWER_DTYPE: dtype} | kwargs | {"output_loading_info": True}
        with torch.random.fork_rng(devices=[]):  # what the file lacks would be drawn
            encoder, info = CLIPTextModelWithProjection.from_pretrained(source, subfolder=subfolder, **kwargs)
        missing = set(info["missing_keys"])
    else:
        raise TypeError(f"`source` must be a repository, a folder or (text_encoder, tokenizer), but is {source!r}.")
    if not hasattr(encoder, "text_projection") or missing:
        came = f"lacks {min(missing)!r}" if missing else f"holds a {type(encoder).__name__}"
        raise TypeError(f"`source` must hold a CLIPTextModelWithProjection, but {came}.")
    return ContentEncoder(encoder.eval(), tokenizer)


def content_encoder(pipe: Any, width: int) -> ContentEncoder:
    """The text tower that encodes content for image embeddings of this width. Raises ValueError without one."""
    encoder = bare_unet(pipe).__dict__.get("_instantstyle_content")
    own = getattr(pipe, "text_encoder_2", None)
    if encoder is None and hasattr(own, "text_projection"):
        encoder = ContentEncoder(own, pipe.tokenizer_2, placed=True)
    if encoder is None or encoder.width != width:
        at_hand = "there is none" if encoder is None else f"the one at hand gives {encoder.width}"
        raise ValueError(
            f"`neg_content_prompt` needs the text tower of the adapter's CLIP, with embeddings of width {width}, "
            f"but {at_hand}. Call `load_content_encoder`; for ViT-H with 'laion/CLIP-ViT-H-14-laion2B-s32B-b79K'."
        )
    return encoder


def check_content(pipe: Any, contents: Sequence[Sequence[Any]], layers: Sequence[Any], name: str) -> None:
    """Raise ValueError or TypeError for content that cannot be removed from what these projections take.

    Args:
        pipe: the pipeline.
        contents: for each adapter the content of each reference: a text, an embedding or None.
        layers: the adapters' image projections.
        name: the argument that gave it.
    """
    prompted = name == "neg_content_prompt"
    for layer, leaves in zip(layers, contents, strict=True):
        given = [leaf for leaf in leaves if leaf is not None]
        if given and not isinstance(layer, ImageProjection):
            raise ValueError(
                f"`{name}` can be removed from one global embedding per picture, not from the patch or face "
                f"embeddings of {type(layer).__name__}. Pass None for this adapter."
            )
        for leaf in given:
            _check_leaf(leaf, name, prompted, layer.image_embeds.in_features)
        if given and prompted:
            content_encoder(pipe, layer.image_embeds.in_features).tokenize(given)


def encode_content(
    pipe: Any, contents: Sequence[Sequence[Any]] | None, device: torch.device
) -> list[torch.Tensor | None]:
    """For each adapter the content of its references, shape `(references, d)`, or None where there is none."""
    layers = bare_unet(pipe).encoder_hid_proj.image_projection_layers
    if contents is None:
        return [None] * len(layers)
    encoded: list[torch.Tensor | None] = []
    for layer, leaves in zip(layers, contents, strict=True):
        if all(leaf is None for leaf in leaves):
            encoded.append(None)
            continue
        width = layer.image_embeds.in_features
        vectors: dict[Any, torch.Tensor] = {None: torch.zeros(width)}
        texts = list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, str)))
        if texts:
            vectors |= zip(texts, content_encoder(pipe, width).encode(texts, device), strict=True)
        rows = [leaf if isinstance(leaf, torch.Tensor) else vectors[leaf] for leaf in leaves]
        encoded.append(torch.stack([row.to(device, torch.float32).reshape(width) for row in rows]))
    return encoded


def _check_leaf(leaf: Any, name: str, prompted: bool, width: int) -> None:
    expected: Any = str if prompted else torch.Tensor
    if not isinstance(leaf, expected):
        raise TypeError(f"`{name}` must hold {expected.__name__}s, but holds {leaf!r}.")
    if prompted and not leaf.strip():
        raise ValueError(f"`{name}` holds an empty string. Pass None to remove nothing.")
    if not prompted and tuple(leaf.shape) not in ((width,), (1, width)):
        raise ValueError(f"`{name}` must have the shape ({width},) or (1, {width}), but has {tuple(leaf.shape)}.")
    if not prompted and not (torch.isfinite(leaf).all() and leaf.any()):
        raise ValueError(f"`{name}` is zero or not finite. Pass None to remove nothing.")
