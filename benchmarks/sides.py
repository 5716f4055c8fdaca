# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""Who is compared: SDXL alone, stock diffusers with its IP-Adapter in two settings, and this project."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from benchmarks.sdxl import build_pipeline


PLAIN, AGAIN, ALL, STYLE, OURS = "no adapter", "no adapter, again", "stock, all blocks", "stock, style dict", "ours"
STYLE_DICT = {"up": {"block_0": [0.0, 1.0, 0.0]}}
LOADING = (ALL, STYLE, OURS)
STEPPING = (PLAIN, AGAIN, ALL, STYLE, OURS)


def kind_of(side: str) -> str:
    """Whose pipeline class a side uses."""
    return "ours" if side == OURS else "stock"


def load(side: str, pipe: Any, adapter: Path) -> None:
    """Load the adapter and set its scales as a user of this side does."""
    pipe.load_ip_adapter(adapter.parent, subfolder="", weight_name=adapter.name, image_encoder_folder=None)
    set_scale(side, pipe)


def set_scale(side: str, pipe: Any) -> None:
    """Choose the blocks; ours has them chosen by default."""
    if side != OURS:
        pipe.set_ip_adapter_scale(STYLE_DICT if side == STYLE else 1.0)


def adapter_modules(unet: UNet2DConditionModel) -> list[nn.Module]:
    """The modules that an adapter puts on a UNet."""
    processors = [p for p in unet.attn_processors.values() if isinstance(p, nn.Module)]
    return [*processors, *([unet.encoder_hid_proj] if unet.encoder_hid_proj is not None else [])]


@dataclass
class Attachment:
    """An adapter as it was found on a UNet, to be put back on it in a moment."""

    processors: dict[str, Any]
    projection: nn.Module | None
    kind: str | None

    @classmethod
    def of(cls, unet: UNet2DConditionModel) -> Attachment:
        """What is on the UNet now."""
        return cls(dict(unet.attn_processors), unet.encoder_hid_proj, unet.config.encoder_hid_dim_type)

    def put(self, unet: UNet2DConditionModel) -> None:
        """Make the UNet as it was."""
        unet.set_attn_processor(dict(self.processors))
        unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = self.projection, self.kind

    def twin(self) -> Attachment:
        """The same weights in processors that have scales of their own."""
        processors = {name: copy.copy(processor) for name, processor in self.processors.items()}
        for processor in processors.values():
            if hasattr(processor, "scale"):
                processor.scale = list(processor.scale)
        return Attachment(processors, self.projection, self.kind)


def attachments(unet: UNet2DConditionModel, adapter: Path) -> dict[str, Attachment]:
    """Each side's state of one UNet. The two stock sides share their weights."""
    stock, ours = (build_pipeline(kind, unet) for kind in ("stock", "ours"))
    found = dict.fromkeys((PLAIN, AGAIN), Attachment.of(unet))
    load(ALL, stock, adapter)
    found[ALL] = Attachment.of(unet)
    found[STYLE] = found[ALL].twin()
    found[STYLE].put(unet)
    set_scale(STYLE, stock)
    stock.unload_ip_adapter()
    load(OURS, ours, adapter)
    found[OURS] = Attachment.of(unet)
    ours.unload_ip_adapter()
    return found
