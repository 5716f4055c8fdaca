"""The variants in diffusers' AutoPipelines, which look pipelines up by the names of their classes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any


AUTO = "diffusers.pipelines.auto_pipeline"
TASKS = {
    "AutoPipelineForText2Image": "AUTO_TEXT2IMAGE_PIPELINES_MAPPING",
    "AutoPipelineForImage2Image": "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING",
    "AutoPipelineForInpainting": "AUTO_INPAINT_PIPELINES_MAPPING",
}


def register() -> None:
    """Make diffusers' AutoPipelines know the variants: now, if that module is imported, or else when it is."""
    if AUTO in sys.modules:
        add_variants(sys.modules[AUTO])
    else:
        sys.meta_path.insert(0, _OnImport())


class _OnImport(MetaPathFinder):
    # The module imports every pipeline of diffusers, which takes a second: it is not imported for this alone.
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != AUTO:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_add(module: Any) -> None:
            execute(module)
            add_variants(module)

        spec.loader.exec_module = execute_and_add
        return spec


def add_variants(auto: Any) -> None:
    """Add the variant of each host to the pipelines of its task, and let saved variants be found there.

    Args:
        auto: diffusers' module. What it has not, in another version, is passed over.
    """
    for task, name in TASKS.items():
        pipelines, auto_class = getattr(auto, name, {}), getattr(auto, task, object)
        pipelines |= {f"instantstyle-{key}": variant for key, variant in _variants(pipelines).items()}
        if hasattr(auto_class, "load_config"):
            auto_class.load_config = _naming_classes(auto_class.load_config)


def _variants(pipelines: dict[str, Any]) -> dict[str, Any]:
    from instantstyle.core import with_instantstyle
    from instantstyle.pipelines import variants

    named = vars(variants).values()
    ours = {cls._instantstyle_host: cls for cls in named if hasattr(cls, "_instantstyle_host")}
    found = {}
    for key, host in pipelines.items():
        try:
            found[key] = ours.get(host) or with_instantstyle(host)
        except ValueError:  # a host of another family
            continue
    return found


def _naming_classes(load_config: Callable[..., Any]) -> Any:
    # The entry that a saved variant has is for `DiffusionPipeline`: the file with its code, and its name.
    def load(*args: Any, **kwargs: Any) -> Any:
        config = load_config(*args, **kwargs)
        entry = config.get("_class_name") if isinstance(config, dict) else None
        if isinstance(entry, list) and entry[0].startswith("pipeline_instantstyle"):
            return {**config, "_class_name": entry[1]}
        return config

    return staticmethod(load)
