"""Saved folders load again by themselves, saving changes nothing, and `from_pipe` shares what there is to share."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from hosts import CLIP_WIDTH, HOSTS, OTHER_HOSTS, Host, content_encoder, make, picture, pixels, write_adapter
from processes import PLUGIN, TOLERANCE, TWIN, Adapter, run
from safetensors import safe_open

import instantstyle
from instantstyle import with_instantstyle


OTHERS = ("stable_diffusion_xl_pag", "stable_diffusion_xl_adapter", "kolors", "animatediff", "latent_consistency")
ALL_HOSTS = {**HOSTS, **{name: OTHER_HOSTS[name] for name in OTHERS}}
SOME_HOSTS = [ALL_HOSTS[name] for name in ("stable_diffusion_xl", "stable_diffusion_controlnet_inpaint", *OTHERS)]
every_host = pytest.mark.parametrize("host", ALL_HOSTS.values(), ids=lambda host: host.name)
Adapters = dict[str, Adapter]


def variant_of(host: Host) -> type[DiffusionPipeline]:
    """Return the package's variant of one of the twelve, or the one made for another host."""
    if host.name not in HOSTS:
        return with_instantstyle(host.cls)
    public = [getattr(instantstyle, name) for name in instantstyle.__all__]
    return next(cls for cls in public if inspect.isclass(cls) and cls.__bases__[1:] == (host.cls,))


def paint(pipe: DiffusionPipeline, host: Host, **settings: Any) -> np.ndarray:
    """Paint in the style of a picture, less its content unless told otherwise."""
    pipe.set_progress_bar_config(disable=True)
    settings = {"neg_content_embeds": torch.linspace(-1, 1, CLIP_WIDTH[host.family]), **settings}
    return pixels(pipe, **host.inputs(), ip_adapter_image=picture(1), **settings)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference of two pictures."""
    assert first.shape == second.shape
    return float(np.abs(first - second).max())


def not_saved(host: Host) -> dict[str, Any]:
    """Return what the host itself neither saves nor hands on, so that its users give it again."""
    if host.name == "kolors":
        return {"text_encoder": None, "tokenizer": None}
    parts = host.components()
    return {name: parts[name] for name in ("pag_applied_layers",) if name in parts}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """Write one adapter per family."""
    return {family: write_adapter(tmp_path_factory.mktemp(family), family) for family in ("sdxl", "sd15")}


# ---------------------------------------------------------------------------------------------------------------------
# Saving
# ---------------------------------------------------------------------------------------------------------------------


class Saved:
    """A variant that was saved with an adapter loaded; what it painted and held before."""

    def __init__(self, host: Host, folder: Path, adapter: Adapter):
        self.folder, self.pipe = folder, make(host, variant_of(host))
        self.plain_weights = set(self.pipe.unet.state_dict())
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
        "config": settings(pipe),
        "UNet config": settings(pipe.unet),
    }


def settings(owner: Any) -> dict[str, Any]:
    """Return the configuration, less the two entries that the host adds when it saves."""
    return {name: value for name, value in owner.config.items() if name not in ("_class_name", "_diffusers_version")}


@pytest.fixture(scope="module")
def saved(adapters: Adapters, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Host], Saved]:
    """Return what saves the variant of a host, once."""
    found: dict[str, Saved] = {}

    def save(host: Host) -> Saved:
        if host.name not in found:
            found[host.name] = Saved(host, tmp_path_factory.mktemp(host.name), adapters[host.family])
        return found[host.name]

    return save


@every_host
def test_saving_changes_nothing(host: Host, saved: Callable[[Host], Saved]) -> None:
    """After saving the adapter is in force as before: the same objects, the same pixels."""
    case = saved(host)
    assert holdings(case.pipe) == case.held
    assert distance(paint(case.pipe, host), case.painted) == 0
    assert distance(paint(case.pipe, host, target_blocks="all"), case.painted) >= TWIN


@every_host
def test_the_folder_holds_code_and_no_adapter(host: Host, saved: Callable[[Host], Saved]) -> None:
    """The plugin file is there as it is, the class entry names a file that is there, and the UNet is the host's."""
    case = saved(host)
    assert (case.folder / "pipeline_instantstyle.py").read_bytes() == PLUGIN.read_bytes()
    module, name = json.loads((case.folder / "model_index.json").read_text())["_class_name"]
    assert name == type(case.pipe).__name__
    assert (case.folder / f"{module}.py").is_file()
    with safe_open(case.folder / "unet" / "diffusion_pytorch_model.safetensors", framework="pt") as weights:
        assert set(weights.keys()) == case.plain_weights
    assert json.loads((case.folder / "unet" / "config.json").read_text())["encoder_hid_dim_type"] != "ip_image_proj"


@every_host
def test_the_class_loads_its_folder(host: Host, saved: Callable[[Host], Saved], adapters: Adapters) -> None:
    """The variant's class loads the folder without trust in remote code: the code is its own."""
    case = saved(host)
    pipe = variant_of(host).from_pretrained(case.folder, **not_saved(host))
    assert type(pipe) is variant_of(host)
    assert pipe.target_blocks is None
    pipe.load_ip_adapter(*adapters[host.family])
    assert distance(paint(pipe, host), case.painted) <= TOLERANCE
    assert distance(paint(pipe, host, neg_content_embeds=None), case.painted) >= TWIN


def test_another_class_loads_the_folder(saved: Callable[[Host], Saved], adapters: Adapters) -> None:
    """A folder of one variant is a checkpoint for every other variant of the family."""
    host, other = HOSTS["stable_diffusion_img2img"], HOSTS["stable_diffusion"]
    pipe = variant_of(host).from_pretrained(saved(other).folder)
    assert type(pipe) is variant_of(host)
    pipe.load_ip_adapter(*adapters["sd15"])
    assert distance(paint(pipe, host), saved(host).painted) <= TOLERANCE
    assert distance(paint(pipe, host, target_blocks="all"), saved(host).painted) >= TWIN


def test_a_saved_folder_is_saved_again(saved: Callable[[Host], Saved], adapters: Adapters, tmp_path: Path) -> None:
    """A pipeline from a saved folder saves one that is the same, into the folder it came from too."""
    host = HOSTS["stable_diffusion_xl_img2img"]
    pipe = variant_of(host).from_pretrained(saved(host).folder)
    for _ in range(2):
        pipe.save_pretrained(tmp_path)
        pipe = variant_of(host).from_pretrained(tmp_path)
    pipe.load_ip_adapter(*adapters["sdxl"])
    assert distance(paint(pipe, host), saved(host).painted) <= TOLERANCE


def test_folders_load_by_themselves(saved: Callable[[Host], Saved], adapters: Adapters, tmp_path: Path) -> None:
    """Where the package cannot be imported every folder loads, next to all others, and its pipeline is saved again."""
    script = """
        hosts, pipes = {**HOSTS, **OTHER_HOSTS}, {}
        for name, folder in FOLDERS.items():
            pipes[name] = pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **NOT_SAVED[name])
            assert type(pipe).__name__ == CLASSES[name]
            pipe.load_ip_adapter(*ADAPTERS[hosts[name].family])
            found[name] = paint(pipe, hosts[name])

        # Loading a folder once more runs the plugin file once more; those from before stay as they are.
        for name in ("stable_diffusion_xl", "stable_diffusion"):
            DiffusionPipeline.from_pretrained(FOLDERS[name], trust_remote_code=True)
        for name in REPEATED:
            found["later " + name] = paint(pipes[name], hosts[name])
            pipes[name].save_pretrained(AGAIN + name)
            pipe = DiffusionPipeline.from_pretrained(AGAIN + name, trust_remote_code=True)
            assert type(pipe).__name__ == CLASSES[name]
            pipe.load_ip_adapter(*ADAPTERS[hosts[name].family])
            found["again " + name] = paint(pipe, hosts[name])
    """
    cases = {name: saved(host) for name, host in ALL_HOSTS.items()}
    repeated = ["stable_diffusion_xl", "stable_diffusion_inpaint", "animatediff"]
    given = {
        "FOLDERS": {name: str(case.folder) for name, case in cases.items()},
        "CLASSES": {name: type(case.pipe).__name__ for name, case in cases.items()},
        "NOT_SAVED": {name: not_saved(host) for name, host in ALL_HOSTS.items()},
        "ADAPTERS": adapters,
        "REPEATED": repeated,
        "AGAIN": f"{tmp_path}/again ",
    }
    found = run(tmp_path / "process", script, given, [paint])
    assert len(found) == len(cases) + 2 * len(repeated)
    for name, painted in found.items():
        assert distance(painted, cases[name.split()[-1]].painted) <= TOLERANCE, name


# ---------------------------------------------------------------------------------------------------------------------
# From one pipeline to another
# ---------------------------------------------------------------------------------------------------------------------


def other_parts(host: Host) -> dict[str, Any]:
    """Return the components that the family's text-to-image pipelines lack."""
    parts = host.components()
    return {name: parts[name] for name in ("controlnet", "motion_adapter") if name in parts}


def text_to_image(family: str) -> Host:
    """Return the family's text-to-image host."""
    return HOSTS["stable_diffusion_xl" if family == "sdxl" else "stable_diffusion"]


def layout(host: Host, adapters: Adapters, cls: type[DiffusionPipeline] | None = None) -> DiffusionPipeline:
    """Make a variant that is not as it comes: other targets, another scale, a content encoder of its own."""
    pipe = make(host, cls or variant_of(host))
    pipe.load_ip_adapter(*adapters[host.family], target_blocks="layout")
    pipe.set_ip_adapter_scale(0.8)
    if host.family == "sd15":
        pipe.load_content_encoder(content_encoder())
    return pipe


PROMPTED = {"neg_content_embeds": None, "neg_content_prompt": "a rabbit"}


@pytest.mark.parametrize("host", HOSTS.values(), ids=lambda host: host.name)
def test_between_variants(host: Host, adapters: Adapters) -> None:
    """From one variant to another go adapter, targets, scale and content encoder, and all weights are shared."""
    source = layout(text_to_image(host.family), adapters)
    before = paint(source, text_to_image(host.family), **PROMPTED)
    processors = dict(source.unet.attn_processors)
    pipe = variant_of(host).from_pipe(source, **other_parts(host))
    assert type(pipe) is variant_of(host)
    assert all(pipe.components[name] is part for name, part in source.components.items() if name in pipe.components)
    assert dict(pipe.unet.attn_processors) == processors
    assert pipe.target_blocks == source.target_blocks
    painted = paint(pipe, host, **PROMPTED)
    assert distance(painted, paint(layout(host, adapters), host, **PROMPTED)) <= TOLERANCE
    assert distance(painted, paint(pipe, host, target_blocks="style", **PROMPTED)) >= TWIN
    assert distance(painted, paint(pipe, host)) >= TWIN
    assert distance(paint(source, text_to_image(host.family), **PROMPTED), before) == 0


@pytest.mark.parametrize("host", HOSTS.values(), ids=lambda host: host.name)
def test_to_the_host_and_back(host: Host, adapters: Adapters) -> None:
    """The host goes on with the variant's adapter, as it is; what comes back from it is the variant as it was."""
    variant = layout(host, adapters)
    expected, processors = paint(variant, host, neg_content_embeds=None), dict(variant.unet.attn_processors)
    stock = host.cls.from_pipe(variant)
    stock.set_progress_bar_config(disable=True)
    assert type(stock) is host.cls
    assert stock.unet is variant.unet
    reference = {"ip_adapter_image": picture(1)}
    assert distance(pixels(stock, **host.inputs(), **reference), expected) == 0
    back = variant_of(host).from_pipe(stock)
    assert dict(back.unet.attn_processors) == processors
    assert back.target_blocks == variant.target_blocks
    assert distance(paint(back, host, **PROMPTED), paint(variant, host, **PROMPTED)) == 0
    assert distance(paint(back, host, **PROMPTED), expected) >= TWIN
    back.unload_ip_adapter()
    assert distance(pixels(stock, **host.inputs()), pixels(make(host), **host.inputs())) == 0


@pytest.mark.parametrize("host", SOME_HOSTS, ids=lambda host: host.name)
def test_from_a_host_with_its_own_adapter(host: Host, adapters: Adapters) -> None:
    """An adapter that the host loaded is "all" to the variant, and can be narrowed down to its style blocks."""
    stock = make(host)
    stock.load_ip_adapter(*adapters[host.family])
    expected = pixels(stock, **host.inputs(), ip_adapter_image=picture(1))
    pipe = variant_of(host).from_pipe(stock, **not_saved(host))
    assert distance(paint(pipe, host, neg_content_embeds=None), expected) <= TOLERANCE
    assert distance(paint(pipe, host), expected) >= TWIN
    pipe.set_target_blocks("style")
    fresh = make(host, variant_of(host))
    fresh.load_ip_adapter(*adapters[host.family])
    assert distance(paint(pipe, host), paint(fresh, host)) <= TOLERANCE
    assert distance(paint(pipe, host), paint(pipe, host, target_blocks="all")) >= TWIN


@pytest.mark.parametrize(
    ("name", "from_host"), [("animatediff", False), ("animatediff", True), ("animatediff_sdxl", False)]
)
def test_to_animatediff(name: str, from_host: bool, adapters: Adapters) -> None:
    """AnimateDiff copies the UNet: the adapter is copied with it, and the two are independent from then on."""
    host = OTHER_HOSTS[name]
    start = text_to_image(host.family)
    source = layout(start, adapters)
    if from_host:
        source = start.cls.from_pipe(source)
    before = pixels(source, **start.inputs(), ip_adapter_image=picture(1))
    pipe = variant_of(host).from_pipe(source, **other_parts(host))
    assert pipe.unet is not source.unet
    expected = layout(host, adapters)
    if name == "animatediff_sdxl":  # the host forgets these weights when it copies a UNet, and draws new ones
        expected.unet.add_embedding.load_state_dict(pipe.unet.add_embedding.state_dict())
    assert pipe.target_blocks == expected.target_blocks
    assert distance(paint(pipe, host, **PROMPTED), paint(expected, host, **PROMPTED)) <= TOLERANCE
    copies = set(map(id, pipe.unet.attn_processors.values()))
    assert not copies & set(map(id, source.unet.attn_processors.values()))
    pipe.set_target_blocks("style")
    expected.set_target_blocks("style")
    assert distance(paint(pipe, host), paint(expected, host)) <= TOLERANCE
    assert distance(paint(pipe, host), paint(pipe, host, target_blocks="layout")) >= TWIN
    pipe.unload_ip_adapter()
    expected.unload_ip_adapter()
    assert distance(pixels(pipe, **host.inputs()), pixels(expected, **host.inputs())) <= TOLERANCE
    assert distance(pixels(source, **start.inputs(), ip_adapter_image=picture(1)), before) == 0


def test_dtype_is_kept_when_given(adapters: Adapters) -> None:
    """`from_pipe` casts to float32, the adapter included, unless it is told the dtype."""
    host = HOSTS["stable_diffusion_xl"]
    source = layout(host, adapters).to(torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        told = {} if dtype is torch.float32 else {"dtype": dtype}
        pipe = variant_of(HOSTS["stable_diffusion_xl_img2img"]).from_pipe(source, **told)
        assert {parameter.dtype for parameter in pipe.unet.parameters()} == {dtype}
