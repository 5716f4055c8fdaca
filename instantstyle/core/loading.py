"""IP-Adapters, loaded: checkpoints, image encoder and LoRAs, all checked before anything changes."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import ImageProjection
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from .adapter import (
    AdapterState,
    adapter_state,
    apply_targets,
    attach,
    build_adapter,
    component,
    detach,
    fetch,
    resolve_each,
)
from .blocks import TargetBlocks, presets
from .checkpoint import TOWER_DTYPE, AdapterFile, open_files
from .offloading import offloading_suspended
from .private import face_loras
from .processors import bare_unet, first_linear


logger = logging.getLogger(__name__)


def load_adapters(
    pipe: Any,
    sources: list[Any],
    subfolders: list[str],
    names: list[str],
    image_encoder_folder: str | None,
    target_blocks: TargetBlocks | Sequence[TargetBlocks] | None,
    hub: dict[str, Any],
) -> None:
    """Load IP-Adapters. Arguments and errors are those of `InstantStyleMixin.load_ip_adapter`."""
    unet, files = bare_unet(pipe), open_files(sources, subfolders, names, hub)
    projection, processors = build_adapter(unet, files)
    state = AdapterState(projection, files, [{} for _ in files], [1.0 for _ in files])
    wanted = default_targets(unet, files) if target_blocks is None else target_blocks
    state.targets = state.chosen = resolve_each(wanted, unet, state)
    fetched = fetch(unet, state, state.targets, processors)
    loras = face_loras(unet, [file.read_part("ip_adapter", only="_lora.") for file in files])
    towers = load_image_tower(pipe, sources[0], subfolders[0], image_encoder_folder, hub)
    check_widths(files, projection, towers.get("image_encoder") or component(pipe, "image_encoder"))
    with offloading_suspended(pipe):
        if (old := adapter_state(unet)) is not None:
            detach(unet, old)
            state.brought = old.brought
        attach(unet, state, processors)
        apply_targets(unet, state, fetched, state.targets)
        projection.to(unet.device)
        if "image_encoder" in towers:
            towers["image_encoder"].to(pipe.device)
        pipe.register_modules(**towers)
        state.brought = state.brought | {name: weakref.ref(tower) for name, tower in towers.items()}
    for file in files:
        file.forget()
    for i, lora in loras.items():
        pipe.load_lora_weights(lora, adapter_name=f"faceid_{i}")
        pipe.set_adapters([f"faceid_{i}"], adapter_weights=[1.0])


def default_targets(unet: Any, files: Sequence[AdapterFile]) -> list[str]:
    """The target blocks of adapters that are loaded without any: "style" where that is known, or "all", as the host.

    Then a line in the log says so.
    """
    known = presets(unet)
    names = ["style" if "style" in (*known, *file.presets) else "all" for file in files]
    if "all" in names:
        logger.warning(
            "All attention blocks see the reference, as in diffusers: which of this UNet's blocks carry style is not "
            "known. `target_blocks` names some; `attention_blocks(pipe.unet)` lists them."
        )
    return names


def load_image_tower(
    pipe: Any, source: Any, subfolder: str, folder: str | None, hub: dict[str, Any]
) -> dict[str, Any]:
    """The image encoder and feature extractor that a pipeline lacks, from where the host would load them."""
    towers: dict[str, Any] = {}
    encoder = component(pipe, "image_encoder")
    if encoder is None and folder is not None:
        if isinstance(source, Mapping):
            raise ValueError(
                "`image_encoder` cannot be loaded from a state dict. Give the pipeline one, or pass "
                "`image_encoder_folder=None` to work with `ip_adapter_image_embeds` only."
            )
        place = folder if "/" in folder else Path(subfolder, folder).as_posix()
        hub = hub | {"subfolder": place, TOWER_DTYPE: pipe.dtype}
        with torch.random.fork_rng(devices=[]):  # transformers 4 draws the weights before it reads them
            encoder = CLIPVisionModelWithProjection.from_pretrained(source, **hub)
        towers["image_encoder"] = encoder
    if component(pipe, "feature_extractor") is None:
        side = 224 if encoder is None else encoder.config.image_size  # CLIP's own, should an encoder come later
        towers["feature_extractor"] = CLIPImageProcessor(size=side, crop_size=side)
    return towers


def check_widths(files: Sequence[AdapterFile], projection: Any, encoder: Any) -> None:
    for file, layer in zip(files, projection.image_projection_layers, strict=True):
        if encoder is None or "FaceID" in type(layer).__name__:  # these see a face recogniser's embeddings
            continue
        config, width = encoder.config, first_linear(layer).in_features
        given = config.projection_dim if isinstance(layer, ImageProjection) else config.hidden_size
        if given != width:
            raise ValueError(
                f"{file.name} takes image embeddings of width {width}, but `image_encoder` gives {given}. Give "
                "the pipeline the encoder that the adapter was made with; `unload_ip_adapter` takes off a loaded one."
            )
