"""InstantStyle for diffusers: the style of one picture, the content of a prompt (arXiv 2404.02733)."""

from instantstyle.pipelines import (
    StableDiffusionInstantStyleControlNetImg2ImgPipeline,
    StableDiffusionInstantStyleControlNetInpaintPipeline,
    StableDiffusionInstantStyleControlNetPipeline,
    StableDiffusionInstantStyleImg2ImgPipeline,
    StableDiffusionInstantStyleInpaintPipeline,
    StableDiffusionInstantStylePipeline,
    StableDiffusionXLInstantStyleControlNetImg2ImgPipeline,
    StableDiffusionXLInstantStyleControlNetInpaintPipeline,
    StableDiffusionXLInstantStyleControlNetPipeline,
    StableDiffusionXLInstantStyleImg2ImgPipeline,
    StableDiffusionXLInstantStyleInpaintPipeline,
)
from pipeline_instantstyle import (
    InstantStyleMixin,
    StableDiffusionXLInstantStylePipeline,
    attention_blocks,
    presets,
    remove_content,
    with_instantstyle,
)


__all__ = [
    "InstantStyleMixin",
    "StableDiffusionInstantStyleControlNetImg2ImgPipeline",
    "StableDiffusionInstantStyleControlNetInpaintPipeline",
    "StableDiffusionInstantStyleControlNetPipeline",
    "StableDiffusionInstantStyleImg2ImgPipeline",
    "StableDiffusionInstantStyleInpaintPipeline",
    "StableDiffusionInstantStylePipeline",
    "StableDiffusionXLInstantStyleControlNetImg2ImgPipeline",
    "StableDiffusionXLInstantStyleControlNetInpaintPipeline",
    "StableDiffusionXLInstantStyleControlNetPipeline",
    "StableDiffusionXLInstantStyleImg2ImgPipeline",
    "StableDiffusionXLInstantStyleInpaintPipeline",
    "StableDiffusionXLInstantStylePipeline",
    "attention_blocks",
    "presets",
    "remove_content",
    "with_instantstyle",
]
