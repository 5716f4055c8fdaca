"""Law 5: row i of a batch equals the same prompt alone on the host; with masks, several adapters, and guidance cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import (
    CUTTING,
    FIRST,
    FOURTH,
    SECOND,
    THIRD,
    asking,
    cut,
    cutting,
    drawing,
    for_every_row,
    image_rows_cut_to_the_batch,
    keep,
    masked,
    masks,
    rows_are,
    rows_are_not,
)
from conftest import TOLERANCE, Pair, differ, each_family, every_host, same
from diffusers.callbacks import MultiPipelineCallbacks, SDXLCFGCutoffCallback, SDXLControlnetCFGCutoffCallback
from hosts import CLIP_WIDTH, HOSTS, OTHER_HOSTS, SIDE, Host, make, write_adapter


Adapters = dict[str, tuple[str, str, str]]


def alone(pair: Pair, number: int, seed: int, **inputs: Any) -> np.ndarray:
    """Return what the host paints for one prompt."""
    return pair.paint(pair.stock, **asking(pair.host, number), **drawing(pair.host, seed), **inputs)[0]


def embedding(pair: Pair, image: Any) -> torch.Tensor:
    """Call the image tower."""
    values = pair.stock.feature_extractor(image, return_tensors="pt").pixel_values
    return pair.stock.image_encoder(values).image_embeds[0].detach()


def host_format(rows: Sequence[Sequence[torch.Tensor]], guided: bool = True) -> list[torch.Tensor]:
    """Return embeddings as the host takes them, for one adapter: `[unconditional, conditional]`, pictures, width."""
    conditional = torch.stack([torch.stack(list(row)) for row in rows])
    return [torch.cat([torch.zeros_like(conditional), conditional]) if guided else conditional]


def random_vectors(host: Host, *shape: int) -> torch.Tensor:
    """Draw embeddings as wide as the family's CLIP."""
    return torch.randn(*shape, CLIP_WIDTH[host.family], generator=torch.Generator().manual_seed(3))


# --- Prompts and images ----------------------------------------------------------------------------------------------


@every_host
def test_every_row_of_a_batch_is_its_prompt_alone(host: Host, pair: Pair) -> None:
    """Two prompts by one or two images: with one reference, with one each, and with one each as embeddings."""
    images = 2 if host.name in HOSTS else 1  # Kolors and AnimateDiff cannot make two
    seeds = range(2 * images)

    def paint(**inputs: Any) -> np.ndarray:
        inputs |= {**asking(host, 0, 1), **drawing(host, *seeds, each=images), **for_every_row(host, 2, len(seeds))}
        return pair.paint(pair.variant, **inputs)

    def rows(number: int, image: Any) -> list[np.ndarray]:
        mine = seeds[number * images :][:images]
        return [alone(pair, number, seed, ip_adapter_image=image, **for_every_row(host, 1, 1)) for seed in mine]

    first, one, each = rows(0, FIRST), rows(1, FIRST), rows(1, SECOND)
    assert rows_are(paint(ip_adapter_image=FIRST), first + one)
    ours = paint(ip_adapter_image=[[FIRST, SECOND]], ip_adapter_image_per_prompt=True)
    assert rows_are(ours, first + each)
    assert rows_are_not(ours, first + one)
    embeds = host_format([[embedding(pair, FIRST)], [embedding(pair, SECOND)]], host.name != "latent_consistency")
    assert rows_are(paint(ip_adapter_image_embeds=embeds), first + each)


@each_family
def test_several_pictures_merge_for_their_prompt_only(host: Host, pair: Pair) -> None:
    asked = {**asking(host, 0, 1), "ip_adapter_image_per_prompt": True}
    rows = [
        alone(pair, 0, 1, ip_adapter_image=[[FIRST, SECOND]]),
        alone(pair, 1, 2, ip_adapter_image=[[THIRD, FOURTH]]),
    ]

    def paint(images: Any) -> np.ndarray:
        return pair.paint(pair.variant, **asked, **drawing(host, 1, 2), ip_adapter_image=images)

    assert rows_are(paint([[[FIRST, SECOND], [THIRD, FOURTH]]]), rows)
    assert rows_are_not(paint([[[FIRST, THIRD], [SECOND, FOURTH]]]), rows)


@each_family
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_each_prompts_references_lose_their_own_content(host: Host, pair: Pair, guidance_scale: float) -> None:
    images, contents = [[FIRST, SECOND], [THIRD, FOURTH]], random_vectors(host, 4)
    e, guided = [[embedding(pair, image) for image in row] for row in images], guidance_scale > 1
    asked = {**asking(host, 0, 1), "guidance_scale": guidance_scale}
    removed = [[e[0][0] - contents[0], e[0][1]], [e[1][0] - contents[2], e[1][1] - contents[3]]]
    rows = [
        alone(pair, i, i, guidance_scale=guidance_scale, ip_adapter_image_embeds=host_format([removed[i]], guided))
        for i in (0, 1)
    ]
    nested = [[[contents[0], None], [contents[2], contents[3]]]]
    swapped = [nested[0][::-1]]
    for references in (
        {"ip_adapter_image": [images], "ip_adapter_image_per_prompt": True},
        {"ip_adapter_image_embeds": host_format(e, guided)},
    ):
        paint = partial(pair.paint, pair.variant, **asked, **references)
        assert rows_are(paint(**drawing(host, 0, 1), neg_content_embeds=nested), rows)
        assert rows_are_not(paint(**drawing(host, 0, 1), neg_content_embeds=swapped), rows)


@each_family
def test_unconditional_embeddings_stay_with_their_prompt(host: Host, pair: Pair) -> None:
    """Rows of the user's own are `[u1, u2, c1, c2]`."""
    embeds = random_vectors(host, 4, 1)
    rows = [alone(pair, i, i, ip_adapter_image_embeds=[embeds[i::2]]) for i in (0, 1)]
    paint = partial(pair.paint, pair.variant, **asking(host, 0, 1))
    assert rows_are(paint(**drawing(host, 0, 1), ip_adapter_image_embeds=[embeds]), rows)
    swapped = embeds[[1, 0, 2, 3]]
    assert rows_are_not(paint(**drawing(host, 0, 1), ip_adapter_image_embeds=[swapped]), rows)


@pytest.fixture
def two(host: Host, bare: Pair, adapters: Adapters, tmp_path: Path) -> Pair:
    """Build a pair with two adapters on all blocks."""
    both = zip(adapters[host.family], write_adapter(tmp_path, host.family, seed=1), strict=True)
    arguments = [list(values) for values in both]
    bare.stock.load_ip_adapter(*arguments)
    bare.variant.load_ip_adapter(*arguments, target_blocks="all")
    return bare


@each_family
def test_each_of_two_adapters_has_a_reference_for_each_prompt(host: Host, two: Pair) -> None:
    two.stock.set_ip_adapter_scale([0.8, 0.4])
    two.variant.set_ip_adapter_scale([0.8, 0.4])
    rows = [alone(two, 0, 0, ip_adapter_image=[FIRST, THIRD]), alone(two, 1, 1, ip_adapter_image=[SECOND, FOURTH])]
    paint = partial(two.paint, two.variant, **asking(host, 0, 1), ip_adapter_image_per_prompt=True)
    images = [[FIRST, SECOND], [THIRD, FOURTH]]
    assert rows_are(paint(**drawing(host, 0, 1), ip_adapter_image=images), rows)
    assert rows_are_not(paint(**drawing(host, 0, 1), ip_adapter_image=images[::-1]), rows)
    together = paint(**drawing(host, 0, 1), ip_adapter_image=[FIRST, THIRD], ip_adapter_image_per_prompt=False)
    assert same(together[0], rows[0], TOLERANCE)
    assert differ(together[1], rows[1])


# --- Masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS.values(), ids=lambda host: host.name)
def test_pictures_have_masks_and_scales_of_their_own(host: Host, pair: Pair) -> None:
    both = masked(masks().reshape(1, 2, SIDE, SIDE))
    swapped = masked(masks().flip(0).reshape(1, 2, SIDE, SIDE))
    images = {"ip_adapter_image": [[FIRST, SECOND]]}
    pair.stock.set_ip_adapter_scale([[0.9, 0.4]])
    oracle = pair.paint(pair.stock, **images, **both)
    pair.variant.set_ip_adapter_scale([[0.9, 0.4]])
    assert same(oracle, pair.paint(pair.variant, **images, **both))
    assert differ(oracle, pair.paint(pair.variant, **images, **swapped))
    pair.variant.set_target_blocks("all", scale=[[0.4, 0.9]])
    assert differ(oracle, pair.paint(pair.variant, **images, **both))
    style, scales = {
        "sdxl": ({"up_blocks.0.attentions.1": [0.9, 0.4]}, {"up": {"block_0": [0.0, [0.9, 0.4], 0.0]}}),
        "sd15": ({"style": [0.9, 0.4]}, {"up": {"block_1": [[0.9, 0.4]] * 3}}),
    }[host.family]
    pair.stock.set_ip_adapter_scale(scales)
    oracle = pair.paint(pair.stock, **images, **both)
    pair.variant.set_ip_adapter_scale(1.0)
    assert same(oracle, pair.paint(pair.variant, **images, **both, target_blocks=style))
    assert differ(oracle, pair.paint(pair.variant, **images, **swapped, target_blocks=style))


@each_family
def test_masks_hold_for_every_prompt_of_a_batch(host: Host, pair: Pair) -> None:
    both = masked(masks().reshape(1, 2, SIDE, SIDE))
    pair.stock.set_ip_adapter_scale([[0.9, 0.4]])
    pair.variant.set_target_blocks({"all": [0.9, 0.4]})
    images = [[FIRST, SECOND], [THIRD, FOURTH]]
    rows = [alone(pair, i, i, ip_adapter_image=[images[i]], **both) for i in (0, 1)]
    paint = partial(pair.paint, pair.variant, **asking(host, 0, 1), ip_adapter_image_per_prompt=True, **both)
    assert rows_are(paint(**drawing(host, 0, 1), ip_adapter_image=[images]), rows)
    assert rows_are_not(paint(**drawing(host, 0, 1), ip_adapter_image=[images[::-1]]), rows)


@each_family
def test_each_adapter_has_a_mask_of_its_own(host: Host, two: Pair) -> None:
    left, lower = masks().chunk(2)
    images = {"ip_adapter_image": [FIRST, SECOND]}
    two.stock.set_ip_adapter_scale([0.7, 0.7])
    two.variant.set_ip_adapter_scale(0.7)
    oracle = two.paint(two.stock, **images, **masked(left, lower))
    assert same(oracle, two.paint(two.variant, **images, **masked(left, lower)))
    assert differ(oracle, two.paint(two.variant, **images, **masked(lower, left)))


def test_one_adapter_everywhere_and_one_with_scales_for_each_mask(adapters: Adapters, tmp_path: Path) -> None:
    """diffusers' own example for masks, which needs `target_blocks="all"`: a number means the chosen blocks."""
    pair = Pair(HOSTS["stable_diffusion_xl"])
    folders, subfolders, names = zip(adapters["sdxl"], write_adapter(tmp_path, "sdxl", seed=1), strict=True)
    arguments = (list(folders), list(subfolders), list(names))
    last = [[0.0, 0.0, 1.0]]
    scale_1 = {"down": last, "mid": last, "up": {"block_0": [*last, [1.0, 1.0, 1.0], *last], "block_1": last}}
    left, lower = masks().chunk(2)
    inputs = {
        "ip_adapter_image": [FIRST, [SECOND, THIRD, FOURTH]],
        **masked(left, torch.cat([left, lower, 1 - lower], dim=1)),
    }
    painted = []
    for pipe, chosen in (
        (pair.stock, {}),
        (pair.variant, {"target_blocks": "all"}),
        (make(pair.host, type(pair.variant)), {}),
    ):
        pipe.load_ip_adapter(*arguments, **chosen)
        pipe.set_ip_adapter_scale([1.0, scale_1])
        painted.append(pair.paint(pipe, **inputs))
    assert same(*painted[:2])
    assert differ(*painted[1:])


# --- Callbacks that cut guidance -------------------------------------------------------------------------------------


CUTTING += [OTHER_HOSTS[name] for name in ("kolors", "animatediff", "animatediff_sdxl")]


@pytest.mark.parametrize("host", CUTTING, ids=lambda host: host.name)
def test_guidance_cut_by_a_callback_cuts_the_image_rows_with_it(host: Host, pair: Pair) -> None:
    arguments = cutting(host, cut)
    ours = pair.paint(pair.variant, **arguments)
    with image_rows_cut_to_the_batch(pair.stock):
        assert same(pair.paint(pair.stock, **arguments), ours)
    assert differ(pair.paint(pair.stock, **arguments), ours)


@each_family
def test_a_callback_that_cuts_nothing_changes_nothing(host: Host, pair: Pair) -> None:
    kept = cutting(host, keep)
    ours = pair.paint(pair.variant, **kept)
    assert same(pair.paint(pair.stock, **kept), ours)
    assert differ(pair.paint(pair.variant, **cutting(host, cut)), ours)


OFFICIAL = [
    (HOSTS["stable_diffusion_xl"], SDXLCFGCutoffCallback),
    (HOSTS["stable_diffusion_xl_img2img"], SDXLCFGCutoffCallback),
    (HOSTS["stable_diffusion_xl_inpaint"], SDXLCFGCutoffCallback),
    (HOSTS["stable_diffusion_xl_controlnet"], SDXLControlnetCFGCutoffCallback),
]


@pytest.mark.parametrize(("host", "callback"), OFFICIAL, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_the_hosts_own_callbacks_that_cut_guidance_do_so(host: Host, pair: Pair, callback: Any, several: bool) -> None:
    official = callback(cutoff_step_ratio=None, cutoff_step_index=0)
    arguments = cutting(host, MultiPipelineCallbacks([official]) if several else official)
    ours = pair.paint(pair.variant, **arguments)
    with image_rows_cut_to_the_batch(pair.stock):
        assert same(pair.paint(pair.stock, **arguments), ours)
    assert differ(pair.paint(pair.stock, **arguments), ours)


@each_family
def test_guidance_cut_in_a_batch_leaves_each_prompt_its_reference(host: Host, pair: Pair) -> None:
    arguments = cutting(host, cut)
    with image_rows_cut_to_the_batch(pair.stock):
        rows = [
            alone(pair, i, i, **{**arguments, "ip_adapter_image": image}) for i, image in enumerate((FIRST, SECOND))
        ]
    paint = partial(pair.paint, pair.variant, **asking(host, 0, 1), ip_adapter_image_per_prompt=True)
    for images, right in (([[FIRST, SECOND]], True), ([[SECOND, FIRST]], False)):
        batch = paint(**drawing(host, 0, 1), **{**arguments, "ip_adapter_image": images})
        assert (rows_are if right else rows_are_not)(batch, rows)
