"""The variants: the other pipelines of Stable Diffusion XL and 1.5 with InstantStyle in front."""

from __future__ import annotations

from diffusers import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from instantstyle.core import InstantStyleMixin
from instantstyle.core import StableDiffusionXLInstantStylePipeline as StableDiffusionXLInstantStylePipeline


class StableDiffusionXLInstantStyleImg2ImgPipeline(InstantStyleMixin, StableDiffusionXLImg2ImgPipeline):
    """Image to image in the style of a reference picture, for Stable Diffusion XL."""


class StableDiffusionXLInstantStyleInpaintPipeline(InstantStyleMixin, StableDiffusionXLInpaintPipeline):
    """Inpainting in the style of a reference picture, for Stable Diffusion XL."""


class StableDiffusionXLInstantStyleControlNetPipeline(InstantStyleMixin, StableDiffusionXLControlNetPipeline):
    """Text to image with a ControlNet in the style of a reference picture, for Stable Diffusion XL."""


class StableDiffusionXLInstantStyleControlNetImg2ImgPipeline(
    InstantStyleMixin, StableDiffusionXLControlNetImg2ImgPipeline
):
    """Image to image with a ControlNet in the style of a reference picture, for Stable Diffusion XL."""


class StableDiffusionXLInstantStyleControlNetInpaintPipeline(
    InstantStyleMixin, StableDiffusionXLControlNetInpaintPipeline
):
    """Inpainting with a ControlNet in the style of a reference picture, for Stable Diffusion XL."""


class StableDiffusionInstantStylePipeline(InstantStyleMixin, StableDiffusionPipeline):
    """Text to image in the style of a reference picture, for Stable Diffusion 1.5."""


class StableDiffusionInstantStyleImg2ImgPipeline(InstantStyleMixin, StableDiffusionImg2ImgPipeline):
    """Image to image in the style of a reference picture, for Stable Diffusion 1.5."""


class StableDiffusionInstantStyleInpaintPipeline(InstantStyleMixin, StableDiffusionInpaintPipeline):
    """Inpainting in the style of a reference picture, for Stable Diffusion 1.5."""


class StableDiffusionInstantStyleControlNetPipeline(InstantStyleMixin, StableDiffusionControlNetPipeline):
    """Text to image with a ControlNet in the style of a reference picture, for Stable Diffusion 1.5."""


class StableDiffusionInstantStyleControlNetImg2ImgPipeline(
    InstantStyleMixin, StableDiffusionControlNetImg2ImgPipeline
):
    """Image to image with a ControlNet in the style of a reference picture, for Stable Diffusion 1.5."""


class StableDiffusionInstantStyleControlNetInpaintPipeline(
    InstantStyleMixin, StableDiffusionControlNetInpaintPipeline
):
    """Inpainting with a ControlNet in the style of a reference picture, for Stable Diffusion 1.5."""
