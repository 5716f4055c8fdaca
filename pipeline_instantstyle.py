# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
# Joined from the modules in instantstyle/core by `python -m instantstyle.core.build`: edit those, not this file.
"""InstantStyle (arXiv 2404.02733) for the Stable Diffusion XL and 1.5 pipelines of diffusers.

Two training-free additions to an IP-Adapter (arXiv 2308.06721): the reference picture is injected only into the
attention blocks that carry style, and the CLIP text embedding of what it shows is subtracted from its CLIP image
embedding.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import inspect
import json
import logging
import math
import pickle
import re
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, __version__
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, is_valid_image
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    IPAdapterXFormersAttnProcessor,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.utils import is_transformers_version, load_image
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPTextModelWithProjection, CLIPVisionModelWithProjection


# --- Where to inject: the names of attention blocks, presets, and the scale of each layer ----------------------------


Scale = float | list[float]  # a list has a number for each masked picture
TargetBlocks = str | Sequence[str] | Mapping[str, Scale]  # of one adapter
# What the blocks of a family carry, by the stages that have attention (the middle block aside): SDXL from the paper,
# "Injecting into Style Blocks Only"; SD1.5 from its authors' example for it, which calls them experimental.
FAMILY_PRESETS = {
    ("down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1"): {
        "style": ["up_blocks.0.attentions.1"],
        "layout": ["down_blocks.2.attentions.1"],
    },
    ("down_blocks.0", "down_blocks.1", "down_blocks.2", "up_blocks.1", "up_blocks.2", "up_blocks.3"): {
        "style": ["up_blocks.1"],
        "layout": ["down_blocks.2", "mid_block"],
    },
}


def text_layers(unet: Any) -> list[str]:
    """Names of the UNet's text cross-attentions, without `.attn2`, in the order in which checkpoints number them."""
    names = [name.removesuffix(".attn2") for name, _ in unet.named_modules() if name.endswith(".attn2")]
    return [name for name in names if "motion_modules" not in name]


def attention_blocks(unet: Any) -> dict[str, list[str]]:
    """The UNet's attention groups, such as `up_blocks.0.attentions.1`, each with the names of its layers."""
    blocks: dict[str, list[str]] = {}
    for layer in text_layers(unet):
        blocks.setdefault(layer.partition(".transformer_blocks.")[0], []).append(layer)
    return blocks


def presets(unet: Any) -> dict[str, dict[str, Scale]]:
    """The named target blocks of a UNet: preset -> block -> scale. Only "all" where the topology is unknown.

    Those that an adapter's file carries are not among them; they win over these.
    """
    blocks = list(attention_blocks(unet))
    stages = {block.partition(".attentions.")[0] for block in blocks} - {"mid_block"}
    family = FAMILY_PRESETS.get(tuple(sorted(stages)), {})
    matches = {preset: [_match(name, blocks) for name in names] for preset, names in family.items()}
    found: dict[str, dict[str, Scale]] = {"all": dict.fromkeys(blocks, 1.0)}
    if family and all(map(all, matches.values())):
        found |= {preset: dict.fromkeys(sum(each, []), 1.0) for preset, each in matches.items()}
        found["style+layout"] = found["style"] | found["layout"]
    return found


def resolve_target_blocks(
    target_blocks: TargetBlocks, layers: Sequence[str], presets: Mapping[str, TargetBlocks]
) -> dict[str, Scale]:
    """Turn target blocks into layer name -> scale, without the layers at scale 0.

    Args:
        target_blocks: a preset, a block name, a list of them, or a dict of name -> scale: a number, or a list of
            numbers, one per masked picture. Names match whole dotted parts; where they overlap, the narrower one wins.
        layers: the names to choose from, as `text_layers` gives them.
        presets: preset name -> target blocks.

    Raises:
        TypeError: `target_blocks` or a scale is of another type.
        ValueError: no name, an unknown name, or a scale that is not finite.
    """
    if isinstance(target_blocks, str):
        target_blocks = [target_blocks]
    if isinstance(target_blocks, (list, tuple)):
        target_blocks = dict.fromkeys(map(_check_name, target_blocks), 1.0)
    if not isinstance(target_blocks, Mapping):
        expected = "a preset, a block name, a list of them or a dict of name -> scale"
        raise TypeError(f"`target_blocks` must be {expected}, but is {target_blocks!r}.")
    if not target_blocks:
        raise ValueError(f"`target_blocks` is empty. Name a preset ({', '.join(presets)}) or attention blocks.")
    parts = [_resolve_name(name, scale, layers, presets) for name, scale in target_blocks.items()]
    chosen: dict[str, Scale] = {}
    for part in sorted(parts, key=len, reverse=True):
        chosen |= part
    return {layer: chosen[layer] for layer in layers if not _is_zero(chosen.get(layer, 0.0))}


def _resolve_name(name: str, scale: Any, layers: Sequence[str], presets: Mapping[str, Any]) -> dict[str, Scale]:
    _check_name(name)
    check_scale(scale, f"The scale of {name!r} in `target_blocks`")
    if name in presets:
        try:
            inside = resolve_target_blocks(presets[name], layers, {})
        except (TypeError, ValueError) as error:
            raise ValueError(f"The preset {name!r}, which the adapter's file carries, is wrong: {error}") from error
        return {layer: times(weight, scale) for layer, weight in inside.items()}
    found = _match(name.removesuffix(".processor").removesuffix(".attn2"), layers)
    if not found:
        parts = [layer.split(".") for layer in layers]
        known = {".".join(part[:depth]): None for part in parts for depth in range(1, len(part) + 1)}
        near = difflib.get_close_matches(name, [*presets, *known], cutoff=0.5)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "`attention_blocks(pipe.unet)` lists them."
        raise ValueError(
            f"`target_blocks` names {name!r}, which is neither a preset of this UNet ({', '.join(presets) or 'none'}) "
            f"nor one of its attention blocks. {hint}"
        )
    return dict.fromkeys(found, scale)


def _match(name: str, layers: Sequence[str]) -> list[str]:
    return [layer for layer in layers if layer == name or layer.startswith(name + ".")]


def by_block(blocks: Mapping[str, list[str]], scales: Mapping[str, Scale]) -> dict[str, Scale]:
    found: dict[str, Scale] = {}
    for block, layers in blocks.items():
        inside = {layer: scales[layer] for layer in layers if layer in scales}
        alike = len(inside) == len(layers) and all(scale == inside[layers[0]] for scale in inside.values())
        found |= {block: inside[layers[0]]} if alike else inside
    return {name: scale for name, scale in found.items() if not _is_zero(scale)}


def _check_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"`target_blocks` names blocks by strings, but one of the names is {name!r}.")
    return name


def check_scale(scale: Any, what: str) -> None:
    for number in scale if isinstance(scale, list) and scale else [scale]:
        check_number(number, what, "a number, or a list of numbers, one per masked picture")


def check_number(value: Any, what: str, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be {expected}, but is {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, but is {value!r}.")


def times(weight: Scale, scale: Scale) -> Scale:
    if not isinstance(weight, list) and not isinstance(scale, list):
        return weight * scale
    count = len(weight if isinstance(weight, list) else scale)  # type: ignore[arg-type]
    weights, scales = (one if isinstance(one, list) else [one] * count for one in (weight, scale))
    if len(weights) != len(scales):
        raise ValueError(f"`scale` has {len(scales)} numbers where `target_blocks` has {len(weights)} per block.")
    return [w * s for w, s in zip(weights, scales, strict=True)]


def _is_zero(scale: Scale) -> bool:
    return not any(scale) if isinstance(scale, list) else scale == 0


# --- Nested lists: of references, and of what is removed from each ---------------------------------------------------


Content = str | Sequence[Any] | None  # one for all, or nested as the references are; None removes nothing


def spread(content: Any, references: Any, name: str) -> list[Any]:
    """One content for each reference, in order: the same for all, or each its own in exactly the references' nesting.

    Args:
        content: one for all, or nested lists.
        references: nested lists.
        name: the argument that gave the content, for errors.

    Raises:
        ValueError: the nesting differs; both are printed.
    """

    def pair(inner: Any, reference: Any) -> list[Any]:
        if not isinstance(inner, (list, tuple)) and not isinstance(reference, list):
            return [inner]
        if isinstance(inner, (list, tuple)) and isinstance(reference, list) and len(inner) == len(reference):
            return [leaf for i, r in zip(inner, reference, strict=True) for leaf in pair(i, r)]
        raise ValueError(
            f"`{name}` must be one for everything, or nested as the references are: they are {nesting(references)}, "
            f"the content is {nesting(content)}."
        )

    if not isinstance(content, (list, tuple)):
        return [content] * len(flatten(references))
    return pair(content, references)


def nesting(value: Any) -> str:
    return "[" + ", ".join(map(nesting, value)) + "]" if isinstance(value, (list, tuple)) else "*"


def flatten(value: Any) -> list[Any]:
    return [leaf for inner in value for leaf in flatten(inner)] if isinstance(value, (list, tuple)) else [value]


def tree(pictures: Any) -> Any:
    if isinstance(pictures, list):
        return [tree(one) for one in pictures]
    return [None] * len(pictures) if getattr(pictures, "ndim", 0) == 4 else None


def fold(count: int, inner: Any) -> Any:
    return inner if count == 1 else [inner] * count


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# --- Reference pictures that are not square, fitted to the square that an image encoder sees -------------------------


FITS = ("crop", "pad", "squash", "tiles")


def check_fit(fit: Any, pictures: Any, name: str) -> None:
    """Refuse a fit that is none, or that these pictures cannot have; say what the host's own cuts off.

    Args:
        fit: `reference_fit`.
        pictures: nested lists, or None.
        name: the argument that gave the pictures, for errors.

    Raises:
        ValueError: no such fit, or no pictures.
        TypeError: a picture is an array or a tensor, of which only the host's fit is taken.
    """
    if fit not in FITS:
        raise ValueError(f"`reference_fit` must be one of {', '.join(map(repr, FITS))}, but is {fit!r}.")
    if fit != "crop" and pictures is None:
        raise ValueError(f"`reference_fit` is about `{name}`, which is missing.")
    for picture in flatten(pictures):
        is_image = hasattr(picture, "getexif")
        if fit != "crop" and not is_image:
            came = type(picture).__name__
            raise TypeError(f"`reference_fit` {fit!r} needs PIL images in `{name}`, but it holds a {came}.")
        if fit == "crop" and is_image:
            _say_what_is_cut(*picture.size)


@functools.cache  # once for each size
def _say_what_is_cut(width: int, height: int) -> None:
    if width != height:
        cut = 1 - min(width, height) / max(width, height)
        logging.getLogger(__name__).warning(
            f"A reference of {width} x {height} is cropped to its middle square: {cut:.0%} of it, at two edges, "
            "has no influence. With `reference_fit` 'pad', 'squash' or 'tiles' all of it has."
        )


def squares(picture: Any, fit: str, encoder: Any, extractor: Any) -> list[Any]:
    """The square pictures whose embeddings, as a mean, stand for this one.

    Args:
        picture: a PIL image.
        fit: "pad" with the mean colour of the encoder's training, which it sees as zeros; "squash" to its side;
            "tiles": squares of the shorter side from end to end, each overlapping the next by a half or more; "crop"
            leaves the picture to the host.
        encoder, extractor: the image encoder and its feature extractor.
    """
    (width, height), side = picture.size, encoder.config.image_size
    longer, shorter = max(width, height), min(width, height)
    if fit == "crop" or width == height:
        return [picture]
    picture = picture.convert("RGB")
    if fit == "squash":
        return [picture.resize((side, side))]
    if fit == "pad":
        square = picture.resize((longer, longer))
        square.paste(tuple(round(255 * mean) for mean in extractor.image_mean), (0, 0, longer, longer))
        square.paste(picture, ((longer - width) // 2, (longer - height) // 2))
        return [square]
    last = math.ceil(2 * (longer - shorter) / shorter)
    starts = sorted({round(i * (longer - shorter) / last) for i in range(last + 1)})
    corners = [(start, 0) if width > height else (0, start) for start in starts]
    return [picture.crop((x, y, x + shorter, y + shorter)) for x, y in corners]


def mean_of_squares(rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Embeddings of pictures from those of their squares: of the last row, the conditional, the mean.

    Args:
        rows: shape `(1 or 2, squares, ...)`.
        counts: the number of squares of each picture.

    Returns:
        Shape `(1 or 2, pictures, ...)`.
    """
    if len(counts) == rows.shape[1]:
        return rows
    parts = rows.split(list(counts), dim=1)
    means = [torch.cat([part[:-1, :1], part[-1:].float().mean(1, keepdim=True).to(part.dtype)]) for part in parts]
    return torch.cat(means, dim=1)


# --- Private names of diffusers: fetched when needed; where one is gone, only what needs it is refused ---------------


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


# --- IP-Adapter files, of which only the tensors asked for are read --------------------------------------------------


USER_AGENT = {"file_type": "attn_procs_weights", "framework": "pytorch"}
HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
# By what name the loaders of transformers, and of diffusers' pipelines, are told a dtype.
TOWER_DTYPE = "dtype" if is_transformers_version(">=", "4.56") else "torch_dtype"
PIPELINE_DTYPE = "dtype" if tuple(map(int, __version__.split(".")[:2])) >= (0, 39) else "torch_dtype"


class AdapterFile:
    """One IP-Adapter checkpoint, of which only the tensors asked for are read.

    Args:
        source: a `.safetensors` or `.bin` file in the published layout, or its content as a nested dict.

    Raises:
        ValueError: it cannot be read, holds code, or is not an IP-Adapter.
    """

    def __init__(self, source: Path | Mapping[str, Any]):
        self.source: Path | Mapping[str, Any] | None = source
        self.name = str(source) if isinstance(source, Path) else "the state dict"
        self.stamp = self._read_stamp()
        with self._open() as tensors:
            mapped = isinstance(tensors, dict)
            shape = (lambda key: tensors[key].shape) if mapped else (lambda key: tensors.get_slice(key).get_shape())
            self.shapes = {key: tuple(shape(key)) for key in tensors.keys()}
            self.presets = self._read_presets({} if mapped else tensors.metadata() or {})
        found = {key.partition(".")[0] for key in self.shapes}
        if not {"image_proj", "ip_adapter"} <= found:
            raise ValueError(f"{self.name} is not an IP-Adapter: it needs the keys `image_proj` and `ip_adapter`.")

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """Read these tensors. Raises ValueError for one that is missing or not finite."""
        with self._open() as tensors:
            found = {key: tensors[key] if isinstance(tensors, dict) else tensors.get_tensor(key) for key in keys}
        for key, tensor in found.items():
            # A sum takes one pass and no memory; only if it overflows does it say nothing.
            if not (torch.isfinite(tensor.sum(dtype=torch.float32)) or torch.isfinite(tensor).all()):
                raise ValueError(f"{self.name} holds values that are not finite in {key!r}.")
        return found

    def read_part(self, part: str, only: str = "") -> dict[str, torch.Tensor]:
        """Read the tensors of `image_proj` or `ip_adapter` whose names contain `only`, without the part's prefix."""
        keys = [key for key in self.shapes if key.startswith(f"{part}.") and only in key]
        return {key.removeprefix(f"{part}."): tensor for key, tensor in self.read(keys).items()}

    def available(self) -> bool:
        """Whether it can be read: a dict until it is forgotten, a file while it is the one that was opened."""
        return self.source is not None and self.stamp == self._read_stamp()

    def forget(self) -> None:
        """Let go of a dict, so that what was not read takes no memory."""
        self.source = self.source if isinstance(self.source, Path) else None

    def _read_stamp(self) -> tuple[int, int] | None:
        if not isinstance(self.source, Path) or not self.source.exists():
            return None
        return self.source.stat().st_size, self.source.stat().st_mtime_ns

    def _read_presets(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        try:
            parsed = json.loads(metadata.get("instantstyle.presets", "{}"))
        except json.JSONDecodeError as error:
            raise ValueError(f"`instantstyle.presets` in the metadata of {self.name} is not JSON: {error}.") from error
        if not isinstance(parsed, dict):
            raise ValueError(
                f"`instantstyle.presets` in the metadata of {self.name} must be an object: name -> blocks."
            )
        return parsed

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The tensors by name: an open safetensors file, or a dict."""
        with ExitStack() as stack:
            try:
                if isinstance(self.source, Path) and self.source.suffix == ".safetensors":
                    tensors: Any = stack.enter_context(safe_open(self.source, framework="pt"))
                else:
                    tensors = _by_name(_load_pickle(self.source) if isinstance(self.source, Path) else self.source)
            except pickle.UnpicklingError as error:
                raise ValueError(
                    f"{self.name} is refused: it is no checkpoint, or unpickling it could run code."
                ) from error
            except (SafetensorError, OSError, RuntimeError, EOFError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(f"{self.name} cannot be read as an IP-Adapter checkpoint: {reason}") from error
            yield tensors


def _by_name(nested: Any) -> dict[str, torch.Tensor]:
    parts = nested.items() if isinstance(nested, Mapping) else ()
    named = {f"{part}.{key}": t for part, inner in parts if isinstance(inner, Mapping) for key, t in inner.items()}
    return {key: tensor for key, tensor in named.items() if isinstance(tensor, torch.Tensor)}


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def find_file(source: str | Path, name: str, subfolder: str | None = None, **hub: Any) -> Path:
    """Where a file is: it is `source` itself, in that folder, or fetched from that repository of the Hub.

    Raises:
        OSError: it is not there.
    """
    places = [Path(source), Path(source, name), Path(source, subfolder or "", name)]
    found = next((place for place in places if place.is_file()), None)
    if found is None and Path(source).is_dir():
        raise FileNotFoundError(f"{str(source)!r} has no file {name!r}{f' in {subfolder!r}' if subfolder else ''}.")
    try:
        return found or Path(hf_hub_download(str(source), name, subfolder=subfolder or None, **hub))
    except HFValidationError as error:
        raise FileNotFoundError(f"{str(source)!r} is no file, no folder and no repository's name.") from error


def open_files(sources: list[Any], subfolders: list[Any], names: list[Any], hub: dict[str, Any]) -> list[AdapterFile]:
    """Find and open the checkpoints, one per weight name. A single source or subfolder stands for all."""
    sources = sources * len(names) if len(sources) == 1 else sources
    subfolders = subfolders * len(names) if len(subfolders) == 1 else subfolders
    if not len(names) == len(sources) == len(subfolders):
        raise ValueError(
            "`weight_name`, `subfolder` and `pretrained_model_name_or_path_or_dict` must have the same length, but "
            f"have {len(names)}, {len(subfolders)} and {len(sources)}."
        )
    files = []
    for source, subfolder, name in zip(sources, subfolders, names, strict=True):
        if not isinstance(source, (str, Path, Mapping)):
            raise TypeError(
                "`pretrained_model_name_or_path_or_dict` must be a repository, a folder, a file, a dict or a list "
                f"of them, but is {source!r}."
            )
        if not isinstance(source, Mapping):
            source = find_file(source, name, subfolder, user_agent=USER_AGENT, **hub)
        files.append(AdapterFile(source))
    return files


def hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}


def in_host_words(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a pipeline's loader, with `dtype` under the name that this diffusers has for it."""
    return {PIPELINE_DTYPE if name == "dtype" else name: value for name, value in kwargs.items()}


# --- Attention processors: the host's for IP-Adapters, and what stands where no weights are --------------------------


class MutedProjection(nn.Module):
    """Stands, without weights, where a block that does not see the reference would hold a projection."""

    def __init__(self, layer: str):
        super().__init__()
        self.layer = layer

    def forward(self, *_: Any) -> torch.Tensor:
        """Raise RuntimeError: a stock pipeline set a scale on a block without weights."""
        raise RuntimeError(
            f"{self.layer!r} is no target block, so it holds no IP-Adapter weights. Name it in `set_target_blocks` of "
            "an InstantStyle pipeline, or in `load_ip_adapter(..., target_blocks=...)`."
        )


def bare_unet(pipe: Any) -> Any:
    """The UNet of a pipeline, out of what `torch.compile` wraps around it."""
    return getattr(pipe.unet, "_orig_mod", pipe.unet)


def ip_processors(unet: Any) -> dict[str, Any]:
    """Layer name -> IP-Adapter processor, for the layers that have one."""
    kinds = (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0, IPAdapterXFormersAttnProcessor)
    processors = {layer: attention(unet, layer).processor for layer in text_layers(unet)}
    return {layer: processor for layer, processor in processors.items() if isinstance(processor, kinds)}


def attention(unet: Any, layer: str) -> Any:
    return unet.get_submodule(f"{layer}.attn2")


def is_xformers(processor: Any) -> bool:
    return isinstance(processor, (XFormersAttnProcessor, IPAdapterXFormersAttnProcessor))


def plain_processor(processor: Any) -> Any:
    if is_xformers(processor):
        return XFormersAttnProcessor(attention_op=processor.attention_op)
    return AttnProcessor2_0()


def make_processor(attn: Any, tokens: Sequence[int], plain: Any) -> Any:
    """An IP-Adapter processor of scale 0 without projections, in the backend of a plain one."""
    kind: Any = IPAdapterAttnProcessor2_0
    if is_xformers(plain):
        kind = functools.partial(IPAdapterXFormersAttnProcessor, attention_op=plain.attention_op)
    processor = kind(attn.inner_kv_dim, attn.cross_attention_dim, num_tokens=[], scale=[])  # it draws no weights
    processor.num_tokens, processor.scale = list(tokens), [0.0] * len(tokens)
    return processor


def is_muted(projection: nn.Module) -> bool:
    # Not `isinstance`: the plugin file can be loaded twice in one process, under two module names.
    return not hasattr(projection, "weight")


def first_linear(layer: nn.Module) -> nn.Linear:
    return next(module for module in layer.modules() if isinstance(module, nn.Linear))


# --- Offloading, suspended while modules change ----------------------------------------------------------------------


@contextmanager
def offloading_suspended(pipe: Any, needed: bool = True) -> Iterator[None]:
    """Without the hooks of model, sequential and group offloading, which come back as they were."""
    if not needed:
        yield
        return
    # What is loaded under these hooks they do not place (diffusers issue 3922).
    before, device = modules(pipe), offload_device(pipe)
    by_model, sequential, by_group = disable_offloading(pipe)
    put = group_offloading(bare_unet(pipe)) if by_group else None
    try:
        yield
    finally:
        if by_model:
            pipe.enable_model_cpu_offload(device=device)
        elif sequential:
            pipe.enable_sequential_cpu_offload(device=device)
        elif put is not None:
            for name, module in modules(pipe).items():
                put(module, name not in before)


def modules(pipe: Any) -> dict[str, nn.Module]:
    """The components of a pipeline that are modules."""
    return {name: module for name, module in pipe.components.items() if isinstance(module, nn.Module)}


# --- Services of the host that swap attention processors or cast weights, and an adapter that is to outlive them -----


# What slicing, fused projections and the like put on every attention of a UNet. None of them can take image tokens
# (diffusers 7263, 8863, 9901).
PLAIN = (AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)

# What layerwise casting leaves alone, as it does norms: the host's image projection casts its input to the type in
# which its weights are stored.
UNCAST = (r"^encoder_hid_proj\.image_projection_layers\.", r"\.processor\.to_[kv]_ip\.")


def is_displaced(unet: Any) -> bool:
    """Whether a service put its processors in the place of an adapter's."""
    state = unet.__dict__.get("_instantstyle")
    ours = state.processors if state is not None and state.projection is unet.encoder_hid_proj else ()
    return any(type(attention(unet, layer).processor) in PLAIN for layer in ours)


def mend_unfusing(unet: Any, state: Any) -> None:
    """Let `unfuse_qkv_projections` leave what it would without the adapter of this `AdapterState`."""
    # It puts back what `fuse_qkv_projections` found, the adapter's own too, and wants one for each attention there is.
    found = unet.__dict__.get("original_attn_processors")
    if found:
        own = {f"{layer}.attn2.processor": layer for layer in state.processors}
        plain = {n: state.plain[layer] for n, layer in own.items() if found.get(n) is state.processors[layer]}
        known = found | plain
        unet.original_attn_processors = {name: known.get(name, now) for name, now in unet.attn_processors.items()}


def check_whole(unet: Any, projection: Any) -> None:
    """Raise ValueError where a service left what another loader had put on this UNet unfit to run."""
    if projection is not unet.encoder_hid_proj:  # a modular pipeline puts it there while the UNet runs
        return
    for layer in text_layers(unet):
        kind = type(attention(unet, layer).processor)
        if kind in PLAIN:
            raise ValueError(
                f"The IP-Adapter on this UNet lost its weights for {layer!r}: {kind.__name__} was put in their place. "
                "Call `load_ip_adapter` again; what an InstantStyle pipeline has loaded outlives that."
            )
    for parameter in projection.parameters():
        if parameter.dtype.itemsize == 1:
            raise ValueError(
                f"The IP-Adapter on this UNet was cast to {parameter.dtype}, in which its projection cannot run. "
                "Call `load_ip_adapter` again; what an InstantStyle pipeline has loaded is not cast."
            )


@contextmanager
def naming_strangers(unet: Any) -> Iterator[None]:
    """Name a processor of the user's that fails on what an adapter has it given: text and image tokens, as a tuple."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        strangers = [layer for layer in text_layers(unet) if layer not in ip_processors(unet)]
        if not strangers:
            raise
        kind = type(attention(unet, strangers[0]).processor).__name__
        raise RuntimeError(
            f"The attention processor {kind} at {strangers[0]!r} failed. While an IP-Adapter is loaded it is given "
            "text and image tokens, as a tuple. Set one that takes both, or call `unload_ip_adapter` first."
        ) from error


# --- The adapter on a UNet: built, attached, detached, and its weights fetched ---------------------------------------


@dataclass
class AdapterState:
    """What is loaded on a UNet. It is kept on the UNet, so that all pipelines that share it agree."""

    projection: Any
    files: Sequence[AdapterFile | None]  # None: put there by another loader, which kept all weights
    targets: list[dict[str, Scale]]  # per adapter: layer -> weight
    scales: list[Scale]  # per adapter: what all its weights are multiplied by
    # Per adapter the targets that `load_ip_adapter` or `set_target_blocks` chose: a dict of scales replaces those in
    # force, and a number brings these back.
    chosen: list[dict[str, Scale]] = field(default_factory=list)
    processors: dict[str, Any] = field(default_factory=dict)  # its own; a service of the host may put others there
    plain: dict[str, Any] = field(default_factory=dict)  # the processors that it replaced
    hid_proj: tuple[nn.Module | None, str | None] = (None, None)
    uncast: Any = None  # what the user has layerwise casting leave alone on this UNet
    brought: dict[str, weakref.ref] = field(default_factory=dict)  # the components that came with it
    # Embeddings for a number of prompts, where a call brings none: row numbers, with styles.
    standing: Callable[[int], list[torch.Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process has components of its own.
        return {**self.__dict__, "brought": {}}


def adapter_state(unet: Any) -> AdapterState | None:
    """The record of what is loaded on a UNet, or None. An adapter that another loader put there is "all".

    Where a service of the host put other processors in the place of the adapter's, these are back afterwards.
    """
    projection = unet.encoder_hid_proj
    if not hasattr(projection, "image_projection_layers"):
        return None
    state = unet.__dict__.get("_instantstyle")
    if state is not None and state.projection is projection:
        if is_displaced(unet):
            attach(unet, state, detach(unet, state))
        return state
    processors = ip_processors(unet)
    text_proj = getattr(unet, "text_encoder_hid_proj", None)
    count = len(projection.image_projection_layers)
    scales = [[processor.scale[i] for processor in processors.values()] for i in range(count)]
    targets: list[dict[str, Scale]] = [dict.fromkeys(processors, 1.0) for _ in range(count)]
    return AdapterState(
        projection=projection,
        files=[None] * count,
        targets=targets,
        chosen=targets,
        scales=[inside[0] if inside and all(scale == inside[0] for scale in inside) else 1.0 for inside in scales],
        processors=processors,
        plain={layer: plain_processor(processor) for layer, processor in processors.items()},
        hid_proj=(text_proj, None if text_proj is None else "text_proj"),
    )


def build_adapter(unet: Any, files: Sequence[AdapterFile]) -> tuple[nn.Module, dict[str, Any]]:
    """The image projections and the muted processors of these checkpoints, for `attach`.

    Raises:
        ValueError: a checkpoint does not fit this UNet.
    """
    layers, tokens, projections = text_layers(unet), [], []
    for file in files:
        _check_fit(unet, file)
        image_proj = file.read_part("image_proj")
        tokens.append(_token_count(image_proj))
        projections.append(_build_projection(unet, file, image_proj))
    processors = {}
    for layer in layers:
        attn = attention(unet, layer)
        processors[layer] = processor = make_processor(attn, tokens, attn.processor)
        processor.to_k_ip = nn.ModuleList(MutedProjection(layer) for _ in files)
        processor.to_v_ip = nn.ModuleList(MutedProjection(layer) for _ in files)
    return MultiIPAdapterImageProjection(projections), processors


def _build_projection(unet: Any, file: AdapterFile, image_proj: Mapping[str, torch.Tensor]) -> nn.Module:
    copied = {key: tensor.clone() for key, tensor in image_proj.items()}  # a copy does not keep the file mapped
    try:
        projection = image_projection(unet, copied)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{file.name} holds an image projection of an unknown form: {error}") from error
    missing = [name for name, parameter in projection.named_parameters() if parameter.is_meta]
    if missing:
        raise ValueError(f"{file.name} holds an image projection that lacks {missing[0]!r}.")
    return projection


def _projection_keys(unet: Any) -> dict[str, tuple[str, str]]:
    layers = {layer: f"ip_adapter.{2 * i + 1}" for i, layer in enumerate(text_layers(unet))}
    return {layer: (f"{key}.to_k_ip.weight", f"{key}.to_v_ip.weight") for layer, key in layers.items()}


def _token_count(image_proj: Mapping[str, torch.Tensor]) -> int:
    if "latents" in image_proj:
        return image_proj["latents"].shape[1]
    return 257 if "proj.3.weight" in image_proj else 4


def _check_fit(unet: Any, file: AdapterFile) -> None:
    keys = _projection_keys(unet)
    expected: dict[str, tuple[int, ...]] = {}
    for layer, pair in keys.items():
        attn = attention(unet, layer)
        expected |= dict.fromkeys(pair, (attn.inner_kv_dim, attn.cross_attention_dim))
    norms = [key for key in ("image_proj.norm.weight", "image_proj.norm_out.weight") if key in file.shapes]
    expected |= dict.fromkeys(norms, (attention(unet, next(iter(keys))).cross_attention_dim,))
    for key, shape in expected.items():
        if file.shapes.get(key) != shape:
            count = sum(name.endswith(".to_k_ip.weight") for name in file.shapes)
            raise ValueError(
                f"{file.name} does not fit this UNet: {key!r} should have the shape {shape}, but "
                f"{f'has {file.shapes[key]}' if key in file.shapes else 'is missing'}. It has {count} cross-attention "
                f"layers, the UNet {len(keys)}. Load an IP-Adapter made for this model family."
            )


def attach(unet: Any, state: AdapterState, processors: Mapping[str, Any]) -> None:
    """Put an adapter on a UNet without one, in the UNet's attention backend and dtype."""
    attentions = {layer: attention(unet, layer) for layer in processors}
    state.processors = dict(processors)
    state.plain = {layer: attn.processor for layer, attn in attentions.items()}
    state.hid_proj = (unet.encoder_hid_proj, getattr(unet.config, "encoder_hid_dim_type", None))
    dtype = unet.dtype  # it walks all modules
    for layer, processor in processors.items():
        if is_xformers(processor) != is_xformers(state.plain[layer]):  # switched on or off meanwhile
            old, processor = processor, make_processor(attentions[layer], processor.num_tokens, state.plain[layer])
            processor.scale, processor.to_k_ip, processor.to_v_ip = old.scale, old.to_k_ip, old.to_v_ip
            state.processors[layer] = processor
        _place(attentions[layer], processor.to(dtype=dtype))
    for module in state.projection.modules():  # services reach its attentions too, and fused projections fail there
        if hasattr(module, "set_processor"):
            module.set_processor(AttnProcessor2_0())
    if state.hid_proj[1] == "text_proj":  # Kolors' text projection, which the host looks for here
        unet.text_encoder_hid_proj = unet.encoder_hid_proj
    unet.encoder_hid_proj = state.projection.to(dtype=dtype)
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    unet._instantstyle = state
    state.uncast = keep_from_casting(unet, UNCAST)
    mend_unfusing(unet, state)


def _place(attn: Any, processor: Any) -> None:
    device = next(attn.parameters()).device
    if device.type != "meta":  # sequential offloading has the weights
        processor.to(device)  # where the UNet went while a service had taken this off it
    attn.set_processor(processor)


def detach(unet: Any, state: AdapterState) -> dict[str, Any]:
    """Take an adapter off a UNet, exactly. Gives its processors, for `attach`."""
    for layer in state.processors.keys() & ip_processors(unet):  # what a service put there stays
        attention(unet, layer).set_processor(state.plain[layer])
    unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = state.hid_proj
    if hasattr(unet, "text_encoder_hid_proj"):
        del unet.text_encoder_hid_proj
    unet.__dict__.pop("_instantstyle", None)
    leave_to_casting(unet, state.uncast)
    mend_unfusing(unet, state)
    return state.processors


@contextmanager
def detached(unet: Any) -> Iterator[tuple[AdapterState, dict[str, Any]] | None]:
    """The UNet without its adapter, for the length of the `with`."""
    state = adapter_state(unet)
    if state is None:
        yield None
        return
    processors = detach(unet, state)
    try:
        yield state, processors
    finally:
        attach(unet, state, processors)


@contextmanager
def attached(unet: Any, state: AdapterState, processors: Mapping[str, Any]) -> Iterator[None]:
    """The UNet with an adapter in place of the one that it has, for the length of the `with`."""
    with ExitStack() as stack:
        if "_instantstyle" not in vars(unet):  # the record, which a stock pipeline's UNet does not have
            stack.callback(vars(unet).pop, "_instantstyle", None)
        stack.enter_context(detached(unet))
        stack.callback(detach, unet, state)
        attach(unet, state, processors)
        yield


def style_adapter(
    unet: Any, style: Any, scale: Any, device: torch.device, name: str = "style_scale"
) -> tuple[AdapterState, dict[str, Any]]:
    """What stands in for an adapter where a call has a `style`, for `attached`. Nothing is changed.

    Styles are not known here: each brings the code for this, as a method `build_adapter` of the same arguments.

    Args:
        unet: the UNet.
        style: a style, a tuple of them, or a list with one of these for each prompt.
        scale: a number for all, or numbers nested as `style`.
        device: where it is to run.
        name: the argument that gave the scale, for errors.

    Raises:
        ValueError, TypeError: it is no style, or does not fit the UNet.
        RuntimeError: a style is applied to the UNet already.
    """
    before = adapter_state(unet)
    if before is not None and before.standing is not None:
        raise RuntimeError("A style is applied to this UNet already. Leave its `with` first; a tuple combines styles.")
    styles = flatten(style)
    if not styles:
        raise ValueError("`style` is empty. Pass a Style, a tuple of them, or a list of these.")
    build = next((one.build_adapter for one in styles if hasattr(one, "build_adapter")), None)
    if build is None:
        raise TypeError(
            "`style` must be a Style, a tuple of them, or a list with one of these for each prompt, but is "
            f"{style!r:.80}. `Style.load(path)` reads one."
        )
    return build(unet, style, scale, device, name)


def fetch(
    unet: Any, state: AdapterState, targets: Sequence[Mapping[str, Scale]], processors: Mapping[str, Any]
) -> dict[tuple[str, int], Any]:
    """Read the projections that targets need and processors lack: (layer, adapter) -> (key, value), on the CPU.

    Raises:
        ValueError: the checkpoint is not there any more, or holds values that are not finite.
    """
    fetched, keys, dtype = {}, _projection_keys(unet), unet.dtype
    for i, (file, wanted) in enumerate(zip(state.files, targets, strict=True)):
        missing = [layer for layer in wanted if layer in processors and is_muted(processors[layer].to_k_ip[i])]
        if not missing or file is None:
            continue
        if not file.available():
            raise ValueError(
                f"`target_blocks` needs weights for {missing[0]!r}, which were not kept, and {file.name} is gone or "
                "has changed. Call `load_ip_adapter` again with all wanted blocks in `target_blocks`."
            )
        tensors = file.read([key for layer in missing for key in keys[layer]])
        for layer in missing:
            fetched[layer, i] = [_linear(tensors.pop(key), dtype) for key in keys[layer]]
    return fetched


def _linear(weight: torch.Tensor, dtype: torch.dtype) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.to(dtype, copy=True))  # a copy does not keep the file mapped
    return linear


def scales_at(layer: str, state: AdapterState, targets: Sequence[Mapping[str, Scale]]) -> list[Scale]:
    """What each adapter's image tokens are multiplied by in a layer, with these targets."""
    both = zip(targets, state.scales, strict=True)
    return [times(target[layer], scale) if layer in target else 0.0 for target, scale in both]


def apply_targets(
    unet: Any, state: AdapterState, fetched: Mapping[tuple[str, int], Any], targets: Sequence[Mapping[str, Scale]]
) -> None:
    """Put the scales of these targets, and the projections fetched for them, on the UNet."""
    processors = ip_processors(unet)
    for (layer, i), pair in fetched.items():
        device = next(attention(unet, layer).parameters()).device
        processors[layer].to_k_ip[i], processors[layer].to_v_ip[i] = (linear.to(device) for linear in pair)
    for layer, processor in processors.items():
        processor.scale = scales_at(layer, state, targets)


def drop_muted(unet: Any, state: AdapterState) -> None:
    """Let go of the weights of blocks that are neither targets nor chosen. Another loader's stay: they are its own."""
    for layer, processor in ip_processors(unet).items():
        for i, file in enumerate(state.files):
            if file is not None and layer not in state.targets[i] and layer not in state.chosen[i]:
                processor.to_k_ip[i] = processor.to_v_ip[i] = MutedProjection(layer)


def resolve_each(
    target_blocks: TargetBlocks | Sequence[TargetBlocks], unet: Any, state: AdapterState | None
) -> list[dict[str, Scale]]:
    """Target blocks for each loaded adapter; with several a list has one entry each. What its file carries wins."""
    if state is None:
        raise ValueError("`target_blocks` needs an IP-Adapter. Call `load_ip_adapter` first.")
    if target_blocks == ["block"]:  # the first implementation's word for all
        target_blocks = "all"
    count = len(state.files)
    several = count > 1 and isinstance(target_blocks, (list, tuple))
    each: list[Any] = list(target_blocks) if several else [target_blocks] * count
    if len(each) != count:
        raise ValueError(
            f"`target_blocks` has {len(each)} entries for {count} IP-Adapters. Pass one, or one for each."
        )
    layers, family = text_layers(unet), presets(unet)
    carried = [file.presets if file else {} for file in state.files]
    return [resolve_target_blocks(blocks, layers, family | own) for blocks, own in zip(each, carried, strict=True)]


def placeholders(state: AdapterState) -> list[torch.Tensor]:
    """Embeddings for a call without a reference, which the host insists on once an adapter is loaded."""
    layers = state.projection.image_projection_layers
    shapes = [(1, 1) if isinstance(layer, ImageProjection) else (1, 1, 1) for layer in layers]
    linears = [first_linear(layer) for layer in layers]
    return [torch.zeros(*s, li.in_features, dtype=li.weight.dtype) for s, li in zip(shapes, linears, strict=True)]


def loaded(pipe: Any) -> AdapterState | None:
    """What `adapter_state` gives for a pipeline's UNet, offloaded as the rest of it is."""
    displaced = is_displaced(bare_unet(pipe))
    state = adapter_state(bare_unet(pipe))
    with offloading_suspended(pipe, displaced):  # hooks that were put on meanwhile have missed what was displaced
        return state


def adapter_to_change(pipe: Any) -> AdapterState | None:
    """The record of what is loaded on a pipeline's UNet. Raises RuntimeError where a style is applied to it."""
    state = loaded(pipe)
    if state is not None and state.standing is not None:
        raise RuntimeError("A style is applied to this UNet. Leave its `with` before you turn to the adapter.")
    return state


def component(pipe: Any, name: str) -> Any:
    """A component of a pipeline, or None."""
    # `DiffusionPipeline.from_pipe(..., custom_pipeline=...)` hands over a missing component as (None, None).
    found = getattr(pipe, name)
    return None if isinstance(found, (tuple, list)) else found


# --- What to remove: content as CLIP text embeddings, and their subtraction ------------------------------------------


def remove_content(image_embeds: torch.Tensor, content_embeds: torch.Tensor, scale: float | str = 1.0) -> torch.Tensor:
    """Subtract content from CLIP image embeddings: `e - scale * t`, as a new tensor.

    Source: arXiv 2404.02733, "Separating Content from Image".

    Args:
        image_embeds: `e`, shape `(..., d)`, any dtype. The result has its shape and dtype.
        content_embeds: `t`, the projected, un-normalised CLIP text embedding, broadcastable to `(..., d)`.
        scale: the strength, or "auto": `max(0, <e, t> / <t, t>)` for each embedding, the orthogonal projection; it is
            computed in float32, and zero where `t` is zero.
    """
    e, t = image_embeds.float(), content_embeds.to(image_embeds.device, torch.float32)  # (..., d)
    strength: Any = scale
    if scale == "auto":
        norm = (t * t).sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)  # (..., 1)
        strength = ((e * t).sum(-1, keepdim=True) / norm).clamp_min(0)
    return (e - strength * t).to(image_embeds.dtype)


@dataclass
class ContentEncoder:
    """The text tower of the CLIP that an adapter's image encoder belongs to."""

    text_encoder: CLIPTextModelWithProjection
    tokenizer: Any
    placed: bool = False  # by the pipeline whose component it is; otherwise on the device only while it encodes

    @property
    def width(self) -> int:
        """Length of its embeddings."""
        return self.text_encoder.config.projection_dim

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids of shape `(len(texts), model_max_length)`. Raises ValueError for a text that does not fit."""
        limit = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        for text in texts:
            length = len(self.tokenizer(text).input_ids)
            if length > limit:
                raise ValueError(f"`neg_content_prompt` has {length} tokens, its text tower takes {limit}: {text!r}.")
        return self.tokenizer(list(texts), padding="max_length", max_length=limit, return_tensors="pt").input_ids

    @torch.no_grad()
    def encode(self, texts: Sequence[str], device: torch.device) -> torch.Tensor:
        """Projected, un-normalised text embeddings of shape `(len(texts), width)`, with LoRAs off."""
        ids, home = self.tokenize(texts), self.text_encoder.device
        if not self.placed:
            self.text_encoder.to(device)
        try:
            with _loras_off(self.text_encoder):
                embeds = self.text_encoder(ids.to(device)).text_embeds
        finally:
            if not self.placed:
                self.text_encoder.to(home)
        if not torch.isfinite(embeds).all():
            raise ValueError(f"`neg_content_prompt` has embeddings that are not finite in {embeds.dtype}.")
        return embeds


@contextmanager
def _loras_off(model: nn.Module) -> Iterator[None]:
    # A fused LoRA is part of the weights; switching it off would unfuse it for good.
    modules: Any = model.modules()
    layers = [m for m in modules if getattr(m, "_disable_adapters", None) is False and not m.merged]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def read_content_encoder(
    source: Any, subfolder: str, tokenizer_subfolder: str | None, dtype: torch.dtype, **kwargs: Any
) -> ContentEncoder:
    """Load a text tower. Arguments and errors are those of `InstantStyleMixin.load_content_encoder`."""
    missing = set()
    if isinstance(source, (tuple, list)) and len(source) == 2:
        encoder, tokenizer = source
    elif isinstance(source, (str, Path)):
        place = subfolder if tokenizer_subfolder is None else tokenizer_subfolder
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, subfolder=place, **hub_arguments(kwargs))
        except HFValidationError as error:  # before 4.56 transformers lets it through
            raise FileNotFoundError(f"`source` {str(source)!r} is no folder and no repository's name.") from error
        kwargs = {TOWER_DTYPE: dtype} | kwargs | {"output_loading_info": True}
        with torch.random.fork_rng(devices=[]):  # what the file lacks would be drawn
            encoder, info = CLIPTextModelWithProjection.from_pretrained(source, subfolder=subfolder, **kwargs)
        missing = set(info["missing_keys"])
    else:
        raise TypeError(f"`source` must be a repository, a folder or (text_encoder, tokenizer), but is {source!r}.")
    if not hasattr(encoder, "text_projection") or missing:
        came = f"lacks {min(missing)!r}" if missing else f"holds a {type(encoder).__name__}"
        raise TypeError(f"`source` must hold a CLIPTextModelWithProjection, but {came}.")
    return ContentEncoder(encoder.eval(), tokenizer)


def content_encoder(pipe: Any, width: int) -> ContentEncoder:
    """The text tower that encodes content for image embeddings of this width. Raises ValueError without one."""
    encoder = bare_unet(pipe).__dict__.get("_instantstyle_content")
    own = getattr(pipe, "text_encoder_2", None)
    if encoder is None and hasattr(own, "text_projection"):
        encoder = ContentEncoder(own, pipe.tokenizer_2, placed=True)
    if encoder is None or encoder.width != width:
        at_hand = "there is none" if encoder is None else f"the one at hand gives {encoder.width}"
        raise ValueError(
            f"`neg_content_prompt` needs the text tower of the adapter's CLIP, with embeddings of width {width}, "
            f"but {at_hand}. Call `load_content_encoder`; for ViT-H with 'laion/CLIP-ViT-H-14-laion2B-s32B-b79K'."
        )
    return encoder


def check_content(pipe: Any, contents: Sequence[Sequence[Any]], layers: Sequence[Any], name: str) -> None:
    """Raise ValueError or TypeError for content that cannot be removed from what these projections take.

    Args:
        pipe: the pipeline.
        contents: for each adapter the content of each reference: a text, an embedding or None.
        layers: the adapters' image projections.
        name: the argument that gave it.
    """
    prompted = name == "neg_content_prompt"
    for layer, leaves in zip(layers, contents, strict=True):
        given = [leaf for leaf in leaves if leaf is not None]
        if given and not isinstance(layer, ImageProjection):
            raise ValueError(
                f"`{name}` can be removed from one global embedding per picture, not from the patch or face "
                f"embeddings of {type(layer).__name__}. Pass None for this adapter."
            )
        for leaf in given:
            _check_leaf(leaf, name, prompted, layer.image_embeds.in_features)
        if given and prompted:
            content_encoder(pipe, layer.image_embeds.in_features).tokenize(given)


def encode_content(
    pipe: Any, contents: Sequence[Sequence[Any]] | None, device: torch.device
) -> list[torch.Tensor | None]:
    """For each adapter the content of its references, shape `(references, d)`, or None where there is none."""
    layers = bare_unet(pipe).encoder_hid_proj.image_projection_layers
    if contents is None:
        return [None] * len(layers)
    encoded: list[torch.Tensor | None] = []
    for layer, leaves in zip(layers, contents, strict=True):
        if all(leaf is None for leaf in leaves):
            encoded.append(None)
            continue
        width = layer.image_embeds.in_features
        vectors: dict[Any, torch.Tensor] = {None: torch.zeros(width)}
        texts = list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, str)))
        if texts:
            vectors |= zip(texts, content_encoder(pipe, width).encode(texts, device), strict=True)
        rows = [leaf if isinstance(leaf, torch.Tensor) else vectors[leaf] for leaf in leaves]
        encoded.append(torch.stack([row.to(device, torch.float32).reshape(width) for row in rows]))
    return encoded


def _check_leaf(leaf: Any, name: str, prompted: bool, width: int) -> None:
    expected: Any = str if prompted else torch.Tensor
    if not isinstance(leaf, expected):
        raise TypeError(f"`{name}` must hold {expected.__name__}s, but holds {leaf!r}.")
    if prompted and not leaf.strip():
        raise ValueError(f"`{name}` holds an empty string. Pass None to remove nothing.")
    if not prompted and tuple(leaf.shape) not in ((width,), (1, width)):
        raise ValueError(f"`{name}` must have the shape ({width},) or (1, {width}), but has {tuple(leaf.shape)}.")
    if not prompted and not (torch.isfinite(leaf).all() and leaf.any()):
        raise ValueError(f"`{name}` is zero or not finite. Pass None to remove nothing.")


# --- IP-Adapters, loaded: checkpoints, image encoder and LoRAs, all checked before anything changes ------------------


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


# --- Targets in force: chosen, scaled as the host does, or those of one call -----------------------------------------


def read_scales(unet: Any, state: AdapterState, scale: Any) -> tuple[list[dict[str, Scale]], list[Any]]:
    """What `set_ip_adapter_scale` is told, as targets and scales: a number is about those that were chosen."""
    configs = scale if isinstance(scale, list) else [scale] * len(state.targets)
    targets, scales = list(state.chosen), list(configs)
    for i, config in enumerate(configs[: len(targets)]):
        if isinstance(config, Mapping):
            targets[i] = resolve_target_blocks(expand_scales(unet, config), text_layers(unet), {})
            scales[i] = 1.0
    return targets, scales


def in_force(unet: Any, state: AdapterState) -> list[dict[str, Scale]]:
    """For each adapter the blocks that see the reference, as name -> scale."""
    blocks, processors = attention_blocks(unet), ip_processors(unet)
    scales = [{layer: p.scale[i] for layer, p in processors.items()} for i in range(len(state.targets))]
    return [by_block(blocks, one) for one in scales]


def retarget(
    pipe: Any,
    state: Any,
    targets: list[dict[str, Scale]],
    scales: list[Any],
    chosen: list[dict[str, Scale]],
) -> None:
    """Put targets with these scales in force.

    Raises:
        ValueError, TypeError: a wrong scale, or weights that cannot be read again. Nothing is changed then.
    """
    if len(scales) != len(targets):
        raise ValueError(
            f"`scale` has {len(scales)} entries for {len(targets)} IP-Adapters. Pass one number, or one each."
        )
    for weights, scale in zip(targets, scales, strict=True):
        check_scale(scale, "`scale`")
        for weight in weights.values():
            times(weight, scale)  # raises before anything changes
    unet = bare_unet(pipe)
    fetched = fetch(unet, state, targets, ip_processors(unet))
    with offloading_suspended(pipe, bool(fetched) or list(map(set, targets)) != list(map(set, state.targets))):
        state.targets, state.scales, state.chosen = targets, scales, chosen
        apply_targets(unet, state, fetched, targets)
        drop_muted(unet, state)
        unet._instantstyle = state


@contextmanager
def targets_for_call(pipe: Any, state: AdapterState, targets: Sequence[Mapping[str, Scale]]) -> Iterator[None]:
    """Put targets in force for the length of the `with`."""
    unet = bare_unet(pipe)
    processors = ip_processors(unet)
    fetched = fetch(unet, state, targets, processors)
    before = {layer: (p.scale, list(p.to_k_ip), list(p.to_v_ip)) for layer, p in processors.items()}
    try:
        with offloading_suspended(pipe, bool(fetched)):
            apply_targets(unet, state, fetched, targets)
        yield
    finally:
        with offloading_suspended(pipe, bool(fetched)):
            for layer, (scale, _, _) in before.items():
                processors[layer].scale = scale
            for layer, i in fetched:
                _, keys, values = before[layer]
                processors[layer].to_k_ip[i], processors[layer].to_v_ip[i] = keys[i], values[i]


# --- One call, read and checked --------------------------------------------------------------------------------------


Images: TypeAlias = PipelineImageInput | list[Any]  # for each adapter a picture, or a list of them


@dataclass
class Call:
    """What one call asked for; on the pipeline while it runs."""

    prompts: int
    pictures: list[Images] | None  # per adapter, nested; None with embeddings, whose shapes tell the nesting
    embeds: list[torch.Tensor] | None  # per adapter (rows, pictures, d) or (rows, pictures, patches, d)
    per_prompt: bool
    content: Content | torch.Tensor
    content_name: str
    content_scale: float | str
    fit: str
    rows: list[torch.Tensor] = field(default_factory=list)  # per adapter, as the host gets them

    @property
    def referenced(self) -> bool:
        return self.pictures is not None or self.embeds is not None

    def picture_count(self, adapter: int) -> int:
        """Pictures per prompt."""
        if self.pictures is None:
            return self.embeds[adapter].shape[1] if self.embeds else 0
        return len(flatten(tree(self.pictures[adapter]))) // (self.prompts if self.per_prompt else 1)

    def contents(self, guided: bool = False) -> list[list[Any]]:
        """The content of each reference in order, for each adapter."""
        if self.pictures is None:
            shapes = [(max(1, len(embed) // (1 + guided)), embed.shape[1]) for embed in self.embeds or []]
            trees = [fold(rows, fold(pictures, None)) for rows, pictures in shapes]
        else:
            trees = [tree(pictures) for pictures in self.pictures]
        leaves = iter(spread(self.content, trees, self.content_name))
        return [[next(leaves) for _ in flatten(tree)] for tree in trees]


def plan_call(
    pipe: Any,
    arguments: Mapping[str, Any],
    state: AdapterState | None,
    target_blocks: TargetBlocks | Sequence[TargetBlocks] | None,
    neg_content_scale: float | str,
    **ours: Any,
) -> tuple[Call, list[dict[str, Scale]] | None]:
    """What a call asks for, checked, and its targets where they are not those in force. Nothing is changed."""
    standing = None if state is None else state.standing
    if standing is not None:
        given = {**arguments, **ours, "target_blocks": target_blocks, "neg_content_scale": neg_content_scale}
        defaults = {"neg_content_scale": 1.0, "reference_fit": "crop"}
        _refuse_beside_style({n: value for n, value in given.items() if n not in defaults or value != defaults[n]})
    call = read_call(pipe, arguments, state, neg_content_scale=neg_content_scale, **ours)
    targets = None if target_blocks is None else resolve_each(target_blocks, bare_unet(pipe), state)
    if standing is not None:
        call.embeds = standing(call.prompts)
    masks = (arguments.get("cross_attention_kwargs") or {}).get("ip_adapter_masks")
    _check_masks(masks, call, state, targets or (state.targets if state else []))
    if state is not None and not call.referenced:
        targets = [{} for _ in state.targets]
    return call, targets


def read_call(
    pipe: Any,
    arguments: Mapping[str, Any],
    state: AdapterState | None,
    neg_content_prompt: Content = None,
    neg_content_embeds: torch.Tensor | Sequence[Any] | None = None,
    neg_content_scale: float | str = 1.0,
    ip_adapter_image_per_prompt: bool = False,
    reference_fit: str = "crop",
) -> Call:
    """What a call asks for, checked, by the host's arguments and ours. Nothing is changed."""
    if neg_content_prompt is not None and neg_content_embeds is not None:
        raise ValueError("Provide either `neg_content_prompt` or `neg_content_embeds`, not both.")
    call = Call(
        prompts=_prompt_count(arguments),
        pictures=_read_pictures(arguments, state, ip_adapter_image_per_prompt),
        embeds=_read_embeds(arguments, state),
        per_prompt=ip_adapter_image_per_prompt,
        content=neg_content_embeds if neg_content_prompt is None else neg_content_prompt,
        content_name="neg_content_embeds" if neg_content_prompt is None else "neg_content_prompt",
        content_scale=neg_content_scale,
        fit=reference_fit,
    )
    check_fit(call.fit, call.pictures, "ip_adapter_image")
    if call.pictures is not None and component(pipe, "image_encoder") is None:
        raise ValueError(
            "`ip_adapter_image` needs an image encoder, but the pipeline has none. Give it one, or pass its "
            "embeddings."
        )
    _check_removal(pipe, call, state)
    if state is not None:
        check_whole(bare_unet(pipe), state.projection)
    return call


def _check_removal(pipe: Any, call: Call, state: AdapterState | None) -> None:
    if call.content_scale != "auto":
        check_number(call.content_scale, "`neg_content_scale`", 'a number or "auto"')
    if call.content is None:
        return
    if state is None or not call.referenced:
        raise ValueError(
            f"`{call.content_name}` is removed from a reference, but there is none. Pass `ip_adapter_image` too."
        )
    try:
        contents = call.contents()
    except ValueError:  # under guidance, of which the host has yet to tell, half of the rows are unconditional
        contents = call.contents(guided=True)
    check_content(pipe, contents, state.projection.image_projection_layers, call.content_name)


def bind(function: Callable, args: Sequence[Any], kwargs: Mapping[str, Any], ours: Sequence[str]) -> dict[str, Any]:
    """The arguments of a call by name. Raises TypeError for one that looks like a misspelt one of `ours`."""
    signature = inspect.signature(function)
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = arguments.pop(name, {})
            refuse_misspelt(extra, ours)
            arguments |= extra
    return arguments


def refuse_misspelt(given: Iterable[str], ours: Sequence[str]) -> None:
    # The host takes any keyword, and lets those vanish that it does not know.
    for name in given:
        if near := difflib.get_close_matches(name, ours, n=1, cutoff=0.75):
            raise TypeError(f"`{name}` is not an argument. Did you mean `{near[0]}`?")


def _prompt_count(arguments: Mapping[str, Any]) -> int:
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    if isinstance(prompt, list):
        return len(prompt)
    return len(embeds) if prompt is None and isinstance(embeds, torch.Tensor) else 1


def _read_pictures(arguments: Mapping[str, Any], state: AdapterState | None, per_prompt: bool) -> list[Any] | None:
    """The references, upright, as adapter -> (prompt ->) picture or pictures."""
    pictures = arguments.get("ip_adapter_image")
    if pictures is None and per_prompt:
        raise ValueError("`ip_adapter_image_per_prompt` is about `ip_adapter_image`, which is missing.")
    if pictures is None:
        return None
    if state is None:
        raise ValueError("`ip_adapter_image` needs an IP-Adapter. Call `load_ip_adapter` first.")
    pictures = as_list(pictures)
    if len(pictures) != len(state.targets):
        raise ValueError(
            f"`ip_adapter_image` must have one entry per IP-Adapter, but has {len(pictures)} for "
            f"{len(state.targets)}. Several pictures for one adapter are a list of their own: [[a, b]]."
        )
    pictures = [upright(entry, depth=2 if per_prompt else 1) for entry in pictures]
    prompts = _prompt_count(arguments)
    for i, entry in enumerate(pictures if per_prompt else []):
        counts = [len(flatten(tree(one))) for one in entry] if isinstance(entry, list) else []
        if len(counts) != prompts or len(set(counts)) > 1:
            raise ValueError(
                "`ip_adapter_image_per_prompt` reads `ip_adapter_image` as adapter -> prompt -> picture or pictures, "
                f"as many for each of the {prompts} prompts, but adapter {i} has {nesting(entry)}. For two prompts: "
                "[[a, b]]."
            )
    return pictures


def upright(picture: Any, depth: int) -> Any:
    if isinstance(picture, (list, tuple)) and picture and depth:
        return [upright(one, depth - 1) for one in picture]
    if not is_valid_image(picture) and getattr(picture, "ndim", 0) != 4:
        came = nesting(picture) if isinstance(picture, (list, tuple)) else repr(picture)[:80]
        expected = "pictures (PIL images, arrays or tensors), in a list for each adapter that has several"
        raise ValueError(f"`ip_adapter_image` must hold {expected}, but holds {came}.")
    return load_image(picture, convert_method=_eight_bits) if hasattr(picture, "getexif") else picture


def _eight_bits(picture: Any) -> Any:
    # CLIP's image processor would clip 16 bits to white.
    if not picture.mode.startswith("I;16"):
        return picture
    return picture.convert("I").point(lambda value: value / 256).convert("L")


def host_pictures(pipe: Any, call: Call) -> tuple[list[Any], list[list[int]]]:
    """The references of a call as the host takes them, and for each adapter how many squares each of them became."""
    if call.fit == "crop":
        return [_host_form(pictures, call.per_prompt) for pictures in call.pictures or []], []
    towers = pipe.image_encoder, pipe.feature_extractor
    tiled = [[squares(one, call.fit, *towers) for one in flatten(pictures)] for pictures in call.pictures or []]
    return [flatten(adapter) for adapter in tiled], [list(map(len, adapter)) for adapter in tiled]


def _host_form(pictures: Any, per_prompt: bool) -> Any:
    flat = flatten(pictures) if per_prompt else pictures
    tensors = per_prompt and all(isinstance(one, torch.Tensor) and one.ndim == 4 for one in flat)
    return torch.cat(flat) if tensors else flat


def _read_embeds(arguments: Mapping[str, Any], state: AdapterState | None) -> list[torch.Tensor] | None:
    embeds = arguments.get("ip_adapter_image_embeds")
    if embeds is None:
        return None
    if arguments.get("ip_adapter_image") is not None:
        raise ValueError("Provide either `ip_adapter_image` or `ip_adapter_image_embeds`, not both.")
    if state is None:
        raise ValueError("`ip_adapter_image_embeds` needs an IP-Adapter. Call `load_ip_adapter` first.")
    layers = state.projection.image_projection_layers
    if not isinstance(embeds, list) or len(embeds) != len(layers):
        came = f"a list of {len(embeds)}" if isinstance(embeds, list) else f"a {type(embeds).__name__}"
        raise ValueError(
            f"`ip_adapter_image_embeds` must be a list of {len(layers)} tensors, one per IP-Adapter, not {came}."
        )
    for embed, layer in zip(embeds, layers, strict=True):
        width = first_linear(layer).in_features
        shape = tuple(embed.shape) if isinstance(embed, torch.Tensor) else (type(embed).__name__,)
        if len(shape) not in (3, 4) or shape[-1] != width:
            raise ValueError(f"`ip_adapter_image_embeds` must be of shape (rows, pictures, {width}), but is {shape}.")
        if not torch.isfinite(embed).all():
            raise ValueError("`ip_adapter_image_embeds` holds values that are not finite.")
    return embeds


def fit_rows(embeds: Sequence[torch.Tensor], prompts: int, guided: bool) -> list[torch.Tensor]:
    """The embeddings with one row or one per prompt, doubled under guidance."""
    doubled, single = {2, 2 * prompts}, {1, prompts}
    fitted = []
    for embed in embeds:
        if not guided and len(embed) in doubled - single:  # made for guidance; the unconditional half has no use now
            embed = embed.chunk(2)[1]
        if len(embed) not in (doubled if guided else single):
            raise ValueError(
                f"`ip_adapter_image_embeds` must have one row, or one for each of the {prompts} prompts"
                f"{', and as many unconditional ones before' if guided else ''}, but has {len(embed)}."
            )
        fitted.append(embed)
    return fitted


def _check_masks(masks: Any, call: Call, state: AdapterState | None, targets: Sequence[Mapping[str, Scale]]) -> None:
    if masks is not None and not call.referenced:
        raise ValueError("`ip_adapter_masks` say where references go, but there is none. Pass `ip_adapter_image` too.")
    if state is None or not call.referenced:
        return
    if isinstance(masks, torch.Tensor):
        masks = list(masks.unsqueeze(1))  # the host's older form
    if masks is not None and not isinstance(masks, list):
        raise TypeError(
            f"`ip_adapter_masks` must be a list of tensors, one per IP-Adapter, not a {type(masks).__name__}."
        )
    count = len(state.targets)
    if masks is not None and len(masks) != count:
        raise ValueError(f"`ip_adapter_masks` must have one entry per IP-Adapter, but has {len(masks)} for {count}.")
    for i, mask in enumerate(masks or [None] * count):
        pictures = call.picture_count(i)
        shape = tuple(getattr(mask, "shape", ()))
        if mask is not None and (len(shape) != 4 or shape[1] != pictures):
            raise ValueError(
                f"`ip_adapter_masks` must be of shape (1, {pictures}, height, width), but is {shape or mask}."
            )
        for scale in (times(weight, state.scales[i]) for weight in targets[i].values()):
            if isinstance(scale, list) and (mask is None or len(scale) != pictures):
                raise ValueError(
                    f"The scale of IP-Adapter {i} is a list of {len(scale)}, one per masked picture, but there are "
                    f"{pictures} pictures {'without' if mask is None else 'with'} `ip_adapter_masks`."
                )


def make_rows(
    call: Call, embeds: torch.Tensor, content: torch.Tensor | None, images_per_prompt: int, guided: bool
) -> torch.Tensor:
    """An adapter's embeddings with content removed, a row for each picture to make: unconditional, conditional.

    Args:
        call: what is asked for.
        embeds: shape `(rows, pictures, ...)`, unconditional first under guidance.
        content: shape `(references, d)`, or None.
        images_per_prompt: the number of pictures to make of each prompt.
        guided: whether there are unconditional rows.
    """
    if call.per_prompt:  # the host knows none (diffusers issue 9813): (1, prompts * pictures) -> (prompts, pictures)
        embeds = embeds.unflatten(1, (call.prompts, -1)).flatten(0, 1)
    *unconditional, conditional = embeds.chunk(1 + guided)
    if content is not None:
        conditional = remove_content(conditional, content.reshape_as(conditional), call.content_scale)
    repeats = images_per_prompt // len(conditional)
    return torch.cat([half.repeat_interleave(repeats, dim=0) for half in (*unconditional, conditional)])


def cut_with_guidance(arguments: Mapping[str, Any], call: Call) -> dict[str, Any]:
    """A callback that cuts guidance cuts the text rows: cut the image rows too, which the host would keep."""
    callback = arguments.get("callback_on_step_end")
    if callback is None:
        return {}

    def cutting(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        before = tensors.get("prompt_embeds", call.rows[0] if call.rows else ())
        count = len(before)
        result = callback(pipe, step, timestep, tensors)
        after = result.get("prompt_embeds") if isinstance(result, dict) else None
        if after is not None and len(after) < count:
            # In place: it is this list that the host hands to every step.
            call.rows[:] = [rows[-max(1, len(rows) * len(after) // count) :] for rows in call.rows]
        return result

    changed: dict[str, Any] = {"callback_on_step_end": cutting}
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        changed["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
    return changed


@contextmanager
def processors_kept(unet: Any) -> Iterator[None]:
    # PAG puts its own processors on the UNet, and leaves them there when a callback raises.
    before = dict(unet.attn_processors)
    try:
        yield
    except BaseException:
        if any(processor is not before[name] for name, processor in unet.attn_processors.items()):
            unet.set_attn_processor(before)
        raise


def _refuse_beside_style(arguments: Mapping[str, Any]) -> None:
    names = ("ip_adapter_image", "ip_adapter_image_embeds", "ip_adapter_image_per_prompt", "target_blocks")
    for name in (*names, "reference_fit", "neg_content_prompt", "neg_content_embeds", "neg_content_scale"):
        if arguments.get(name) is not None and arguments[name] is not False:
            raise ValueError(
                f"`{name}` cannot go with a style, which was encoded from its own reference, for its own blocks, with "
                f"its content removed. Pass `style` or `{name}`; `encode_style` makes a style of a reference."
            )


def check_style_scale(style: Any, scale: Any) -> None:
    if style is None and scale != 1.0:
        raise ValueError(f"`style_scale` is {scale!r}, but there is no `style`. Pass one.")


@torch.no_grad()
def embed_reference(pipe: Any, ip_adapter_image: list[Images], **ours: Any) -> torch.Tensor:
    """Embeddings of one adapter's pictures, content removed: `(2, pictures, ...)`, unconditional first."""
    call = read_call(pipe, {"ip_adapter_image": ip_adapter_image}, loaded(pipe), **ours)
    before, pipe._instantstyle_call = pipe._instantstyle_call, call
    try:
        (rows,) = pipe.prepare_ip_adapter_image_embeds(None, None, execution_device(pipe), 1, True)
    finally:
        pipe._instantstyle_call = before
        pipe.maybe_free_model_hooks()
    return rows


# --- Which pipelines take the mixin, the names of their variants, and the code that loads them -----------------------


def check_host(host: type) -> None:
    def code(cls: type) -> Any:
        method = getattr(getattr(cls, "prepare_ip_adapter_image_embeds", None), "__code__", None)
        return method and (method.co_code, method.co_names, method.co_varnames)

    if code(host) != code(StableDiffusionPipeline) or not hasattr(host, "load_ip_adapter"):
        raise ValueError(
            f"{host.__name__} cannot have InstantStyle: it takes no IP-Adapter of the Stable Diffusion families, or "
            "prepares its image embeddings in a way of its own."
        )


def joint_signature(host: Callable, ours: Callable) -> inspect.Signature:
    theirs, variadic = inspect.signature(host), inspect.Parameter.VAR_KEYWORD
    added = [inspect.signature(ours).parameters[name] for name in inspect.getfullargspec(ours).kwonlyargs]
    before = [p for p in theirs.parameters.values() if p.kind is not variadic]
    return theirs.replace(parameters=[*before, *added, *(p for p in theirs.parameters.values() if p.kind is variadic)])


def variant_name(host: type) -> str:
    pattern = "^(StableDiffusionXL|StableDiffusion|.*(?=Pipeline$))"
    return re.sub(pattern, r"\1InstantStyle", host.__name__, count=1)


def class_entry(host: type) -> list[str]:
    if host is StableDiffusionXLPipeline:
        return ["pipeline_instantstyle", variant_name(host)]
    # Files of one basename share a module in one process, so each host has its own.
    return [host.__module__.rpartition(".")[2].replace("pipeline_", "pipeline_instantstyle_", 1), variant_name(host)]


def plugin_file() -> Path:
    """The plugin's one file: this one, or the one that the modules beside this one are joined into."""
    here = Path(__file__)
    return here.parents[2] / "pipeline_instantstyle.py" if here.name == "hosts.py" else here


def write_code(host: Any, folder: Path) -> list[str]:
    """Write what loads the variant of a host where nothing but diffusers is installed.

    Args:
        host: as `with_instantstyle` takes it.
        folder: gets the plugin's file and, for hosts other than `StableDiffusionXLPipeline`, a small one that
            imports it.

    Returns:
        The class entry for `model_index.json`: the name of the file to load, without `.py`, and of the class in it.
    """
    module, name = class_entry(host)
    shutil.copyfile(plugin_file(), folder / "pipeline_instantstyle.py")
    if module != "pipeline_instantstyle":
        (folder / f"{module}.py").write_text(
            f'"""Loads {name}."""\n\nfrom {host.__module__} import {host.__name__}\n\n'
            "from .pipeline_instantstyle import with_instantstyle\n\n\n"
            f"{name} = with_instantstyle({host.__name__})\n",
            encoding="utf-8",
            newline="\n",
        )
    return [module, name]


# --- The variants: the mixin, and the pipeline for Stable Diffusion XL -----------------------------------------------


_Host: Any = object  # to a type checker: whatever class the mixin is put in front of


class InstantStyleMixin(_Host):
    """InstantStyle (arXiv 2404.02733) for a diffusers pipeline that takes IP-Adapters; it stands before the host.

    An IP-Adapter (arXiv 2308.06721) makes of every text cross-attention
    `attention(q, k_text, v_text) + scale * attention(q, k_image, v_image)`. Here only the target blocks have the
    second term, and content can be subtracted from what its keys and values are made of (see `remove_content`).
    """

    _instantstyle_host: Any
    _instantstyle_call: Call | None = None

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # Not by this class's name: diffusers executes a plugin file anew, in the same module, each time it is loaded.
        mixin = next((base for base in cls.__bases__ if "_instantstyle_call" in vars(base)), None)
        if mixin is None:
            return
        cls._instantstyle_host = host = cls.__bases__[cls.__bases__.index(mixin) + 1]
        check_host(host)
        run: Any = mixin.__call__

        # Testers and user interfaces read the signature: it shows the host's parameters and ours.
        @functools.wraps(run)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return run(self, *args, **kwargs)

        vars(call)["__signature__"] = joint_signature(host.__call__, run)
        cls.__call__ = call  # type: ignore[method-assign]

    def __call__(
        self,
        *args: Any,
        neg_content_prompt: Content = None,
        neg_content_embeds: torch.Tensor | Sequence[Any] | None = None,
        neg_content_scale: float | str = 1.0,
        target_blocks: TargetBlocks | Sequence[TargetBlocks] | None = None,
        ip_adapter_image_per_prompt: bool = False,
        reference_fit: str = "crop",
        style: Any = None,
        style_scale: float | Sequence[Any] = 1.0,
        **kwargs: Any,
    ) -> Any:
        """Run the host pipeline. All its arguments are taken, and mean what they mean there.

        Args:
            neg_content_prompt: what the reference shows, to be removed from it: a string for every picture, or strings
                (or None) nested exactly as `ip_adapter_image`.
            neg_content_embeds: the same as projected, un-normalised CLIP text embeddings of shape `(d,)` or `(1, d)`.
            neg_content_scale: how much of it to remove, or "auto" (see `remove_content`).
            target_blocks: the blocks that see the reference in this call only (see `set_target_blocks`), at the scale
                that is set.
            ip_adapter_image_per_prompt: read `ip_adapter_image` as adapter -> prompt -> picture or pictures, one
                reference for each prompt. `ip_adapter_image_embeds` need no flag: dimension 0 is 1 or the number of
                prompts, doubled under guidance.
            reference_fit: what becomes of a reference that is not square: "crop" keeps its middle, as the host does,
                "pad" adds edges, "squash" distorts, "tiles" takes the mean of the embeddings of overlapping squares.
            style: a `Style` in place of a reference; a tuple of them, combined in one picture; or a list with one of
                these for each prompt. `ip_adapter_masks` say where each of a tuple goes, as for adapters.
            style_scale: a number for all, or numbers nested as `style` is. It multiplies the style's own scales.

        Raises:
            ValueError, TypeError: an argument does not fit the others or what is loaded. Nothing is changed then.
            RuntimeError: `style` where another one is applied to the UNet already.
        """
        names = inspect.getfullargspec(InstantStyleMixin.__call__).kwonlyargs
        arguments, unet = bind(super().__call__, args, kwargs, names), bare_unet(self)
        ours: dict[str, Any] = {
            "neg_content_prompt": neg_content_prompt,
            "neg_content_embeds": neg_content_embeds,
            "ip_adapter_image_per_prompt": ip_adapter_image_per_prompt,
            "reference_fit": reference_fit,
        }
        check_style_scale(style, style_scale)
        with ExitStack() as stack:
            if style is not None:
                built = style_adapter(unet, style, style_scale, execution_device(self))
                stack.enter_context(attached(unet, *built))
            state = loaded(self)
            call, targets = plan_call(self, arguments, state, target_blocks, neg_content_scale, **ours)
            if state is not None and call.pictures is None:
                arguments["ip_adapter_image_embeds"] = call.embeds or placeholders(state)
            arguments |= cut_with_guidance(arguments, call)
            stack.enter_context(processors_kept(unet))
            if state is not None:
                stack.enter_context(naming_strangers(unet))
            if state is not None and targets is not None:
                stack.enter_context(targets_for_call(self, state, targets))
            stack.callback(setattr, self, "_instantstyle_call", self._instantstyle_call)
            self._instantstyle_call = call
            return super().__call__(**arguments)

    def prepare_ip_adapter_image_embeds(
        self,
        ip_adapter_image: Images | None,
        ip_adapter_image_embeds: list[torch.Tensor] | None,
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> list[torch.Tensor]:
        """The host's embeddings with content removed and a row for each picture to make: unconditional, conditional.

        Outside of a call this is the host's method unchanged.

        Returns:
            For each adapter a tensor of shape `(rows, pictures, d)`, or `(rows, pictures, patches, d)`; `rows` is the
            number of pictures to make, doubled under guidance.

        Raises:
            ValueError: embeddings of another number of rows, or content of another nesting.
        """
        call, guided = self._instantstyle_call, do_classifier_free_guidance
        counts: list[list[int]] = []  # with fitted references: for each adapter, of how many squares each is made
        prepare = super().prepare_ip_adapter_image_embeds
        if call is None or call.rows:  # a callback of the call may ask for embeddings of its own
            return prepare(ip_adapter_image, ip_adapter_image_embeds, device, num_images_per_prompt, guided)
        if not call.referenced:
            ip_adapter_image_embeds = [e.expand(1 + guided, *e.shape[1:]) for e in ip_adapter_image_embeds or []]
        elif call.embeds is not None:
            call.embeds = ip_adapter_image_embeds = fit_rows(call.embeds, call.prompts, guided)
        elif call.pictures is not None:
            ip_adapter_image, counts = host_pictures(self, call)
        # Content first: with model offloading the text tower leaves the device when the image tower comes.
        contents = None if call.content is None else call.contents(guided)
        content = encode_content(self, contents, device)
        embeds = prepare(ip_adapter_image, ip_adapter_image_embeds, device, 1, guided)
        if counts:
            embeds = [mean_of_squares(rows, count) for rows, count in zip(embeds, counts, strict=True)]
        parts = zip(embeds, content, strict=True)
        call.rows = [make_rows(call, both, removed, num_images_per_prompt, guided) for both, removed in parts]
        return call.rows

    def encode_style(
        self,
        image: Images,
        neg_content_prompt: Content = None,
        neg_content_scale: float | str = 1.0,
        target_blocks: TargetBlocks | None = None,
        weights: Sequence[float] | None = None,
        reference_fit: str = "crop",
    ) -> Any:
        """Encode a reference once: a `Style` does what the reference would, without adapter and image encoder.

        Args:
            image: a picture, or a list of them, of which the weighted mean is taken (of their CLIP embeddings).
            neg_content_prompt: what it shows, to be removed: a string for all, or a list of one (or None) each.
            neg_content_scale: how much of it to remove, or "auto" (see `remove_content`).
            target_blocks: the blocks that see it (see `set_target_blocks`), at the scale that is set. By default those
                in force.
            weights: a number for each picture, divided by their sum. By default all count the same.
            reference_fit: what becomes of a picture that is not square: "crop", "pad", "squash" or "tiles", as in a
                call.

        Raises:
            ValueError, TypeError: an argument does not fit, or there is not exactly one IP-Adapter with its encoder.
            RuntimeError: a style is applied to the UNet.
            ImportError: the package is not there, or `instantstyle.styles` is not imported.

        Example:
            >>> style = pipe.encode_style(reference, neg_content_prompt="a star")
            >>> style.save("pink-dots.safetensors")
            >>> pipe("a heart", style=style).images[0]
        """
        raise ImportError(  # where it is, this method is the function named here
            "`encode_style` needs the package that this file is from: `pip install instantstyle`. Then "
            "`instantstyle.styles.encode(pipe, picture)` makes a style."
        )

    def unload_image_encoder(self) -> None:
        """Let go of the image encoder, once every reference is encoded. `load_ip_adapter` brings it again.

        Other pipelines that have it keep it.

        Raises:
            RuntimeError: a style is applied to the UNet.
        """
        adapter_to_change(self)
        with offloading_suspended(self):
            self.register_modules(image_encoder=None)

    # Where to inject

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Any] | list[Any],
        subfolder: str | list[str],
        weight_name: str | list[str],
        image_encoder_folder: str | None = "image_encoder",
        target_blocks: TargetBlocks | Sequence[TargetBlocks] | None = None,
        **kwargs: Any,
    ) -> None:
        """Load IP-Adapters as the host does, but of their weights only those of the target blocks.

        Args:
            pretrained_model_name_or_path_or_dict: a repository, a folder or a state dict; for several a list.
            subfolder, weight_name: where the file is in it; for several lists.
            image_encoder_folder: where the image encoder is; None loads none.
            target_blocks: the blocks that see the reference (see `set_target_blocks`). By default "style"; on a UNet
                of which it is not known which blocks carry style, "all" as in the host, and the log says so.
            kwargs: the host's, for the Hub.

        Raises:
            OSError: a file is missing.
            ValueError, TypeError: a checkpoint cannot be read, does not fit the model, or has no such target blocks.
                Nothing is changed then.
            RuntimeError: a style is applied to the UNet.

        Example:
            >>> pipe.load_ip_adapter("h94/IP-Adapter", "sdxl_models", "ip-adapter_sdxl.safetensors")
            >>> pipe.target_blocks
            {'up_blocks.0.attentions.1': 1.0}
            >>> pipe("a heart", ip_adapter_image=reference).images[0]
        """
        refuse_misspelt(kwargs, ["target_blocks"])
        adapter_to_change(self)
        names, hub = (as_list(subfolder), as_list(weight_name)), hub_arguments(kwargs)
        sources = as_list(pretrained_model_name_or_path_or_dict)
        load_adapters(self, sources, *names, image_encoder_folder, target_blocks, hub)

    def unload_ip_adapter(self) -> None:
        """Take the adapter off, and put back what `load_ip_adapter` replaced. Modules that the user gave stay.

        Raises:
            RuntimeError: a style is applied to the UNet.
        """
        unet, state = bare_unet(self), adapter_to_change(self)
        if state is None:
            return
        with offloading_suspended(self):
            detach(unet, state)
            ours = [name for name, brought in state.brought.items() if getattr(self, name) is brought()]
            self.register_modules(**dict.fromkeys(ours))
        loras = [name for name in getattr(unet, "peft_config", {}) if name.startswith("faceid_")]
        if loras:
            self.delete_adapters(loras)

    def set_target_blocks(
        self, target_blocks: TargetBlocks | Sequence[TargetBlocks], scale: Scale | list[Scale] = 1.0
    ) -> None:
        """Choose which attention blocks see the reference. Weights of the others are let go, and read again on demand.

        Args:
            target_blocks: "style", "layout", "style+layout" or "all"; a block name such as `up_blocks.0.attentions.1`,
                at any depth; a list of them; or a dict of name -> scale. With several adapters a list has one of these
                for each.
            scale: a number, or a list with an entry per adapter: a number, or a list of them, one per masked picture.

        Raises:
            ValueError, TypeError: no adapter, an unknown name, a wrong scale, or weights that cannot be read again.
                Nothing is changed then.
            RuntimeError: a style is applied to the UNet.

        Example:
            >>> pipe.set_target_blocks({"style": 1.0, "layout": 0.3})
            >>> pipe.target_blocks
            {'down_blocks.2.attentions.1': 0.3, 'up_blocks.0.attentions.1': 1.0}
        """
        state = adapter_to_change(self)
        targets = resolve_each(target_blocks, bare_unet(self), state)
        retarget(self, state, targets, scale if isinstance(scale, list) else [scale] * len(targets), targets)

    def set_ip_adapter_scale(self, scale: Scale | Mapping[str, Any] | list[Any]) -> None:
        """Set scales as the host does.

        Args:
            scale: a number, which scales the blocks that `load_ip_adapter` or `set_target_blocks` chose, also after a
                dict; a dict, which means what it does in the host; or a list of these, one per adapter. A list in
                place of a number has one per masked picture.

        Raises:
            ValueError, TypeError: a wrong scale, or weights that cannot be read again. Nothing is changed then.
            RuntimeError: a style is applied to the UNet.
        """
        state = adapter_to_change(self)
        if state is None:
            return super().set_ip_adapter_scale(scale)
        targets, scales = read_scales(bare_unet(self), state, scale)
        retarget(self, state, targets, scales, state.chosen)

    @property
    def target_blocks(self) -> dict[str, Scale] | list[dict[str, Scale]] | None:
        """The blocks in force as name -> scale, without zeros; a list of dicts with several adapters, None without."""
        state = loaded(self)
        if state is None:
            return None
        found = in_force(bare_unet(self), state)
        return found if len(found) > 1 else found[0]

    # What to remove

    def load_content_encoder(
        self,
        source: str | Path | Sequence[Any],
        subfolder: str = "",
        tokenizer_subfolder: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Give the text tower of the CLIP that the adapter's image encoder belongs to. It goes before SDXL's own.

        Needed for ViT-H adapters (`laion/CLIP-ViT-H-14-laion2B-s32B-b79K`) and for SD1.5. All pipelines on the same
        UNet share it. It is none of their components, and on their device only while it encodes.

        Args:
            source: a repository or folder, or the modules `(text_encoder, tokenizer)`.
            subfolder: where the text encoder is in the repository.
            tokenizer_subfolder: where the tokenizer is, if elsewhere.
            kwargs: for `from_pretrained` (`revision`, `token`, `dtype`, ...).

        Raises:
            OSError, TypeError: it is not there; the text encoder has no projection into CLIP's shared space.
        """
        unet = bare_unet(self)
        unet._instantstyle_content = read_content_encoder(source, subfolder, tokenizer_subfolder, unet.dtype, **kwargs)

    def unload_content_encoder(self) -> None:
        """Forget what `load_content_encoder` gave."""
        bare_unet(self).__dict__.pop("_instantstyle_content", None)

    # Services of the host that copy or save the UNet

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Callable | None = None) -> None:
        """Switch xformers on or off as the host does. The adapter follows."""
        with detached(bare_unet(self)):
            super().set_use_memory_efficient_attention_xformers(valid, attention_op)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """The host's, which before diffusers 0.39 called the dtype `torch_dtype`; `dtype` is understood there too."""
        return super().from_pretrained(*args, **in_host_words(kwargs))

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """The host's `from_pipe`: modules, adapter and content encoder are shared. Without `dtype` all is float32."""
        source = bare_unet(pipeline)
        with detached(source) as adapter:
            new = super().from_pipe(pipeline, **in_host_words(kwargs))
            unet = bare_unet(new)
            if unet is not source and "unet" not in kwargs:  # AnimateDiff copies the weights into another class
                if adapter is not None and adapter[0].standing is None:  # a style that is applied stays where it is
                    copied = replace(adapter[0], projection=copy.deepcopy(adapter[0].projection))
                    attach(unet, copied, copy.deepcopy(adapter[1]))
                if "_instantstyle_content" in source.__dict__:
                    unet._instantstyle_content = source._instantstyle_content
        return new

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as the host does, with the code that loads the folder again, without adapter and content encoder."""
        with detached(bare_unet(self)):
            super().save_pretrained(save_directory, *args, **kwargs)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write `model_index.json`, and beside it the code that its class entry names."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_code(self._instantstyle_host, folder)
        super().save_config(save_directory, *args, **kwargs)

    def to_json_string(self) -> str:
        """The host's, with the class entry that loads the saved folder without a `custom_pipeline` argument."""
        config = json.loads(super().to_json_string()) | {"_class_name": class_entry(self._instantstyle_host)}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def _dict_from_json_file(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # The class entry is for `DiffusionPipeline`; this class already is the code to run.
        config = super()._dict_from_json_file(*args, **kwargs)
        return config | {"_class_name": cls.__name__} if isinstance(config.get("_class_name"), list) else config


@functools.cache
def with_instantstyle(host: Any) -> Any:
    """The variant of a diffusers pipeline class that takes IP-Adapters.

    Args:
        host: such as `StableDiffusionXLPAGPipeline`. A variant is given back as it is.

    Raises:
        TypeError: it is no pipeline class.
        ValueError: the host prepares image embeddings in its own way, or takes none.
    """
    if not (isinstance(host, type) and issubclass(host, DiffusionPipeline)):
        raise TypeError(f"`host` must be a pipeline class of diffusers, but is {host!r}.")
    if hasattr(host, "_instantstyle_host"):
        return host
    doc = f"{host.__name__} in the style of a reference picture (arXiv 2404.02733)."
    return type(variant_name(host), (InstantStyleMixin, host), {"__doc__": doc})


class StableDiffusionXLInstantStylePipeline(InstantStyleMixin, StableDiffusionXLPipeline):
    """Text to image in the style of a reference picture, for Stable Diffusion XL (arXiv 2404.02733)."""
