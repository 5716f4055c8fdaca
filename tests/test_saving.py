"""Saved folders load again by themselves, saving changes nothing, and `from_pipe` shares what there is to share."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from hosts import CLIP_WIDTH, HOSTS, OTHER_HOSTS, Host, content_encoder, make, picture, pixels, write_adapter
from safetensors import safe_open
from test_loading import PLUGIN, TOLERANCE, TWIN, run

import instantstyle
from instantstyle import (
    StableDiffusionInstantStylePipeline,
    StableDiffusionXLInstantStyleControlNetPipeline,
    StableDiffusionXLInstantStyleImg2ImgPipeline,
    StableDiffusionXLInstantStylePipeline,
    with_instantstyle,
)


SDXL, SD15 = HOSTS["stable_diffusion_xl"], HOSTS["stable_diffusion"]
SAVED = {**HOSTS, **OTHER_HOSTS}
every_saved = pytest.mark.parametrize("host", SAVED.values(), ids=lambda host: host.name)

Adapters = dict[str, tuple[str, str, str]]


def variant_of(host: Host) -> type[DiffusionPipeline]:
    """Return the package's variant of one of the twelve, or the one made for another host."""
    if host.name not in HOSTS:
        return with_instantstyle(host.cls)
    return next(cls for cls in vars(instantstyle).values() if inspect.isclass(cls) and cls.__bases__[1:] == (host.cls,))


def stylish(family: str) -> dict[str, Any]:
    """Return a reference and its content for a call."""
    content = torch.linspace(-1, 1, CLIP_WIDTH[family])
    return {"ip_adapter_image": picture(1), "neg_content_embeds": content}


def paint(pipe: DiffusionPipeline, host: Host, **settings: Any) -> np.ndarray:
    """Paint in the style of a picture, less its content."""
    pipe.set_progress_bar_config(disable=True)
    return pixels(pipe, **host.inputs(), **stylish(host.family), **settings)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference of two pictures."""
    assert first.shape == second.shape
    return float(np.abs(first - second).max())


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """Write one adapter per family."""
    return {family: write_adapter(tmp_path_factory.mktemp(family), family) for family in ("sdxl", "sd15")}


class Saved:
    """A variant with an adapter, saved; what it painted and held before and after."""

    def __init__(self, host: Host, folder: Path, adapter: tuple[str, str, str]):
        self.host, self.folder = host, folder
        self.plain_keys = set(make(host).unet.state_dict())
        self.pipe = make(host, variant_of(host))
        self.pipe.load_ip_adapter(*adapter)
        self.painted, self.held = paint(self.pipe, host), holdings(self.pipe)
        self.pipe.save_pretrained(folder)


def holdings(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Return what a pipeline holds that saving could exchange."""
    return {
        "processors": dict(pipe.unet.attn_processors),
        "modules": dict(pipe.unet.named_modules()),
        "components": dict(pipe.components),
        "targets": pipe.target_blocks,
        "config": dict(pipe.config),
        "unet config": dict(pipe.unet.config),
    }


@pytest.fixture(scope="module")
def saved(adapters: Adapters, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Host], Saved]:
    """Save the variant of a host, once."""
    found: dict[str, Saved] = {}

    def save(host: Host) -> Saved:
        if host.name not in found:
            found[host.name] = Saved(host, tmp_path_factory.mktemp(host.name), adapters[host.family])
        return found[host.name]

    return save


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail on any attempt to reach a Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield


# ---------------------------------------------------------------------------------------------------------------------
# Saving
# ---------------------------------------------------------------------------------------------------------------------


@every_saved
def test_saving_changes_nothing(host: Host, saved: Callable[[Host], Saved]) -> None:
    """After saving the adapter is in force as before: the same objects, the same pixels."""
    case = saved(host)
    assert holdings(case.pipe) == case.held
    assert distance(paint(case.pipe, host), case.painted) == 0
    assert distance(paint(case.pipe, host, target_blocks="all"), case.painted) > TWIN


@every_saved
def test_the_folder_holds_code_and_no_adapter(host: Host, saved: Callable[[Host], Saved]) -> None:
    """The plugin file is there as it is, with a class entry that names a file that is there; the UNet is the host's."""
    case = saved(host)
    assert (case.folder / "pipeline_instantstyle.py").read_bytes() == PLUGIN.read_bytes()
    index = json.loads((case.folder / "model_index.json").read_text())
    module, name = index["_class_name"]
    assert name == type(case.pipe).__name__
    assert (case.folder / f"{module}.py").is_file()
    with safe_open(case.folder / "unet" / "diffusion_pytorch_model.safetensors", framework="pt") as weights:
        assert set(weights.keys()) == case.plain_keys
    config = json.loads((case.folder / "unet" / "config.json").read_text())
    assert config["encoder_hid_dim_type"] != "ip_image_proj"


@every_saved
def test_the_class_loads_its_folder(host: Host, saved: Callable[[Host], Saved], adapters: Adapters) -> None:
    """The variant's class loads the folder without trust in remote code: the code is its own."""
    case = saved(host)
    pipe = variant_of(host).from_pretrained(case.folder)
    assert type(pipe) is variant_of(host)
    pipe.load_ip_adapter(*adapters[host.family])
    assert distance(paint(pipe, host), case.painted) <= TOLERANCE
    assert distance(paint(pipe, host, target_blocks="all"), case.painted) > TWIN


def test_folders_load_by_themselves(saved: Callable[[Host], Saved], adapters: Adapters, tmp_path: Path) -> None:
    """Where the package is not importable, each folder loads; the first ones still paint when all others are loaded."""
    cases = {name: (type(saved(host).pipe).__name__, str(saved(host).folder)) for name, host in SAVED.items()}
    script = f"""
        import torch
        from hosts import CLIP_WIDTH, OTHER_HOSTS

        {{stylish}}

        {{repaint}}

        adapters, pipes = {adapters}, {{}}
        hosts = {{**HOSTS, **OTHER_HOSTS}}
        for name, (cls, folder) in {cases}.items():
            pipes[name] = pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
            assert type(pipe).__name__ == cls, (type(pipe).__name__, cls)
            pipe.load_ip_adapter(*adapters[hosts[name].family])
            found[name] = repaint(pipe, hosts[name])
    """
