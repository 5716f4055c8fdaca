"""The plugin's one file is what the core's modules give, and both get along in one process."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from conftest import TOLERANCE, Pair, differ, same
from diffusers import StableDiffusionXLPipeline
from hosts import HOSTS, make, picture

import pipeline_instantstyle
from instantstyle import core
from instantstyle.core import build, write_code
from instantstyle.styles import encode


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the core's modules, and join the copies."""
    for file in build.HERE.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(build, "HERE", tmp_path)
    return tmp_path


def add(file: Path, text: str) -> None:
    """Add lines to the end of a file."""
    file.write_text(file.read_text("utf-8") + text, "utf-8")


def test_the_committed_file_is_what_the_modules_give(modules: Path) -> None:
    build.main(["--check"])
    add(modules / "hosts.py", "\n\nANOTHER = 1\n")
    with pytest.raises(SystemExit, match="pipeline_instantstyle.py is not what .* run `python -m instantstyle.core"):
        build.main(["--check"])


def test_the_program_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = build.FILE.read_bytes()
    monkeypatch.setattr(build, "FILE", tmp_path / "pipeline_instantstyle.py")
    build.main([])
    assert build.FILE.read_bytes() == committed


def test_a_name_of_two_modules_is_refused(modules: Path) -> None:
    add(modules / "hosts.py", "\n\ndef spread() -> None:\n    pass\n")
    with pytest.raises(ValueError, match="hosts.py defines 'spread', which nesting.py defines too"):
        build.join()


def test_an_import_from_below_is_refused(modules: Path) -> None:
    file = modules / "blocks.py"
    file.write_text(file.read_text("utf-8").replace("\nimport math\n", "\nimport math\nfrom .call import Call\n"))
    with pytest.raises(ValueError, match="'Call' is imported from call.py, which does not come before"):
        build.join()


def imported(path: Path) -> set[str]:
    """Return the packages that a file imports, its own modules as a dot."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {"." if node.level else node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] or "." for name in names}


def test_the_file_knows_nothing_of_the_package() -> None:
    assert "instantstyle" not in set().union(*map(imported, build.HERE.glob("*.py"))) | imported(build.FILE)
    assert {"torch", "diffusers", "safetensors", "transformers"} < imported(build.FILE)
    assert "." not in imported(build.FILE)


def test_the_modules_write_the_file_for_others(tmp_path: Path) -> None:
    assert write_code(StableDiffusionXLPipeline, tmp_path)[0] == "pipeline_instantstyle"
    assert (tmp_path / "pipeline_instantstyle.py").read_bytes() == build.FILE.read_bytes()


@pytest.mark.parametrize(("one", "other"), [(core, pipeline_instantstyle), (pipeline_instantstyle, core)])
def test_the_file_and_the_modules_get_along(one: Any, other: Any, adapters: dict[str, tuple[str, str, str]]) -> None:
    """A variant, an adapter, a content encoder and a style of one are as good as the other's."""
    host, reference = HOSTS["stable_diffusion_xl"], {"ip_adapter_image": picture(1), "neg_content_prompt": "a rabbit"}
    pair, cls = Pair(host), one.StableDiffusionXLInstantStylePipeline
    pipe = make(host, cls)
    assert other.with_instantstyle(cls) is cls is not other.StableDiffusionXLInstantStylePipeline
    pipe.load_ip_adapter(*adapters[host.family])
    pipe.load_content_encoder((pipe.text_encoder_2, pipe.tokenizer_2))
    shared = other.StableDiffusionXLInstantStylePipeline.from_pipe(pipe)
    painted = pair.paint(pipe, **reference)
    assert same(painted, pair.paint(shared, **reference))
    shared.set_target_blocks("layout")
    assert differ(painted, pair.paint(pipe, **reference))
    pipe.set_target_blocks("style")
    for style in [encode(each, *reference.values()) for each in (pipe, shared)]:
        assert same(painted, pair.paint(pipe, style=style), TOLERANCE)
        assert same(painted, pair.paint(shared, style=style), TOLERANCE)
        assert differ(painted, pair.paint(shared, style=style, style_scale=0.0))
    shared.unload_ip_adapter()
    assert same(pair.paint(pair.stock), pair.paint(pipe))
