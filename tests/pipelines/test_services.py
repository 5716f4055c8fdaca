"""Services of the host that swap attention processors, with an adapter or a style on: pixels stay, undo is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, Pair, differ, each_family, every_host, same, variant_class
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor2_0
from hosts import FAMILIES, HOSTS, Host, make, picture, write_adapter
from modulars import assembled
from offloading import OFFLOADING, offload_to_itself, without_hooks

from instantstyle import applied
from instantstyle.core import adapter
from instantstyle.pipelines.modular import InstantStyleXLBlocks, variant_of


Adapters = dict[str, tuple[str, str, str]]
Service = Callable[[DiffusionPipeline], None]

# Each with what takes it back; the host has nothing that takes a processor back, so these set its default.
SERVICES: dict[str, tuple[Service, Service]] = {
    "slicing": (lambda pipe: pipe.enable_attention_slicing(), lambda pipe: pipe.disable_attention_slicing()),
    "fused projections": (
        lambda pipe: pipe.fuse_qkv_projections(vae=False),
        lambda pipe: pipe.unfuse_qkv_projections(vae=False),
    ),
    "the default": (
        lambda pipe: pipe.unet.set_default_attn_processor(),
        lambda pipe: pipe.unet.set_default_attn_processor(),
    ),
    "a processor": (
        lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
        lambda pipe: pipe.unet.set_default_attn_processor(),
    ),
    "a backend": (
        lambda pipe: pipe.unet.set_attention_backend("native"),
        lambda pipe: pipe.unet.reset_attention_backend(),
    ),
    "xformers": (
        lambda pipe: pipe.disable_xformers_memory_efficient_attention(),
        lambda pipe: pipe.disable_xformers_memory_efficient_attention(),
    ),
}
each_service = pytest.mark.parametrize("service", SERVICES)
REFERENCE = picture(1)


@pytest.fixture(scope="module")
def plus_adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """Write an adapter per family whose image projection has attentions of its own."""
    return {family: write_adapter(tmp_path_factory.mktemp(family), family, "plus") for family in FAMILIES}


def processors(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Return the UNet's processors, those that hold nothing by their kind."""
    return {name: type(processor) for name, processor in pipe.unet.attn_processors.items()}


@every_host
def test_with_an_adapter_on_services_change_no_pixel(host: Host, bare: Pair, adapters: Adapters) -> None:
    pipe, plain = bare.variant, make(host, variant_class(host))
    pipe.load_ip_adapter(*adapters[host.family], target_blocks="all")
    painted = bare.paint(pipe, ip_adapter_image=REFERENCE)
    for on, off in SERVICES.values():
        for switch in (on, off):
            switch(pipe)
            switch(plain)
            assert same(painted, bare.paint(pipe, ip_adapter_image=REFERENCE), TOLERANCE)
    unstyled = bare.paint(pipe)
    assert differ(painted, unstyled)
    pipe.unload_ip_adapter()
    assert processors(pipe) == processors(plain)
    assert same(unstyled, bare.paint(pipe), TOLERANCE)


@every_host
def test_with_a_style_on_services_change_no_pixel(host: Host, bare: Pair, adapters: Adapters) -> None:
    pipe, plain = bare.variant, make(host, variant_class(host))
    pipe.load_ip_adapter(*adapters[host.family])
    style = pipe.encode_style(REFERENCE)
    pipe.unload_ip_adapter()
    painted = bare.paint(pipe, style=style)
    with applied(pipe, style):
        for on, off in SERVICES.values():
            for switch in (on, off):
                switch(pipe)
                switch(plain)
                assert same(painted, bare.paint(pipe), TOLERANCE)
    assert processors(pipe) == processors(plain)
    assert differ(painted, bare.paint(pipe))
    for on, off in SERVICES.values():
        on(pipe)
        assert same(painted, bare.paint(pipe, style=style), TOLERANCE)
        off(pipe)


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
@pytest.mark.parametrize("service", ["slicing", "fused projections", "a processor"])
@pytest.mark.parametrize("call", [True, False], ids=["with calls between", "without"])
@pytest.mark.parametrize(
    "order", ["load on off unload", "on load off unload", "on load unload off", "load on unload off"]
)
@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_in_every_order_undo_is_exact(
    host: Host,
    bare: Pair,
    adapters: Adapters,
    plus_adapters: Adapters,
    service: str,
    call: bool,
    order: str,
    kind: str,
) -> None:
    """What a service leaves on a UNet that had an adapter is what it leaves on one that never had."""
    pipe, never = bare.variant, make(host, variant_class(host))
    before = dict(pipe.unet.attn_processors)
    adapter = {"plain": adapters, "plus": plus_adapters}[kind][host.family]
    on, off = SERVICES[service]
    steps: dict[str, Service] = {
        "load": lambda pipe: pipe.load_ip_adapter(*adapter),
        "on": on,
        "off": off,
        "unload": lambda pipe: pipe.unload_ip_adapter(),
    }
    for step in order.split():
        steps[step](pipe)
        if step in ("on", "off"):
            steps[step](never)
        if call:
            bare.paint(pipe)
    assert processors(pipe) == processors(never)
    if service == "fused projections":
        assert dict(pipe.unet.attn_processors) == before
    assert same(bare.paint(never), bare.paint(pipe))


SETTERS: dict[str, Callable[[DiffusionPipeline, Any], Any]] = {
    "target blocks": lambda pipe, _: pipe.set_target_blocks("layout", scale=0.7),
    "scale": lambda pipe, _: pipe.set_ip_adapter_scale(0.5),
    "what is in force": lambda pipe, _: pipe.target_blocks,
    "saving": lambda pipe, folder: pipe.save_pretrained(folder),
    "sharing": lambda pipe, _: type(pipe).from_pipe(pipe),
    "loading again": lambda pipe, folder: pipe.load_ip_adapter(*write_adapter(folder, "sdxl", seed=3)),
    "another type and back": lambda pipe, _: pipe.to(torch.float64).to(torch.float32),
}


@pytest.mark.parametrize("setter", SETTERS)
@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_the_adapter_may_be_turned_to_right_after_a_service(
    host: Host, bare: Pair, adapters: Adapters, tmp_path: Any, setter: str
) -> None:
    pipe, never = bare.variant, make(host, variant_class(host))
    for one in (pipe, never):
        one.load_ip_adapter(*adapters[host.family], target_blocks="all")
    pipe.enable_attention_slicing()
    found = [SETTERS[setter](one, tmp_path / str(number)) for number, one in enumerate((pipe, never))]
    if setter == "what is in force":
        assert found[0] == found[1]
    painted = bare.paint(pipe, ip_adapter_image=REFERENCE)
    assert same(painted, bare.paint(never, ip_adapter_image=REFERENCE), TOLERANCE)
    assert differ(painted, bare.paint(never))


@each_family
@pytest.mark.parametrize("offloading", OFFLOADING)
@pytest.mark.parametrize("first", ["offloading", "service"])
def test_services_and_offloading_go_together(
    host: Host, bare: Pair, adapters: Adapters, monkeypatch: pytest.MonkeyPatch, offloading: str, first: str
) -> None:
    """What a service took off the UNet has the hooks of offloading afterwards, whichever came first."""
    offload_to_itself(monkeypatch)
    pipe = bare.variant
    pipe.load_ip_adapter(*adapters[host.family])
    painted = bare.paint(pipe, ip_adapter_image=REFERENCE)
    steps = [OFFLOADING[offloading], SERVICES["slicing"][0]]
    for step in steps if first == "offloading" else steps[::-1]:
        step(pipe)
    assert same(painted, bare.paint(pipe, ip_adapter_image=REFERENCE), TOLERANCE)
    if offloading in ("sequential", "leaf"):
        assert without_hooks(pipe) == []
    assert differ(painted, bare.paint(pipe))


@each_family
def test_without_putting_them_back_services_end_in_a_tuple(
    host: Host, bare: Pair, adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: this is what the host does (diffusers 7263, 8863, 9901)."""
    bare.stock.load_ip_adapter(*adapters[host.family])
    bare.stock.enable_attention_slicing()
    with pytest.raises(AttributeError, match="'tuple' object has no attribute 'shape'"):
        bare.paint(bare.stock, ip_adapter_image=REFERENCE)
    monkeypatch.setattr(adapter, "is_displaced", lambda unet: False)
    bare.variant.load_ip_adapter(*adapters[host.family])
    bare.variant.enable_attention_slicing()
    with pytest.raises(ValueError, match="SlicedAttnProcessor"):
        bare.paint(bare.variant, ip_adapter_image=REFERENCE)


def test_modular_blocks_outlive_services(pipe: Any) -> None:
    found = assembled(InstantStyleXLBlocks(), pipe.components)
    asked = {"prompt": "a heart", "ip_adapter_image": REFERENCE, "num_inference_steps": 2, "output_type": "np"}

    def paint(**more: Any) -> np.ndarray:
        return found(**{**asked, **more}, generator=torch.Generator().manual_seed(0), output="images")

    painted = paint()
    for on, off in (SERVICES["slicing"], SERVICES["a processor"]):
        for switch in (on, off):
            switch(pipe)
            assert same(painted, paint(), TOLERANCE)
    assert differ(painted, paint(ip_adapter_image=None))
    assert variant_of(found).target_blocks == pipe.target_blocks


# --- Layerwise casting -----------------------------------------------------------------------------------------------


def cast(pipe: DiffusionPipeline) -> None:
    """Store the UNet's weights in 8 bits."""
    pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


@every_host
def test_layerwise_casting_may_come_before_or_after(host: Host, bare: Pair, adapters: Adapters) -> None:
    """It leaves the adapter alone, so the order does not matter; casting first is the host's one way that works."""
    stock, pipe, after = bare.stock, bare.variant, make(host, variant_class(host))
    cast(stock)
    stock.load_ip_adapter(*adapters[host.family])
    painted = bare.paint(stock, ip_adapter_image=REFERENCE)
    cast(pipe)
    pipe.load_ip_adapter(*adapters[host.family], target_blocks="all")
    after.load_ip_adapter(*adapters[host.family], target_blocks="all")
    exact = bare.paint(after, ip_adapter_image=REFERENCE)
    cast(after)
    for one in (pipe, after):
        assert same(painted, bare.paint(one, ip_adapter_image=REFERENCE), TOLERANCE)
    assert differ(painted, exact)
    style = after.encode_style(REFERENCE)
    with applied(after, style):
        assert same(painted, bare.paint(after), TOLERANCE)
    after.unload_ip_adapter()
    assert "_skip_layerwise_casting_patterns" not in vars(after.unet)
    assert same(bare.paint(pipe), bare.paint(after), TOLERANCE)


@each_family
def test_layerwise_casting_with_a_style_on(host: Host, bare: Pair, adapters: Adapters) -> None:
    pipe, first = bare.variant, make(host, variant_class(host))
    pipe.load_ip_adapter(*adapters[host.family])
    style = pipe.encode_style(REFERENCE)
    pipe.unload_ip_adapter()
    exact = bare.paint(pipe, style=style)
    cast(first)
    with applied(pipe, style):
        cast(pipe)
        painted = bare.paint(pipe)
    assert same(painted, bare.paint(first, style=style))
    assert differ(painted, exact)


@each_family
def test_what_the_user_keeps_from_casting_stays_kept(host: Host, bare: Pair, adapters: Adapters) -> None:
    pipe = bare.variant
    pipe.unet._skip_layerwise_casting_patterns = ["conv_in"]
    pipe.load_ip_adapter(*adapters[host.family])
    cast(pipe)
    assert pipe.unet.conv_in.weight.dtype == torch.float32
    assert {p.dtype for p in pipe.unet.encoder_hid_proj.parameters()} == {torch.float32}
    pipe.unload_ip_adapter()
    assert pipe.unet._skip_layerwise_casting_patterns == ["conv_in"]


# --- Adapters of another loader, and processors of the user's --------------------------------------------------------


def stock_adapter(bare: Pair, adapter: tuple[str, str, str]) -> tuple[DiffusionPipeline, DiffusionPipeline]:
    """Return a stock pipeline with an adapter that the host loaded, and the variant on the same UNet."""
    stock = bare.host.cls.from_pipe(bare.variant)
    stock.set_progress_bar_config(disable=True)
    stock.load_ip_adapter(*adapter)
    bare.variant.register_modules(image_encoder=stock.image_encoder, feature_extractor=stock.feature_extractor)
    return stock, bare.variant


@each_family
@pytest.mark.parametrize("service", ["slicing", "fused projections"])
def test_another_loaders_adapter_that_from_pipe_has_seen_outlives_services(
    host: Host, bare: Pair, adapters: Adapters, service: str
) -> None:
    bare.stock.load_ip_adapter(*adapters[host.family])
    pipe = variant_class(host).from_pipe(bare.stock)
    painted = bare.paint(pipe, ip_adapter_image=REFERENCE)
    SERVICES[service][0](bare.stock)
    assert same(painted, bare.paint(pipe, ip_adapter_image=REFERENCE), TOLERANCE)
    assert differ(painted, bare.paint(pipe))


@each_family
@each_service
def test_another_loaders_adapter_is_refused_by_name(host: Host, bare: Pair, adapters: Adapters, service: str) -> None:
    """Its weights went with its processors, so nothing can put it back; the remedy works."""
    stock, pipe = stock_adapter(bare, adapters[host.family])
    painted = bare.paint(pipe, ip_adapter_image=REFERENCE)
    SERVICES[service][0](stock)
    if service in ("a backend", "xformers"):  # they keep it
        assert same(painted, bare.paint(pipe, ip_adapter_image=REFERENCE), TOLERANCE)
        return
    before = processors(pipe)
    with pytest.raises(ValueError, match="Processor.* was put in their place. Call `load_ip_adapter` again"):
        bare.paint(pipe, ip_adapter_image=REFERENCE)
    assert processors(pipe) == before
    pipe.load_ip_adapter(*adapters[host.family], target_blocks="all")
    assert same(painted, bare.paint(pipe, ip_adapter_image=REFERENCE), TOLERANCE)


@each_family
def test_another_loaders_adapter_that_was_cast_is_refused_by_name(host: Host, bare: Pair, adapters: Adapters) -> None:
    stock, pipe = stock_adapter(bare, adapters[host.family])
    cast(stock)
    for call in (lambda: bare.paint(pipe, ip_adapter_image=REFERENCE), lambda: pipe.encode_style(REFERENCE)):
        with pytest.raises(ValueError, match="was cast to torch.float8_e4m3fn.* Call `load_ip_adapter` again"):
            call()
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        bare.paint(stock, ip_adapter_image=REFERENCE)
    pipe.load_ip_adapter(*adapters[host.family], target_blocks="all")
    assert differ(bare.paint(pipe), bare.paint(pipe, ip_adapter_image=REFERENCE))


class Aware:
    """A user's processor that knows of image tokens."""

    def __init__(self, inner: IPAdapterAttnProcessor2_0):
        self.inner, self.calls = inner, 0

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Count, and do what the adapter's does."""
        self.calls += 1
        return self.inner(*args, **kwargs)


class Unaware:
    """A user's processor that does not."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> torch.Tensor:
        """Do what the host's plainest does."""
        return AttnProcessor()(attn, hidden_states, encoder_hidden_states)


@each_family
def test_a_users_own_processor_is_left_alone(host: Host, bare: Pair, adapters: Adapters) -> None:
    pipe = bare.variant
    pipe.load_ip_adapter(*adapters[host.family], target_blocks="all")
    painted = bare.paint(pipe, ip_adapter_image=REFERENCE)
    own = {
        name: Aware(processor) if isinstance(processor, IPAdapterAttnProcessor2_0) else processor
        for name, processor in pipe.unet.attn_processors.items()
    }
    pipe.unet.set_attn_processor(dict(own))
    assert same(painted, bare.paint(pipe, ip_adapter_image=REFERENCE))
    assert all(processor.calls for processor in own.values() if isinstance(processor, Aware))


@each_family
def test_a_users_own_processor_that_takes_no_images_is_named(host: Host, bare: Pair, adapters: Adapters) -> None:
    pipe = bare.variant
    plain = bare.paint(pipe)
    pipe.unet.set_attn_processor(Unaware())
    assert same(plain, bare.paint(pipe), TOLERANCE)
    pipe.load_ip_adapter(*adapters[host.family])
    pipe.unet.set_attn_processor(Unaware())
    with pytest.raises(RuntimeError, match="Unaware at 'down_blocks.* failed.* as a tuple.* `unload_ip_adapter`"):
        bare.paint(pipe, ip_adapter_image=REFERENCE)
    pipe.unload_ip_adapter()
    assert same(plain, bare.paint(pipe), TOLERANCE)
    with pytest.raises(AttributeError, match="nonsense"):  # an error without an adapter is the host's
        pipe(callback_on_step_end=lambda *_: object().nonsense, **host.inputs())
