"""InstantStyle for diffusers: the style of one picture, the content of a prompt (arXiv 2404.02733)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from instantstyle.pipelines.auto import register


if TYPE_CHECKING:
    from instantstyle.core import (
        InstantStyleMixin,
        StableDiffusionXLInstantStylePipeline,
        attention_blocks,
        presets,
        remove_content,
        with_instantstyle,
    )
    from instantstyle.pipelines.hidiffusion import disable_hidiffusion, enable_hidiffusion
    from instantstyle.pipelines.variants import (
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
    from instantstyle.styles.apply import applied
    from instantstyle.styles.style import Style


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
    "Style",
    "applied",
    "attention_blocks",
    "disable_hidiffusion",
    "enable_hidiffusion",
    "presets",
    "remove_content",
    "with_instantstyle",
]

register()


def __getattr__(name: str) -> Any:
    # Imported when first asked for: the command line answers `--help` without waiting for diffusers.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The encoder first: it gives the variants `encode_style`.
    homes = ("styles.encoder", "core", "styles.apply", "pipelines.variants", "pipelines.hidiffusion")
    modules = (import_module(f"{__name__}.{home}") for home in homes)
    return next(getattr(module, name) for module in modules if hasattr(module, name))
