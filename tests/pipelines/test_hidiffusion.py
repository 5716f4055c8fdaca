"""Large pictures: HiDiffusion is the library's own, with adapters and ControlNets, and comes off exactly."""

from __future__ import annotations

import importlib.util
import json
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import TOLERANCE, differ, same
from diffusers import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from hosts import (
    OTHER_HOSTS,
    UNET_WIDTHS,
    _controlnet,
    _unet,
    _with_controlnet_union,
    adapter_state,
    components,
    feature_extractor,
    image_encoder,
    make,
    picture,
    pixels,
    seeded,
)
from peft import LoraConfig
from PIL import Image
from safetensors.torch import save_file

import instantstyle
from instantstyle import disable_hidiffusion, enable_hidiffusion, with_instantstyle
from instantstyle.commands import cli
from instantstyle.inference import recipe
from instantstyle.pipelines import hidiffusion


ROOT = Path(__file__).parents[2]
REFERENCE = str(ROOT / "examples" / "reference.png")

# SDXL's own topology, which the embedded checkpoint does not have.
FULL = {"transformer_layers_per_block": (1, 2, 10), "sample_size": 16}
SIDE = 64  # of a picture in pixels: latents of 32 x 32, and windows of whole numbers at each level
STEPS = 7  # with one step of each kind: another stride, pooling, windows alone
STYLE = {"up": {"block_0": [0.0, 1.0, 0.0]}}  # to the host what "style" is to the variant
OFFICIAL = {"sdxl": "stabilityai/stable-diffusion-xl-base-1.0", "sd15": "runwayml/stable-diffusion-v1-5"}


@pytest.fixture(scope="module")
def adapter() -> Any:
    """Draw an adapter for the full topology."""
    return adapter_state("sdxl", unet=_unet("sdxl", **FULL))


def build(name: Any, family: str = "sdxl", **more: Any) -> Any:
    """Build a pipeline of ours or of diffusers, by its class or its name, on a tiny UNet of the full topology."""
    parts = components(family)
    if family == "sdxl":
        parts["unet"] = _unet("sdxl", **FULL)
        parts |= {"image_encoder": image_encoder("sdxl"), "feature_extractor": feature_extractor()}
    if "ControlNet" in str(name):
        parts["controlnet"] = _controlnet(family)
    cls = (getattr(instantstyle, name, None) or getattr(diffusers, name)) if isinstance(name, str) else name
    pipe = cls(**{**parts, **more})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(pipe: Any, adapter: Any, **settings: Any) -> Any:
    """Load the adapter, on the style block alone unless told otherwise."""
    pipe.load_ip_adapter(adapter, subfolder="", weight_name="", image_encoder_folder=None, **settings)
    if not hasattr(pipe, "set_target_blocks"):
        pipe.set_ip_adapter_scale(STYLE)
    return pipe


def paint(pipe: Any, **inputs: Any) -> np.ndarray:
    """Return the pixels of one picture."""
    usual = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "np"}
    size = {} if "image" in inputs else {"width": SIDE, "height": SIDE}
    generator = torch.Generator("cpu").manual_seed(0)
    return pixels(pipe, **{"prompt": "a red star", "generator": generator, **usual, **size, **inputs})


def reference(seed: int = 1) -> dict[str, Any]:
    """Name a reference."""
    return {"ip_adapter_image": picture(seed)}


@contextmanager
def the_library_alone(pipe: Any, family: str = "sdxl") -> Iterator[Any]:
    """Apply the library itself to a stock pipeline, as its users do, with its random numbers drawn step by step."""
    pipe.register_to_config(_name_or_path=OFFICIAL[family])
    hidiffusion.load_library().apply_hidiffusion(pipe)
    steps: list[int] = []

    def seed(*_: Any) -> None:
        torch.manual_seed(len(steps))
        steps.append(0)

    handle = pipe.unet.register_forward_pre_hook(seed)
    with seeded(0):
        yield pipe
    handle.remove()


# ---------------------------------------------------------------------------------------------------------------------
# The same pixels
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_without_an_adapter_it_paints_as_the_library(family: str) -> None:
    prefix = "StableDiffusion" + ("XL" if family == "sdxl" else "")
    stock, variant = build(f"{prefix}Pipeline", family), build(f"{prefix}InstantStylePipeline", family)
    before = paint(variant)
    enable_hidiffusion(variant)
    made = paint(variant)
    with the_library_alone(stock, family):
        assert same(made, paint(stock), TOLERANCE)
    assert differ(made, before)


def test_with_an_adapter_it_paints_as_the_library_with_the_hosts(adapter: Any) -> None:
    stock, variant = (load(build(f"StableDiffusionXL{kind}Pipeline"), adapter) for kind in ("", "InstantStyle"))
    enable_hidiffusion(variant)
    made = paint(variant, **reference())
    with the_library_alone(stock):
        assert same(made, paint(stock, **reference()), TOLERANCE)
    assert differ(made, paint(variant, **reference(2)))
    style = variant.encode_style(picture(1))
    load(variant, adapter, target_blocks="layout")
    assert differ(made, paint(variant, **reference()))
    variant.unload_ip_adapter()
    assert same(made, paint(variant, style=style), 2 * TOLERANCE)


def controlled(name: str) -> Any:
    """Build a ControlNet pipeline with what the library takes for granted: 8 pixels a latent, 128 in training."""
    parts = components("sdxl")
    with seeded(0):
        parts["vae"] = AutoencoderKL(
            block_out_channels=(4,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
            force_upcast=False,
        ).eval()
        embedding = ControlNetConditioningEmbedding(UNET_WIDTHS["sdxl"][0], block_out_channels=(4,) * 4)
        torch.nn.init.normal_(embedding.conv_out.weight, std=0.5)
    parts["unet"] = _unet("sdxl", **{**FULL, "sample_size": 128})
    parts["controlnet"] = _controlnet("sdxl")
    parts["controlnet"].controlnet_cond_embedding = embedding
    cls = getattr(instantstyle, name, None) or getattr(diffusers, name)
    pipe = cls(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_with_a_controlnet_it_paints_as_the_librarys_own_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's old pipeline stops the ControlNet after 60 % of the steps, which the host does when told."""
    library = hidiffusion.load_library()
    monkeypatch.setattr(library, "USE_PEFT_BACKEND", False)  # it forgot to import what it calls then
    stock, variant = (controlled(f"StableDiffusionXL{kind}ControlNetPipeline") for kind in ("", "InstantStyle"))
    inputs = {"image": picture(103, (256, 256)), "num_inference_steps": 5, "controlnet_conditioning_scale": 0.8}
    enable_hidiffusion(variant)
    made = paint(variant, **inputs, control_guidance_end=0.6)
    with the_library_alone(stock):
        assert same(made, paint(stock, **inputs), TOLERANCE)
    disable_hidiffusion(variant)
    assert differ(made, paint(variant, **inputs, control_guidance_end=0.6))


CONTROL = {"image": picture(103, (SIDE, SIDE)), "num_inference_steps": 3}


SIZE = {"width": SIDE, "height": SIDE}
MASK = Image.linear_gradient("L").resize((SIDE, SIDE)).point(lambda value: 255 * (value > 127))
# Host -> its own parts, what it is given, and what of that makes another picture.
OTHERS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "StableDiffusionXLControlNetPipeline": (
        lambda: {"controlnet": _controlnet("sdxl")},
        CONTROL,
        {"controlnet_conditioning_scale": 0.1},
    ),
    "StableDiffusionXLControlNetPipeline, two": (
        lambda: {"controlnet": [_controlnet("sdxl"), _controlnet("sdxl")]},
        {**CONTROL, "image": [CONTROL["image"]] * 2, "controlnet_conditioning_scale": [0.8, 0.5]},
        {"controlnet_conditioning_scale": [0.8, 0.1]},
    ),
    "StableDiffusionXLControlNetUnionPipeline": (
        lambda: {"controlnet": _with_controlnet_union()["controlnet"]},
        {"control_image": CONTROL["image"], "control_mode": 1, "num_inference_steps": 3, **SIZE},
        {"controlnet_conditioning_scale": 0.1},
    ),
    "StableDiffusionXLInpaintPipeline": (
        dict,
        {"image": CONTROL["image"], "mask_image": MASK, "strength": 0.9, "num_inference_steps": 4, **SIZE},
        {"strength": 0.5},
    ),
    "StableDiffusionXLPAGPipeline": (
        lambda: {"pag_applied_layers": ["down_blocks.1", "mid"]},
        {"pag_scale": 3.0, "num_inference_steps": 3, **SIZE},
        {"pag_scale": 0.0},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_guides_and_an_adapter_work_together(name: str, adapter: Any) -> None:
    """Which the library's own pipeline cannot. Here the host is the measure, with the same help."""
    parts, inputs, change = OTHERS[name]
    host = getattr(diffusers, name.partition(",")[0])
    stock, variant = (load(build(cls, **parts()), adapter) for cls in (host, with_instantstyle(host)))
    inputs = {**inputs, **reference()}
    small = paint(variant, **inputs)
    for pipe in (stock, variant):
        enable_hidiffusion(pipe)
    made = paint(variant, **inputs)
    assert same(made, paint(stock, **inputs), TOLERANCE)
    for other in (small, paint(variant, **{**inputs, **reference(2)}), paint(variant, **{**inputs, **change})):
        assert differ(made, other)
    disable_hidiffusion(variant)
    assert same(small, paint(variant, **inputs))


# ---------------------------------------------------------------------------------------------------------------------
# Undone, and a call at a time
# ---------------------------------------------------------------------------------------------------------------------


def trace(pipe: Any) -> dict[str, Any]:
    """Return all that HiDiffusion could leave on a pipeline: classes, attributes and hooks."""
    found: dict[str, Any] = {"": (type(pipe), set(vars(pipe)))}
    for part in ("unet", "controlnet"):
        for name, module in getattr(pipe, part).named_modules() if hasattr(pipe, part) else ():
            kept = {key: list(value) if hasattr(value, "keys") else id(value) for key, value in vars(module).items()}
            found[f"{part}.{name}"] = type(module), kept, getattr(module, "stride", None)
    return found


def test_it_comes_off_without_a_trace(adapter: Any) -> None:
    pipe = load(build("StableDiffusionXLInstantStyleControlNetPipeline"), adapter)
    inputs = {**CONTROL, "num_inference_steps": 2, **reference()}
    before = paint(pipe, **inputs)
    clean = trace(pipe)
    disable_hidiffusion(pipe)
    assert trace(pipe) == clean
    for _ in range(2):
        for _ in range(2):
            enable_hidiffusion(pipe)
        assert differ(paint(pipe, **inputs), before)
        assert trace(pipe) != clean
        disable_hidiffusion(pipe)
        assert trace(pipe) == clean
        assert same(paint(pipe, **inputs), before)


def test_the_librarys_own_removal_leaves_traces() -> None:
    """So the trace would see it."""
    pipe = build("StableDiffusionXLPipeline")
    clean = trace(pipe)
    with the_library_alone(pipe):
        paint(pipe)
    hidiffusion.load_library().remove_hidiffusion(pipe)
    found = trace(pipe)
    assert [name for name in clean if found[name][0] is not clean[name][0]] == []
    assert pipe.unet.num_upsamplers == 2 + 12
    assert all(found[name] != clean[name] for name in clean)


def test_an_adapter_may_come_and_go_meanwhile(adapter: Any) -> None:
    pipe, plain = (build("StableDiffusionXLInstantStylePipeline") for _ in range(2))
    enable_hidiffusion(pipe)
    load(pipe, adapter)
    load(plain, adapter)
    large = paint(pipe, **reference())
    enable_hidiffusion(plain)
    assert same(large, paint(plain, **reference()))
    for one in (plain, pipe):
        disable_hidiffusion(one)
    small = paint(pipe, **reference())
    assert same(small, paint(plain, **reference()))
    assert differ(large, small)
    assert not any("info" in vars(module) for module in pipe.unet.modules())


class Interruption(Exception):
    """What breaks off a call."""


def interrupt(pipe: Any) -> None:
    """Break off a call after its second step."""

    def callback(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise Interruption
        return tensors

    with pytest.raises(Interruption):
        paint(pipe, callback_on_step_end=callback)


def test_a_picture_depends_on_its_seeds_alone() -> None:
    """Not on calls before, nor on the global random state, which stays what it was."""
    pipe = build("StableDiffusionXLInstantStylePipeline")
    enable_hidiffusion(pipe)
    state = torch.random.get_rng_state()
    made = paint(pipe)
    assert torch.equal(torch.random.get_rng_state(), state)
    interrupt(pipe)
    with seeded(2):
        assert same(made, paint(pipe))
    vars(pipe.unet)[hidiffusion.STATE].handles[0].remove()
    with seeded(1):  # the library draws from the global random state,
        first = paint(pipe)
    with seeded(2):
        assert differ(first, paint(pipe))
    interrupt(pipe)
    del pipe.progress_bar
    with seeded(1):  # and goes on counting
        assert differ(first, paint(pipe))


def test_a_pipeline_that_shares_the_unet_is_refused_until_it_is_enabled() -> None:
    """The library goes by the number of steps of the pipeline that it was given, in whatever state that one is."""
    pipe, alone = (build("StableDiffusionXLInstantStylePipeline") for _ in range(2))
    short = {"num_inference_steps": 2}
    small = paint(pipe, **short)
    other = type(pipe).from_pipe(pipe, dtype=torch.float32)
    own = type(pipe.scheduler).from_config(pipe.scheduler.config)
    enable_hidiffusion(pipe)

    def refused() -> None:
        for other.scheduler in (own, pipe.scheduler):
            with pytest.raises(ValueError, match="`enable_hidiffusion` was given another pipeline"):
                paint(other, **short)

    refused()
    paint(pipe, **short)
    refused()
    interrupt(pipe)
    refused()
    with pipe.progress_bar(total=2):  # as if it were the pipeline's own call
        wrong = paint(other, **short)
    for enabled in (other, alone):
        enable_hidiffusion(enabled)
    made = paint(other, **short)
    assert same(made, paint(alone, **short))
    assert differ(made, wrong)
    disable_hidiffusion(pipe)
    assert same(paint(pipe, **short), small)


def test_sizes_in_multiples_of_64_fit_the_windows(recwarn: pytest.WarningsRecorder) -> None:
    """Which are 8 latents. Others are painted too, with the library's warning."""
    pipe = build("StableDiffusionXLPipeline")
    enable_hidiffusion(pipe)
    for latents, fit in (((8, 24), True), ((12, 8), False)):
        recwarn.clear()
        height, width = (side * pipe.vae_scale_factor for side in latents)
        assert paint(pipe, height=height, width=width, num_inference_steps=3).shape[1:3] == (height, width)
        assert fit != any("cannot be directly partitioned" in str(one.message) for one in recwarn)


def test_what_is_saved_meanwhile_is_what_was_there(tmp_path: Path) -> None:
    pipe = build("StableDiffusionXLInstantStylePipeline")

    def saved() -> dict[str, bytes]:
        pipe.unet.save_pretrained(tmp_path)
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    before = saved()
    enable_hidiffusion(pipe)
    assert saved() == before
    pipe.unet.conv_in.bias.data += 1
    assert saved() != before


def test_a_failed_pass_puts_the_random_state_back() -> None:
    pipe = build("StableDiffusionXLInstantStylePipeline")
    enable_hidiffusion(pipe)
    state = torch.random.get_rng_state()
    handle = pipe.unet.mid_block.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(Interruption))
    with pytest.raises(Interruption):
        paint(pipe)
    assert torch.equal(torch.random.get_rng_state(), state)
    handle.remove()
    made = paint(pipe)
    disable_hidiffusion(pipe)
    enable_hidiffusion(pipe)
    assert same(made, paint(pipe))


# ---------------------------------------------------------------------------------------------------------------------
# What it takes
# ---------------------------------------------------------------------------------------------------------------------

SDXL_UNET = {
    "in_channels": 4,
    "sample_size": 128,
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time",
}
SD15_UNET = {
    "sample_size": 64,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}


@pytest.mark.parametrize(
    ("unet", "name"),
    [
        (SDXL_UNET, OFFICIAL["sdxl"]),
        ({**SDXL_UNET, "sample_size": 64}, "stabilityai/sdxl-turbo"),
        ({**SDXL_UNET, "in_channels": 9}, "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"),
        (SD15_UNET, OFFICIAL["sd15"]),
        ({**SD15_UNET, "layers_per_block": 2, "transformer_layers_per_block": 1}, OFFICIAL["sd15"]),
        ({**SDXL_UNET, "transformer_layers_per_block": [1, 1, 2]}, None),
        ({**SDXL_UNET, "layers_per_block": 1}, None),
        ({**SDXL_UNET, "transformer_layers_per_block": [[0], [2, 2], [4, 4]]}, None),
        ({**SDXL_UNET, "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"]}, None),
        ({**SD15_UNET, "down_block_types": ["DownBlock2D"] * 4}, None),
    ],
)
def test_the_library_has_a_table_for_the_unet_or_it_is_refused(unet: dict[str, Any], name: str | None) -> None:
    if name is not None:
        assert hidiffusion.table(unet) == name
        assert name in hidiffusion.load_library().supported_official_model
    else:
        with pytest.raises(ValueError, match="HiDiffusion has tables for the UNets of SDXL and SD1.5, and none for"):
            hidiffusion.table(unet)


def test_the_embedded_checkpoint_is_refused_and_stays_as_it_is(pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"none for one of 3 levels with 1, 1, 2 transformer layers\. .*`upscale`"):
        enable_hidiffusion(pipe)
    assert not any("info" in vars(module) for module in pipe.unet.modules())


def test_a_pipeline_without_a_fitting_unet_is_refused() -> None:
    uncounted = build("StableDiffusionSAGPipeline", "sd15")
    for wrong in (make(OTHER_HOSTS["stable_diffusion_xl_adapter"]), uncounted, object()):
        with pytest.raises(TypeError, match="`pipe` must have a UNet and no T2I-Adapter, and count its steps"):
            enable_hidiffusion(wrong)


def test_parts_that_it_cannot_change_are_refused_and_nothing_is_changed() -> None:
    pipe = build("StableDiffusionXLInstantStylePipeline")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["downsamplers.0.conv"]))
    classes = {name: type(module) for name, module in pipe.unet.named_modules()}
    with pytest.raises(ValueError, match="`pipe` has hooks or a LoRA on parts of its UNet"):
        enable_hidiffusion(pipe)
    assert {name: type(module) for name, module in pipe.unet.named_modules()} == classes
    assert not any("info" in vars(module) for module in pipe.unet.modules())
    pipe = build("StableDiffusionXLInstantStylePipeline")
    pipe.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(ValueError, match="Use model offloading, not sequential or group offloading"):
        enable_hidiffusion(pipe)


@pytest.mark.parametrize("part", ["", "unet", "unet.mid_block"])
def test_a_compiled_unet_is_refused(part: str) -> None:
    pipe = build("StableDiffusionXLInstantStylePipeline")
    clean = trace(pipe)
    if part:
        operator.attrgetter(part)(pipe).compile(backend="eager")
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    with pytest.raises(ValueError, match="`pipe.unet` is compiled, but HiDiffusion changes its course"):
        enable_hidiffusion(pipe)
    pipe.unet = getattr(pipe.unet, "_orig_mod", pipe.unet)
    assert {name: found[0] for name, found in trace(pipe).items()} == {name: found[0] for name, found in clean.items()}


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "hidiffusion" else find(name, *args)
    )
    with pytest.raises(ValueError, match=r'pip install "instantstyle\[hires\]"'):
        enable_hidiffusion(build("StableDiffusionXLInstantStylePipeline"))


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def generate(out: Path, *words: str, style: str = REFERENCE) -> np.ndarray:
    """Run `instantstyle generate` and return the pixels."""
    assert cli.main(["generate", "a heart", "--style", style, "--seed", "0", "-o", str(out), *words]) == 0
    return np.asarray(Image.open(out), dtype=np.int16)


@pytest.fixture(scope="module")
def model(adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a model of the full topology, with its adapter."""
    folder = tmp_path_factory.mktemp("model")
    build("StableDiffusionXLPipeline").save_pretrained(folder)
    weights = folder / "sdxl_models" / "ip-adapter_sdxl.safetensors"
    weights.parent.mkdir()
    save_file({f"{part}.{key}": value for part, state in adapter.items() for key, value in state.items()}, weights)
    return str(folder)


def test_some_rows_of_a_batch_are_large(model: str, tmp_path: Path) -> None:
    """And each is what `generate` makes of it, with those of its kind in one call."""
    rows = [{"prompt": "a heart", "seed": seed, "hires": hires} for seed, hires in enumerate((True, False, True))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--style", REFERENCE, "--model", model, "--size", str(SIDE), "--steps", "3"]
    assert cli.main(["batch", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "out"), *words]) == 0
    alone = tmp_path / "alone.png"
    for number, row in list(enumerate(rows))[1:]:
        made = np.asarray(Image.open(tmp_path / "out" / f"00000{number + 1}.png"), dtype=np.int16)
        for switch in ([], ["--hires"]):
            own = [*words[2:], "--seed", str(number), *switch]
            distance = abs(made - generate(alone, *own)).max()
            assert distance <= 1 if row["hires"] == bool(switch) else distance > 10


def test_hires_on_the_command_line(adapter: Any, model: str, tmp_path: Path) -> None:
    words = ["--model", model, "--size", str(SIDE), "--steps", str(STEPS)]
    out = tmp_path / "heart.png"
    made = generate(out, *words, "--hires")
    assert recipe.read_recipe(out)["hires"] is True
    pipe = load(build("StableDiffusionXLInstantStylePipeline"), adapter)
    enable_hidiffusion(pipe)
    inputs = {"prompt": "a heart", "ip_adapter_image": Image.open(REFERENCE)}
    expected = (paint(pipe, **inputs)[0] * 255).round()
    assert abs(made - expected).max() <= 1
    assert abs(made - generate(out, *words)).max() > 10
    assert recipe.read_recipe(out)["hires"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hires", "--size", "128"], "--hires: tiny: HiDiffusion has tables for the UNets of SDXL and SD1.5"),
        (["--hires"], "--hires needs a --size larger than the model's own"),
        (["--hires", "--upscale", "2", "--size", "128"], "--hires and --upscale are two ways"),
        (["--hires", "--size", "128", "--offload", "sequential"], "use --offload model"),
        (["--upscale", "1"], "--upscale: expected a number above 1, got '1'"),
        (["--upscale-strength", "0.5"], "--upscale-strength needs --upscale"),
        (["--upscale", "2", "--steps", "3"], "--upscale-strength 0.3 of 3 steps leaves none"),
        (["--image", REFERENCE, "--fast", "turbo"], "--strength 0.3 of 1 steps leaves none; give more of either"),
        (["--image", REFERENCE, "--strength", "0.1", "--steps", "9"], "--strength 0.1 of 9 steps leaves none"),
        (["--upscale", "2", "--fast", "turbo"], "--upscale-strength 0.3 of 1 steps leaves none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_anything_is_loaded(words: list[str], message: str, assert_refused: Any) -> None:
    assert_refused(["generate", "a heart", "--style", REFERENCE, "-o", "{out}", *words], message, {"out": "heart.png"})


def test_hires_is_refused_by_the_configuration_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing but the configuration."""
    (tmp_path / "unet").mkdir()
    unet = {**SDXL_UNET, "transformer_layers_per_block": [0, 2, 4]}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(unet))
    words = ["--model", str(tmp_path), "--hires", "--size", "2048"]
    assert cli.main(["generate", "a heart", "--style", REFERENCE, *words]) == 2
    assert "0, 2, 4 transformer layers" in capsys.readouterr().err


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Write pictures for the command line."""
    for name, seed in {"image": 5, "control": 6, "other": 7}.items():
        picture(seed, (64, 48)).save(tmp_path / f"{name}.png")
    Image.linear_gradient("L").resize((64, 48)).point(lambda s: 255 * (s > 127)).save(tmp_path / "mask.png")
    return {name: str(tmp_path / f"{name}.png") for name in ("image", "mask", "control", "other")}


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["--content", "a star", "--size", "64x48"], []),
        (["--image", "{image}", "--strength", "0.8"], []),
        (["--image", "{image}"], ["--mask", "{mask}"]),
        ([], ["--controlnet", "tiny", "--control-image", "{control}"]),
    ],
    ids=["text", "image", "mask", "control"],
)
def test_the_second_pass_is_image_to_image_from_the_first(
    words: list[str], more: list[str], files: dict[str, str], tmp_path: Path
) -> None:
    common = ["--steps", "4", *(word.format(**files) for word in more)]
    own = [word.format(**files) for word in words]
    first, out = tmp_path / "first.png", tmp_path / "second.png"
    made = generate(out, *common, *own, "--upscale", "1.5", "--upscale-strength", "0.5")
    kept = recipe.read_recipe(out)
    assert (kept["upscale"], kept["upscale_strength"]) == (1.5, 0.5)
    generate(first, *common, *own)
    width, height = kept["size"]
    assert [width, height] == [side * 3 // 2 for side in Image.open(first).size]
    content = own[:2] if "--content" in own else []
    again = [*common, *content, "--image", str(first), "--size", f"{width}x{height}"]
    assert (made == generate(out, *again, "--strength", "0.5")).all()
    assert abs(made - generate(out, *again, "--strength", "0.5", style=files["other"])).max() > 10


def test_each_of_several_pictures_is_painted_over_from_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--steps", "4", "--upscale", "1.5", "--upscale-strength", "0.5"]
    style = ["--style", REFERENCE]
    out = tmp_path / "many.png"
    assert cli.main(["generate", "a heart", "a ring", *style, "--seed", "0", "-o", str(out), *words]) == 0
    assert cli.main(["generate", "a ring", *style, "--seed", "1", "-o", str(tmp_path / "ring.png"), *words]) == 0
    assert caplog.messages == []
    heart, ring, alone = (
        np.asarray(Image.open(tmp_path / name), dtype=np.int16) for name in ("many-0.png", "many-1.png", "ring.png")
    )
    # Rows of a batch are computed in another order, and a rounded channel of the first pass goes into the second.
    assert abs(ring - alone).max() <= 4
    assert abs(heart - alone).max() > 20


def test_a_large_picture_may_be_decoded_in_tiles(pipe: Any, tmp_path: Path) -> None:
    words = ["--steps", "2", "--size", "128"]
    out = tmp_path / "heart.png"
    whole = generate(out, *words)
    tiled = generate(out, *words, "--vae-tiling")
    assert recipe.read_recipe(out)["vae_tiling"] is True
    assert abs(tiled - whole).max() > 1
    pipe.set_target_blocks("style")
    pipe.vae.enable_tiling()
    generator = torch.Generator().manual_seed(0)
    inputs = {"ip_adapter_image": Image.open(REFERENCE), "num_inference_steps": 2, "width": 128, "height": 128}
    expected = pipe("a heart", generator=generator, guidance_scale=5.0, **inputs).images[0]
    assert abs(tiled - np.asarray(expected, dtype=np.int16)).max() <= 1
