"""The state lives in the UNet, so the rest of diffusers goes on working (law 6), each service as in the host."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, Pair, differ, each_family, every_host, same, variant_class
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from hosts import (
    CLIP_WIDTH,
    HOSTS,
    OTHER_HOSTS,
    SIDE,
    Host,
    adapter_state,
    content_encoder,
    feature_extractor,
    image_encoder,
    make,
    picture,
    seeded,
    write_checkpoint,
)
from offloading import CPU, OFFLOADING, each_offloading, hooks, offload_to_itself, without_hooks
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from instantstyle import with_instantstyle
from instantstyle.version import in_dtype


Adapters = dict[str, tuple[str, str, str]]

SDXL, SD15 = HOSTS["stable_diffusion_xl"], HOSTS["stable_diffusion"]

sdxl_only = pytest.mark.parametrize("host", [SDXL], ids=lambda host: host.family)


def load(pipe: DiffusionPipeline, host: Host, adapters: Adapters, **settings: Any) -> None:
    """Load the family's adapter, and the text tower that removes content where the family has none of its own."""
    pipe.load_ip_adapter(*adapters[host.family], **settings)
    if host.family == "sd15":
        pipe.load_content_encoder(content_encoder())


@dataclass(frozen=True)
class Built:
    """A pair of pipelines that a test has built itself."""

    host: Host
    stock: DiffusionPipeline
    variant: DiffusionPipeline

    paint = Pair.paint


def paint(pair: Pair | Built, pipe: DiffusionPipeline | None = None, **inputs: Any) -> np.ndarray:
    """Return what the variant, or another pipeline, paints with a reference."""
    return pair.paint(pipe or pair.variant, **{"ip_adapter_image": picture(1), **inputs})


STAR = {"neg_content_prompt": "a star", "neg_content_scale": 0.5}


# ---------------------------------------------------------------------------------------------------------------------
# Guidance off, schedulers, VAE, signatures
# ---------------------------------------------------------------------------------------------------------------------


@every_host
def test_without_guidance_the_pixels_are_the_hosts(host: Host, pair: Pair) -> None:
    """Lightning, Hyper, Turbo and LCM models have no unconditional rows."""
    painted = paint(pair, guidance_scale=1.0)
    assert same(painted, paint(pair, pair.stock, guidance_scale=1.0), TOLERANCE)
    assert differ(painted, paint(pair, guidance_scale=1.0, ip_adapter_image=picture(2)))


@each_family
def test_without_guidance_content_leaves_the_only_row(host: Host, pair: Pair) -> None:
    """The host is right when it is fed the embedding by the formula."""
    content = torch.linspace(-0.2, 0.3, CLIP_WIDTH[host.family])
    embeds = pair.stock.encode_image(picture(1), CPU, 1)[0][None]
    by_hand = {"ip_adapter_image": None, "guidance_scale": 1.0, "ip_adapter_image_embeds": [embeds - 0.5 * content]}
    painted = paint(pair, guidance_scale=1.0, neg_content_embeds=content, neg_content_scale=0.5)
    assert same(painted, paint(pair, pair.stock, **by_hand), TOLERANCE)
    assert differ(painted, paint(pair, guidance_scale=1.0))


SCHEDULERS = [
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
]


@pytest.fixture
def own_schedulers(pair: Pair) -> Iterator[None]:
    """Give the shared pipelines their schedulers back."""
    before = pair.stock.scheduler, pair.variant.scheduler
    yield
    pair.stock.scheduler, pair.variant.scheduler = before


@each_family
@pytest.mark.usefixtures("own_schedulers")
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: scheduler.__name__)
def test_any_scheduler_paints_as_in_the_host(scheduler: Any, host: Host, pair: Pair) -> None:
    """Schedulers never see an adapter, and an adapter never sees them."""
    usual = paint(pair, num_inference_steps=2)
    for pipe in (pair.stock, pair.variant):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    painted = paint(pair, num_inference_steps=2)
    assert same(painted, paint(pair, pair.stock, num_inference_steps=2), TOLERANCE)
    assert differ(painted, usual)
    assert differ(painted, paint(pair, num_inference_steps=2, ip_adapter_image=picture(2)))


@each_family
@pytest.mark.parametrize("service", ["tiling", "slicing"])
def test_a_vae_in_parts_paints_as_in_the_host(service: str, host: Host, bare: Pair, adapters: Adapters) -> None:
    """Tiles and slices of the VAE are the host's; tiles move pixels, so they were made."""
    inputs: dict[str, Any] = {"num_images_per_prompt": 2} if service == "slicing" else {}
    load(bare.variant, host, adapters, target_blocks="all")
    bare.stock.load_ip_adapter(*adapters[host.family])
    whole = paint(bare, **inputs)
    for pipe in (bare.stock, bare.variant):
        getattr(pipe.vae, f"enable_{service}")()
        pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = SIDE // 2, SIDE // 4
    painted = paint(bare, **inputs)
    assert same(painted, paint(bare, bare.stock, **inputs), TOLERANCE)
    assert differ(painted, whole) if service == "tiling" else same(painted, whole, TOLERANCE)
    assert differ(painted, paint(bare, **inputs, ip_adapter_image=picture(2)))
    getattr(bare.variant.vae, f"disable_{service}")()
    assert same(whole, paint(bare, **inputs), TOLERANCE)


OURS = [
    "neg_content_prompt",
    "neg_content_embeds",
    "neg_content_scale",
    "target_blocks",
    "ip_adapter_image_per_prompt",
    "reference_fit",
    "style",
    "style_scale",
]


@every_host
def test_the_signature_shows_the_hosts_parameters_and_ours(host: Host) -> None:
    """Testers and user interfaces read it: the host's own in their order with their defaults, then ours by keyword."""
    theirs = inspect.signature(host.cls.__call__).parameters
    shown = inspect.signature(variant_class(host).__call__).parameters
    ours = [shown[name] for name in shown if name not in theirs]
    assert [shown[name] for name in shown if name in theirs] == list(theirs.values())
    assert [parameter.name for parameter in ours] == OURS
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in ours)
    assert not set(OURS) & set(theirs)


@every_host
def test_loading_takes_the_hosts_arguments_by_position(host: Host) -> None:
    """`load_ip_adapter` has the host's parameters first, and one more."""
    theirs = inspect.signature(host.cls.load_ip_adapter).parameters
    shown = inspect.signature(variant_class(host).load_ip_adapter).parameters
    assert [name for name in shown if name in theirs] == list(theirs)
    assert [name for name in shown if name not in theirs] == ["target_blocks"]
    assert list(shown)[: len(theirs) - 1] == list(theirs)[:-1]


# ---------------------------------------------------------------------------------------------------------------------
# LoRA
# ---------------------------------------------------------------------------------------------------------------------

LORA_LAYERS = {
    "unet": ["to_q", "to_k", "to_v"],
    "text_encoder": ["q_proj", "v_proj"],
    "text_encoder_2": ["q_proj", "v_proj"],
}


@functools.cache
def loras(host: Host) -> dict[str, torch.Tensor]:
    """Return a LoRA for the UNet and the text encoders as its file holds it."""
    pipe, state = make(host), {}
    with seeded(5):
        for part, layers in LORA_LAYERS.items():
            if getattr(pipe, part, None) is not None:
                config = LoraConfig(r=2, lora_alpha=4, target_modules=layers, init_lora_weights=False)
                getattr(pipe, part).add_adapter(config)
                found = get_peft_model_state_dict(getattr(pipe, part), adapter_name="default")
                state |= {f"{part}.{key}": value for key, value in found.items()}
    return state


def lora_layers(model: nn.Module) -> list[Any]:
    """Return the layers of a model that have a LoRA."""
    return [module for module in model.modules() if hasattr(module, "disable_adapters") and hasattr(module, "lora_A")]


def add_loras(*pipes: DiffusionPipeline, host: Host) -> None:
    """Load the LoRA on pipelines."""
    for pipe in pipes:
        pipe.load_lora_weights(dict(loras(host)), adapter_name="tiny")
        assert lora_layers(pipe.unet) and lora_layers(pipe.text_encoder)


@pytest.fixture
def with_loras(host: Host, bare: Pair, adapters: Adapters) -> Pair:
    """Build a variant with an adapter on all blocks, then with LoRAs."""
    load(bare.variant, host, adapters, target_blocks="all")
    add_loras(bare.variant, host=host)
    return bare


@each_family
def test_loras_paint_as_in_the_host(host: Host, with_loras: Pair, adapters: Adapters) -> None:
    """On, scaled, off, fused and unloaded."""
    with_loras.stock.load_ip_adapter(*adapters[host.family])
    add_loras(with_loras.stock, host=host)
    on = paint(with_loras)
    assert same(on, paint(with_loras, with_loras.stock), TOLERANCE)
    for change in ("set_adapters", "disable_lora", "enable_lora", "fuse_lora", "unfuse_lora", "unload_lora_weights"):
        arguments = ("tiny", 0.5) if change == "set_adapters" else ()
        for pipe in (with_loras.stock, with_loras.variant):
            getattr(pipe, change)(*arguments)
        painted = paint(with_loras)
        assert same(painted, paint(with_loras, with_loras.stock), TOLERANCE)
        assert differ(painted, on)


@each_family
def test_an_adapter_comes_and_goes_under_loras(host: Host, with_loras: Pair, adapters: Adapters) -> None:
    """Loading, retargeting and unloading leave LoRAs where they are."""
    pipe, layers = with_loras.variant, lora_layers(with_loras.variant.unet)
    on = paint(with_loras)
    pipe.set_target_blocks("layout")
    assert differ(on, paint(with_loras))
    assert same(on, paint(with_loras, target_blocks="all"), TOLERANCE)
    pipe.unload_ip_adapter()
    assert differ(on, with_loras.paint(pipe))
    assert differ(with_loras.paint(pipe), with_loras.paint(with_loras.stock))
    add_loras(with_loras.stock, host=host)
    assert same(with_loras.paint(pipe), with_loras.paint(with_loras.stock), TOLERANCE)
    load(pipe, host, adapters, target_blocks="all")
    assert same(on, paint(with_loras), TOLERANCE)
    assert lora_layers(pipe.unet) == layers


@sdxl_only
def test_content_is_encoded_with_the_text_encoders_loras_off(host: Host, with_loras: Pair) -> None:
    """What is removed is the CLIP's own embedding; a LoRA on the text encoder changes the prompt only."""
    pipe = with_loras.variant
    ids = pipe.tokenizer_2("a star", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        own, moved = make(host).text_encoder_2(ids).text_embeds, pipe.text_encoder_2(ids).text_embeds
    before = paint(with_loras)
    painted = paint(with_loras, **STAR)
    assert same(painted, paint(with_loras, neg_content_embeds=own, neg_content_scale=0.5), TOLERANCE)
    assert differ(painted, paint(with_loras, neg_content_embeds=moved, neg_content_scale=0.5))
    assert same(before, paint(with_loras))
    assert not any(layer.disable_adapters for layer in lora_layers(pipe.text_encoder_2))


@sdxl_only
def test_loras_that_the_user_switched_off_stay_off(host: Host, with_loras: Pair) -> None:
    """Encoding content restores, it does not switch on."""
    pipe = with_loras.variant
    pipe.disable_lora()
    off = paint(with_loras)
    paint(with_loras, **STAR)
    assert same(off, paint(with_loras))
    assert all(layer.disable_adapters for layer in lora_layers(pipe.text_encoder_2))
    pipe.enable_lora()
    assert differ(off, paint(with_loras))


@sdxl_only
def test_fused_loras_can_be_unfused_after_content_was_encoded(host: Host, with_loras: Pair) -> None:
    """A fused LoRA is part of the weights; encoding does not touch it."""
    pipe = with_loras.variant
    on = paint(with_loras)
    pipe.fuse_lora()
    fused = {name: parameter.clone() for name, parameter in pipe.text_encoder_2.named_parameters()}
    paint(with_loras, **STAR)
    assert all(torch.equal(parameter, fused[name]) for name, parameter in pipe.text_encoder_2.named_parameters())
    pipe.unfuse_lora()
    assert same(on, paint(with_loras), TOLERANCE)
    pipe.disable_lora()
    assert differ(on, paint(with_loras))


@sdxl_only
def test_loras_are_on_again_when_encoding_content_fails(host: Host, with_loras: Pair) -> None:
    """An error in the text tower leaves no trace."""
    pipe = with_loras.variant
    before = paint(with_loras)
    with (
        raising(pipe.text_encoder_2, at=2),
        pytest.raises(Interruption),
    ):  # the prompt, then the content
        paint(with_loras, **STAR)
    assert same(before, paint(with_loras))
    assert differ(before, paint(with_loras, **STAR))
    assert not any(layer.disable_adapters for layer in lora_layers(pipe.text_encoder_2))


# ---------------------------------------------------------------------------------------------------------------------
# Offloading
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def sequential_offloading_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let accelerate offload from the CPU to the CPU."""
    offload_to_itself(monkeypatch)


@each_family
@each_offloading
def test_offloading_paints_as_without(offloading: str, host: Host, bare: Pair, adapters: Adapters) -> None:
    """After loading: calls, calls with other targets, retargeting, and unloading, with the hooks there each time."""
    pipe, plain = bare.variant, make(host, variant_class(host))
    for one in (pipe, plain):
        load(one, host, adapters)
    OFFLOADING[offloading](pipe)
    before = hooks(pipe)
    assert all(before.values()) or offloading == "block"
    for inputs in (STAR, {"target_blocks": "layout"}, {}):
        assert same(paint(bare, **inputs), paint(bare, plain, **inputs), TOLERANCE)
        assert hooks(pipe) == before
    assert differ(paint(bare), paint(bare, plain, **STAR))
    for targets in ("layout", "style"):
        for one in (pipe, plain):
            one.set_target_blocks(targets, scale=0.8)
        assert same(paint(bare), paint(bare, plain), TOLERANCE)
    assert hooks(pipe) == before
    pipe.unload_ip_adapter()
    assert same(bare.paint(pipe), bare.paint(bare.stock), TOLERANCE)
    assert {name: count for name, count in before.items() if name not in ("unet", "image_encoder")} == hooks(
        pipe, "vae", "text_encoder", "text_encoder_2"
    )
    assert hooks(pipe, "unet")["unet"] > 0


@each_family
@each_offloading
def test_what_is_loaded_under_offloading_is_offloaded(
    offloading: str, host: Host, bare: Pair, adapters: Adapters
) -> None:
    """Loading, retargeting and unloading when the hooks are there already: all that is new gets its own."""
    pipe, plain = bare.variant, make(host, variant_class(host))
    OFFLOADING[offloading](pipe)
    before = hooks(pipe)
    for one in (pipe, plain):
        load(one, host, adapters)
    assert same(paint(bare, **STAR), paint(bare, plain, **STAR), TOLERANCE)
    for one in (pipe, plain):
        one.set_target_blocks(["style", "layout"])
    painted = paint(bare)
    assert same(painted, paint(bare, plain), TOLERANCE)
    assert differ(painted, paint(bare, plain, target_blocks="style"))
    if offloading in ("sequential", "leaf"):
        assert without_hooks(pipe) == []
        assert hooks(pipe, "unet")["unet"] > before["unet"]
    pipe.unload_ip_adapter()
    assert same(bare.paint(pipe), bare.paint(bare.stock), TOLERANCE)
    assert hooks(pipe) == before


@sdxl_only
@each_offloading
def test_an_image_encoder_loaded_under_offloading_is_offloaded(
    offloading: str, host: Host, bare: Pair, adapters: Adapters
) -> None:
    """On a machine with an accelerator an image encoder without hooks would stay where the picture is not."""
    OFFLOADING[offloading](bare.variant)
    load(bare.variant, host, adapters)
    painted = paint(bare)
    assert hooks(bare.variant, "image_encoder")["image_encoder"] > 0
    assert differ(painted, bare.paint(bare.stock))


@sdxl_only
@each_offloading
def test_an_error_while_offloaded_leaves_the_hooks(
    offloading: str, host: Host, bare: Pair, adapters: Adapters
) -> None:
    """A call with other targets that fails, a refused one and a refused load put the hooks back."""
    pipe = bare.variant
    load(pipe, host, adapters)
    OFFLOADING[offloading](pipe)
    painted, before = paint(bare), hooks(pipe)
    with raising(pipe.scheduler, at=1, method="step"), pytest.raises(Interruption):
        paint(bare, target_blocks="layout")
    with pytest.raises(ValueError, match="cellar"):
        pipe.set_target_blocks("cellar")
    with pytest.raises(ValueError, match="does not fit"):
        pipe.load_ip_adapter(adapter_state("sd15"), "", "", image_encoder_folder=None)
    assert hooks(pipe) == before
    assert same(painted, paint(bare))
    assert differ(painted, paint(bare, target_blocks="layout"))


@sdxl_only
@each_offloading
def test_styles_work_under_offloading(offloading: str, host: Host, bare: Pair, adapters: Adapters) -> None:
    """Encoded and painted with while offloaded, with an adapter and without; on the stock host too."""
    pipe, plain = bare.variant, make(host, variant_class(host))
    for one in (pipe, plain):
        load(one, host, adapters)
    OFFLOADING[offloading](pipe)
    OFFLOADING[offloading](bare.stock)
    before, stock = hooks(pipe), hooks(bare.stock)
    painted = paint(bare, plain, **STAR, target_blocks="layout")
    style = pipe.encode_style(picture(1), **STAR, target_blocks="layout")
    assert style.recipe == plain.encode_style(picture(1), **STAR, target_blocks="layout").recipe
    assert same(painted, bare.paint(pipe, style=style), TOLERANCE)
    with style.applied(bare.stock):
        assert same(painted, bare.paint(bare.stock), TOLERANCE)
    assert hooks(pipe) == before
    assert hooks(bare.stock) == stock
    assert same(paint(bare), paint(bare, plain), TOLERANCE)
    assert differ(painted, paint(bare))
    pipe.unload_image_encoder()
    assert hooks(pipe) == {name: count for name, count in before.items() if name != "image_encoder"}
    pipe.unload_ip_adapter()
    assert same(painted, bare.paint(pipe, style=style), TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------------
# torch.compile
# ---------------------------------------------------------------------------------------------------------------------


class Counting:
    """Count what torch.compile hands to the backend, and run it eagerly."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward

    def since(self, run: Callable[[], Any]) -> int:
        """Return how many graphs a run needs."""
        before = self.graphs
        run()
        return self.graphs - before


BLOCKS = ("up_blocks.0.attentions.0", "up_blocks.0.attentions.1")


def small(host: Host) -> dict[str, Any]:
    """Return the host's components with a UNet that is quickly traced: two levels, one layer each."""
    parts = host.components()
    config = {
        **parts["unet"].config,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "transformer_layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    with seeded(0):
        parts["unet"] = type(parts["unet"]).from_config(config).eval()
    return {**parts, "image_encoder": image_encoder(host.family), "feature_extractor": feature_extractor()}


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Compile as if nothing had been compiled before."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(host: Host, tmp_path: Any) -> Built:
    """Build a variant that is quickly traced, with an adapter on the first of two blocks."""
    parts = small(host)
    pipe = variant_class(host)(**parts)
    torch.save(adapter_state(host.family, unet=parts["unet"]), tmp_path / "adapter.bin")
    pipe.load_ip_adapter(str(tmp_path), "", "adapter.bin", target_blocks=BLOCKS[0])
    return Built(host, pipe, pipe)


@sdxl_only
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_unet_is_compiled_again_only_for_new_patterns(host: Host, traced: Built) -> None:
    """One graph without a break; none for another reference or content, one for scale values, one per new pattern."""
    pipe, eager, backend = traced.variant, paint(traced), Counting()
    pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)
    assert backend.since(lambda: paint(traced)) == 1
    assert backend.since(lambda: paint(traced, ip_adapter_image=picture(2))) == 0
    assert backend.since(lambda: paint(traced, **STAR)) == 0
    assert same(eager, paint(traced), TOLERANCE)
    assert differ(eager, paint(traced, ip_adapter_image=picture(2)))

    def scaled(scale: float) -> None:
        pipe.set_ip_adapter_scale(scale)
        paint(traced)

    assert sum(backend.since(lambda scale=scale: scaled(scale)) for scale in (0.5, 0.7, 0.9)) <= 1
    assert backend.since(lambda: paint(traced, target_blocks=BLOCKS[1])) == 1
    assert backend.since(lambda: paint(traced, target_blocks=BLOCKS[1])) == 0
    pipe.set_target_blocks(BLOCKS[0])
    assert backend.since(lambda: paint(traced)) == 0
    assert same(eager, paint(traced), TOLERANCE)


@sdxl_only
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_unet_compiled_in_place_is_compiled_again_only_for_new_patterns(host: Host, traced: Built) -> None:
    """The other way of compiling, and targets that stay."""
    pipe, eager, backend = traced.variant, paint(traced), Counting()
    pipe.unet.compile(backend=backend, fullgraph=True)
    assert backend.since(lambda: paint(traced)) == 1
    pipe.set_target_blocks(BLOCKS[1])
    assert backend.since(lambda: paint(traced)) == 1
    assert differ(eager, paint(traced))
    assert backend.since(lambda: paint(traced, target_blocks=BLOCKS[0])) == 0
    assert same(eager, paint(traced, target_blocks=BLOCKS[0]), TOLERANCE)


@sdxl_only
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_unet_compiled_with_a_style_serves_other_styles(host: Host, traced: Built) -> None:
    """One graph without a break, and none for another style or scale; the adapter's own graph is still there."""
    pipe, backend = traced.variant, Counting()
    one, other = (pipe.encode_style(picture(number)) for number in (1, 2))
    eager, eager_other = paint(traced), paint(traced, ip_adapter_image=picture(2))
    eager_half = traced.paint(pipe, style=one, style_scale=0.5)
    pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)

    def painted(**inputs: Any) -> np.ndarray:
        return traced.paint(pipe, **inputs)

    assert backend.since(lambda: painted(style=one)) == 1
    assert backend.since(lambda: painted(style=other)) == 0
    assert backend.since(lambda: painted(style=one, style_scale=0.5)) == 0
    assert same(eager, painted(style=one), TOLERANCE)
    assert same(eager_other, painted(style=other), TOLERANCE)
    assert same(eager_half, painted(style=one, style_scale=0.5), TOLERANCE)
    assert differ(eager, eager_other)
    assert differ(eager, eager_half)
    assert backend.since(lambda: paint(traced)) == 1
    assert backend.since(lambda: painted(style=one)) == 0
    with one.applied(pipe):
        assert backend.since(painted) <= 1
        assert same(eager, painted(), TOLERANCE)
    assert backend.since(lambda: paint(traced)) == 0
    assert same(eager, paint(traced), TOLERANCE)


@sdxl_only
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_stock_host_is_compiled_once_for_all_styles(host: Host, traced: Built) -> None:
    pipe = host.cls(**small(host))
    pipe.set_progress_bar_config(disable=True)
    styles = [traced.variant.encode_style(picture(number)) for number in (1, 2)]
    eager, backend = [traced.paint(traced.variant, style=style) for style in styles], Counting()
    pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)
    for number in (0, 1, 0):
        with styles[number].applied(pipe):
            assert same(eager[number], traced.paint(pipe), TOLERANCE)
    assert backend.graphs == 1
    assert differ(*eager)


# ---------------------------------------------------------------------------------------------------------------------
# xformers, dtypes, devices
# ---------------------------------------------------------------------------------------------------------------------


@each_family
def test_switching_xformers_off_changes_nothing(host: Host, bare: Pair, adapters: Adapters) -> None:
    """The host copies projections there, of which muted blocks have none."""
    load(bare.variant, host, adapters)
    before, targets = paint(bare), bare.variant.target_blocks
    bare.variant.disable_xformers_memory_efficient_attention()
    assert same(before, paint(bare))
    assert bare.variant.target_blocks == targets
    bare.variant.set_target_blocks("layout")
    assert differ(before, paint(bare))
    bare.variant.unload_ip_adapter()
    assert same(bare.paint(bare.variant), bare.paint(bare.stock))


@each_family
def test_xformers_that_cannot_be_switched_on_leaves_the_adapter(host: Host, bare: Pair, adapters: Adapters) -> None:
    """Without xformers, or without an accelerator, the error is the host's."""
    load(bare.variant, host, adapters)
    before, targets = paint(bare), bare.variant.target_blocks
    with pytest.raises((ModuleNotFoundError, ValueError)) as ours:
        bare.variant.enable_xformers_memory_efficient_attention()
    with pytest.raises(type(ours.value)) as theirs:
        bare.stock.enable_xformers_memory_efficient_attention()
    assert str(ours.value) == str(theirs.value)
    assert bare.variant.target_blocks == targets
    assert same(before, paint(bare))
    assert differ(before, bare.paint(bare.stock))


DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@each_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("late", [False, True], ids=["then the adapter", "with the adapter"])
def test_every_dtype_paints_as_in_the_host(
    late: bool, dtype: torch.dtype, host: Host, bare: Pair, adapters: Adapters
) -> None:
    """The adapter is in the pipeline's dtype, whichever came first, and so are weights read later."""
    for pipe in (bare.stock, bare.variant):
        settings = {} if pipe is bare.stock else {"target_blocks": "style"}
        if not late:
            pipe.to(dtype)
        pipe.load_ip_adapter(*adapters[host.family], **settings)
        pipe.to(dtype)
    bare.variant.set_target_blocks("all")
    assert {parameter.dtype for parameter in bare.variant.unet.parameters()} == {dtype}
    painted = paint(bare)
    assert same(painted, paint(bare, bare.stock), TOLERANCE)
    assert differ(painted, paint(bare, ip_adapter_image=picture(2)))


@sdxl_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_content_is_removed_in_every_dtype(dtype: torch.dtype, host: Host, bare: Pair, adapters: Adapters) -> None:
    """The subtraction itself is done in float32; what the host is fed is its result in the pipeline's dtype."""
    bare.stock.to(dtype).load_ip_adapter(*adapters[host.family])
    bare.variant.to(dtype).load_ip_adapter(*adapters[host.family], target_blocks="all")
    content = torch.linspace(-0.2, 0.3, CLIP_WIDTH[host.family])
    conditional, unconditional = bare.stock.encode_image(picture(1), CPU, 1)
    removed = (conditional.float() - 0.5 * content).to(dtype)
    by_hand = {"ip_adapter_image": None, "ip_adapter_image_embeds": [torch.stack([unconditional, removed])]}
    painted = paint(bare, neg_content_embeds=content, neg_content_scale=0.5)
    assert same(painted, paint(bare, bare.stock, **by_hand), TOLERANCE)
    assert differ(painted, paint(bare))


def mapped(cls: type[DiffusionPipeline], folder: str) -> DiffusionPipeline:
    """Load a checkpoint over all devices of this machine."""
    return cls.from_pretrained(folder, device_map="balanced")


@each_family
def test_a_balanced_device_map_paints_as_in_the_host(host: Host, adapters: Adapters, tmp_path: Any) -> None:
    """The pipeline stays spread over its devices, and the adapter goes where its block is."""
    folder = write_checkpoint(tmp_path, host.family)
    try:
        stock = mapped(host.cls, folder)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        pytest.skip(f"the host cannot do it on this machine: {error}")
    pair = Built(host, stock, mapped(variant_class(host), folder))
    stock.load_ip_adapter(*adapters[host.family])
    load(pair.variant, host, adapters)
    before = pair.variant.hf_device_map
    pair.variant.set_target_blocks("all")
    painted = paint(pair)
    assert same(painted, paint(pair, stock), TOLERANCE)
    assert differ(painted, paint(pair, ip_adapter_image=picture(2)))
    assert pair.variant.hf_device_map == before
    pair.variant.unload_ip_adapter()
    stock.unload_ip_adapter()
    assert same(pair.paint(pair.variant), pair.paint(stock), TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------------
# Sharing
# ---------------------------------------------------------------------------------------------------------------------

NAMES = {"sdxl": "stable_diffusion_xl", "sd15": "stable_diffusion"}


def sibling(host: Host, task: str) -> Host:
    """Return the family's host of another task."""
    return HOSTS[f"{NAMES[host.family]}_{task}"]


SHARING: dict[str, Callable[[DiffusionPipeline, type[DiffusionPipeline]], DiffusionPipeline]] = {
    "components": lambda pipe, cls: cls(**pipe.components),
    "from_pipe": lambda pipe, cls: cls.from_pipe(pipe, dtype=pipe.dtype),
}


@each_family
@pytest.mark.parametrize("share", SHARING.values(), ids=SHARING)
@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_pipelines_that_share_a_unet_agree(task: str, share: Any, host: Host, bare: Pair, adapters: Adapters) -> None:
    """Adapter, targets and content tower are seen by the other pipeline, and so is what it changes and takes off."""
    other = sibling(host, task)
    load(bare.variant, host, adapters)
    shared = share(bare.variant, variant_class(other))
    shared.set_progress_bar_config(disable=True)
    alone = make(other, variant_class(other))
    load(alone, other, adapters)
    pair = Built(other, alone, shared)
    assert shared.unet is bare.variant.unet
    for inputs in ({}, STAR, {"target_blocks": "layout"}):
        assert same(paint(pair, **inputs), paint(pair, alone, **inputs), TOLERANCE)
    assert differ(paint(pair), paint(pair, alone, **STAR))
    before = paint(bare)
    shared.set_target_blocks("layout")
    assert bare.variant.target_blocks == shared.target_blocks
    assert differ(before, paint(bare))
    shared.unload_ip_adapter()
    assert bare.variant.target_blocks is None
    assert same(bare.paint(bare.variant), bare.paint(bare.stock), TOLERANCE)


@each_family
def test_a_host_becomes_a_variant_and_a_host_again(host: Host, bare: Pair, adapters: Adapters) -> None:
    """`from_pipe` goes both ways, with the adapter that the host had or gets."""
    bare.stock.load_ip_adapter(*adapters[host.family])
    painted = paint(bare, bare.stock)
    variant = variant_class(host).from_pipe(bare.stock, dtype=torch.float32)
    assert same(painted, paint(bare, variant))
    variant.set_target_blocks("style")
    styled = paint(bare, variant)
    assert differ(painted, styled)
    again = host.cls.from_pipe(variant, **in_dtype(torch.float32))
    assert same(styled, paint(bare, again))


@each_family
def test_from_pipe_keeps_a_dtype_that_it_is_told(host: Host, bare: Pair, adapters: Adapters) -> None:
    """With `dtype` nothing is cast; without it the host casts all to float32, which is told in the manual."""
    other = sibling(host, "img2img")
    bare.variant.to(torch.bfloat16)
    load(bare.variant, host, adapters)
    before = paint(bare)
    new = variant_class(other).from_pipe(bare.variant, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in new.unet.parameters()} == {torch.bfloat16}
    assert same(before, paint(bare))
    assert differ(before, bare.paint(bare.variant))


@each_family
def test_from_pipe_works_under_model_offloading(host: Host, bare: Pair, adapters: Adapters) -> None:
    """The new pipeline paints the same; modules are moved by the hooks of either."""
    other = sibling(host, "img2img")
    load(bare.variant, host, adapters)
    alone = make(other, variant_class(other))
    load(alone, other, adapters)
    bare.variant.enable_model_cpu_offload(device="cpu")
    before, offloaded = paint(bare), hooks(bare.variant)
    pair = Built(other, alone, variant_class(other).from_pipe(bare.variant, dtype=torch.float32))
    for inputs in ({}, STAR, {"target_blocks": "layout"}):
        painted = paint(pair, **inputs)
        assert same(painted, paint(pair, alone, **inputs), TOLERANCE)
        assert differ(painted, paint(pair, alone, **inputs, ip_adapter_image=picture(2)))
    pair.variant.set_target_blocks("style")
    assert hooks(bare.variant) == offloaded
    assert same(before, paint(bare), TOLERANCE)


@each_family
def test_a_controlnet_joins_by_from_pipe(host: Host, bare: Pair, adapters: Adapters) -> None:
    """A pipeline with one more module takes the adapter with the UNet."""
    other = sibling(host, "controlnet")
    load(bare.variant, host, adapters)
    alone = make(other, variant_class(other))
    load(alone, other, adapters)
    controlnet: ControlNetModel = alone.controlnet
    joined = variant_class(other).from_pipe(bare.variant, controlnet=controlnet, dtype=torch.float32)
    pair = Built(other, alone, joined)
    painted = paint(pair, **STAR)
    assert same(painted, paint(pair, alone, **STAR), TOLERANCE)
    assert differ(painted, paint(pair))


# ---------------------------------------------------------------------------------------------------------------------
# Interruptions
# ---------------------------------------------------------------------------------------------------------------------


class Interruption(BaseException):
    """Neither an `Exception` nor anything that the code under test knows."""


@contextmanager
def raising(owner: Any, at: int, method: str = "forward") -> Iterator[None]:
    """Raise at the n-th call of a method, counted from 1."""
    original, calls = getattr(owner, method), []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == at:
            raise Interruption
        return original(*args, **kwargs)

    setattr(owner, method, counting)
    try:
        yield
    finally:
        with suppress(AttributeError):
            delattr(owner, method)


def traces(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Note what a call that fails could leave behind."""
    processors = pipe.unet.attn_processors
    return {
        "processors": {name: id(processor) for name, processor in processors.items()},
        "scales": {name: repr(getattr(processor, "scale", None)) for name, processor in processors.items()},
        "modules": {name: id(module) for name, module in pipe.unet.named_modules()},
        "settings of the call": getattr(pipe, "_instantstyle_call", None),
        "targets": pipe.target_blocks,
        "random state": torch.get_rng_state().numpy().tobytes(),
    }


MOMENTS: dict[str, tuple[str, int, str]] = {
    "the image tower": ("image_encoder", 1, "forward"),
    "the first step": ("unet", 1, "forward"),
    "the second step": ("unet", 2, "forward"),
    "between the steps": ("scheduler", 1, "step"),
    "decoding": ("vae", 1, "decode"),
}


# Those whose UNets a call changes most; tests/core/test_laws.py has an error at each step of all.
PAG = [OTHER_HOSTS["stable_diffusion_xl_pag"], OTHER_HOSTS["stable_diffusion_pag"]]


@pytest.mark.parametrize("host", [SDXL, SD15, *PAG], ids=lambda host: host.name)
def test_an_interruption_at_any_moment_leaves_no_trace(host: Host, pair: Pair) -> None:
    """Settings of the call end with it, PAG's processors too, and the next call paints as before."""
    pair.variant.set_target_blocks("style", scale=0.9)
    inputs = {"num_inference_steps": 3 if "strength" in host.inputs() else 2}
    content = {"neg_content_embeds": torch.linspace(-0.2, 0.3, CLIP_WIDTH[host.family]), "target_blocks": "layout"}
    painted, before = paint(pair, **inputs), traces(pair.variant)
    for part, at, method in MOMENTS.values():
        with raising(getattr(pair.variant, part), at, method), pytest.raises(Interruption):
            paint(pair, **inputs, **content)
        assert traces(pair.variant) == before
    assert same(painted, paint(pair, **inputs))
    assert differ(painted, paint(pair, **inputs, **content))


@pytest.mark.parametrize("host", PAG, ids=lambda host: host.name)
def test_pag_would_leave_its_processors(host: Host, bare: Pair, adapters: Adapters) -> None:
    """The breaking twin: the host's own are left on the UNet, so the test above sees them."""
    bare.stock.load_ip_adapter(*adapters[host.family])
    before = {name: id(processor) for name, processor in bare.stock.unet.attn_processors.items()}
    with raising(bare.stock.unet, 1), pytest.raises(Interruption):
        paint(bare, bare.stock)
    assert before != {name: id(processor) for name, processor in bare.stock.unet.attn_processors.items()}


@each_family
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, Interruption], ids=lambda error: error.__name__)
def test_a_callback_that_raises_leaves_no_trace(error: type[BaseException], host: Host, pair: Pair) -> None:
    """At each step, whatever it raises."""
    painted, before = paint(pair, num_inference_steps=2), traces(pair.variant)
    for failing in range(2):

        def callback(pipe: Any, step: int, timestep: Any, tensors: Any, failing: int = failing) -> Any:
            if step == failing:
                raise error
            return tensors

        with pytest.raises(error):
            paint(pair, num_inference_steps=2, callback_on_step_end=callback, target_blocks="layout")
        assert traces(pair.variant) == before
    assert same(painted, paint(pair, num_inference_steps=2))
    assert differ(painted, paint(pair, num_inference_steps=2, target_blocks="layout"))


@each_family
def test_an_interrupted_call_ends_early_and_leaves_no_trace(host: Host, pair: Pair) -> None:
    """The host's `_interrupt` flag skips the steps that are left."""
    painted, before = paint(pair, num_inference_steps=4), traces(pair.variant)

    def callback(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        pipe._interrupt = True
        return tensors

    stopped = {"num_inference_steps": 4, "callback_on_step_end": callback}
    early = paint(pair, **stopped, target_blocks="all")
    assert same(early, paint(pair, pair.stock, **stopped), TOLERANCE)
    assert differ(early, painted)
    assert traces(pair.variant) == before
    assert same(painted, paint(pair, num_inference_steps=4))


@sdxl_only
def test_a_failure_while_content_is_encoded_leaves_no_trace(host: Host, pair: Pair) -> None:
    """The text tower's second run is the content's, after the prompt's."""
    painted, before = paint(pair), traces(pair.variant)
    with raising(pair.variant.text_encoder_2, at=2), pytest.raises(Interruption):
        paint(pair, **STAR, target_blocks="style")
    assert traces(pair.variant) == before
    assert same(painted, paint(pair))
    assert differ(painted, paint(pair, **STAR, target_blocks="style"))


@pytest.mark.parametrize("host", [SD15], ids=lambda host: host.family)
def test_a_content_tower_of_the_users_is_back_home_after_a_failure(host: Host, bare: Pair, adapters: Adapters) -> None:
    """It is on the device while it encodes only, and in its own dtype throughout."""
    bare.variant.load_ip_adapter(*adapters[host.family])
    encoder, tokenizer = content_encoder()
    encoder.to(torch.bfloat16)
    bare.variant.load_content_encoder((encoder, tokenizer))
    before = traces(bare.variant)
    with raising(encoder, at=1), pytest.raises(Interruption):
        paint(bare, **STAR)
    assert traces(bare.variant) == before
    assert encoder.device == CPU and encoder.dtype == torch.bfloat16
    assert differ(paint(bare), paint(bare, **STAR))


def test_a_variant_of_a_variant_is_itself() -> None:
    """`with_instantstyle` can be called on anything that it made."""
    assert with_instantstyle(variant_class(SDXL)) is variant_class(SDXL)
