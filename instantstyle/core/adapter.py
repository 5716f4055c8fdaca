"""The adapter on a UNet: built, attached, detached, and its weights fetched."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from torch import nn

from .blocks import Scale, TargetBlocks, presets, resolve_target_blocks, text_layers, times
from .checkpoint import AdapterFile
from .nesting import flatten
from .offloading import offloading_suspended
from .private import image_projection, keep_from_casting, leave_to_casting
from .processors import (
    MutedProjection,
    attention,
    bare_unet,
    first_linear,
    ip_processors,
    is_muted,
    is_xformers,
    make_processor,
    plain_processor,
)
from .services import UNCAST, is_displaced, mend_unfusing


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
