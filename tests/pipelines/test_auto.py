"""diffusers' AutoPipelines give the variant of a task where they gave its host, with the adapter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from conftest import TOLERANCE, differ, each_family, same, variant_class
from diffusers.pipelines import auto_pipeline
from hosts import FAMILIES, HOSTS, OTHER_HOSTS, TASKS, Host, make, picture, pixels

from instantstyle.pipelines import auto


Adapters = dict[str, tuple[str, str, str]]
NAMES = {"sdxl": "stable_diffusion_xl", "sd15": "stable_diffusion"}
AUTO = {"": "Text2Image", "Img2Img": "Image2Image", "Inpaint": "Inpainting"}
CASES = [(family, task, kind) for family in FAMILIES for task in AUTO for kind in ("", "ControlNet", "PAG")]
each_case = pytest.mark.parametrize(("family", "task", "kind"), CASES)


def automatic(task: str) -> Any:
    """Return diffusers' class for a task."""
    return getattr(diffusers, f"AutoPipelineFor{AUTO[task]}")


def host_of(family: str, task: str, kind: str = "") -> Host:
    """Return the host of a task."""
    return HOSTS[NAMES[family] + TASKS[kind + task][0]]


def extra(family: str, kind: str) -> dict[str, Any]:
    """Return what asks for a ControlNet or for PAG."""
    pag = {"enable_pag": True, "pag_applied_layers": "down_blocks.1"}
    controlnet = "ControlNet" in kind and HOSTS[f"{NAMES[family]}_controlnet"].components()["controlnet"]
    return {"": {}, "ControlNet": {"controlnet": controlnet}, "PAG": pag}[kind]


def expected_name(family: str, task: str, kind: str) -> str:
    """Return the name that the variant must have."""
    return f"StableDiffusion{'XL' * (family == 'sdxl')}InstantStyle{kind}{task}Pipeline"


def paint(pipe: Any, family: str, task: str, kind: str, **inputs: Any) -> Any:
    """Return what a pipeline of the task paints."""
    given = host_of(family, task, kind if kind == "ControlNet" else "").inputs()
    return pixels(pipe, **{**given, **inputs})


@each_case
def test_from_pipe_gives_the_variant_of_the_task(adapters: Adapters, family: str, task: str, kind: str) -> None:
    """From text to image, and back; it paints what the host's does, and shares the adapter."""
    host = host_of(family, "")
    variant, stock = make(host, variant_class(host)), make(host)
    variant.load_ip_adapter(*adapters[family], target_blocks="all")
    stock.load_ip_adapter(*adapters[family])
    found = automatic(task).from_pipe(variant, **extra(family, kind))
    theirs = automatic(task).from_pipe(stock, **extra(family, kind))
    assert type(found).__name__ == expected_name(family, task, kind)
    assert isinstance(found, type(theirs))
    if kind != "PAG":
        assert type(found) is variant_class(host_of(family, task, kind))
    assert found.unet is variant.unet
    painted = paint(found, family, task, kind, ip_adapter_image=picture(1))
    assert same(paint(theirs, family, task, kind, ip_adapter_image=picture(1)), painted, TOLERANCE)
    assert differ(painted, paint(found, family, task, kind, ip_adapter_image=picture(1), target_blocks="style"))
    without = {"ControlNet": {"controlnet": None}, "PAG": {"enable_pag": False}, "": {}}[kind]
    assert type(automatic("").from_pipe(found, **without)) is variant_class(host)


@each_case
def test_from_pretrained_loads_what_a_variant_saved(tmp_path: Path, family: str, task: str, kind: str) -> None:
    host = host_of(family, task)
    make(host, variant_class(host)).save_pretrained(tmp_path)
    found = automatic(task).from_pretrained(tmp_path, **extra(family, kind))
    assert type(found).__name__ == expected_name(family, task, kind)
    found.set_progress_bar_config(disable=True)
    theirs = automatic(task).from_pipe(make(host), **extra(family, kind))
    assert same(paint(theirs, family, task, kind), paint(found, family, task, kind), TOLERANCE)


def test_variants_of_other_hosts_are_found_too() -> None:
    host = OTHER_HOSTS["latent_consistency"]
    variant = make(host, variant_class(host))
    found = automatic("Img2Img").from_pipe(variant)
    assert type(found).__name__ == "LatentConsistencyModelImg2ImgInstantStylePipeline"


@each_family
def test_hosts_stay_hosts(host: Host, tmp_path: Path) -> None:
    stock = make(host)
    stock.save_pretrained(tmp_path)
    for task in AUTO:
        for found in (automatic(task).from_pipe(stock), automatic(task).from_pretrained(tmp_path)):
            assert not hasattr(found, "_instantstyle_host")


def test_without_registering_there_is_no_such_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: this is what diffusers says of a class that it does not know."""
    host = HOSTS["stable_diffusion_xl"]
    for name in auto.TASKS.values():
        mapping = getattr(auto_pipeline, name)
        for key in [key for key in mapping if key.startswith("instantstyle-")]:
            monkeypatch.delitem(mapping, key)
    with pytest.raises(ValueError, match="can't find a pipeline linked to StableDiffusionXLInstantStylePipeline"):
        automatic("Img2Img").from_pipe(make(host, variant_class(host)))


def test_names_that_are_gone_are_passed_over() -> None:
    auto.add_variants(SimpleNamespace())
    text2image = {"stable-diffusion-xl": HOSTS["stable_diffusion_xl"].cls, "other": diffusers.FluxPipeline}
    auto.add_variants(SimpleNamespace(AUTO_TEXT2IMAGE_PIPELINES_MAPPING=text2image, AutoPipelineForInpainting=object))
    assert set(text2image) == {"stable-diffusion-xl", "other", "instantstyle-stable-diffusion-xl"}


@pytest.mark.parametrize("first", ["import instantstyle", "from diffusers import AutoPipelineForText2Image"])
def test_it_does_not_matter_what_is_imported_first(first: str) -> None:
    script = f"""
import sys
{first}
assert ("diffusers.pipelines.auto_pipeline" in sys.modules) == ("Auto" in {first!r})
import instantstyle
from diffusers.pipelines import auto_pipeline
print([*auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING].count("instantstyle-stable-diffusion-xl"))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-1] == "1"
