"""Which pipelines take the mixin, the names of their variants, and the code that loads them."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline


def check_host(host: type) -> None:
    def code(cls: type) -> Any:
        method = getattr(getattr(cls, "prepare_ip_adapter_image_embeds", None), "__code__", None)
        return method and (method.co_code, method.co_names, method.co_varnames)

    if code(host) != code(StableDiffusionPipeline) or not hasattr(host, "load_ip_adapter"):
        raise ValueError(
            f"{host.__name__} cannot have InstantStyle: it takes no IP-Adapter of the Stable Diffusion families, or "
            "prepares its image embeddings in a way of its own."
        )


def joint_signature(host: Callable, ours: Callable) -> inspect.Signature:
    theirs, variadic = inspect.signature(host), inspect.Parameter.VAR_KEYWORD
    added = [inspect.signature(ours).parameters[name] for name in inspect.getfullargspec(ours).kwonlyargs]
    before = [p for p in theirs.parameters.values() if p.kind is not variadic]
    return theirs.replace(parameters=[*before, *added, *(p for p in theirs.parameters.values() if p.kind is variadic)])


def variant_name(host: type) -> str:
    pattern = "^(StableDiffusionXL|StableDiffusion|.*(?=Pipeline$))"
    return re.sub(pattern, r"\1InstantStyle", host.__name__, count=1)


def class_entry(host: type) -> list[str]:
    if host is StableDiffusionXLPipeline:
        return ["pipeline_instantstyle", variant_name(host)]
    # Files of one basename share a module in one process, so each host has its own.
    return [host.__module__.rpartition(".")[2].replace("pipeline_", "pipeline_instantstyle_", 1), variant_name(host)]


def plugin_file() -> Path:
    """The plugin's one file: this one, or the one that the modules beside this one are joined into."""
    here = Path(__file__)
    return here.parents[2] / "pipeline_instantstyle.py" if here.name == "hosts.py" else here


def write_code(host: Any, folder: Path) -> list[str]:
    """Write what loads the variant of a host where nothing but diffusers is installed.

    Args:
        host: as `with_instantstyle` takes it.
        folder: gets the plugin's file and, for hosts other than `StableDiffusionXLPipeline`, a small one that
            imports it.

    Returns:
        The class entry for `model_index.json`: the name of the file to load, without `.py`, and of the class in it.
    """
    module, name = class_entry(host)
    shutil.copyfile(plugin_file(), folder / "pipeline_instantstyle.py")
    if module != "pipeline_instantstyle":
        (folder / f"{module}.py").write_text(
            f'"""Loads {name}."""\n\nfrom {host.__module__} import {host.__name__}\n\n'
            "from .pipeline_instantstyle import with_instantstyle\n\n\n"
            f"{name} = with_instantstyle({host.__name__})\n",
            encoding="utf-8",
            newline="\n",
        )
    return [module, name]
