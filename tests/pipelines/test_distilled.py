"""Few steps: what a recipe does to a pipeline is what its makers say, with the adapter where it was."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hub import redirect, serve
from loras import ALPHA, LAYERS, RANK, Tensors, factors, kohya
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from instantstyle import StableDiffusionXLInstantStylePipeline, tiny
from instantstyle.commands import cli
from instantstyle.inference import recipe
from instantstyle.pipelines import distilled


ROOT = Path(__file__).parents[2]
REFERENCE = str(ROOT / "examples" / "reference.png")


# As published: the weights for SDXL and SD1.5, the scheduler with its settings, steps, guidance, what else the call
# is told. Written down apart from the recipes.
LIGHTNING, HYPER = "ByteDance/SDXL-Lightning:sdxl_lightning_{}step_lora", "ByteDance/Hyper-SD:Hyper-{}-{}-lora"
TRAILING = {"timestep_spacing": "trailing"}
EULER, DDIM = ("EulerDiscreteScheduler", TRAILING), ("DDIMScheduler", TRAILING)
PUBLISHED: dict[str, tuple[str | None, str | None, tuple[str, dict[str, str]], int, float, dict[str, Any]]] = {
    "lightning-1": (
        "ByteDance/SDXL-Lightning:sdxl_lightning_1step_unet_x0",
        None,
        ("EulerDiscreteScheduler", {**TRAILING, "prediction_type": "sample"}),
        1,
        0,
        {},
    ),
    "lightning-2": (LIGHTNING.format(2), None, EULER, 2, 0, {}),
    "lightning-4": (LIGHTNING.format(4), None, EULER, 4, 0, {}),
    "lightning-8": (LIGHTNING.format(8), None, EULER, 8, 0, {}),
    "hyper-1": (
        HYPER.format("SDXL", "1step"),
        HYPER.format("SD15", "1step"),
        ("TCDScheduler", {}),
        1,
        0,
        {"eta": 1.0},
    ),
    "hyper-1-unet": (
        "ByteDance/Hyper-SD:Hyper-SDXL-1step-Unet",
        None,
        ("LCMScheduler", {}),
        1,
        0,
        {"timesteps": [800]},
    ),
    "hyper-2": (HYPER.format("SDXL", "2steps"), HYPER.format("SD15", "2steps"), DDIM, 2, 0, {}),
    "hyper-4": (HYPER.format("SDXL", "4steps"), HYPER.format("SD15", "4steps"), DDIM, 4, 0, {}),
    "hyper-8": (HYPER.format("SDXL", "8steps"), HYPER.format("SD15", "8steps"), DDIM, 8, 0, {}),
    "hyper-8-cfg": (HYPER.format("SDXL", "8steps-CFG"), HYPER.format("SD15", "8steps-CFG"), DDIM, 8, 5, {}),
    "hyper-12-cfg": (HYPER.format("SDXL", "12steps-CFG"), HYPER.format("SD15", "12steps-CFG"), DDIM, 12, 5, {}),
    "lcm": (
        "latent-consistency/lcm-lora-sdxl:pytorch_lora_weights",
        "latent-consistency/lcm-lora-sdv1-5:pytorch_lora_weights",
        ("LCMScheduler", {}),
        4,
        1,
        {},
    ),
    "turbo": (None, None, ("EulerAncestralDiscreteScheduler", TRAILING), 1, 0, {}),
}


@pytest.fixture(scope="module")
def unet() -> Tensors:
    """Read the embedded checkpoint's UNet."""
    return {key: value.float() for key, value in load_file(tiny.path() / "unet" / UNET).items()}


UNET = "diffusion_pytorch_model.safetensors"


def delta(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Multiply the factors of a layer."""
    product = up.flatten(1) @ down.flatten(1)
    return product.reshape(len(up), *down.shape[1:])


def peft(unet: Tensors, layers: list[str]) -> Tensors:
    """Lay a LoRA out as diffusers saves it. It has no alpha: what that would multiply is in the factors."""
    state = {}
    for layer, (down, up) in factors(unet, layers).items():
        name = f"unet.{layer}"
        state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up * ALPHA / RANK}
    return state


LAYOUTS: dict[str, Callable[[Tensors, list[str]], Tensors]] = {"kohya": kohya, "peft": peft}


@pytest.fixture(scope="module")
def lora(unet: Tensors, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a LoRA in each layout."""
    folder = tmp_path_factory.mktemp("loras")
    for layout, make in LAYOUTS.items():
        save_file(make(unet, LAYERS), folder / f"{layout}.safetensors")
    return {layout: folder / f"{layout}.safetensors" for layout in LAYOUTS}


def make_variant() -> Any:
    """Load the embedded checkpoint as a variant."""
    pipe = StableDiffusionXLInstantStylePipeline.from_pretrained(tiny.path(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_adapter(pipe: Any) -> None:
    """Load the embedded checkpoint's adapter."""
    pipe.load_ip_adapter(str(tiny.path()), subfolder="sdxl_models", weight_name="ip-adapter_sdxl.safetensors")


def state_of(module: nn.Module) -> tuple[dict[str, type], Tensors]:
    """Return the classes and the weights of a model."""
    return {name: type(one) for name, one in module.named_modules()}, module.state_dict()


# ---------------------------------------------------------------------------------------------------------------------
# The weights
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_is_fused_into_the_weights_and_leaves_nothing_else(
    layout: str, lora: dict[str, Path], unet: Tensors
) -> None:
    pipe = make_variant()
    before, _ = state_of(pipe.unet)
    distilled.apply_distilled(pipe, distilled.DISTILLED["lightning-4"], lora[layout])
    classes, weights = state_of(pipe.unet)
    assert (classes, pipe.get_list_adapters()) == (before, {})
    assert weights.keys() == unet.keys()
    added = factors(unet, LAYERS)
    for name, tensor in unet.items():
        layer = name.removesuffix(".weight")
        if layer in added:
            wrong = tensor + delta(*added[layer])
            tensor = tensor + ALPHA / RANK * delta(*added[layer])
            assert (weights[name] - wrong).abs().max() > 0.01
        assert torch.allclose(weights[name], tensor, atol=1e-6), name


def picture(pipe: Any, **arguments: Any) -> np.ndarray:
    """Paint in the style of the reference."""
    generator = torch.Generator().manual_seed(0)
    made = pipe("a heart", ip_adapter_image=Image.open(REFERENCE), generator=generator, **arguments).images[0]
    return np.asarray(made, dtype=np.int16)


def test_a_recipe_and_an_adapter_come_in_any_order(lora: dict[str, Path]) -> None:
    first, second, without = make_variant(), make_variant(), make_variant()
    chosen = distilled.DISTILLED["lcm"]
    distilled.apply_distilled(first, chosen, lora["kohya"])
    for pipe in (first, second, without):
        load_adapter(pipe)
    distilled.apply_distilled(second, chosen, lora["kohya"])
    without.scheduler = second.scheduler
    made = picture(second, **chosen.arguments)
    assert abs(made - picture(first, **chosen.arguments)).max() <= 1
    assert abs(made - picture(without, **chosen.arguments)).max() > 10


def test_a_whole_unet_takes_the_place_of_the_models(unet: Tensors, tmp_path: Path) -> None:
    """As SDXL-Lightning's best checkpoints are. The adapter that is on the UNet stays."""
    other = {name: tensor * 1.01 for name, tensor in unet.items()}
    save_file(other, tmp_path / "sdxl_lightning_4step_unet.safetensors")
    pipe, oracle = make_variant(), make_variant()
    load_adapter(pipe)
    before = picture(pipe, num_inference_steps=2)
    distilled.apply_distilled(
        pipe, distilled.DISTILLED["lightning-4"], tmp_path / "sdxl_lightning_4step_unet.safetensors"
    )
    oracle.unet.load_state_dict(other)
    load_adapter(oracle)
    oracle.scheduler = pipe.scheduler
    made = picture(pipe, num_inference_steps=2)
    assert (made == picture(oracle, num_inference_steps=2)).all()
    oracle.unet.load_state_dict(unet, strict=False)
    assert abs(made - picture(oracle, num_inference_steps=2)).max() > 1
    assert abs(made - before).max() > 1


def broken_files(unet: Tensors, folder: Path) -> dict[str, str]:
    """Write files that are no weights for the embedded checkpoint."""
    whole = kohya(unet, LAYERS)
    some = "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight"
    states = {
        "narrow": {**whole, some: torch.ones(RANK, 7)},
        "elsewhere": {name.replace("mid_block", "mid_block_2"): tensor for name, tensor in whole.items()},
        "infinite": {**whole, some: torch.full_like(whole[some], torch.inf)},
        "unet": {**unet, "conv_in.bias": torch.zeros(3)},
    }
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    (folder / "torn.safetensors").write_bytes((folder / "narrow.safetensors").read_bytes()[:300])
    return {name: str(folder / f"{name}.safetensors") for name in (*states, "torn")}


def test_weights_that_do_not_fit_change_nothing(unet: Tensors, tmp_path: Path) -> None:
    pipe = make_variant()
    load_adapter(pipe)
    classes, weights = state_of(pipe.unet)
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    for name, path in broken_files(unet, tmp_path).items():
        with pytest.raises(ValueError, match=f"`weights` {name}.safetensors"):
            distilled.apply_distilled(pipe, distilled.DISTILLED["lightning-4"], Path(path))
        after, found = state_of(pipe.unet)
        assert after == classes
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], weights[key]) for key in weights)
        assert type(pipe.scheduler).__name__ == "DDIMScheduler"


def test_a_pipeline_with_loras_is_refused(lora: dict[str, Path]) -> None:
    pipe = make_variant()
    pipe.load_lora_weights(load_file(lora["peft"]), adapter_name="mine")
    with pytest.raises(ValueError, match="`pipe` has LoRAs already"):
        distilled.apply_distilled(pipe, distilled.DISTILLED["lightning-4"], lora["kohya"])
    assert pipe.get_list_adapters() == {"unet": ["mine"]}


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


def test_the_recipes_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each family's file is asked for, and how it is sampled."""
    asked: list[str] = []
    monkeypatch.setattr(distilled, "_fetch", lambda source, file: asked.append(f"{source}:{file}") or Path(file))
    monkeypatch.setattr(distilled, "is_lora", lambda path: True)
    assert list(distilled.DISTILLED) == list(PUBLISHED)
    for name, (sdxl, sd15, (scheduler, settings), steps, guidance, more) in PUBLISHED.items():
        chosen = distilled.DISTILLED[name]
        assert (chosen.name, chosen.scheduler, dict(chosen.settings)) == (name, scheduler, settings)
        assert chosen.arguments == {"num_inference_steps": steps, "guidance_scale": guidance, **more}
        asked.clear()
        for family in chosen.weights:
            distilled.find_weights(chosen, family)
        assert asked == [f"{file}.safetensors" for file in (sdxl, sd15) if file]
        if sd15 is None:
            with pytest.raises(ValueError, match="is made for sdxl, not for sd15; take hyper-1, "):
                distilled.find_weights(chosen, "sd15")


def test_the_page_names_every_recipe() -> None:
    text = (ROOT / "docs" / "fast.md").read_text(encoding="utf-8")
    (table,) = [part for part in text.split("\n\n") if part.startswith("| `--fast` |")]
    for name, one in distilled.DISTILLED.items():
        (row,) = [line for line in table.splitlines() if f"`{name}`" in line]
        *_, steps, guidance, _ = row.split(" |")
        assert f" {one.steps}" in steps and guidance.startswith(f" {one.guidance:g}")
        assert one.weights["sdxl"] is None or one.weights["sdxl"].partition(":")[0] in row
        assert ("| yes |" in row) == ("sd15" in one.weights)


def test_the_published_file_is_fetched_from_the_hub(
    lora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(lora["kohya"], folder / "sdxl_lightning_4step_lora.safetensors")
    pipe, local = make_variant(), make_variant()
    with serve({"ByteDance/SDXL-Lightning": folder}) as hub:
        redirect(monkeypatch, hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        distilled.apply_distilled(pipe, distilled.DISTILLED["lightning-4"])
        with pytest.raises(OSError, match="sdxl_lightning_2step_lora.safetensors cannot be fetched"):
            distilled.apply_distilled(pipe, distilled.DISTILLED["lightning-2"])
    assert hub.unknown == []
    distilled.apply_distilled(local, distilled.DISTILLED["lightning-4"], lora["kohya"])
    weights = local.unet.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipe.unet.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def generate(out: Path, *words: str) -> np.ndarray:
    """Run `instantstyle generate` and return the pixels."""
    assert cli.main(["generate", "a heart", "--style", REFERENCE, "--seed", "0", "-o", str(out), *words]) == 0
    return np.asarray(Image.open(out), dtype=np.int16)


@pytest.fixture(scope="module")
def host() -> Any:
    """Load the embedded checkpoint in the host, its adapter on the block that its own preset says."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny.path(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    load_adapter(pipe)
    pipe.set_ip_adapter_scale({"up": {"block_1": [0.0, 0.0, 1.0]}})
    return pipe


@pytest.mark.parametrize(
    "name", ["lightning-1", "lightning-4", "hyper-1", "hyper-1-unet", "hyper-8-cfg", "lcm", "turbo"]
)
def test_one_word_paints_what_the_host_paints_by_the_published_settings(
    name: str, host: Any, lora: dict[str, Path], unet: Tensors, tmp_path: Path
) -> None:
    weights, _, (scheduler, settings), steps, guidance, more = PUBLISHED[name]
    other_unet = {key: tensor * 1.01 for key, tensor in unet.items()}
    save_file(other_unet, tmp_path / "unet.safetensors")
    whole = bool(weights) and "unet" in weights.lower()
    given = ["--fast-weights", str(tmp_path / "unet.safetensors" if whole else lora["kohya"])] if weights else []
    made = generate(tmp_path / "heart.png", "--fast", name, *given)
    before = host.scheduler
    host.scheduler = getattr(diffusers, scheduler).from_config(before.config, **settings)
    arguments = {"num_inference_steps": steps, "guidance_scale": guidance, **more}
    bare = picture(host, **arguments)
    if whole:
        host.unet.load_state_dict(other_unet, strict=False)
    elif weights:
        host.load_lora_weights(str(lora["kohya"]))
    expected = picture(host, **arguments)
    arguments.pop("timesteps", None)
    other = picture(host, **{**arguments, "num_inference_steps": steps + 1})
    host.unload_lora_weights()
    host.unet.load_state_dict(unet, strict=False)
    host.scheduler = before
    assert abs(made - expected).max() <= 1
    assert abs(made - other).max() > 10
    assert not weights or abs(made - bare).max() > 10


def test_what_is_asked_for_wins_and_the_recipe_says_what_was_used(lora: dict[str, Path], tmp_path: Path) -> None:
    words = ["--fast", "hyper-1", "--fast-weights", str(lora["kohya"])]
    out = tmp_path / "heart.png"
    usual = generate(out, *words)
    found = recipe.read_recipe(out)
    assert (found["steps"], found["guidance"]) == (1, 0.0)
    assert found["fast"] == {
        "name": "hyper-1",
        "weights": "kohya.safetensors",
        "scheduler": "TCDScheduler",
        "settings": {},
        "eta": 1.0,
    }
    assert str(lora["kohya"].parent).encode() not in out.read_bytes()
    own = generate(out, *words, "--steps", "3", "--guidance", "2")
    found = recipe.read_recipe(out)
    assert (found["steps"], found["guidance"]) == (3, 2.0)
    assert abs(own - usual).max() > 10
    assert (own == generate(out, *words, "--steps", "3", "--guidance", "2")).all()


def test_without_a_recipe_nothing_is_new(tmp_path: Path) -> None:
    made = generate(tmp_path / "heart.png", "--steps", "2")
    assert recipe.read_recipe(tmp_path / "heart.png")["fast"] is None
    assert (made == generate(tmp_path / "heart.png", "--steps", "2", "--guidance", "5")).all()
    assert recipe.read_recipe(tmp_path / "heart.png")["guidance"] == 5.0


SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fast", "warp-9"], "--fast: expected one of lightning-1, "),
        (["--fast-weights", "{narrow}"], "--fast-weights needs --fast"),
        (["--fast", "lcm", "--fast-weights", "nothing"], "--fast-weights: 'nothing' is not a folder or file here"),
        (["--fast", "lcm", "--fast-weights", "{folder}"], "{folder} has no pytorch_lora_weights.safetensors"),
        (
            ["--fast", "lcm", "--fast-weights", "{torn}"],
            "--fast: lcm: `weights` torn.safetensors is not a safetensors",
        ),
        (["--fast", "lcm", "--fast-weights", "{narrow}"], "`weights` narrow.safetensors does not fit the model: "),
        (
            ["--fast", "lcm", "--fast-weights", "{elsewhere}"],
            "`weights` elsewhere.safetensors does not fit the model: ",
        ),
        (
            ["--fast", "lcm", "--fast-weights", "{infinite}"],
            "`weights` infinite.safetensors holds values that are not",
        ),
        (["--fast", "lcm", "--fast-weights", "{unet}"], "does not fit the UNet, as in 'conv_in.bias'"),
        (["--fast", "hyper-1-unet", "--steps", "2"], "--fast hyper-1-unet is one step from noise; leave --steps, "),
        (["--fast", "lcm", "--negative", "a star"], "--negative says nothing at guidance 1, which is what --fast lcm"),
        (
            ["--fast", "lightning-4", "--model", "{folder}/sd15"],
            "`recipe` is made for sdxl, not for sd15; take hyper-1",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_one_line(
    words: list[str], message: str, unet: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {**broken_files(unet, tmp_path), "folder": str(tmp_path)}
    (tmp_path / "sd15" / "unet").mkdir(parents=True)
    (tmp_path / "sd15" / "unet" / "config.json").write_text(json.dumps(SD15_UNET))
    out = ["-o", str(tmp_path / "heart.png")]
    assert cli.main(["generate", "a heart", "--style", REFERENCE, *out, *(w.format(**places) for w in words)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("instantstyle: error: ")
    assert message.format(**places) in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert not (tmp_path / "heart.png").exists()


def test_without_peft_the_extra_is_named(
    lora: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "peft" else find(name, *args))
    words = ["--fast", "lcm", "--fast-weights", str(lora["kohya"])]
    assert cli.main(["generate", "a heart", "--style", REFERENCE, *words]) == 2
    assert 'pip install "instantstyle[fast]"' in capsys.readouterr().err
