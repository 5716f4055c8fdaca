"""Styles on a UNet: keys and values looked up where an adapter would project image tokens.

The "image embedding" that the host routes to the blocks is a row number: row `2 p` of a table is unconditional and row
`2 p + 1` conditional for prompt `p`. Batches, guidance, masks and PAG are the host's own business as before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from torch import nn

from instantstyle.core import (
    AdapterState,
    MutedProjection,
    attached,
    attention,
    bare_unet,
    check_number,
    execution_device,
    make_processor,
    style_adapter,
    text_layers,
    with_instantstyle,
)
from instantstyle.identity import style_family_of


@runtime_checkable
class Encoded(Protocol):
    """What is asked of a `Style`, which is not known here: it brings this module with it."""

    tensors: Mapping[str, torch.Tensor]
    recipe: Any

    def width(self, layer: str) -> int:
        """The width of a layer's keys and values."""

    @property
    def layers(self) -> list[str]:
        """The layers that see the style."""

    @property
    def tokens(self) -> int:
        """The number of image tokens."""


# For each prompt (a single one stands for all) the styles that it sees, with their scales.
Arrangement = list[list[tuple[Encoded, float]]]


class RowNumbers(nn.Module):
    """Stands where an adapter would project image embeddings: hands row numbers of shape `(rows, 1)` on."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Give them the shape of one token of width 1. Raises RuntimeError for image embeddings."""
        if rows.dtype != torch.long:
            raise RuntimeError(_ONE_PIPELINE)
        return rows[:, None]


class Lookup(nn.Module):
    """Stands where an adapter would project image tokens: gives a table's rows, of shape `(tokens, width)`.

    The table is no parameter and no buffer: no state dict holds it, and no offloading hook takes it away. It is cast
    and moved with the UNet.
    """

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.table = table

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Lookup:
        super()._apply(fn, recurse)
        self.table = fn(self.table)
        return self

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Look rows of shape `(..., 1, 1)` up."""
        return self.table.to(rows.device)[rows[..., 0, 0]]


_ONE_PIPELINE = (
    "A style is applied to this UNet for one pipeline, but another one ran it, or loaded an IP-Adapter on it. Run "
    "only that pipeline inside of the `with`, and others before or after it."
)


@contextmanager
def applied(pipe: Any, style: Any, scale: Any = 1.0) -> Iterator[Any]:
    """Let a pipeline paint in a style for the length of the `with`: `with applied(pipe, style): pipe("a heart")`.

    The pipeline may be a stock one; it needs no adapter and no image encoder, and an adapter that it has is put aside.
    Meanwhile its class is the variant's. All is as before at the end, also after an exception. Not inside another
    `applied`. Meanwhile no other stock pipeline can run on the UNet; variants that share it paint in the style too.

    Args:
        pipe: A pipeline whose class `with_instantstyle` takes, of the style's family.
        style: A `Style`; a tuple of them, combined in one picture; or a list with one of these for each prompt.
        scale: A number for all, or numbers nested exactly as `style`; each multiplies the style's own scales.

    Yields:
        The pipeline.

    Raises:
        ValueError, TypeError: The pipeline is of another kind, or the style does not fit it. Nothing is changed then.
        RuntimeError: A style is applied to the UNet already.
    """
    host: Any = type(pipe)
    try:
        variant = with_instantstyle(host)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`pipe` cannot paint in a style: {error}") from error
    unet = bare_unet(pipe)
    built = style_adapter(unet, style, scale, execution_device(pipe), name="scale")
    with attached(unet, *built), _refusing_others(unet), ExitStack() as stack:
        if "_instantstyle_call" not in vars(pipe):
            stack.callback(vars(pipe).pop, "_instantstyle_call", None)
        stack.callback(setattr, pipe, "__class__", host)
        pipe.__class__ = variant
        yield pipe


def build_adapter(
    unet: Any, style: Any, scale: Any, device: torch.device, name: str
) -> tuple[AdapterState, dict[str, Any]]:
    """The state and the processors that stand in for an adapter: see `core.style_adapter`, which calls this."""
    arrangement = arrange(style, scale, name)
    check_fit(dict.fromkeys(one for row in arrangement for one, _ in row), unet)
    tables = [build_tables([row[i] for row in arrangement]) for i in range(len(arrangement[0]))]
    state, processors = build(unet, tables, device)
    state.standing = row_numbers(len(arrangement) if isinstance(style, list) else None, len(tables))
    return state, processors


def arrange(style: Any, scale: Any, name: str = "style_scale") -> Arrangement:
    """Read `style` and its scale, which is the argument `name`."""
    rows = style if isinstance(style, list) else [style]
    scales = scale if isinstance(style, list) and isinstance(scale, list) else [scale] * len(rows)
    if len(scales) != len(rows):
        raise ValueError(f"`{name}` has {len(scales)} entries for a list of {len(rows)} in `style`.")
    arrangement = [_arrange_row(row, scale, name) for row, scale in zip(rows, scales, strict=True)]
    tokens = [[one.tokens for one, _ in row] for row in arrangement]
    for found in tokens:
        if found != tokens[0]:
            raise ValueError(
                "`style` must combine as many styles for each prompt, with as many image tokens in each place, but "
                f"has styles of {tokens[0]} tokens for one prompt and of {found} for another."
            )
    return arrangement


def _arrange_row(row: Any, scale: Any, name: str) -> list[tuple[Encoded, float]]:
    styles = row if isinstance(row, tuple) else (row,)
    scales = scale if isinstance(row, tuple) and isinstance(scale, tuple) else (scale,) * len(styles)
    if not styles:
        raise ValueError("`style` is empty. Pass a Style, a tuple of them, or a list of these.")
    if len(scales) != len(styles):
        raise ValueError(f"`{name}` has {len(scales)} entries for a tuple of {len(styles)} styles.")
    for one in styles:
        if not isinstance(one, Encoded):
            raise TypeError(
                "`style` must be a Style, a tuple of them, or a list with one of these for each prompt, but holds "
                f"{one!r:.80}. `pipe.encode_style(picture)` makes one, `Style.load(path)` reads one."
            )
    for number in scales:
        expected = "a number, or numbers nested as `style`: a list for a list, a tuple for a tuple"
        check_number(number, f"`{name}`", expected)
    return [(one, float(number)) for one, number in zip(styles, scales, strict=True)]


def check_fit(styles: Collection[Encoded], unet: Any) -> None:
    """Raise ValueError where a style was made for another family, or for layers that the UNet does not have."""
    layers = {layer: attention(unet, layer) for layer in text_layers(unet)}
    family, text_width = style_family_of(unet), next(iter(layers.values())).cross_attention_dim
    remedy = "Encode the reference with a pipeline of this family."
    for style in styles:
        for what, came, needed in (
            ("of the family", style.recipe.family, family),
            ("for text embeddings of width", style.recipe.text_width, text_width),
        ):
            if came != needed:
                raise ValueError(f"`style` is {what} {came}, but the UNet is {what} {needed}. {remedy}")
        for layer in style.layers:
            own, width = style.width(layer), layers[layer].inner_kv_dim if layer in layers else None
            if own != width:
                has = f"one of width {width}" if width else "no such layer"
                raise ValueError(f"`style` is for {layer!r} of width {own}, but the UNet has {has}. {remedy}")


def build_tables(column: list[tuple[Encoded, float]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values for the layers that any prompt's style sees, each of shape `(2 * prompts, tokens, width)`.

    Scales are in the values, so that prompts can have different ones. Where a layer does not see a prompt's style, its
    rows are zeros, which add nothing.
    """
    scales = [{layer: own * scale for layer, own in style.recipe.scales.items()} for style, scale in column]
    layers = {layer: style for (style, _), own in zip(column, scales, strict=True) for layer in own if own[layer]}
    tables = {}
    for layer, style in layers.items():
        blank = torch.zeros(2, style.tokens, style.width(layer))
        keys = [one.tensors.get(f"{layer}.keys", blank).float() for one, _ in column]
        values = [one.tensors.get(f"{layer}.values", blank).float() for one, _ in column]
        scaled = [value * own.get(layer, 0.0) for value, own in zip(values, scales, strict=True)]
        tables[layer] = torch.cat(keys), torch.cat(scaled)
    return tables


def build(unet: Any, tables: list[Any], device: torch.device) -> tuple[AdapterState, dict[str, Any]]:
    """The state and the processors that look tables up, for `attach`."""
    processors, dtype = {}, unet.dtype  # it walks all modules
    for layer in text_layers(unet):
        attn = attention(unet, layer)
        processors[layer] = processor = make_processor(attn, [1] * len(tables), attn.processor)
        processor.scale = [float(layer in table) for table in tables]
        pairs = [[Lookup(part.to(device, dtype)) for part in table.get(layer, ())] for table in tables]
        muted = [MutedProjection(layer), MutedProjection(layer)]
        processor.to_k_ip = nn.ModuleList((pair or muted)[0] for pair in pairs)
        processor.to_v_ip = nn.ModuleList((pair or muted)[1] for pair in pairs)
    state = AdapterState(
        projection=MultiIPAdapterImageProjection([RowNumbers() for _ in tables]),
        files=[None] * len(tables),
        targets=[dict.fromkeys(table, 1.0) for table in tables],
        scales=[1.0] * len(tables),
    )
    return state, processors


def row_numbers(listed: int | None, places: int) -> Callable[[int], list[torch.Tensor]]:
    """What gives, for a number of prompts, the rows of each place: `(2 * prompts, 1, 1)`, unconditional first.

    Args:
        listed: The length of a list with one style for each prompt, or None where all prompts share one.
        places: How many styles are combined.
    """

    def rows(prompts: int) -> list[torch.Tensor]:
        if listed not in (None, prompts):
            raise ValueError(f"`style` is a list of {listed}, one for each prompt, but there are {prompts} prompts.")
        unconditional = 2 * torch.arange(listed or 1).expand(prompts)
        return [torch.cat([unconditional, unconditional + 1])[:, None, None] for _ in range(places)]

    return rows


@contextmanager
def _refusing_others(unet: Any) -> Iterator[None]:
    handle = unet.register_forward_pre_hook(_check_rows, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _check_rows(_: nn.Module, __: Any, arguments: dict[str, Any]) -> None:
    embeds = (arguments.get("added_cond_kwargs") or {}).get("image_embeds")
    if embeds is None or embeds[0].dtype != torch.long:
        raise RuntimeError(_ONE_PIPELINE)
