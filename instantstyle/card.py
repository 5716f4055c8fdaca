"""The model card of a published repository, from the template `model_card/README.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instantstyle import models
from instantstyle.checkpoint import Checkpoint
from instantstyle.version import __version__


TEMPLATE = Path(__file__).with_name("model_card") / "README.md"  # in the package, so that a wheel carries it
TAGS = ("instantstyle", "ip-adapter", "style-transfer", "stable-diffusion", "stable-diffusion-xl", "training-free")

# The plugin holds no weights; it adapts these.
PLUGIN_TERMS: dict[str, Any] = {
    "license": "apache-2.0",
    "base_model": list(models.BASE_REPOSITORIES.values()),
    "base_model_relation": "adapter",
}


def write_card(
    path: Path,
    repo_id: str,
    variants: Mapping[str, str],
    widget: Sequence[Mapping[str, Any]],
    checkpoint: Checkpoint | None,
) -> None:
    """Write the card.

    Args:
        path: The file.
        repo_id: OWNER/NAME, for the examples.
        variants: Class -> file that loads it.
        widget: Prompts with their pictures.
        checkpoint: What is published beside the plugin, if anything is.
    """
    from huggingface_hub import ModelCard, ModelCardData

    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        **(PLUGIN_TERMS if checkpoint is None else checkpoint.terms),
        tags=list(TAGS),
        widget=list(widget),
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        version=__version__,
        variants=variants,
        checkpoint=checkpoint,
    )
    path.write_text(f"{card}\n", encoding="utf-8")
