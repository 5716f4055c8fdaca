"""A baked style paints what its reference would: on variants with `style=`, on stock hosts with `applied`."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from batches import (
    CUTTING,
    asking,
    cut,
    cutting,
    drawing,
    for_every_row,
    image_rows_cut_to_the_batch,
    masked,
    masks,
    rows_are,
    rows_are_not,
)
from conftest import TOLERANCE, Pair, differ, each_family, every_host, most_hosts, same, variant_class
from diffusers import StableDiffusionSAGPipeline
from hosts import (
    CLIP_WIDTH,
    HOSTS,
    OTHER_HOSTS,
    Host,
    components,
    content_encoder,
    image_encoder,
    make,
    picture,
    write_adapter,
)
from safetensors.torch import load_file, save_file
from traces import Broken, changed, failing_unet, identities, random_states

import pipeline_instantstyle
from instantstyle import Style, applied
from instantstyle.styles import encode
from instantstyle.styles.provenance import Provenance


Adapters = dict[str, tuple[str, str, str]]
FIRST, SECOND = picture(1), picture(2)


def on_stock(pair: Pair, style: Any, scale: Any = 1.0, **inputs: Any) -> np.ndarray:
    """Return what the stock host paints while a style is applied to it."""
    with applied(pair.stock, style, scale) as pipe:
        return pair.paint(pipe, **inputs)


def fresh(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs with generators that have not been drawn from."""
    old = inputs.get("generator")
    return (
        {**inputs, "generator": [torch.Generator().manual_seed(one.initial_seed()) for one in old]} if old else inputs
    )


def both_ways(pair: Pair, style: Any, scale: Any = 1.0, **inputs: Any) -> np.ndarray:
    """Return what the variant paints in a style, which the stock host with the style applied paints too."""
    painted = pair.paint(pair.variant, style=style, style_scale=scale, **fresh(inputs))
    assert same(painted, on_stock(pair, style, scale, **fresh(inputs)))
    return painted


def swapped(style: Style) -> Style:
    """Return the style with unconditional and conditional rows exchanged."""
    return Style({name: tensor.flip(0) for name, tensor in style.tensors.items()}, style.recipe)


def shifted(style: Style) -> Style:
    """Return the style with the keys and values of every layer on the next one of the same width."""
    moved = dict(style.tensors)
    for width in {style.width(layer) for layer in style.layers}:
        layers = [layer for layer in style.layers if style.width(layer) == width]
        for layer, other in zip(layers, layers[1:] + layers[:1], strict=True):
            moved |= {f"{layer}.{part}": style.tensors[f"{other}.{part}"] for part in ("keys", "values")}
    return Style(moved, style.recipe)


# --- Equal to the adapter --------------------------------------------------------------------------------------------


@every_host
def test_a_style_paints_what_its_reference_does(host: Host, pair: Pair) -> None:
    """The oracle is the host with its own IP-Adapter; the twins have rows swapped, layers mixed up, a stale table."""
    style = pair.variant.encode_style(FIRST)
    painted, other = (pair.paint(pair.stock, ip_adapter_image=image) for image in (FIRST, SECOND))
    assert same(painted, both_ways(pair, style), TOLERANCE)
    assert same(other, both_ways(pair, pair.variant.encode_style(SECOND)), TOLERANCE)
    assert differ(painted, other)
    for broken in (swapped(style), shifted(style)):
        assert differ(painted, pair.paint(pair.variant, style=broken))


@most_hosts
def test_without_guidance_a_style_paints_what_its_reference_does(host: Host, pair: Pair) -> None:
    style = pair.variant.encode_style(FIRST)
    painted = pair.paint(pair.stock, ip_adapter_image=FIRST, guidance_scale=1.0)
    assert same(painted, both_ways(pair, style, guidance_scale=1.0), TOLERANCE)
    assert differ(painted, pair.paint(pair.variant, style=swapped(style), guidance_scale=1.0))


@pytest.mark.parametrize("host", CUTTING, ids=lambda host: host.name)
def test_guidance_cut_by_a_callback_cuts_the_rows_of_a_style(host: Host, pair: Pair) -> None:
    arguments = cutting(host, cut)
    del arguments["ip_adapter_image"]
    style = pair.variant.encode_style(FIRST)
    with image_rows_cut_to_the_batch(pair.stock):
        painted = pair.paint(pair.stock, ip_adapter_image=FIRST, **arguments)
    assert same(painted, both_ways(pair, style, **arguments), TOLERANCE)
    assert differ(painted, pair.paint(pair.stock, ip_adapter_image=FIRST, **arguments))


PAG = [OTHER_HOSTS[name] for name in ("stable_diffusion_xl_pag", "stable_diffusion_pag")]


@pytest.mark.parametrize("host", PAG, ids=lambda host: host.name)
def test_pag_cannot_go_on_without_guidance(host: Host, pair: Pair) -> None:
    """The host's own attention layers need all three of its rows; the style is undone as ever."""
    arguments = cutting(host, cut)
    del arguments["ip_adapter_image"]
    style, pipe = pair.variant.encode_style(FIRST), make(host)
    before = everything(pipe)
    with pytest.raises(ValueError, match="not enough values to unpack"):
        pair.paint(make(host), **arguments)
    with pytest.raises(ValueError, match="not enough values to unpack"), style.applied(pipe):
        pair.paint(pipe, **arguments)
    assert not changed(before, everything(pipe))


guessing = pytest.mark.parametrize(
    "host",
    [HOSTS["stable_diffusion_controlnet"], HOSTS["stable_diffusion_xl_controlnet"]],
    ids=lambda host: host.family,
)


@guessing
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_guess_mode_of_a_controlnet_sees_the_style(host: Host, pair: Pair, guidance_scale: float) -> None:
    asked = {"guess_mode": True, "guidance_scale": guidance_scale}
    style = pair.variant.encode_style(FIRST)
    painted = pair.paint(pair.stock, ip_adapter_image=FIRST, **asked)
    assert same(painted, both_ways(pair, style, **asked), TOLERANCE)
    assert differ(painted, both_ways(pair, swapped(style), **asked))
    assert differ(painted, both_ways(pair, style, guidance_scale=guidance_scale))


@guessing
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_guess_mode_sees_the_style_of_each_prompt(host: Host, pair: Pair, guidance_scale: float) -> None:
    """Two prompts by two pictures; the oracle has one reference for both prompts, once this and once that."""
    asked = {"guess_mode": True, "guidance_scale": guidance_scale, **asking(host, 0, 1)}
    one, other = (pair.variant.encode_style(image) for image in (FIRST, SECOND))
    first, second = (
        pair.paint(pair.stock, ip_adapter_image=image, **asked, **drawing(host, *range(4), each=2))
        for image in (FIRST, SECOND)
    )
    rows = [*first[:2], *second[2:]]
    assert rows_are(both_ways(pair, [one, other], **asked, **drawing(host, *range(4), each=2)), rows)
    assert rows_are_not(both_ways(pair, [other, one], **asked, **drawing(host, *range(4), each=2)), rows)


@most_hosts
def test_a_style_for_each_prompt_is_each_prompt_alone(host: Host, pair: Pair) -> None:
    """Two prompts by one or two images, with styles of different blocks and scales."""
    images = 2 if host.name in HOSTS else 1  # Kolors and AnimateDiff cannot make two
    seeds = range(2 * images)
    one = pair.variant.encode_style(FIRST, target_blocks={"style": 1.5})
    other = pair.variant.encode_style(SECOND, target_blocks="layout")
    asked = {**asking(host, 0, 1), **drawing(host, *seeds, each=images), **for_every_row(host, 2, len(seeds))}

    def rows(number: int, scale: float, **reference: Any) -> list[np.ndarray]:
        pair.variant.set_ip_adapter_scale(scale)
        alone = {**asking(host, number), **for_every_row(host, 1, 1), **reference}
        mine = seeds[number * images :][:images]
        return [pair.paint(pair.variant, **alone, **drawing(host, seed))[0] for seed in mine]

    first = rows(0, 0.5, ip_adapter_image=FIRST, target_blocks={"style": 1.5})
    second = rows(1, 2.0, ip_adapter_image=SECOND, target_blocks="layout")
    pair.variant.set_ip_adapter_scale(1.0)
    assert rows_are(both_ways(pair, [one, other], [0.5, 2.0], **asked), first + second)
    assert rows_are_not(both_ways(pair, [other, one], [0.5, 2.0], **asked), first + second)
    assert rows_are_not(both_ways(pair, [one, other], [2.0, 0.5], **asked), first + second)
    shared = rows(1, 0.5, ip_adapter_image=FIRST, target_blocks={"style": 1.5})
    pair.variant.set_ip_adapter_scale(1.0)
    assert rows_are(both_ways(pair, one, 0.5, **asked), first + shared)


@pytest.fixture
def twice(host: Host, pair: Pair, adapters: Adapters) -> Iterator[Pair]:
    """Give the pair, whose stock host has the adapter twice."""
    folder, subfolder, name = adapters[host.family]
    pair.stock.load_ip_adapter(folder, subfolder=[subfolder] * 2, weight_name=[name] * 2)
    yield pair
    pair.stock.load_ip_adapter(folder, subfolder, name)


COMBINED = {  # the two presets, as the host writes them
    "sdxl": ({"up": {"block_0": [0.0, 0.7, 0.0]}}, {"down": {"block_2": [0.0, 0.4]}}),
    "sd15": ({"up": {"block_1": [0.7] * 3}}, {"down": {"block_2": [0.4] * 2}, "mid": 0.4}),
}


@most_hosts
def test_a_tuple_combines_styles_in_one_picture(host: Host, twice: Pair) -> None:
    """Style of one, layout of another: two adapters with scales of their own."""
    twice.stock.set_ip_adapter_scale(list(COMBINED[host.family]))
    one, other = (
        twice.variant.encode_style(image, target_blocks=blocks)
        for image, blocks in ((FIRST, "style"), (SECOND, "layout"))
    )
    painted = twice.paint(twice.stock, ip_adapter_image=[FIRST, SECOND])
    assert same(painted, both_ways(twice, (one, other), (0.7, 0.4)), TOLERANCE)
    for styles, scales in (((one, other), (0.4, 0.7)), ((other, one), (0.7, 0.4))):
        assert differ(painted, twice.paint(twice.variant, style=styles, style_scale=scales))


@each_family
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_every_prompt_of_a_batch_can_have_a_tuple(host: Host, twice: Pair, guidance_scale: float) -> None:
    twice.stock.set_ip_adapter_scale(list(COMBINED[host.family]))
    one, other = (
        twice.variant.encode_style(image, target_blocks=blocks)
        for image, blocks in ((FIRST, "style"), (SECOND, "layout"))
    )
    asked = {**asking(host, 0, 1), **drawing(host, 0, 1), "guidance_scale": guidance_scale}
    painted = twice.paint(twice.stock, ip_adapter_image=[FIRST, SECOND], **fresh(asked))
    assert same(painted, both_ways(twice, (one, other), (0.7, 0.4), **asked), TOLERANCE)
    assert same(painted, both_ways(twice, [(one, other)] * 2, [(0.7, 0.4)] * 2, **asked), TOLERANCE)
    assert same(painted, both_ways(twice, (other, one), (0.4, 0.7), **asked), TOLERANCE)
    assert differ(painted, both_ways(twice, [(one, other)] * 2, [(0.7, 0.4), (0.4, 0.7)], **asked))


@most_hosts
def test_masks_say_where_each_style_goes(host: Host, twice: Pair) -> None:
    left, lower = masks().chunk(2)
    one, other = twice.variant.encode_style(FIRST), twice.variant.encode_style(SECOND)
    painted = twice.paint(twice.stock, ip_adapter_image=[FIRST, SECOND], **masked(left, lower))
    assert same(painted, both_ways(twice, (one, other), **masked(left, lower)), TOLERANCE)
    assert differ(painted, twice.paint(twice.variant, style=(one, other), **masked(lower, left)))
    alone = twice.paint(twice.variant, ip_adapter_image=FIRST, **masked(left))
    assert same(alone, both_ways(twice, one, **masked(left)), TOLERANCE)
    assert differ(alone, twice.paint(twice.variant, style=one))


@each_family
def test_content_blocks_and_scales_are_those_of_a_call(host: Host, pair: Pair) -> None:
    """`encode_style` takes what a call takes, and the style paints what the call would."""
    if host.family == "sd15":
        pair.variant.load_content_encoder(content_encoder())
    pair.variant.set_target_blocks({"style": 0.5, "mid_block": 0.25}, scale=0.8)
    for settings in (
        {},
        {"neg_content_prompt": "a star"},
        {"neg_content_prompt": "a star", "neg_content_scale": "auto", "target_blocks": "all"},
        {"neg_content_prompt": "a star", "neg_content_scale": 0.5, "target_blocks": {"layout": 0.5}},
    ):
        painted = pair.paint(pair.variant, ip_adapter_image=FIRST, **settings)
        style = pair.variant.encode_style(FIRST, **settings)
        assert same(painted, pair.paint(pair.variant, style=style), TOLERANCE)
        for broken in (swapped(style), pair.variant.encode_style(FIRST, target_blocks="down_blocks.1")):
            assert differ(painted, pair.paint(pair.variant, style=broken))
    kept = pair.variant.encode_style(FIRST, target_blocks={"layout": 0.5})
    assert differ(painted, pair.paint(pair.variant, style=kept))
    pair.variant.unload_content_encoder()


@each_family
def test_several_pictures_make_the_weighted_mean_of_their_embeddings(host: Host, pair: Pair) -> None:
    """The host is right when it is fed the mean, computed by hand."""
    values = pair.stock.feature_extractor([FIRST, SECOND], return_tensors="pt").pixel_values
    first, second = pair.stock.image_encoder(values).image_embeds.detach()
    mean = 0.75 * first + 0.25 * second
    embeds = torch.stack([torch.zeros_like(mean), mean])[:, None]
    painted = pair.paint(pair.stock, ip_adapter_image_embeds=[embeds])
    style = pair.variant.encode_style([FIRST, SECOND], weights=[3, 1])
    assert same(painted, both_ways(pair, style), TOLERANCE)
    assert [source.weight for source in style.recipe.sources] == [0.75, 0.25]
    assert differ(painted, both_ways(pair, pair.variant.encode_style([FIRST, SECOND], weights=[1, 3])))
    assert differ(painted, both_ways(pair, pair.variant.encode_style([FIRST, SECOND])))


@each_family
def test_each_picture_loses_its_own_content(host: Host, pair: Pair) -> None:
    tower = (pair.variant.text_encoder_2, pair.variant.tokenizer_2) if host.family == "sdxl" else content_encoder()
    pair.variant.load_content_encoder(tower)
    encoder, tokenizer = tower
    ids = tokenizer(["a star"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    values = pair.stock.feature_extractor([FIRST, SECOND], return_tensors="pt").pixel_values
    first, second = pair.stock.image_encoder(values).image_embeds.detach()
    mean = (first - 0.5 * encoder(ids).text_embeds[0].detach() + second) / 2
    embeds = torch.stack([torch.zeros_like(mean), mean])[:, None]
    painted = pair.paint(pair.stock, ip_adapter_image_embeds=[embeds])
    style = pair.variant.encode_style([FIRST, SECOND], neg_content_prompt=["a star", None], neg_content_scale=0.5)
    assert same(painted, both_ways(pair, style), TOLERANCE)
    assert [source.content for source in style.recipe.sources] == ["a star", None]
    assert differ(painted, both_ways(pair, pair.variant.encode_style([FIRST, SECOND])))
    pair.variant.unload_content_encoder()


@each_family
@pytest.mark.parametrize("kind", ["plus", "full"])
def test_adapters_of_patch_embeddings_make_styles_too(host: Host, bare: Pair, tmp_path: Any, kind: str) -> None:
    adapter = write_adapter(tmp_path, host.family, kind)
    bare.stock.load_ip_adapter(*adapter)
    bare.variant.load_ip_adapter(*adapter, target_blocks="all")
    style = bare.variant.encode_style(FIRST)
    painted = bare.paint(bare.stock, ip_adapter_image=FIRST)
    assert same(painted, both_ways(bare, style), TOLERANCE)
    assert differ(painted, both_ways(bare, swapped(style)))
    assert "embeds" not in style.tensors


@most_hosts
def test_a_style_at_scale_0_is_the_host(host: Host, pair: Pair) -> None:
    style = pair.variant.encode_style(FIRST)
    plain = pair.paint(pair.variant)
    assert same(plain, both_ways(pair, style, 0.0))
    assert same(plain, both_ways(pair, (style, style), (0, 0)))
    assert differ(plain, both_ways(pair, style))


@each_family
def test_a_style_serves_every_checkpoint_of_the_family(host: Host, pair: Pair, adapters: Adapters) -> None:
    """Keys and values do not depend on the UNet's own weights; neither adapter nor image encoder is at hand."""
    style = pair.variant.encode_style(FIRST)
    tuned, oracle = (host.cls(**components(host.family, seed=5)) for _ in range(2))
    oracle.load_ip_adapter(*adapters[host.family])
    painted = pair.paint(oracle, ip_adapter_image=FIRST)
    with style.applied(tuned):
        assert tuned.image_encoder is None
        assert not [name for name, _ in tuned.unet.named_parameters() if "_ip" in name]
        assert same(painted, pair.paint(tuned), TOLERANCE)
    assert differ(painted, on_stock(pair, style))


# --- Undone ----------------------------------------------------------------------------------------------------------


def everything(pipe: Any) -> dict[str, Any]:
    """Return what a pipeline is made of, with its class and what is recorded on it and on its UNet."""
    recorded = {name for name in (*vars(pipe), *vars(pipe.unet)) if name.startswith("_instantstyle")}
    hooks = [len(module._forward_pre_hooks) for module in pipe.unet.modules()]
    return {**identities(pipe), "class": type(pipe), "recorded": recorded, "hooks": hooks}


@most_hosts
@pytest.mark.parametrize("loaded", [False, True], ids=["plain", "with its adapter"])
def test_applying_a_style_to_a_host_leaves_no_trace(host: Host, pair: Pair, loaded: bool, adapters: Adapters) -> None:
    style, pipe = pair.variant.encode_style(FIRST), make(host)
    inputs: dict[str, Any] = {}
    if loaded:
        pipe.load_ip_adapter(*adapters[host.family])
        pipe.set_ip_adapter_scale(0.5)
        inputs = {"ip_adapter_image": SECOND}
    plain, before, randomness = pair.paint(pipe, **inputs), everything(pipe), random_states()
    with style.applied(pipe, scale=0.8):
        styled = pair.paint(pipe)
        assert set(changed(before, everything(pipe))) >= {"class", "processors", "modules", "recorded", "hooks"}
    pair.stock.set_ip_adapter_scale(0.8)
    assert same(styled, pair.paint(pair.stock, ip_adapter_image=FIRST), TOLERANCE)
    assert not changed(before, everything(pipe))
    for error in (Broken(), KeyboardInterrupt()):
        with pytest.raises(type(error)), style.applied(pipe), failing_unet(pipe, error, step=0):
            pair.paint(pipe)
        assert not changed(before, everything(pipe))
    assert same(plain, pair.paint(pipe, **inputs))
    assert differ(plain, styled)
    assert random_states() == randomness


@most_hosts
def test_the_style_of_a_call_ends_with_it(host: Host, pair: Pair) -> None:
    style = pair.variant.encode_style(FIRST)
    before = identities(pair.variant)
    referred = pair.paint(pair.variant, ip_adapter_image=SECOND)
    styled = pair.paint(pair.variant, style=style)
    assert not changed(before, identities(pair.variant))
    for error in (Broken(), KeyboardInterrupt()):
        with failing_unet(pair.variant, error, step=0), pytest.raises(type(error)):
            pair.paint(pair.variant, style=style)
        assert not changed(before, identities(pair.variant))
    assert same(referred, pair.paint(pair.variant, ip_adapter_image=SECOND))
    assert differ(referred, styled)


def share(pipe: Any, cls: Any) -> Any:
    """Return another pipeline of the same parts."""
    safety = {"requires_safety_checker": False} if "safety_checker" in pipe.components else {}
    made = cls(**pipe.components, **safety)
    made.set_progress_bar_config(disable=True)
    return made


# --- Refused ---------------------------------------------------------------------------------------------------------

EMBEDS = [torch.zeros(2, 1, CLIP_WIDTH["sdxl"])]
BAD_CALLS: list[tuple[Any, type[Exception], str]] = [
    (lambda s: {"style": s, "ip_adapter_image": FIRST}, ValueError, "`ip_adapter_image` cannot go with a style"),
    (lambda s: {"style": s, "ip_adapter_image_embeds": EMBEDS}, ValueError, "`ip_adapter_image_embeds` cannot go"),
    (lambda s: {"style": s, "neg_content_prompt": "a"}, ValueError, "`neg_content_prompt` cannot go"),
    (lambda s: {"style": s, "neg_content_embeds": EMBEDS[0]}, ValueError, "`neg_content_embeds` cannot go"),
    (lambda s: {"style": s, "neg_content_scale": 0.5}, ValueError, "`neg_content_scale` cannot go"),
    (lambda s: {"style": s, "target_blocks": "all"}, ValueError, "`target_blocks` cannot go"),
    (lambda s: {"style": s, "ip_adapter_image_per_prompt": True}, ValueError, "`ip_adapter_image_per_prompt` cannot"),
    (lambda s: {"style": "ukiyo-e.safetensors"}, TypeError, "`style` must be a Style.*ukiyo-e.*Style.load"),
    (lambda s: {"style": ()}, ValueError, "`style` is empty"),
    (lambda s: {"style": []}, ValueError, "`style` is empty"),
    (lambda s: {"style": [[s]]}, TypeError, "`style` must be a Style"),
    (lambda s: {"style": [s, s]}, ValueError, "`style` is a list of 2, one for each prompt, but there are 1"),
    (lambda s: {"style": [s, s], "prompt": ["a", "b", "c"]}, ValueError, "list of 2.* 3 prompts"),
    (lambda s: {"style": [s], "prompt": ["a", "b"]}, ValueError, "list of 1.* 2 prompts"),
    (lambda s: {"style": [s, (s, s)], "prompt": ["a", "b"]}, ValueError, r"\[4\] tokens .* \[4, 4\]"),
    (lambda s: {"style": s, "style_scale": "1"}, TypeError, "`style_scale` must be a number.*'1'"),
    (lambda s: {"style": s, "style_scale": True}, TypeError, "`style_scale` must be a number.*True"),
    (lambda s: {"style": s, "style_scale": [1.0]}, TypeError, "`style_scale` must be a number"),
    (lambda s: {"style": s, "style_scale": float("nan")}, ValueError, "`style_scale` must be finite.*nan"),
    (lambda s: {"style": (s, s), "style_scale": (1.0,)}, ValueError, "`style_scale` has 1 entries for a tuple of 2"),
    (lambda s: {"style": [s], "style_scale": [1.0, 1.0]}, ValueError, "`style_scale` has 2 entries for a list of 1"),
    (lambda s: {"style_scale": 0.5}, ValueError, "`style_scale` is 0.5, but there is no `style`"),
    (
        lambda s: {"style": s, **masked(*masks().chunk(2))},
        ValueError,
        "`ip_adapter_masks`.* 2 for 1",
    ),
    (lambda s: {"style": s, "style_scales": 0.5}, TypeError, "Did you mean `style_scale`"),
]


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_calls_that_do_not_fit_are_refused_and_change_nothing(host: Host, pair: Pair) -> None:
    style, before = pair.variant.encode_style(FIRST), identities(pair.variant)
    for arguments, error, says in BAD_CALLS:
        with pytest.raises(error, match=says):
            pair.paint(pair.variant, **arguments(style))
        assert not changed(before, identities(pair.variant))


@each_family
def test_a_style_of_another_family_is_refused(host: Host, pair: Pair) -> None:
    (name,) = {"stable_diffusion", "stable_diffusion_xl"} - {host.name}
    style, other = pair.variant.encode_style(FIRST), make(HOSTS[name])
    before = everything(other)
    with pytest.raises(ValueError, match=f"`style` is of the family {host.family}, but the UNet is of the family"):
        style.applied(other).__enter__()
    assert not changed(before, everything(other))


def renamed(style: Style, **changes: Any) -> Style:
    """Return the style with another recipe."""
    return Style(style.tensors, replace(style.recipe, **changes))


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_a_style_of_other_layers_is_refused(host: Host, pair: Pair) -> None:
    style, before = pair.variant.encode_style(FIRST, target_blocks="style"), identities(pair.variant)
    layer = style.layers[0]
    absent = layer.replace("up_blocks.0", "up_blocks.7")
    there = {name: tensor for name, tensor in style.tensors.items() if name.startswith(layer)}
    elsewhere = {name.replace(layer, absent): tensor for name, tensor in there.items()}
    narrow = {name: tensor[..., :4] for name, tensor in there.items()}
    for tensors, scales, says in (
        (elsewhere, {absent: 1.0}, "no such layer"),
        (narrow, {layer: 1.0}, f"of width 4, but the UNet has one of width {style.width(layer)}"),
    ):
        with pytest.raises(ValueError, match=says):
            pair.paint(pair.variant, style=Style(tensors, replace(style.recipe, scales=scales)))
    with pytest.raises(ValueError, match="text embeddings of width 7, but"):
        pair.paint(pair.variant, style=renamed(style, text_width=7))
    with pytest.raises(ValueError, match="of the family kolors, but"):
        pair.paint(pair.variant, style=renamed(style, family="kolors"))
    assert not changed(before, identities(pair.variant))


@each_family
def test_what_cannot_work_while_a_style_is_applied_is_refused(host: Host, pair: Pair, adapters: Adapters) -> None:
    style, pipe = pair.variant.encode_style(FIRST), make(host)
    other = share(pipe, host.cls)
    plain, before = pair.paint(pipe), everything(pipe)
    with style.applied(pipe):
        styled = pair.paint(pipe)
        with pytest.raises(RuntimeError, match="applied to this UNet already"):
            style.applied(pipe).__enter__()
        with pytest.raises(RuntimeError, match="applied to this UNet already"):
            style.applied(other).__enter__()
        with pytest.raises(RuntimeError, match="applied to this UNet already"):
            pair.paint(pipe, style=style)
        for inputs in ({}, {"ip_adapter_image_embeds": [torch.zeros(2, 1, CLIP_WIDTH[host.family])]}):
            with pytest.raises(RuntimeError, match="Run only that pipeline inside of the `with`"):
                pair.paint(other, **inputs)
        with pytest.raises(ValueError, match="`ip_adapter_image` cannot go with a style"):
            pair.paint(pipe, ip_adapter_image=FIRST)
        for use in (
            lambda: pipe.load_ip_adapter(*adapters[host.family]),
            lambda: pipe.unload_ip_adapter(),
            lambda: pipe.set_ip_adapter_scale(0.5),
            lambda: pipe.set_target_blocks("all"),
            lambda: pipe.encode_style(FIRST),
            lambda: pipe.unload_image_encoder(),
            lambda: Style.blend([style], pipe=pipe),
        ):
            with pytest.raises(RuntimeError, match="Leave its `with`"):
                use()
        assert same(styled, pair.paint(pipe))
    assert not changed(before, everything(pipe))
    assert same(plain, pair.paint(other))


@each_family
def test_an_adapter_loaded_by_another_pipeline_does_not_silence_the_style(
    host: Host, pair: Pair, adapters: Adapters
) -> None:
    """The pipeline that paints in the style could not know that it is gone."""
    style, pipe = pair.variant.encode_style(FIRST), make(host)
    other, plain = share(pipe, host.cls), pair.paint(pipe)
    with style.applied(pipe):
        other.load_ip_adapter(*adapters[host.family])
        with pytest.raises(RuntimeError, match="another one ran it, or loaded an IP-Adapter on it"):
            pair.paint(pipe)
    assert same(plain, pair.paint(pipe))


@each_family
def test_a_variant_on_the_same_unet_paints_in_the_style_too(host: Host, pair: Pair) -> None:
    style, pipe = pair.variant.encode_style(FIRST), make(host)
    variant = share(pipe, variant_class(host))
    plain = pair.paint(variant)
    with style.applied(pipe):
        styled = pair.paint(pipe)
        assert same(styled, pair.paint(variant))
    assert same(plain, pair.paint(variant))
    assert differ(plain, styled)


@each_family
def test_a_style_is_cast_with_the_unet(host: Host, pair: Pair) -> None:
    """`from_pipe` casts what it shares to float32."""
    style, pipe = pair.variant.encode_style(FIRST), make(host).to(torch.float64)
    with style.applied(pipe):
        host.cls.from_pipe(pipe)
        assert pipe.unet.dtype == torch.float32
        assert same(pair.paint(pair.stock, ip_adapter_image=FIRST), pair.paint(pipe), TOLERANCE)
    assert differ(pair.paint(pair.stock, ip_adapter_image=FIRST), pair.paint(pipe))


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_a_wrong_scale_is_called_as_it_was_given(host: Host, pair: Pair) -> None:
    style = pair.variant.encode_style(FIRST)
    with pytest.raises(TypeError, match="^`scale` must be a number"):
        style.applied(pair.stock, scale="x").__enter__()
    with pytest.raises(ValueError, match="^`scale` has 1 entries for a tuple of 2"):
        applied(pair.stock, (style, style), (1.0,)).__enter__()


def test_pipelines_that_take_no_style_are_refused() -> None:
    pipe = StableDiffusionSAGPipeline(**components("sd15"))
    for wrong, error, says in (
        (pipe, ValueError, "`pipe` cannot paint in a style: StableDiffusionSAGPipeline"),
        ("a pipeline", TypeError, "`pipe` cannot paint in a style"),
    ):
        with pytest.raises(error, match=says):
            applied(wrong, None).__enter__()


BAD_ENCODINGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"image": "picture.png"}, TypeError, "`image` must be a picture.*picture.png"),
    ({"image": []}, ValueError, "`image` is an empty list"),
    ({"image": [FIRST, None]}, TypeError, "`image` must be a picture.*None"),
    ({"image": torch.zeros(3, 32, 32)}, TypeError, "`image` must be a picture"),
    ({"image": FIRST, "weights": [1, 2]}, ValueError, "`weights` must have a number for each of the 1 in `image`"),
    ({"image": FIRST, "weights": [0]}, ValueError, "`weights` must be finite and have a sum above 0"),
    ({"image": [FIRST, SECOND], "weights": ["1", 2]}, TypeError, "`weights` must be a list of numbers"),
    ({"image": [FIRST], "neg_content_prompt": ["a", "b"]}, ValueError, "`neg_content_prompt` has 2 entries for 1"),
    ({"image": FIRST, "neg_content_prompt": ""}, ValueError, "`neg_content_prompt` holds an empty string"),
    ({"image": FIRST, "neg_content_prompt": 3}, TypeError, "`neg_content_prompt` must hold strs"),
    ({"image": FIRST, "neg_content_scale": "much"}, TypeError, "`neg_content_scale` must be a number"),
    ({"image": FIRST, "target_blocks": "up_block"}, ValueError, "`target_blocks` names 'up_block'"),
    ({"image": FIRST, "target_blocks": {"style": 0}}, ValueError, "`target_blocks` leaves no block"),
    ({"image": FIRST, "target_blocks": {"style": [1.0, 2.0]}}, ValueError, "one scale per block"),
]


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_what_cannot_be_encoded_is_refused_and_changes_nothing(host: Host, pair: Pair, adapters: Adapters) -> None:
    before = identities(pair.variant)
    for arguments, error, says in BAD_ENCODINGS:
        with pytest.raises(error, match=says):
            pair.variant.encode_style(**arguments)
        assert not changed(before, identities(pair.variant))


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_encoding_needs_one_adapter_and_its_encoder(host: Host, bare: Pair, adapters: Adapters) -> None:
    pipe, (folder, subfolder, name) = bare.variant, adapters[host.family]
    with pytest.raises(ValueError, match="none is loaded. Call `load_ip_adapter` first"):
        pipe.encode_style(FIRST)
    pipe.load_ip_adapter(folder, subfolder=[subfolder] * 2, weight_name=[name] * 2, target_blocks=["all", "all"])
    with pytest.raises(ValueError, match="one IP-Adapter, but 2 are loaded"):
        pipe.encode_style(FIRST)
    pipe.load_ip_adapter(folder, subfolder, name, target_blocks="all")
    pipe.unload_image_encoder()
    with pytest.raises(ValueError, match="`image` needs an image encoder"):
        pipe.encode_style(FIRST)


# --- Encoding --------------------------------------------------------------------------------------------------------


@each_family
def test_the_image_encoder_can_go_after_encoding(host: Host, bare: Pair, adapters: Adapters) -> None:
    pipe = bare.variant
    pipe.load_ip_adapter(*adapters[host.family], target_blocks="all")
    style, painted = pipe.encode_style(FIRST), bare.paint(pipe, ip_adapter_image=FIRST)
    pipe.unload_image_encoder()
    assert pipe.image_encoder is None
    assert same(painted, bare.paint(pipe, style=style), TOLERANCE)
    with pytest.raises(ValueError, match="`ip_adapter_image` needs an image encoder"):
        bare.paint(pipe, ip_adapter_image=FIRST)
    pipe.load_ip_adapter(*adapters[host.family], target_blocks="all")
    assert same(painted, bare.paint(pipe, ip_adapter_image=FIRST))
    pipe.unload_ip_adapter()
    assert same(painted, bare.paint(pipe, style=style), TOLERANCE)
    assert differ(painted, bare.paint(pipe))


@each_family
def test_an_image_encoder_that_one_pipeline_lets_go_is_still_the_adapters(
    host: Host, bare: Pair, adapters: Adapters
) -> None:
    """It goes from the other pipelines with the adapter; one that the user gave meanwhile stays."""
    pipe = bare.variant
    pipe.load_ip_adapter(*adapters[host.family])
    other = share(pipe, variant_class(host))
    pipe.unload_image_encoder()
    assert other.image_encoder is not None
    own = image_encoder(host.family)
    pipe.register_modules(image_encoder=own)
    other.unload_ip_adapter()
    assert other.image_encoder is None
    assert pipe.image_encoder is own


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_a_unet_goes_to_another_process_with_its_adapter(host: Host, pair: Pair) -> None:
    unet = pickle.loads(pickle.dumps(pair.variant.unet))
    pipe = variant_class(host)(**{**pair.variant.components, "unet": unet})
    pipe.set_progress_bar_config(disable=True)
    painted = pair.paint(pair.variant, ip_adapter_image=FIRST)
    assert same(painted, pair.paint(pipe, ip_adapter_image=FIRST))
    pipe.unload_ip_adapter()
    assert pair.variant.image_encoder is not None
    assert differ(painted, pair.paint(pipe))


@each_family
def test_encoding_leaves_no_trace(host: Host, pair: Pair) -> None:
    """Also where blocks are encoded whose weights are not in memory."""
    pair.variant.set_target_blocks("style")
    before, randomness = identities(pair.variant), random_states()
    style = pair.variant.encode_style(FIRST, target_blocks="layout")
    assert not changed(before, identities(pair.variant))
    assert random_states() == randomness
    pair.variant.set_target_blocks("layout")
    assert changed(before, identities(pair.variant))
    assert same(pair.paint(pair.variant, ip_adapter_image=FIRST), pair.paint(pair.variant, style=style), TOLERANCE)


@each_family
def test_the_recipe_says_what_a_style_is_made_of(host: Host, pair: Pair) -> None:
    if host.family == "sd15":
        pair.variant.load_content_encoder(content_encoder())
    wide = picture(3, (40, 24))
    style = pair.variant.encode_style(
        [FIRST, wide], neg_content_prompt="a star", neg_content_scale="auto", target_blocks={"style": 0.5}
    )
    pair.variant.unload_content_encoder()
    recipe = style.recipe
    assert [source.size for source in recipe.sources] == [(32, 32), (40, 24)]
    assert {(s.content, s.content_scale, s.weight) for s in recipe.sources} == {("a star", "auto", 0.5)}
    assert recipe.family == host.family
    assert set(recipe.scales.values()) == {0.5}
    assert recipe.image_encoder != recipe.adapter
    assert recipe.dtype == "float32"
    assert recipe.versions["torch"] == torch.__version__


@each_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_are_known_in_any_dtype(host: Host, pair: Pair, adapters: Adapters, dtype: Any) -> None:
    """So styles that were encoded in different ones can be blended, and baked again."""
    style, pipe = pair.variant.encode_style(FIRST), make(host, variant_class(host)).to(dtype)
    pipe.load_ip_adapter(*adapters[host.family], target_blocks="all")
    rounded = pipe.encode_style(FIRST)
    assert rounded.recipe == replace(style.recipe, dtype=str(dtype).removeprefix("torch."))
    assert Style.blend([style, rounded], pipe=pair.variant).recipe.dtype == "float32"
    assert Style.blend([style, rounded], pipe=pipe).dtype == dtype


@each_family
def test_weights_are_known_whoever_loaded_them(host: Host, pair: Pair, adapters: Adapters) -> None:
    """By a stock pipeline, or only for the blocks of this call; other blocks have other weights."""
    recipe = pair.variant.encode_style(FIRST).recipe
    assert recipe == share(pair.stock, variant_class(host)).encode_style(FIRST).recipe
    pipe = make(host, variant_class(host))
    pipe.load_ip_adapter(*adapters[host.family], target_blocks="style")
    assert recipe == pipe.encode_style(FIRST, target_blocks="all").recipe
    assert recipe.adapter != pipe.encode_style(FIRST).recipe.adapter


@each_family
def test_weights_that_were_trained_on_are_others(host: Host, pair: Pair, tmp_path: Any) -> None:
    """Keys and values alone too, and the image encoder."""
    style, adapter = pair.variant.encode_style(FIRST), write_adapter(tmp_path, host.family)
    path = tmp_path / adapter[1] / adapter[2]
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(path)
    for name in (name for name in tensors if name.startswith("ip_adapter.")):
        tensors[name] += 0.01 * torch.randn(tensors[name].shape, generator=generator)
    save_file(tensors, path)
    pipe = make(host, variant_class(host))
    pipe.load_ip_adapter(*adapter, target_blocks="all")
    trained = pipe.encode_style(FIRST)
    assert trained.recipe.adapter != style.recipe.adapter
    assert trained.recipe.image_encoder == style.recipe.image_encoder
    with pytest.raises(ValueError, match="differ in 'adapter'"):
        Style.blend([style, trained])
    with pytest.raises(ValueError, match="`pipe` has the adapter .* encoded with .* without `pipe`"):
        Style.blend([style], pipe=pipe)
    pipe.register_modules(image_encoder=image_encoder(host.family, seed=1))
    assert pipe.encode_style(FIRST).recipe.image_encoder != style.recipe.image_encoder


@each_family
def test_pictures_of_other_colours_are_other_references(host: Host, pair: Pair) -> None:
    """Though the palette, or the colour that is transparent, is all that differs."""
    first = picture(1).quantize(8)
    other, clear = first.copy(), first.copy()
    other.putpalette(first.getpalette()[::-1])
    clear.info["transparency"] = first.getpixel((0, 0))
    embeds = [pair.variant.encode_style(one).tensors["embeds"][1] for one in (first, other, clear)]
    seen = [pair.variant.feature_extractor(one, return_tensors="pt").pixel_values for one in (first, other, clear)]
    assert not torch.equal(seen[0], seen[1])
    for i, j in ((0, 1), (0, 2), (1, 2)):  # transformers 4 does not see what is transparent
        assert torch.allclose(embeds[i], embeds[j], atol=1e-3) == torch.equal(seen[i], seen[j])
    for one, embed in zip((first, other), embeds, strict=False):
        assert torch.equal(embed, pair.variant.encode_style(one.convert("RGB")).tensors["embeds"][1])


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_nothing_is_encoded_before_all_is_checked(
    host: Host, bare: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The image encoder is the slow part: a wrong argument, or a checkpoint that is gone, is found before."""
    pipe, adapter = bare.variant, write_adapter(tmp_path, host.family)
    pipe.load_ip_adapter(*adapter)
    with_content = {"image": [FIRST, SECOND], "neg_content_prompt": ["a star", ""]}
    too_much = {"image": FIRST, "neg_content_prompt": "a star", "neg_content_scale": 2e6}
    gone = {"image": FIRST, "target_blocks": "layout"}
    (tmp_path / adapter[1] / adapter[2]).unlink()
    monkeypatch.setattr(type(pipe.image_encoder), "forward", lambda *_, **__: pytest.fail("it was encoded"))
    for arguments, says in (
        (with_content, "`neg_content_prompt` holds an empty string"),
        (too_much, r"content_scale` must be a finite number of at most 1e\+06.*2000000"),
        (gone, "which were not kept, and .* is gone"),
    ):
        with pytest.raises(ValueError, match=says):
            pipe.encode_style(**arguments)


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_numbers_of_numpy_are_numbers(host: Host, pair: Pair) -> None:
    style = pair.variant.encode_style(FIRST, neg_content_prompt="a star", neg_content_scale=np.float32(0.5))
    assert style.recipe == pair.variant.encode_style(FIRST, "a star", 0.5).recipe
    assert Provenance.from_json(style.recipe.to_json()) == style.recipe


@each_family
def test_an_array_is_a_picture_too(host: Host, pair: Pair) -> None:
    wide = picture(3, (40, 24))
    style, same_style = pair.variant.encode_style(wide), pair.variant.encode_style(np.asarray(wide))
    assert same_style.recipe == style.recipe
    for name, tensor in style.tensors.items():
        assert torch.allclose(tensor, same_style.tensors[name], atol=TOLERANCE)
    assert not torch.allclose(tensor, pair.variant.encode_style(FIRST).tensors[name], atol=100 * TOLERANCE)


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_adapters_of_faces_make_no_style(host: Host, bare: Pair, adapters: Adapters) -> None:
    bare.variant.load_ip_adapter(*adapters["sdxl"])
    (layer,) = bare.variant.unet.encoder_hid_proj.image_projection_layers
    layer.__class__ = type("IPAdapterFaceIDImageProjection", (type(layer),), {})
    with pytest.raises(ValueError, match="takes a face recogniser's embeddings"):
        bare.variant.encode_style(FIRST)


# --- Blends ----------------------------------------------------------------------------------------------------------


@each_family
def test_with_the_adapter_at_hand_embeddings_are_blended_and_encoded_again(host: Host, pair: Pair) -> None:
    """As one style of both pictures is; the blend of keys and values is another."""
    one, other = pair.variant.encode_style(FIRST), pair.variant.encode_style(SECOND)
    painted = pair.paint(pair.variant, style=pair.variant.encode_style([FIRST, SECOND], weights=[3, 1]))
    blend = Style.blend([one, other], [3, 1], pipe=pair.variant)
    assert same(painted, pair.paint(pair.variant, style=blend), TOLERANCE)
    assert differ(painted, pair.paint(pair.variant, style=Style.blend([one, other], [3, 1])))
    assert differ(painted, pair.paint(pair.variant, style=Style.blend([one, other], [1, 3], pipe=pair.variant)))
    for layer in blend.layers:
        assert torch.equal(blend.tensors[f"{layer}.keys"][0], one.tensors[f"{layer}.keys"][0])


@each_family
def test_a_batch_interpolates_between_two_styles(host: Host, pair: Pair) -> None:
    one, other = pair.variant.encode_style(FIRST), pair.variant.encode_style(SECOND)
    for pipe in (None, pair.variant):
        steps = Style.interpolate(one, other, 3, pipe=pipe)
        rows = [
            pair.paint(pair.variant, **asking(host, 0), **drawing(host, 7), style=style)[0]
            for style in (one, Style.blend([one, other], pipe=pipe), other)
        ]
        asked = {**asking(host, 0, 0, 0), **drawing(host, 7, 7, 7)}
        assert rows_are(both_ways(pair, steps, **asked), rows)
        assert rows_are_not(both_ways(pair, steps[::-1], **asked), rows)


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_blending_with_another_adapter_is_refused(host: Host, pair: Pair, tmp_path: Any) -> None:
    style, pipe = pair.variant.encode_style(FIRST), make(host, variant_class(host))
    with pytest.raises(TypeError, match="`pipe` must be an InstantStyle pipeline .* is a StableDiffusionXLPipeline"):
        Style.blend([style], pipe=pair.stock)
    with pytest.raises(ValueError, match="none is loaded"):
        Style.blend([style], pipe=pipe)
    pipe.load_ip_adapter(*write_adapter(tmp_path, host.family, seed=1))
    with pytest.raises(ValueError, match="`pipe` has the adapter .* encoded with .* without `pipe`"):
        Style.blend([style], pipe=pipe)
    tensors = {name: tensor for name, tensor in style.tensors.items() if name != "embeds"}
    with pytest.raises(ValueError, match="`styles` hold no 'embeds'"):
        Style.blend([Style(tensors, style.recipe)], pipe=pair.variant)


# --- The plugin by itself --------------------------------------------------------------------------------------------


def test_a_plugin_that_was_loaded_alone_takes_styles_too(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers executes the file under a name of its own. Styles bring their code; to encode takes the package."""
    spec = importlib.util.spec_from_file_location("another_copy", pipeline_instantstyle.__file__)
    assert spec is not None and spec.loader is not None
    copied = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "another_copy", copied)
    spec.loader.exec_module(copied)
    host = HOSTS["stable_diffusion_xl"]
    pair = Pair(host)
    pair.stock.load_ip_adapter(*adapters["sdxl"])
    pipe = make(host, copied.StableDiffusionXLInstantStylePipeline)
    pipe.load_ip_adapter(*adapters["sdxl"], target_blocks="all")
    style, painted = encode(pipe, FIRST), pair.paint(pair.stock, ip_adapter_image=FIRST)
    assert same(painted, pair.paint(pipe, style=style), TOLERANCE)
    with style.applied(pipe):
        assert type(pipe) is copied.StableDiffusionXLInstantStylePipeline
        assert same(painted, pair.paint(pipe), TOLERANCE)
    assert same(painted, pair.paint(pipe, ip_adapter_image=FIRST), TOLERANCE)
    assert differ(painted, pair.paint(pipe))
    with pytest.raises(ImportError, match="`encode_style` needs the package .*pip install instantstyle"):
        pipe.encode_style(FIRST)
    assert same(painted, pair.paint(pipe, ip_adapter_image=FIRST), TOLERANCE)
