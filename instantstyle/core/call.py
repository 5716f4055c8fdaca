"""One call, read and checked."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, is_valid_image
from diffusers.utils import load_image

from .adapter import AdapterState, component, loaded, resolve_each
from .blocks import Scale, TargetBlocks, check_number, times
from .content import check_content, remove_content
from .fit import check_fit, squares
from .nesting import Content, as_list, flatten, fold, nesting, spread, tree
from .private import execution_device
from .processors import bare_unet, first_linear
from .services import check_whole


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
