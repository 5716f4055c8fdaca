"""What a picture looks like while it is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F


SIDE = 32  # latents: what a preview is decoded from at most, so that it costs little next to a step


@torch.no_grad()
def previews(pipe: Any, latents: torch.Tensor) -> list[Image.Image]:
    """Decode small copies of latents as they are, noise and all.

    Args:
        pipe: The pipeline that makes them, with its autoencoder in reach: not offloaded.
        latents: Of shape `(pictures, channels, height, width)`.
    """
    shrink = min(1.0, SIDE / max(latents.shape[-2:]))
    small = F.interpolate(latents.float(), scale_factor=shrink, mode="area")
    # Some schedulers keep noise at its own size, many times that of a picture's latents, which is about 1.
    small = small / small.std().clamp_min(1)
    with _safe_decoder(pipe.vae) as vae:
        pixels = vae.decode(small.to(vae.dtype) / vae.config.scaling_factor).sample
    return pipe.image_processor.postprocess(pixels.float())


@contextmanager
def _safe_decoder(vae: Any) -> Iterator[Any]:
    # SDXL's own overflows in float16; the pipeline, too, decodes with it in float32.
    overflows = vae.dtype == torch.float16 and vae.config.force_upcast
    try:
        yield vae.float() if overflows else vae
    finally:
        if overflows:
            vae.half()
