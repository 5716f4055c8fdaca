"""HiDiffusion (arXiv 2311.17528): pictures two to four times as wide as the model was trained for, in one pass.

The library `hidiffusion` swaps classes inside the UNet. It was written for diffusers of early 2024, and for ControlNet
it brings a pipeline of that time, which knows no IP-Adapter. Here the pipelines of today go on running, what has
changed since is mended from outside, and all of it is undone exactly.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from instantstyle.console import need


# The attention levels that the library's tables name: blocks on the way down and up, and layers in each level.
LEVELS = ("down_block_types", "up_block_types", "layers_per_block", "transformer_layers_per_block")
SDXL = (
    ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    (2, 2, 2),
    (1, 2, 10),
)
SD15 = (
    ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    (2, 2, 2, 2),
    (1, 1, 1, 1),
)
DEFAULTS = dict(zip(LEVELS, (SD15[0], SD15[1], 2, 1), strict=True))  # where a configuration leaves them out
TURBO_SIDE = 64  # of the latents that SDXL-Turbo was trained on
INPAINTING_CHANNELS = 9

# What the library writes on the UNet's modules, and what is written here on the pipeline.
WRITTEN = (
    *("info", "model", "num_upsamplers", "switching_threshold_ratio", "aggressive_raunet", "timestep", "max_timestep"),
    *("T1", "T1_ratio", "T1_start", "T1_end", "stride", "padding", "dilation", "ori_stride", "ori_padding"),
    *("ori_dilation", "progress_bar"),
)
STATE = "_instantstyle_hires"


def table(unet: Mapping[str, Any]) -> str:
    """Name the model whose table of the library fits a UNet.

    Args:
        unet: The UNet's configuration.

    Raises:
        ValueError: None fits.
    """
    blocks = unet.get("down_block_types", SD15[0])
    levels = tuple(_each(unet.get(name, DEFAULTS[name]), len(blocks)) for name in LEVELS)
    if levels == SD15:
        return "runwayml/stable-diffusion-v1-5"
    if levels != SDXL:
        raise ValueError(
            f"HiDiffusion has tables for the UNets of SDXL and SD1.5, and none for one of {len(blocks)} levels with "
            f"{', '.join(map(str, levels[-1]))} transformer layers. Paint at the model's own size, and enlarge with "
            "a second pass (`upscale`)."
        )
    if unet.get("in_channels") == INPAINTING_CHANNELS:
        return "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"
    return f"stabilityai/{'sdxl-turbo' if unet.get('sample_size') == TURBO_SIDE else 'stable-diffusion-xl-base-1.0'}"


def _each(value: Any, count: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * count


def load_library() -> Any:
    """Import the library, of which diffusers has since moved a module and the library itself forgot two imports.

    Raises:
        ValueError: It is not installed.
    """
    need("hidiffusion", "hires", "a large picture in one pass is painted by hidiffusion")
    moved = "diffusers.pipelines.controlnet.multicontrolnet"
    with _also_as(moved, "diffusers.models.controlnets.multicontrolnet"):
        module: Any = importlib.import_module("hidiffusion.hidiffusion")
    from diffusers.utils.torch_utils import apply_freeu

    from instantstyle.core import private

    module.apply_freeu = apply_freeu
    module._chunked_feed_forward = private("diffusers.models.attention", "_chunked_feed_forward", "HiDiffusion")
    return module


@contextmanager
def _also_as(name: str, home: str) -> Iterator[None]:
    """Let a module be imported by a name that it once had, for the length of the `with`."""
    added = name not in sys.modules and importlib.util.find_spec(name) is None
    if added:
        sys.modules[name] = importlib.import_module(home)
    try:
        yield
    finally:
        if added:
            del sys.modules[name]


def enable_hidiffusion(pipe: Any) -> None:
    """Let a pipeline paint larger pictures than it was trained for, by HiDiffusion (arXiv 2311.17528).

    IP-Adapters, styles and ControlNets go on working, and the same seeds make the same picture. Give sizes in
    multiples of 64 pixels: at some others the library resizes features to fit its windows, which costs quality,
    and warns. A ControlNet sees its picture at the size it was trained on; the library's authors let it act in the
    first 60 % of the steps only, which is `control_guidance_end=0.6`. Of pipelines that share the UNet, the last one
    that was enabled may be called; another one raises ValueError. Do not compile the UNet meanwhile, nor load LoRAs
    on it that are not fused.

    Args:
        pipe: A pipeline of diffusers or a variant, with the UNet of SDXL, SDXL-Turbo or SD1.5.

    Raises:
        TypeError: `pipe` has no UNet, does not count its steps, or has a T2I-Adapter.
        ValueError: The library has no table for the UNet or is missing, the UNet is compiled, or what is changed of it
            is offloaded by itself or has a LoRA. HiDiffusion is off then.
    """
    from instantstyle.core import bare_unet

    counts = hasattr(type(pipe), "num_timesteps")
    if not hasattr(getattr(pipe, "unet", None), "config") or not counts or hasattr(pipe, "adapter"):
        raise TypeError(
            "`pipe` must have a UNet and no T2I-Adapter, and count its steps as `num_timesteps`, but is "
            f"{type(pipe).__name__}."
        )
    unet = bare_unet(pipe)
    name, library = table(unet.config), load_library()
    disable_hidiffusion(pipe)
    if unet is not pipe.unet or any(part._compiled_call_impl for part in unet.modules()):
        raise ValueError(
            "`pipe.unet` is compiled, but HiDiffusion changes its course from step to step; load the pipeline again, "
            "and do not compile it."
        )
    enabled = _Enabled(pipe, unet, name, library)
    if any("forward" in vars(part) or hasattr(part, "base_layer") for part in enabled.swapped):
        enabled.undo()
        raise ValueError(
            "`pipe` has hooks or a LoRA on parts of its UNet that HiDiffusion changes. Use model offloading, not "
            "sequential or group offloading; fuse LoRAs and unload them."
        )
    setattr(unet, STATE, enabled)


def disable_hidiffusion(pipe: Any) -> None:
    """Undo `enable_hidiffusion` exactly. A pipeline without it stays as it is."""
    from instantstyle.core import bare_unet

    enabled = vars(bare_unet(pipe)).pop(STATE, None)
    if enabled is not None:
        enabled.undo()


class DiffusionPipeline:
    """What the library sees in place of a pipeline. It looks for a class of this name, and writes on what it gets."""

    def __init__(self, pipe: Any, unet: Any, name: str):
        self.pipe, self.unet, self.name_or_path = pipe, unet, name

    @property
    def _num_timesteps(self) -> int:
        return self.pipe._num_timesteps


class _Enabled:
    """HiDiffusion on one UNet: what was there before, and hooks that keep the library right."""

    def __init__(self, pipe: Any, unet: Any, name: str, library: Any):
        self.pipe, self.unet, self.library = pipe, unet, library
        parts = (pipe, *unet.modules())
        self.before = {part: {key: vars(part)[key] for key in WRITTEN if key in vars(part)} for part in parts}
        library.apply_hidiffusion(DiffusionPipeline(pipe, unet, name))
        self.swapped = [part for part in unet.modules() if hasattr(type(part), "_parent")]
        self.random: Any = None
        self.steps: int | None = None  # passes in the call of the pipeline that is under way
        self.bar = pipe.progress_bar
        pipe.progress_bar = self.progress_bar
        nets = _controlnets(pipe)
        # What the library reads off the pipeline's name and its own pipelines.
        unet.info["is_playground"] = "playground" in (pipe.name_or_path or "")
        unet.info["text_to_img_controlnet"] = bool(nets) and not _starts_from_picture(pipe)
        self.handles = [
            unet.register_forward_pre_hook(self.start, with_kwargs=True),
            unet.register_forward_hook(self.end, always_call=True),
            *(net.register_forward_pre_hook(self.shrink, with_kwargs=True) for net in nets),
        ]

    def undo(self) -> None:
        """Put everything back: the library's own removal leaves attributes behind."""
        self.library.remove_hidiffusion(self.unet)
        for handle in self.handles:
            handle.remove()
        for part, before in self.before.items():
            for name in WRITTEN:
                vars(part).pop(name, None)
            vars(part).update(before)

    @contextmanager
    def progress_bar(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """In place of the pipeline's own, which is open for all of a call's passes of the UNet and no longer."""
        self.steps = 0
        for part in self.swapped:  # The library counts passes, and would go on counting where a call was broken off.
            part.timestep = 0
        try:
            with self.bar(*args, **kwargs) as bar:
                yield bar
        finally:
            self.steps = None

    def start(self, unet: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before each pass of the UNet: the step's number, its random shifts, and residuals of any size."""
        import torch

        if self.steps is None:  # The library goes by its pipeline's number of steps, which is not that of this call.
            raise ValueError(
                "`enable_hidiffusion` was given another pipeline with this UNet; give it the one that is called."
            )
        # The library draws the windows' shifts from the global random state: here it is the step's, and put back.
        self.random = torch.default_generator.get_state()
        torch.default_generator.manual_seed(self.steps)
        self.steps += 1
        if kwargs.get("mid_block_additional_residual") is None:
            return None
        down, mid = kwargs["down_block_additional_residuals"], kwargs["mid_block_additional_residual"]
        residuals = {
            "down_block_additional_residuals": [Residual(one) for one in down],
            "mid_block_additional_residual": Residual(mid),
        }
        return args, kwargs | residuals

    def end(self, *_: Any) -> None:
        """After each pass, also one that failed: the global random state as it was."""
        import torch

        if self.random is not None:
            torch.default_generator.set_state(self.random)
            self.random = None

    def shrink(self, net: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before each pass of a ControlNet: latents and picture in the size that it was trained on."""
        import torch.nn.functional as F

        given = inspect.signature(type(net).forward).bind(net, *args, **kwargs).arguments
        latents, pictures = given["sample"], given["controlnet_cond"]
        height, width = latents.shape[-2:]
        factor = max(height, width) / self.unet.config.sample_size
        size = [int(side // factor) // 8 * 8 for side in (height, width)]

        def resized(picture: Any) -> Any:
            return F.interpolate(picture, [side * (picture.shape[-2] // height) for side in size])

        several = isinstance(pictures, list)
        given["sample"] = F.interpolate(latents, size)
        given["controlnet_cond"] = [resized(one) for one in pictures] if several else resized(pictures)
        return (), {name: value for name, value in given.items() if name != "self"}


class Residual:
    """A ControlNet's residual that takes the size of what it is added to, which HiDiffusion changes in the UNet."""

    def __init__(self, tensor: Any):
        self.tensor = tensor

    def __radd__(self, sample: Any) -> Any:
        import torch.nn.functional as F

        return sample + F.interpolate(self.tensor, sample.shape[-2:], mode="bicubic")


def _controlnets(pipe: Any) -> list[Any]:
    net = getattr(pipe, "controlnet", None)
    return [] if net is None else list(getattr(net, "nets", [net]))


def _starts_from_picture(pipe: Any) -> bool:
    return "strength" in inspect.signature(pipe.__call__).parameters
