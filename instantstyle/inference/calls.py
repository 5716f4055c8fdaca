"""Requests in the words of a pipeline's call, several of one kind in one call, and the second pass of each."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image

from instantstyle.inference.inputs import StyleFile, cropped, enlarged, fitted, upright
from instantstyle.inference.request import Machine, Request, check_part, painted_over, sampling
from instantstyle.inference.values import as_given
from instantstyle.pipelines.distilled import DISTILLED
from instantstyle.styles import encoder


Call = Mapping[str, Any]

# What the requests of one call have in common, beside the way their style is taken and the size of their pictures.
ALIKE = (
    *("target_blocks", "scale", "content_scale", "reference_fit", "steps", "guidance", "size", "strength"),
    *("controlnet_scale", "hires", "upscale", "upscale_strength"),
)


def variant_name(request: Request, family: str, controlled: bool = False) -> str:
    """Name the pipeline for the pictures that a request gives; one that is `controlled` has a ControlNet anyway."""
    kind = "Inpaint" if request.mask else "Img2Img" if request.image else ""
    control = "ControlNet" if controlled or request.control_image else ""
    return f"StableDiffusion{'XL' if family == 'sdxl' else ''}InstantStyle{control}{kind}Pipeline"


def way(request: Request) -> str:
    """Name how the style is taken: not at all, from a file, of one picture, of the mean of several, or by masks."""
    if not request.style:
        return "none"
    if request.style_file is not None:
        return "file"
    if any(one.mask for one in request.style):
        return "masks"
    return "picture" if len(request.style) == 1 else "mean"


def needs_adapter(request: Request) -> bool:
    """Whether the style is taken from pictures."""
    return way(request) not in ("none", "file")


def kind(request: Request, pictures: Mapping[str, Image.Image]) -> Hashable:
    """Tell requests apart that cannot be painted in one call.

    Args:
        request: A request with its files at hand.
        pictures: What `inputs.fitted` gives for it.
    """
    sizes = tuple((name, image.size) for name, image in pictures.items())
    masked = request.style if way(request) == "masks" else None
    alike = tuple(getattr(request, name) for name in ALIKE)
    return way(request), masked, sizes, alike, request.negative is None, request.content is None


def completed(request: Request, machine: Machine, variant: Any) -> Request:
    """Say what a request leaves open: what is usual, or what the pipeline's class has.

    Raises:
        ValueError: A strength leaves no step.
    """
    steps, guidance = sampling(request, machine)
    own = {"strength": "strength", "controlnet_scale": "controlnet_conditioning_scale"}
    known = inspect.signature(variant.__call__).parameters
    values = {name: known[word].default for name, word in own.items() if word in known}
    values |= {name: value for name in values if (value := getattr(request, name)) is not None}
    check_part("strength", values.get("strength"), steps)
    return request.but(steps=steps, guidance=guidance, upscale_strength=painted_over(request), **values)


def call_arguments(request: Request, pictures: Mapping[str, Image.Image], pipe: Any, machine: Machine) -> Call:
    """Put a completed request in the words of a pipeline's call, but for its style."""
    assert request.seed is not None
    arguments: dict[str, Any] = {
        "prompt": [request.prompt],
        "negative_prompt": None if request.negative is None else [request.negative],
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        **(DISTILLED[machine.fast].more if machine.fast else {}),
        # On the CPU, so that a seed means the same noise on every device.
        "generator": [torch.Generator("cpu").manual_seed(request.seed)],
        **picture_arguments(pictures),
        "strength": request.strength,
        "controlnet_conditioning_scale": request.controlnet_scale,
    }
    arguments["width"], arguments["height"] = result_size(request, pictures) or (None, None)
    known = inspect.signature(pipe.__call__).parameters
    return {name: value for name, value in arguments.items() if name in known and value is not None}


def picture_arguments(pictures: Mapping[str, Image.Image]) -> dict[str, Image.Image]:
    """Name the pictures as the pipelines do: a ControlNet's picture that is the only one is `image`."""
    if "image" not in pictures:
        return {"image": pictures["control_image"]} if pictures else {}
    names = {"image": "image", "mask": "mask_image", "control_image": "control_image"}
    return {names[name]: image for name, image in pictures.items()}


def result_size(request: Request, pictures: Mapping[str, Image.Image]) -> tuple[int, int] | None:
    """Return width and height of the result; None where they are the model's, or the ControlNet's picture's."""
    return pictures["image"].size if "image" in pictures else request.size


# Several at a time


def joined(calls: Sequence[Call]) -> dict[str, Any]:
    """Make one call of several of one kind."""
    call = dict(calls[0])
    for name in call.keys() & {"prompt", "negative_prompt", "generator"}:
        call[name] = [value for one in calls for value in one[name]]
    for name in call.keys() & {"image", "mask_image", "control_image"} if len(calls) > 1 else ():
        call[name] = [one[name] for one in calls]
    return call


def style_arguments(requests: Sequence[Request], pipe: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    """Put the styles of requests of one kind in the words of one call.

    Args:
        requests: Requests with their files at hand.
        pipe: The pipeline, whose adapter is on their target blocks.
        size: Width and height of the result, where they are not the model's.
    """
    first = requests[0]
    ways = {"file": _files, "picture": _pictures, "mean": _means, "masks": _masks}
    # One for all is encoded once.
    same = all((one.style, one.content) == (first.style, first.content) for one in requests)
    return ways[way(first)]([first] if same else requests, pipe, size) if first.style else {}


def _files(requests: Sequence[Request], pipe: Any, size: Any) -> dict[str, Any]:
    return _styles([_style_of(one) for one in requests], requests[0].scale)


def _style_of(request: Request) -> Any:
    assert isinstance(file := request.style[0].picture, StyleFile)
    return file.style


def _means(requests: Sequence[Request], pipe: Any, size: Any) -> dict[str, Any]:
    return _styles([encode(one, one.style, pipe) for one in requests], requests[0].scale)


def _styles(styles: Sequence[Any], scale: float) -> dict[str, Any]:
    if len(styles) == 1:
        return {"style": styles[0], "style_scale": scale}
    return {"style": list(styles), "style_scale": [scale] * len(styles)}


def _pictures(requests: Sequence[Request], pipe: Any, size: Any) -> dict[str, Any]:
    first = requests[0]
    pictures = [one.style[0].picture.image for one in requests]  # type: ignore[union-attr]
    contents = [one.content for one in requests]
    several = len(requests) > 1
    arguments = {"ip_adapter_image": [pictures] if several else pictures[0], "reference_fit": first.reference_fit}
    if several:  # adapter -> prompt
        arguments["ip_adapter_image_per_prompt"] = True
    if first.content is None:
        return arguments
    removed = {"neg_content_prompt": [contents] if several else first.content}
    return {**arguments, **removed, "neg_content_scale": first.content_scale}


def _masks(requests: Sequence[Request], pipe: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    """Keep each reference, as a style of its own, in its place."""
    (request,) = requests
    side = int(pipe.unet.config.sample_size * pipe.vae_scale_factor)
    size = size or (side, side)
    everywhere = Image.new("L", size, "white")
    masks = [cropped(upright(one.mask.image), size) if one.mask else everywhere for one in request.style]  # type: ignore[union-attr]
    process = IPAdapterMaskProcessor().preprocess
    return {
        "style": tuple(encode(request, [one], pipe) for one in request.style),
        "style_scale": tuple(request.scale * one.weight for one in request.style),
        "cross_attention_kwargs": {
            "ip_adapter_masks": [process(mask, height=size[1], width=size[0]) for mask in masks]
        },
    }


def encode(request: Request, references: Sequence[Any], pipe: Any) -> Any:
    """Encode references as one style: the mean of their embeddings by weight, content removed.

    Args:
        request: Whose content is removed.
        references: Some of its references.
        pipe: The pipeline, whose adapter is on the target blocks at a scale of 1.
    """
    return encoder.encode(
        pipe,
        [one.picture.image for one in references],
        neg_content_prompt=request.content,
        neg_content_scale=request.content_scale,
        weights=[one.weight for one in references],
        reference_fit=request.reference_fit,
    )


# The second pass


def second_pass(request: Request, picture: Image.Image) -> Request:
    """Say the second pass of what was painted as a request of its own: enlarged, and painted over in the same style.

    Args:
        request: The completed request, with its files at hand.
        picture: What was painted.
    """
    assert request.upscale is not None
    images = enlarged({**fitted(request), "image": picture}, request.upscale)
    return request.but(
        **{name: as_given(image) for name, image in images.items()},
        size=None,
        edges=False,  # they are found
        strength=request.upscale_strength,
        upscale=None,
        upscale_strength=None,
    )
