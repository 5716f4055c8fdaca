"""Family and fingerprint of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from torch import nn


SAMPLE = 1024  # numbers of each tensor that a fingerprint looks at


def fingerprint(*modules: nn.Module, exact: bool = False) -> str:
    """Tell weights apart, in 64 hexadecimal digits, by the shapes of all tensors and a sample of each.

    Of the sample only the signs count. They outlive rounding, so it does not matter in which dtype weights were
    loaded, nor by whom, and under which names. This tells apart what was trained apart; it is no proof against what
    was made to collide, and does not see that a tensor was multiplied by a positive number.

    Args:
        modules: What holds the weights. For a style's adapter: the image projection, and the `projections` of the
            layers that see the style.
        exact: By the values too: for weights that stay in one dtype.
    """
    import numpy as np
    import torch

    digest = hashlib.sha256()
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLE)].cpu()
        seen = sample.float().numpy() if exact else np.packbits(torch.signbit(sample).numpy())
        digest.update(f"{tuple(parameter.shape)} ".encode() + seen.tobytes())
    return digest.hexdigest()


def style_family_of(unet: Any) -> str:
    """The family whose checkpoints share a style: "sdxl", "sd15" or "kolors", which has SDXL's blocks."""
    if getattr(unet.config, "encoder_hid_dim", None):
        return "kolors"
    return family_of(unet.config)


def family_of(unet: Mapping[str, Any]) -> str:
    """Tell "sdxl" from "sd15" by the UNet's configuration."""
    return "sdxl" if unet.get("addition_embed_type") == "text_time" else "sd15"
