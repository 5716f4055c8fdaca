"""Private names of diffusers: fetched when needed; where one is gone, only what needs it is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import __version__
from diffusers.models.embeddings import ImageProjection
from torch import nn


def private(owner: Any, name: str, feature: str) -> Any:
    """A private name of a module, which is given by its own name, or of an object of diffusers.

    Raises:
        RuntimeError: it is gone; the feature that needs it is named.
    """
    try:
        return getattr(importlib.import_module(owner) if isinstance(owner, str) else owner, name)
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"{feature} needs {name!r} of diffusers, which version {__version__} does not have. Do without, or use a "
            "version that this plugin was tested with."
        ) from error


def execution_device(pipe: Any) -> torch.device:
    """The device that a pipeline's modules run on, which under offloading is not where they are."""
    return getattr(pipe, "_execution_device", None) or pipe.device


def offload_device(pipe: Any) -> Any:
    """The device that accelerate's hooks on a pipeline's modules move them to, or None where there are none."""
    if not any(hasattr(module, "_hf_hook") for module in pipe.components.values()):
        return None
    # A pipeline that shares another's modules shares their hooks, but has no `_offload_device`.
    return getattr(pipe, "_offload_device", execution_device(pipe))


def workflows(blocks: Any) -> dict[str, dict[str, bool]]:
    """The workflows that modular blocks of the host name, with what triggers them; none where they do not tell."""
    return dict(getattr(blocks, "_workflow_map", None) or {})


def expand_scales(unet: Any, scales: Mapping[str, Any]) -> dict[str, Any]:
    """How the host reads a dict in `set_ip_adapter_scale`: block -> scale, 0 for those that it does not name."""
    feature = "A dict in `set_ip_adapter_scale`"
    expand = private("diffusers.loaders.unet_loader_utils", "_maybe_expand_lora_scales", feature)
    (found,) = expand(unet, [scales], default_scale=0.0)
    return found


def image_projection(unet: Any, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """What makes image tokens of image embeddings, from the tensors of `image_proj` in a checkpoint.

    Raises:
        RuntimeError, ValueError, KeyError, IndexError: they are of an unknown form.
    """
    convert = getattr(unet, "_convert_ip_adapter_image_proj_to_diffusers", _plain_projection)
    # Sequential offloading leaves the UNet on meta, and this way the host loads to where the UNet is.
    low_cpu_mem_usage = not next(unet.parameters()).is_meta
    with torch.random.fork_rng(devices=[]):  # a resampler's latents are drawn before they are loaded
        return convert(tensors, low_cpu_mem_usage=low_cpu_mem_usage)


def _plain_projection(tensors: Mapping[str, torch.Tensor], **_: Any) -> nn.Module:
    # The form of the first adapters, which is most of them, for a host that does not convert any.
    if tensors.keys() != {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}:
        raise ValueError(f"diffusers {__version__} has no `_convert_ip_adapter_image_proj_to_diffusers` to read it.")
    (rows, width), (text_width,) = tensors["proj.weight"].shape, tensors["norm.weight"].shape
    projection = ImageProjection(width, text_width, num_image_text_embeds=rows // text_width)
    projection.load_state_dict({key.replace("proj.", "image_embeds."): tensor for key, tensor in tensors.items()})
    return projection


def face_loras(unet: Any, tensors: list[dict[str, torch.Tensor]]) -> dict[int, dict[str, torch.Tensor]]:
    """The LoRAs that FaceID adapters bring: number of the adapter -> tensors by the names of the UNet."""
    if not any(tensors):
        return {}
    convert = private(unet, "_load_ip_adapter_loras", "The LoRA of a FaceID adapter")
    return convert([{"ip_adapter": one} for one in tensors])


CASTING = "_skip_layerwise_casting_patterns"


def keep_from_casting(unet: Any, patterns: Sequence[str]) -> Any:
    """Have layerwise casting leave modules of these names alone. Gives what `leave_to_casting` needs to undo that."""
    before = vars(unet).get(CASTING)
    setattr(unet, CASTING, [*(getattr(unet, CASTING, None) or ()), *patterns])
    return before


def leave_to_casting(unet: Any, before: Any) -> None:
    """Undo `keep_from_casting`."""
    vars(unet).pop(CASTING, None)
    if before is not None:
        setattr(unet, CASTING, before)


def disable_offloading(pipe: Any) -> tuple[bool, bool, bool]:
    """Take off the hooks of model and sequential offloading. Gives which there are: model, sequential, group."""
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    parts = (part for module in modules for part in module.modules())
    if not any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in parts):
        return False, False, False
    feature = "Changing an adapter while modules are offloaded"
    return private("diffusers.loaders.lora_base", "_func_optionally_disable_offloading", feature)(pipe)


def group_offloading(unet: Any) -> Callable[[nn.Module, bool], None]:
    """What puts modules under group offloading: those under it already, whose parts have changed, and new ones.

    New ones are offloaded as the UNet is; where it is not, they are left as they are.
    """
    names = (
        "_get_top_level_group_offload_hook",
        "_maybe_remove_and_reapply_group_offloading",
        "_apply_group_offloading",
    )
    home, feature = "diffusers.hooks.group_offloading", "Changing an adapter under group offloading"
    find, renew, apply = (private(home, name, feature) for name in names)
    hook = find(unet)

    def put(module: nn.Module, new: bool) -> None:
        if not new:
            renew(module)
        elif hook is not None:
            apply(module, hook.config)

    return put
