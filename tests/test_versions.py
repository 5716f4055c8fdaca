"""Versions of what the package stands on: what needs more than the oldest says so, by its name and the version."""

from __future__ import annotations

import configparser
import importlib
import importlib.metadata
import re
import sys
from pathlib import Path

import diffusers
import pytest
import torch

from instantstyle import StableDiffusionXLInstantStylePipeline, tiny
from instantstyle.commands import cli
from instantstyle.version import installed


ROOT = Path(__file__).parents[1]
MODULAR = "instantstyle.pipelines.modular"


def lower_bounds() -> dict[str, str]:
    """Read setup.cfg: package -> the oldest version that the package itself allows."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return dict(line.split(">=") for line in settings["options"]["install_requires"].split())


def numbers(version: str) -> tuple[int, ...]:
    """Return what a version is compared by."""
    return tuple(map(int, re.findall(r"\d+", version)))


def test_the_tested_versions_are_allowed() -> None:
    """Each requirement has a lower bound, and constraints.txt is not below it."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()[1:])
    bounds = lower_bounds()
    assert {"torch", "diffusers", "transformers", "huggingface_hub"} <= bounds.keys() <= pins.keys()
    assert all(numbers(pins[name]) >= numbers(bound) for name, bound in bounds.items())


def reloaded_with(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import the modular blocks anew, as if this version of diffusers were installed."""
    monkeypatch.setattr(diffusers, "__version__", version)
    monkeypatch.delitem(sys.modules, MODULAR, raising=False)
    importlib.import_module(MODULAR)


def test_modular_blocks_name_the_diffusers_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones have Modular Diffusers too, but not all that the blocks are made of."""
    with pytest.raises(ImportError, match=r"modular blocks need diffusers 0\.40 or newer, but 0\.39\.9 is installed"):
        reloaded_with("0.39.9", monkeypatch)
    if installed("diffusers") >= (0, 40):
        reloaded_with("0.40.0.dev0", monkeypatch)


@pytest.mark.parametrize("command", ["export", "publish"])
def test_a_repository_names_the_diffusers_that_it_needs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds modular blocks. Nothing is left behind."""
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.39.0")
    words = {"export": [str(tmp_path / "new")], "publish": ["someone/new", "--dry-run"]}
    assert cli.main([command, *words[command]]) == 2
    told = "a repository, which holds blocks for Modular Diffusers, needs diffusers 0.40 or newer, but 0.39.0 is"
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_variant_understands_dtype_whatever_diffusers_calls_it(dtype: torch.dtype) -> None:
    """Before 0.39 the host's word was another, and this one was ignored."""
    pipe = StableDiffusionXLInstantStylePipeline.from_pretrained(tiny.path(), dtype=dtype)
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {dtype}
    assert {pipe.text_encoder.dtype, pipe.vae.dtype} == {dtype}
