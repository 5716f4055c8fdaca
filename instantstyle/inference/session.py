"""Pipelines, loaded and placed; variants that share the parts of one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from instantstyle.console import hushed
from instantstyle.inference import request
from instantstyle.inference.models import ADAPTER_FILES, TINY, Adapter, Model
from instantstyle.inference.request import about, target_blocks, variant_name
from instantstyle.pipelines import distilled
from instantstyle.pipelines.distilled import DISTILLED
from instantstyle.version import in_dtype


def sibling(pipe: Any, name: str, **parts: Any) -> Any:
    """Make another variant of a pipeline's parts; nothing is loaded or copied.

    Args:
        pipe: The pipeline.
        name: The class of the other, one of this package's variants.
        parts: What the other has besides, such as a ControlNet.
    """
    from instantstyle.pipelines import variants

    with hushed():  # diffusers remarks on every cast, also to what is there
        other = getattr(variants, name).from_pipe(pipe, dtype=pipe.dtype, **parts)
    other.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return other


def load_pipeline(folder: str) -> Any:
    """Load the pipeline of a checkpoint with its adapter in float32, without progress bars."""
    import torch

    from instantstyle.pipelines.variants import StableDiffusionXLInstantStylePipeline

    # A watermark, which is put on where its package is installed, would be judged too.
    pipe = StableDiffusionXLInstantStylePipeline.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    subfolder, _, weight_name = ADAPTER_FILES["sdxl"].rpartition("/")
    pipe.load_ip_adapter(folder, subfolder=subfolder, weight_name=weight_name, target_blocks="all")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(options: argparse.Namespace, model: Model, adapter: Adapter | None) -> Any:
    """Load the pipeline that the options ask for, with its adapter if there is one, on its device."""
    import torch

    device = find_device(options.device)
    request.check_offload(options.offload, device)
    request.check_device_map(options, model)
    weights = find_fast_weights(options, model.family)
    dtype = getattr(torch, options.dtype or ("float16" if device.type == "cuda" else "float32"))
    variant = variant_class(options, model)
    parts = {"controlnet": load_controlnet(options.controlnet, dtype)} if options.controlnet else {}
    if options.device_map is not None:
        parts["device_map"] = options.device_map
    from_source = variant.from_single_file if model.single_file else variant.from_pretrained
    with about("--model", model.label):
        pipe = from_source(model.source, **in_dtype(dtype), **parts)
    if options.fast is not None:
        with about("--fast", options.fast):
            distilled.apply_distilled(pipe, DISTILLED[options.fast], weights)
    if options.vae_tiling:
        pipe.vae.enable_tiling()
    if adapter is not None:
        pipe.load_ip_adapter(
            adapter.source,
            subfolder=adapter.subfolder,
            weight_name=adapter.weight_name,
            image_encoder_folder=adapter.image_encoder_folder,
            target_blocks=target_blocks(options),
        )
        pipe.set_target_blocks(target_blocks(options), scale=options.scale)
    if options.content_encoder is not None:
        with about("--content-encoder", options.content_encoder):
            pipe.load_content_encoder(options.content_encoder)
    if options.device_map is not None:
        return pipe
    return place(pipe, options)


def place(pipe: Any, options: argparse.Namespace) -> Any:
    """Bring a pipeline to the device that the options ask for, or have it brought there part by part."""
    device = find_device(options.device)
    if options.offload == "none":
        return pipe.to(device)
    getattr(pipe, f"enable_{options.offload}_cpu_offload")(device=device)
    return pipe


def find_fast_weights(options: argparse.Namespace, family: str) -> Path | None:
    """Find what --fast puts on the UNet."""
    if options.fast is None:
        return None
    with about("--fast", options.fast):
        return distilled.find_weights(DISTILLED[options.fast], family, options.fast_weights)


def find_device(name: str | None) -> Any:
    """Return the device of this name, or the best one there is.

    Raises:
        ValueError: There is no such device here.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device: {name!r} cannot be used here ({str(error).splitlines()[0]}).") from error
    return device


def variant_class(options: argparse.Namespace, model: Model) -> Any:
    """Return the pipeline's class for the pictures that were given."""
    from instantstyle.pipelines import variants

    return getattr(variants, variant_name(options, model.family))


def load_controlnet(text: str, dtype: Any) -> Any:
    """Load the ControlNet from a folder, the Hub, or the embedded checkpoint."""
    from diffusers import ControlNetModel

    source = text
    if text == TINY:
        from instantstyle import tiny

        source = str(tiny.path() / "controlnet")
    with about("--controlnet", text):
        return ControlNetModel.from_pretrained(source, **in_dtype(dtype))
