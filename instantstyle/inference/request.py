"""Requests: what contradicts each other in one, and what follows from its options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instantstyle.inference.models import CONTENT_ENCODER, Adapter, Model
from instantstyle.pipelines.distilled import DISTILLED, GUIDANCE, STEPS


def sampling(options: argparse.Namespace) -> tuple[int, float]:
    """Steps and guidance: what was asked for, else what --fast says, else the usual."""
    recipe = DISTILLED.get(options.fast)
    steps, guidance = (recipe.steps, recipe.guidance) if recipe else (STEPS, GUIDANCE)
    return options.steps or steps, guidance if options.guidance is None else options.guidance


def extra_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What --fast has the call told besides steps and guidance."""
    return {} if options.fast is None else dict(DISTILLED[options.fast].more)


def check_fast(options: argparse.Namespace) -> None:
    """Refuse other steps than those that a recipe fixes, and a negative prompt that it would not see."""
    guidance = sampling(options)[1]
    if "timesteps" in extra_arguments(options) and (options.steps or options.image or options.upscale):
        raise ValueError(f"--fast {options.fast} is one step from noise; leave --steps, --image and --upscale out.")
    if options.fast is not None and options.negative is not None and guidance <= 1:
        raise ValueError(
            f"--negative says nothing at guidance {guidance:g}, which is what --fast {options.fast} has; leave it "
            "out, or give a --guidance above 1."
        )


def check_part(option: str, part: float | None, options: argparse.Namespace) -> None:
    """Refuse a strength that leaves no step to a pass that starts from a picture."""
    steps, _ = sampling(options)
    if part is not None and int(steps * part) < 1:
        raise ValueError(f"{option} {part:g} of {steps} steps leaves none; give more of either.")


# Each of these says nothing without the other.
NEEDS = {
    "mask": "image",
    "strength": "image",
    "control_image": "controlnet",
    "controlnet": "control_image",
    "controlnet_scale": "controlnet",
    "fast_weights": "fast",
    "upscale_strength": "upscale",
}
ENCODED = ("content", "target_blocks", "adapter", "content_encoder")  # what a style file has behind it


def check(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is read."""
    for name, other in NEEDS.items():
        if getattr(options, name) is not None and getattr(options, other) is None:
            raise ValueError(f"{option(name)} needs {option(other)}.")
    for name in ENCODED if is_style_file(options) else ():
        if getattr(options, name) is not None:
            raise ValueError(
                f"{option(name)} is for a reference picture, but --style {options.style} is encoded already; "
                f"give {option(name)} to `instantstyle encode`."
            )
    check_fast(options)
    check_large(options)
    check_upscale(options)


def is_style_file(options: argparse.Namespace) -> bool:
    """Whether --style is an encoded style rather than a picture, by its name."""
    return Path(options.style).suffix == ".safetensors"


def check_family(options: argparse.Namespace, style: Any, model: Model, name: str = "--style") -> None:
    """Refuse a style that was encoded for another family, before the model is loaded."""
    if style is not None and style.recipe.family != model.family:
        raise ValueError(
            f"{name}: {options.style} is of the family {style.recipe.family}, but --model {model.label} is of the "
            f"family {model.family}; encode the reference with a model of that family."
        )


def option(name: str) -> str:
    """Write an option as it is typed."""
    return "--" + name.replace("_", "-")


def check_content_encoder(
    options: argparse.Namespace, model: Model, adapter: Adapter, name: str = "--content"
) -> None:
    """Refuse to remove content where the model has no text tower that matches the adapter."""
    if options.content is None or options.content_encoder is not None:
        return
    if model.family == "sd15" or adapter.uses_vit_h:
        raise ValueError(
            f"{name} with {adapter.label} needs --content-encoder, the text tower of its image encoder; "
            f"for the published ViT-H adapters: --content-encoder {CONTENT_ENCODER}"
        )


@contextmanager
def about(name: str, value: str) -> Iterator[None]:
    """Put an option and its value before an error that speaks of neither."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        # ImportError: a folder that holds nothing makes transformers ask for packages that other formats need.
        raise ValueError(f"{name}: {value}: {error}") from error


def check_offload(offload: str, device: Any) -> None:
    """Refuse offloading where there is nothing to offload from."""
    if offload != "none" and device.type == "cpu":
        raise ValueError(f"--offload {offload} needs an accelerator, but --device is cpu.")


def check_device_map(options: argparse.Namespace, model: Model) -> None:
    """Refuse to spread over devices what is placed in another way, or cannot be spread."""
    if options.device_map is None:
        return
    if options.offload != "none" or options.device is not None:
        other = "--device" if options.device is not None else "--offload"
        raise ValueError(f"--device-map {options.device_map} places the model itself; leave {other} out.")
    if options.controlnet is not None or model.single_file:
        what = "--controlnet" if options.controlnet is not None else "--model, which is a single file"
        raise ValueError(f"--device-map: diffusers cannot spread {what}; leave --device-map out, or see --offload.")


def variant_name(options: argparse.Namespace, family: str) -> str:
    """Name the pipeline for the pictures that were given."""
    kind = "Inpaint" if options.mask else "Img2Img" if options.image else ""
    control = "ControlNet" if options.controlnet else ""
    return f"StableDiffusion{'XL' if family == 'sdxl' else ''}InstantStyle{control}{kind}Pipeline"


def target_blocks(options: argparse.Namespace) -> dict[str, float]:
    """Collect --target-blocks; "style" is what the pipeline itself targets by default."""
    return dict(options.target_blocks or [("style", 1.0)])


def check_large(options: argparse.Namespace) -> None:
    """Refuse options of the command line that leave --hires nothing to do, or that it cannot work with."""
    if not options.hires:
        return
    if options.upscale is not None:
        raise ValueError("--hires and --upscale are two ways to a large picture; choose one.")
    if not (options.size or options.image or options.control_image):
        raise ValueError("--hires needs a --size larger than the model's own, or a picture of such a size.")
    if options.offload == "sequential":
        raise ValueError(
            "--hires changes parts of the UNet, which --offload sequential takes apart; use --offload model."
        )


UPSCALE_STRENGTH = 0.3


def upscale_strength(options: argparse.Namespace) -> float | None:
    """How much of the enlarged picture is painted over; None without --upscale."""
    if options.upscale is None:
        return None
    return UPSCALE_STRENGTH if options.upscale_strength is None else options.upscale_strength


def check_upscale(options: argparse.Namespace) -> None:
    """Refuse a second pass without a step, before the first."""
    check_part("--upscale-strength", upscale_strength(options), options)
