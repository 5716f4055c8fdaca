"""Private names of diffusers: any of them may go, and only the feature that needs it goes with it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import TOLERANCE, Pair, differ, each_family, same
from diffusers import UNet2DConditionModel
from hosts import Host, adapter_state, make, picture, write_adapter

from instantstyle.core import build


Adapters = dict[str, tuple[str, str, str]]
REFERENCE = {"ip_adapter_image": picture(1)}
STYLE = {"sdxl": {"up": {"block_0": [0.0, 1.0, 0.0]}}, "sd15": {"up": {"block_1": 1.0}}}
CPU = torch.device("cpu")


def retarget(pipe: Any, family: str, folder: Path) -> None:
    """Bring weights of other blocks into memory."""
    pipe.set_target_blocks("layout")


def scale_by_dict(pipe: Any, family: str, folder: Path) -> None:
    """Set the host's dict of scales."""
    pipe.set_ip_adapter_scale(STYLE[family])


def load_plus(pipe: Any, family: str, folder: Path) -> None:
    """Load an adapter with another projection than the first ones have."""
    pipe.load_ip_adapter(*write_adapter(folder, family, kind="plus"))


def load_face(pipe: Any, family: str, folder: Path) -> None:
    """Load an adapter that brings a LoRA."""
    state = adapter_state(family)
    state["ip_adapter"]["1.to_k_lora.down.weight"] = torch.ones(1, 1)
    pipe.load_ip_adapter(state, "", "", image_encoder_folder=None)


def nothing(pipe: Any) -> None:
    """Leave the pipeline where it is."""


def by_model(pipe: Any) -> None:
    """Offload whole modules, from the CPU to the CPU."""
    pipe.enable_model_cpu_offload(device="cpu")


def by_group(pipe: Any) -> None:
    """Offload groups of layers, from the CPU to the CPU."""
    if not hasattr(pipe, "enable_group_offload"):
        pytest.skip("before 0.36 diffusers offloads groups to accelerators only")
    pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


@dataclass
class Name:
    """A private name: a module or class that has it, what needs it, how that is called, and when it is needed."""

    home: Any
    name: str
    use: Callable[[Any, str, Path], None]
    feature: str
    begin: Callable[[Any], None] = nothing

    def take_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let it be gone for whoever looks for it from now on."""
        if isinstance(self.home, type):
            owner = next(cls for cls in self.home.__mro__ if self.name in vars(cls))
            monkeypatch.delattr(owner, self.name)
            return
        there = vars(importlib.import_module(self.home))
        assert self.name in there
        lacking = ModuleType(self.home)
        vars(lacking).update({name: value for name, value in there.items() if name != self.name})
        monkeypatch.setitem(sys.modules, self.home, lacking)


GROUPS, GROUPED = "diffusers.hooks.group_offloading", "Changing an adapter under group offloading"
OFFLOADED = "Changing an adapter while modules are offloaded"
NAMES = [
    Name(
        "diffusers.loaders.unet_loader_utils", "_maybe_expand_lora_scales", scale_by_dict, "A dict in `set_ip_adapter"
    ),
    Name(UNet2DConditionModel, "_convert_ip_adapter_image_proj_to_diffusers", load_plus, "projection of an unknown"),
    Name(UNet2DConditionModel, "_load_ip_adapter_loras", load_face, "The LoRA of a FaceID adapter"),
    Name("diffusers.loaders.lora_base", "_func_optionally_disable_offloading", retarget, OFFLOADED, by_model),
    Name(GROUPS, "_get_top_level_group_offload_hook", retarget, GROUPED, by_group),
    Name(GROUPS, "_maybe_remove_and_reapply_group_offloading", retarget, GROUPED, by_group),
    Name(GROUPS, "_apply_group_offloading", retarget, GROUPED, by_group),
]


def executed(name: str = "another_copy") -> Any:
    """Execute the plugin's file, as diffusers does, and return the module."""
    spec = importlib.util.spec_from_file_location(name, build.FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@each_family
@pytest.mark.parametrize("gone", NAMES, ids=lambda one: one.name)
def test_without_a_name_only_what_needs_it_is_refused(
    gone: Name, host: Host, adapters: Adapters, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pair = Pair(host)
    pair.stock.load_ip_adapter(*adapters[host.family])
    painted, plain = pair.paint(pair.stock, **REFERENCE), pair.paint(make(host))
    with monkeypatch.context() as patch:
        gone.take_away(patch)
        pipe = make(host, executed().with_instantstyle(host.cls))
        assert same(plain, pair.paint(pipe))
        pipe.load_ip_adapter(*adapters[host.family])
        pipe.set_target_blocks("all")
        assert same(painted, pair.paint(pipe, **REFERENCE))
        gone.begin(pipe)
        with pytest.raises((RuntimeError, ValueError), match=gone.feature) as refused:
            gone.use(pipe, host.family, tmp_path)
        assert gone.name in str(refused.value)
        assert same(painted, pair.paint(pipe, **REFERENCE), TOLERANCE)
        pipe.set_ip_adapter_scale(0.5)
        assert differ(painted, pair.paint(pipe, **REFERENCE))
    if gone.use is not load_face:  # which is only the beginning of such an adapter
        gone.use(pipe, host.family, tmp_path)


@each_family
def test_without_an_execution_device_it_is_where_the_modules_are(
    host: Host, adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instantstyle.core import execution_device

    class Without:
        device = torch.device("meta")

    assert execution_device(Without()) == Without.device
    assert execution_device(make(host)) == CPU


# --- All of them are in one module -----------------------------------------------------------------------------------

OURS = "_instantstyle"
NOT_OF_DIFFUSERS = {
    "_orig_mod": "torch.compile",
    "_disable_adapters": "peft",
    "_compiled_call_impl": "torch.compile",
    "_parent": "HiDiffusion",
    "_class_name": "a key of model_index.json",
    "_exit": "os",
}


def foreign(path: Path, own: set[str]) -> set[str]:
    """Return the private names that a file takes from elsewhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
    private = {name for name in found if name.startswith("_") and not name.startswith(("__", OURS))}
    return private - own - NOT_OF_DIFFUSERS.keys()


def defined(path: Path) -> set[str]:
    """Return the names that a file defines, on objects too."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return names | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def test_all_private_names_of_the_host_are_in_one_module() -> None:
    files = [path for path in build.HERE.glob("*.py") if path.name != "private.py"]
    own = set().union(*map(defined, files))
    assert {path.name: names for path in files if (names := foreign(path, own))} == {}
    there = foreign(build.HERE / "private.py", set())
    assert {one.name for one in NAMES} <= there
