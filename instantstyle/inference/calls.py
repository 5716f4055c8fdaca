"""Calls: the arguments of a pipeline's call, of the first pass and of the second, over the enlarged picture."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

from PIL import Image

from instantstyle.inference import request, session
from instantstyle.inference.models import Model
from instantstyle.inference.request import about, sampling, upscale_strength, variant_name
from instantstyle.inference.session import sibling
from instantstyle.inference.values import PIXELS, changed
from instantstyle.pipelines import hidiffusion


def repaint(
    options: argparse.Namespace,
    pipe: Any,
    family: str,
    given: dict[str, Image.Image],
    style: Any,
    pictures: Sequence[Image.Image],
) -> list[Image.Image]:
    """Make the second pass of each picture, one after another.

    Args:
        options: Those of `generate`.
        pipe: The pipeline that painted; the second pass shares its parts.
        family: "sdxl" or "sd15".
        given: The pictures that were given, by option.
        style: The encoded style in place of a reference, or None.
        pictures: What was painted.
    """

    passes = [second_pass(options, given, picture, index) for index, picture in enumerate(pictures)]
    second = sibling(pipe, variant_name(passes[0][0], family))
    calls = [call_arguments(own, second, larger, style) for own, larger in passes]
    return [image for call in calls for image in second(**call).images]


def second_pass(
    options: argparse.Namespace, given: dict[str, Image.Image], picture: Image.Image, index: int = 0
) -> tuple[argparse.Namespace, dict[str, Image.Image]]:
    """Say the second pass of the picture of this index as `generate --image` would be told it.

    Returns:
        The options, with the picture's own prompt and seed, and the pictures that they name, enlarged.
    """
    own = changed(
        options,
        prompt=[options.prompt[index // options.num_images]],
        seed=options.seed + index,
        num_images=1,
        image="enlarged",
        strength=upscale_strength(options),
    )
    return own, enlarge({**given, "image": picture}, options.upscale)


def enlarge(given: dict[str, Image.Image], factor: float) -> dict[str, Image.Image]:
    """Enlarge the picture and bring all others to its size; the reference stays as it is."""
    width, height = (round(side * factor / PIXELS) * PIXELS for side in given["image"].size)
    return {
        name: image if name == "style" else image.resize((width, height), Image.Resampling.LANCZOS)
        for name, image in given.items()
    }


def check_hires(options: argparse.Namespace, model: Model) -> None:
    """Refuse --hires for a UNet that HiDiffusion does not know, and without its library, before anything is loaded."""
    if options.hires:
        with about("--hires", model.label):
            hidiffusion.table(model.unet)
            hidiffusion.load_library()


def check_strength(options: argparse.Namespace, model: Model) -> None:
    """Refuse image to image without a step; how much of a picture is changed by default is up to the pipeline."""
    if options.image:
        request.check_part(
            "--strength", strengths(options, session.variant_class(options, model)).get("strength"), options
        )


def call_arguments(
    options: argparse.Namespace, pipe: Any, given: dict[str, Image.Image], style: Any
) -> dict[str, Any]:
    """Put the options in the words of the pipeline's call."""
    import torch

    total = len(options.prompt) * options.num_images
    steps, guidance = sampling(options)
    arguments: dict[str, Any] = {
        "prompt": options.prompt,
        "negative_prompt": None if options.negative is None else [options.negative] * len(options.prompt),
        "num_images_per_prompt": options.num_images,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        **request.extra_arguments(options),
        # On the CPU, so that a seed means the same noise on every device.
        "generator": [torch.Generator("cpu").manual_seed(options.seed + index) for index in range(total)],
        **({"ip_adapter_image": given["style"]} if style is None else {"style": style, "style_scale": options.scale}),
        **picture_arguments(options, given),
    }
    known = inspect.signature(pipe.__call__).parameters
    size = given["image"].size if "image" in given else options.size
    if size is not None and "height" in known:
        arguments["width"], arguments["height"] = size
    if options.content is not None:
        arguments |= {"neg_content_prompt": options.content, "neg_content_scale": options.content_scale}
    return arguments | strengths(options, type(pipe))


def strengths(options: argparse.Namespace, variant: Any) -> dict[str, float]:
    """Put the strengths that a pipeline class has in the words of its call.

    The recipe shall say what was used, so where the options leave it, the class's own default is written down too.
    """
    known = inspect.signature(variant.__call__).parameters
    values = {"strength": options.strength, "controlnet_conditioning_scale": options.controlnet_scale}
    return {name: known[name].default if value is None else value for name, value in values.items() if name in known}


def picture_arguments(options: argparse.Namespace, given: dict[str, Image.Image]) -> dict[str, Image.Image]:
    """Name the pictures as the pipeline does: a ControlNet's picture that is the only one is `image`."""
    if options.image is None:
        return {"image": given["control_image"]} if options.controlnet else {}
    names = {"image": "image", "mask": "mask_image", "control_image": "control_image"}
    return {names[name]: image for name, image in given.items() if name in names}
