"""The model card of a published repository, from the template `model_card/README.md`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from instantstyle.hub.checkpoint import Checkpoint
from instantstyle.inference.models import (
    ADAPTER_FILES,
    ADAPTER_REPOSITORY,
    BASE_REPOSITORIES,
    CONTENT_ENCODER,
    Adapter,
)
from instantstyle.version import __version__


# In a wheel it is a folder of the package, in a checkout one beside it.
PLACES = [folder / "model_card" / "README.md" for folder in Path(__file__).parents[1:3]]
TEMPLATE = next(place for place in PLACES if place.is_file())
XL = "stable-diffusion-xl"
TAGS = (
    "instantstyle",
    "ip-adapter",
    "style-transfer",
    "stable-diffusion",
    XL,
    "training-free",
    "modular-diffusers",  # the tag of diffusers' own
)

# The plugin holds no weights; it adapts these.
PLUGIN_TERMS: dict[str, Any] = {
    "license": "apache-2.0",
    "base_model": list(BASE_REPOSITORIES.values()),
    "base_model_relation": "adapter",
}

# What the examples load where the repository holds no weights.
BASE_MODEL = BASE_REPOSITORIES["sdxl"]
SUBFOLDER, _, WEIGHT_NAME = ADAPTER_FILES["sdxl"].partition("/")
BASE_ADAPTER = Adapter(ADAPTER_REPOSITORY, SUBFOLDER, WEIGHT_NAME, label=ADAPTER_REPOSITORY)

MAKES_VIDEO = "num_videos_per_prompt"  # what a call takes where it makes frames

INPUTS = {
    "image": "picture",
    "mask_image": 'picture.convert("L")',
    "control_image": "picture",
    "control_mode": "0",
    "video": "[picture] * 16",
    "conditioning_frames": "[picture] * 16",
}
"""What a call takes beside the prompt -> its value in the example."""


def write_card(
    path: Path,
    repo_id: str,
    revision: str | None,
    variants: Mapping[str, str],
    widget: Sequence[Mapping[str, Any]],
    checkpoint: Checkpoint | None,
) -> None:
    """Write the card.

    Args:
        path: The file.
        repo_id: OWNER/NAME, for the examples.
        revision: The branch that they load; by default `main`.
        variants: Class -> file that loads it.
        widget: Prompts with their pictures, by the embedded checkpoint.
        checkpoint: What is published beside the plugin, if anything is.
    """
    from huggingface_hub import ModelCard, ModelCardData

    takes = set() if checkpoint is None else {*inspect.signature(checkpoint.host.__call__).parameters}
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag=task(takes),
        **(PLUGIN_TERMS if checkpoint is None else checkpoint.terms),
        tags=[tag for tag in TAGS if checkpoint is None or checkpoint.family == "sdxl" or tag != XL],
        # The Hub shows them as made by the weights in the repository, which those of others did not.
        widget=list(widget) if checkpoint is None or checkpoint.embedded else None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        version=__version__,
        variants=variants,
        checkpoint=checkpoint,
        **examples(repo_id, revision, checkpoint, takes),
    )
    path.write_text(f"{card}\n", encoding="utf-8")


def task(takes: Set[str]) -> str:
    """Return the Hub's name for what a pipeline does, by the names of what its call takes."""
    if MAKES_VIDEO in takes:
        return "video-to-video" if "video" in takes else "text-to-video"
    return "image-to-image" if takes & INPUTS.keys() else "text-to-image"


def examples(repo_id: str, revision: str | None, checkpoint: Checkpoint | None, takes: Set[str]) -> dict[str, Any]:
    """Return what the card's examples differ in. They load what is published, from the branch that it is on."""
    at = "" if revision is None else f', revision="{revision}"'
    plugin = {"model": f'"{BASE_MODEL}"', "adapter": arguments(BASE_ADAPTER, f'"{BASE_ADAPTER.source}"')}
    found = plugin if checkpoint is None else published(f'"{repo_id}"{at}', checkpoint)
    is_modular = checkpoint is not None and checkpoint.family == "sdxl" and task(takes) == "text-to-image"
    modular = found if is_modular else plugin
    return {
        "at": at,
        **found,
        "modular_model": f"snapshot_download({found['model']})" if is_modular and revision else modular["model"],
        "modular_adapter": modular["adapter"],
        "content_encoder": CONTENT_ENCODER,
        "cuda": checkpoint is None or not checkpoint.embedded,  # the embedded checkpoint needs none
        "inputs": {name: value for name, value in INPUTS.items() if name in takes},
        "made": "frames" if MAKES_VIDEO in takes else "images",
    }


def published(repository: str, checkpoint: Checkpoint) -> dict[str, str]:
    """Return what the examples load where the repository holds weights: model and adapter."""
    source = repository if checkpoint.own_adapter else f'"{checkpoint.adapter.source}"'
    return {"model": repository, "adapter": arguments(checkpoint.adapter, source)}


def arguments(adapter: Adapter, source: str) -> str:
    """Return what `load_ip_adapter` is called with."""
    return f'{source}, subfolder="{adapter.subfolder}", weight_name="{adapter.weight_name}"'
