"""Checkpoints to publish: what of a folder goes into a Hub repository, and under which terms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instantstyle.files import label_of
from instantstyle.inference import models
from instantstyle.inference.models import TINY, Adapter


INDEX = "model_index.json"
CONTROLNET = "controlnet"  # of the embedded checkpoint; no pipeline of text alone names it
TERMS = ("license", "license_name", "license_link", "base_model", "base_model_relation")
LEGAL = ("license", "licence", "notice", "copying", "use_policy")  # how files begin that must go along with weights
HIDDEN = shutil.ignore_patterns(".*")

Take = Callable[[str, str], Any]
"""How a file comes from one place to another: `shutil.copyfile`, or a link."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in diffusers' layout.

    Attributes:
        folder: Where it is.
        label: Its name in the card; never a local path.
        family: "sdxl" or "sd15".
        host: The stock pipeline class that it is of.
        index: Its `model_index.json`.
        adapter: The IP-Adapter in the folder, or else the one published for its family.
        terms: Metadata of its own card: license and base model.
    """

    folder: Path
    label: str
    family: str
    host: Any
    index: Mapping[str, Any]
    adapter: Adapter
    terms: Mapping[str, Any]

    @property
    def embedded(self) -> bool:
        """Whether it is the embedded checkpoint."""
        from instantstyle import tiny

        return self.folder == tiny.path()

    @property
    def own_adapter(self) -> bool:
        """Whether the adapter is in the folder."""
        return self.adapter.source == str(self.folder)


def find_checkpoint(text: str) -> Checkpoint:
    """Find a checkpoint to publish, and look at it without loading any weights.

    Args:
        text: "tiny", or a folder in diffusers' layout.

    Raises:
        ValueError: It is neither, lacks a part, or is of a pipeline that cannot have InstantStyle.
    """
    from instantstyle import tiny

    folder = tiny.path() if text == TINY else Path(text)
    if not (folder / INDEX).is_file():
        raise ValueError(f'`checkpoint`: {text} has no {INDEX}; expected "{TINY}" or a folder in diffusers\' layout.')
    index = read_index(folder, text)
    host = find_host(index, text)
    model = models.layout_model(str(folder), text if text == TINY else label_of(text))
    return Checkpoint(
        folder=folder,
        label=model.label,
        family=model.family,
        host=host,
        index=index,
        adapter=models.find_adapter(None, model),
        terms={"license": "apache-2.0"} if text == TINY else read_terms(folder),
    )


def read_index(folder: Path, text: str) -> dict[str, Any]:
    """Read `model_index.json`, and look for every part that it names."""
    try:
        index = dict(json.loads((folder / INDEX).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"`checkpoint`: the {INDEX} of {text} is not JSON of a pipeline ({error}).") from error
    missing = [name for name in parts(index) if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"`checkpoint`: {text} has no folder {missing[0]!r}, which its {INDEX} names.")
    return index


def parts(index: Mapping[str, Any]) -> list[str]:
    """Name the components of a pipeline that have a folder. No other name can lead out of the checkpoint's."""
    named = {name for name, value in index.items() if isinstance(value, list) and any(value)}
    return sorted(name for name in named - {"_class_name"} if name.isidentifier())


def find_host(index: Mapping[str, Any], text: str) -> Any:
    """Return the stock class that a checkpoint is of; a saved variant is of its host.

    Raises:
        ValueError: It is of none, or of one that cannot have InstantStyle.
    """
    import diffusers

    from instantstyle.core import with_instantstyle

    entry = index.get("_class_name")
    name = str(entry[-1] if isinstance(entry, list) and entry else entry)
    host = getattr(diffusers, name.replace("InstantStyle", ""), None)
    if not (isinstance(host, type) and issubclass(host, diffusers.DiffusionPipeline)):
        raise ValueError(f"`checkpoint`: {text} is of the pipeline {name}, which diffusers does not have.")
    try:
        with_instantstyle(host)
    except ValueError as error:
        raise ValueError(f"`checkpoint`: {text}: {error}") from error
    return host


def read_terms(folder: Path) -> dict[str, Any]:
    """Read license and base model from a folder's own card; a license that nobody named is "unknown".

    Raises:
        ValueError: The card's metadata cannot be read.
    """
    from huggingface_hub import metadata_load

    path = folder / "README.md"
    try:
        metadata = metadata_load(path) if path.is_file() else None
    except Exception as error:  # PyYAML's are no ValueErrors
        raise ValueError(f"`checkpoint`: the metadata of {path} cannot be read ({error}).") from error
    return {"license": "unknown"} | {
        name: value for name, value in (metadata or {}).items() if name in TERMS and value
    }


def copy_checkpoint(checkpoint: Checkpoint, target: Path, class_entry: list[str], take: Take) -> None:
    """Put a checkpoint into a folder, with its adapter and license, so that it loads as the variant.

    Only what the pipeline and the adapter need is taken: whatever else is in the folder was not meant to be published.

    Args:
        checkpoint: The checkpoint.
        target: The folder, which holds the code already.
        class_entry: The file and class in `target` that load it, as `write_code` returns them.
        take: How each file comes there.
    """
    folder = checkpoint.folder
    for name in {*parts(checkpoint.index), *([CONTROLNET] if (folder / CONTROLNET).is_dir() else [])}:
        shutil.copytree(folder / name, target / name, copy_function=take, ignore=HIDDEN)
    if checkpoint.own_adapter:
        copy_adapter(checkpoint.adapter, target, take)
    for path in folder.iterdir():
        if path.is_file() and path.name.lower().startswith(LEGAL):
            take(str(path), str(target / path.name))
    index = {**checkpoint.index, "_class_name": class_entry}
    (target / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_adapter(adapter: Adapter, target: Path, take: Take) -> None:
    """Put an adapter and its image encoder under the same names into another folder."""
    source = Path(adapter.source)
    (target / adapter.subfolder).mkdir(exist_ok=True)
    take(str(source / adapter.subfolder / adapter.weight_name), str(target / adapter.subfolder / adapter.weight_name))
    inside = "/" not in adapter.image_encoder_folder
    encoder = Path(adapter.subfolder if inside else "", adapter.image_encoder_folder)
    if (source / encoder).is_dir():
        shutil.copytree(source / encoder, target / encoder, copy_function=take, ignore=HIDDEN)
