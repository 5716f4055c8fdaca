"""Laws 1 to 4: neutral, the paper's, only what is asked, undo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pair, differ, each_family, every_host, most_hosts, same
from diffusers import DiffusionPipeline
from diffusers.image_processor import IPAdapterMaskProcessor
from hosts import (
    CLIP_WIDTH,
    HOSTS,
    OTHER_HOSTS,
    Host,
    adapter_state,
    feature_extractor,
    image_encoder,
    picture,
    write_adapter,
)
from traces import Broken, changed, failing_unet, identities, random_states


Adapters = dict[str, tuple[str, str, str]]

ASKED = {"ip_adapter_image": picture(1), "target_blocks": {"layout": 0.5}}
STEPS = {"num_inference_steps": 3}  # two of them, where an image is half noised
LAYOUT_HALF = {"sdxl": {"down": {"block_2": [0.0, 0.5]}}, "sd15": {"down": {"block_2": [0.5, 0.5]}, "mid": 0.5}}


both_and_kolors = pytest.mark.parametrize(
    "host",
    [HOSTS["stable_diffusion_xl"], HOSTS["stable_diffusion"], OTHER_HOSTS["kolors"]],
    ids=lambda host: host.name,
)


@contextmanager
def unet_input(pipe: DiffusionPipeline) -> Iterator[list[dict[str, Any]]]:
    """Collect the keyword arguments of every call of the UNet."""
    seen: list[dict[str, Any]] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def image_rows(pair: Pair, pipe: DiffusionPipeline, **inputs: Any) -> list[torch.Tensor]:
    """Return the image embeddings that the UNet receives in its first step."""
    with unet_input(pipe) as seen:
        pair.paint(pipe, **inputs)
    return seen[0]["added_cond_kwargs"]["image_embeds"]


def content(host: Host) -> torch.Tensor:
    """Return a content embedding of the size of an image embedding."""
    return torch.randn(CLIP_WIDTH[host.family], generator=torch.Generator().manual_seed(3))


# --- 1. Neutral ----------------------------------------------------------------------------------------------------


@every_host
def test_without_an_adapter_a_reference_or_a_scale_the_pixels_are_the_hosts(
    host: Host, bare: Pair, adapters: Adapters
) -> None:
    plain = bare.paint(bare.stock)
    assert same(plain, bare.paint(bare.variant))
    bare.variant.load_ip_adapter(*adapters[host.family])
    assert same(plain, bare.paint(bare.variant))
    styled = bare.paint(bare.variant, ip_adapter_image=picture(1))
    bare.variant.set_ip_adapter_scale(0.0)
    assert same(plain, bare.paint(bare.variant, ip_adapter_image=picture(1)))
    assert differ(plain, styled)


@each_family
def test_without_a_reference_also_masked_targets_and_several_adapters_are_silent(
    host: Host, bare: Pair, adapters: Adapters
) -> None:
    folder, subfolder, name = adapters[host.family]
    bare.variant.load_ip_adapter(
        folder, subfolder=[subfolder] * 2, weight_name=[name] * 2, target_blocks=["all", "all"]
    )
    bare.variant.set_target_blocks(["style", "layout"], scale=[[0.7, 0.3], 0.5])
    assert same(bare.paint(bare.stock), bare.paint(bare.variant, target_blocks=["all", "style"]))
    assert same(bare.paint(bare.stock, guidance_scale=1.0), bare.paint(bare.variant, guidance_scale=1.0))
    assert differ(bare.paint(bare.stock, guidance_scale=1.0), bare.paint(bare.variant))


# --- 2. The paper's ------------------------------------------------------------------------------------------------


@every_host
def test_all_blocks_without_content_are_the_hosts_own_ip_adapter(host: Host, pair: Pair) -> None:
    inputs = {"ip_adapter_image": picture(1)}
    assert same(pair.paint(pair.stock, **inputs), pair.paint(pair.variant, **inputs))
    pair.variant.set_target_blocks("style")
    assert differ(pair.paint(pair.stock, **inputs), pair.paint(pair.variant, **inputs))


# --- 3. Only what is asked -----------------------------------------------------------------------------------------


@every_host
def test_removing_content_changes_the_conditional_rows_only(host: Host, pair: Pair) -> None:
    """The rows that the UNet receives are `[unconditional, conditional]`, and `[u, c, c]` under PAG."""
    inputs = {"ip_adapter_image": picture(1)}
    (kept,) = image_rows(pair, pair.stock, **inputs)
    (removed,) = image_rows(pair, pair.variant, **inputs, neg_content_embeds=content(host))
    guided = 0 if host.name == "latent_consistency" else len(kept) // (3 if "pag" in host.name else 2)
    assert torch.equal(kept[:guided], removed[:guided])
    assert torch.allclose(kept[guided:] - removed[guided:], content(host).expand_as(kept[guided:]), atol=1e-5)
    assert not torch.allclose(kept[guided:], removed[guided:], atol=1e-3)


@each_family
def test_an_unconditional_embedding_of_the_users_reaches_the_unet_untouched(host: Host, pair: Pair) -> None:
    unconditional, conditional = torch.randn(
        2, 1, 1, CLIP_WIDTH[host.family], generator=torch.Generator().manual_seed(1)
    )
    embeds = torch.cat([unconditional[None], conditional[None]])
    inputs = {"ip_adapter_image_embeds": [embeds], "neg_content_embeds": content(host)}
    (rows,) = image_rows(pair, pair.variant, **inputs)
    assert torch.equal(rows[0], unconditional)
    assert torch.allclose(rows[1], conditional - content(host), atol=1e-6)


def frozen(value: Any) -> Any:
    """Return a value that is equal only as long as nothing inside the argument is replaced or written to."""
    if isinstance(value, dict):
        return {key: frozen(inner) for key, inner in value.items()}, id(value)
    if isinstance(value, (list, tuple)):
        return [frozen(inner) for inner in value], id(value)
    if isinstance(value, torch.Tensor):
        return value.detach().clone().numpy().tobytes(), id(value)
    return value.tobytes() if hasattr(value, "tobytes") else value


def inputs_to_keep(host: Host) -> list[dict[str, Any]]:
    """Return calls whose arguments are lists, dicts, pictures and tensors."""
    embeds = torch.randn(2, 2, CLIP_WIDTH[host.family], generator=torch.Generator().manual_seed(1))
    masks = IPAdapterMaskProcessor().preprocess([picture(7, (16, 16), "L"), picture(8, (16, 16), "L")], 16, 16)
    masks = [masks.reshape(1, 2, 16, 16)]
    return [
        {"ip_adapter_image": [[picture(1), picture(2)]], "neg_content_embeds": [[content(host), None]]},
        {"ip_adapter_image": [[picture(1), picture(2)]], "cross_attention_kwargs": {"ip_adapter_masks": masks}},
        {"ip_adapter_image_embeds": [embeds[:, None, 0]], "neg_content_embeds": content(host), "guidance_scale": 5.0},
        {"ip_adapter_image_embeds": [embeds], "target_blocks": {"style": 0.5, "mid_block": [0.5, 0.5]}},
    ]


@each_family
@pytest.mark.parametrize("number", range(4))
def test_no_argument_of_a_call_is_modified(host: Host, pair: Pair, number: int) -> None:
    inputs = inputs_to_keep(host)[number]
    if number == 3:  # a list of scales needs masks
        inputs["cross_attention_kwargs"] = inputs_to_keep(host)[1]["cross_attention_kwargs"]
    before = frozen(inputs)
    first = pair.paint(pair.variant, **inputs)
    assert frozen(inputs) == before
    assert same(first, pair.paint(pair.variant, **inputs))
    assert frozen(inputs_to_keep(host)[number]) != before  # other objects are told apart


@each_family
def test_loading_and_targeting_modify_no_argument(host: Host, bare: Pair) -> None:
    state, targets, scales = adapter_state(host.family), {"style": 0.5}, [0.5]
    before = frozen([state, targets, scales])
    kept = [state, targets, scales]
    bare.variant.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None, target_blocks=targets)
    bare.variant.set_target_blocks(targets, scale=scales)
    bare.variant.set_ip_adapter_scale(scales)
    assert frozen(kept)[0] == before[0]


@both_and_kolors
def test_global_random_states_are_neither_used_nor_moved(host: Host, bare: Pair, adapters: Adapters) -> None:
    variant, before = bare.variant, random_states()
    variant.load_ip_adapter(*adapters[host.family], target_blocks="layout")
    variant.set_target_blocks("style")
    bare.paint(variant, ip_adapter_image=picture(1), target_blocks="all", neg_content_embeds=content(host))
    bare.paint(variant)
    variant.unload_ip_adapter()
    assert random_states() == before
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)
        assert random_states() != before


# --- 4. Undo -------------------------------------------------------------------------------------------------------


@every_host
def test_unloading_restores_what_loading_replaced_twice(host: Host, bare: Pair, adapters: Adapters) -> None:
    variant, before, plain = bare.variant, identities(bare.variant), bare.paint(bare.variant)
    randomness = random_states()
    for target_blocks in ("style", "all"):
        variant.load_ip_adapter(*adapters[host.family], target_blocks=target_blocks)
        assert set(changed(before, identities(variant))) > {"processors", "modules", "components", "keys", "config"}
        styled = bare.paint(variant, ip_adapter_image=picture(1))
        variant.unload_ip_adapter()
        assert not changed(before, identities(variant))
        assert variant.target_blocks is None
    assert same(plain, bare.paint(variant))
    assert differ(plain, styled)
    assert random_states() == randomness


@each_family
@pytest.mark.parametrize("given", [("image_encoder",), ("feature_extractor",), ("image_encoder", "feature_extractor")])
def test_what_the_user_gave_survives_unloading(
    host: Host, bare: Pair, adapters: Adapters, given: tuple[str, ...]
) -> None:
    towers = {"image_encoder": image_encoder(host.family), "feature_extractor": feature_extractor()}
    bare.variant.register_modules(**{name: towers[name] for name in given})
    before = identities(bare.variant)
    for _ in range(2):
        bare.variant.load_ip_adapter(*adapters[host.family])
        assert all(getattr(bare.variant, name) is towers[name] for name in given)
        bare.variant.unload_ip_adapter()
        assert not changed(before, identities(bare.variant))
        assert [getattr(bare.variant, name) is None for name in towers] == [name not in given for name in towers]


@both_and_kolors
@pytest.mark.parametrize("first", ["style", "all"])
def test_loading_over_an_adapter_replaces_it_and_unloading_undoes_both(
    host: Host, bare: Pair, tmp_path: Path, adapters: Adapters, first: str
) -> None:
    """The host loses Kolors' text projection with the second load (FACTS 6), so the oracle has loaded once."""
    other = write_adapter(tmp_path, host.family, seed=1)
    before, plain = identities(bare.variant), bare.paint(bare.variant)
    bare.variant.load_ip_adapter(*other, target_blocks=first)
    old = bare.paint(bare.variant, **ASKED)
    bare.variant.load_ip_adapter(*adapters[host.family], target_blocks="all")
    bare.stock.load_ip_adapter(*adapters[host.family])
    bare.stock.set_ip_adapter_scale(LAYOUT_HALF[host.family])
    painted = bare.paint(bare.stock, ip_adapter_image=picture(1))
    assert same(painted, bare.paint(bare.variant, **ASKED))
    assert differ(painted, old)
    bare.variant.unload_ip_adapter()
    assert not changed(before, identities(bare.variant))
    assert same(plain, bare.paint(bare.variant))


def raising(error: BaseException) -> Callable[..., None]:
    """Return a hook or callback that raises."""

    def fail(*_: Any) -> None:
        raise error

    return fail


@most_hosts
def test_an_error_at_any_step_leaves_no_trace(host: Host, pair: Pair) -> None:
    variant = pair.variant
    variant.set_target_blocks("style", scale=0.5)  # layout has no weights of its own now
    before, painted = identities(variant), pair.paint(variant, ip_adapter_image=picture(1))
    for step, error in enumerate((Broken(), KeyboardInterrupt())):
        with failing_unet(variant, error, step), pytest.raises(type(error)):
            pair.paint(variant, **ASKED, **STEPS, neg_content_embeds=content(host))
        assert not changed(before, identities(variant))
    assert same(painted, pair.paint(variant, ip_adapter_image=picture(1)))


def interrupting(pipe: DiffusionPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Stop the call as diffusers' documentation says."""
    pipe._interrupt = True
    return tensors


@most_hosts
def test_a_callback_that_raises_or_interrupts_leaves_no_trace(host: Host, pair: Pair) -> None:
    variant = pair.variant
    variant.set_target_blocks("style")
    before = identities(variant)
    with pytest.raises(KeyboardInterrupt):
        pair.paint(variant, **ASKED, callback_on_step_end=raising(KeyboardInterrupt()))
    assert not changed(before, identities(variant))
    with unet_input(variant) as steps:
        pair.paint(variant, **ASKED, **STEPS, callback_on_step_end=interrupting)
    assert len(steps) == 1
    assert not changed(before, identities(variant))


@each_family
def test_settings_of_a_call_end_with_it(host: Host, pair: Pair) -> None:
    """Also `prepare_ip_adapter_image_embeds` is the host's again."""
    pair.variant.set_target_blocks("style")
    before = identities(pair.variant)
    asked = pair.paint(pair.variant, **ASKED, neg_content_embeds=content(host))
    assert not changed(before, identities(pair.variant))
    arguments = ([picture(1)], None, torch.device("cpu"), 2, True)
    (theirs,) = pair.stock.prepare_ip_adapter_image_embeds(*arguments)
    (ours,) = pair.variant.prepare_ip_adapter_image_embeds(*arguments)
    assert torch.equal(theirs, ours)
    assert differ(asked, pair.paint(pair.variant, ip_adapter_image=picture(1)))
