"""Content that cannot be encoded, or removed, is refused, and so are its encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from hosts import CLIP_WIDTH, components, content_encoder, picture, pixels
from refusals import TEXT_TO_IMAGE, WIDTH, loaded, refused


pytest_plugins = ["refusals"]
pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize("kind", ["plus", "full"])
@pytest.mark.parametrize("name", ["neg_content_prompt", "neg_content_embeds"])
def test_patch_embeddings_have_no_content_to_remove(kind: str, name: str, ready: Any) -> None:
    """Subtraction works on one global embedding per picture only."""
    host = TEXT_TO_IMAGE["sd15"]
    pipe = ready(host, kind)
    value = "a star" if name == "neg_content_prompt" else torch.ones(CLIP_WIDTH["sd15"])
    with refused(pipe, host, ValueError, f"`{name}`", "global embedding", "Pass None"):
        pipe(**host.inputs(), ip_adapter_image=picture(1), **{name: value})


def no_tower(pipe: DiffusionPipeline) -> str:
    """Leave SD1.5 without a text tower for content."""
    pipe.unload_content_encoder()
    return "there is none"


def narrow_tower(pipe: DiffusionPipeline) -> str:
    """Give SD1.5 the text tower of SDXL's CLIP."""
    parts = components("sdxl")
    pipe.load_content_encoder((parts["text_encoder_2"], parts["tokenizer_2"]))
    return f" {CLIP_WIDTH['sdxl']}"


@pytest.mark.parametrize("tower", [no_tower, narrow_tower])
def test_content_needs_the_text_tower_of_the_adapters_clip(tower: Callable[..., str], written: Any) -> None:
    """Without it, the remedy is named."""
    host = TEXT_TO_IMAGE["sd15"]
    pipe = loaded(host, written[host.family, "plain"])
    at_hand = tower(pipe)
    width = f" {CLIP_WIDTH['sd15']}"
    with refused(pipe, host, ValueError, "`neg_content_prompt`", width, at_hand, "`load_content_encoder`"):
        pipe(**host.inputs(), ip_adapter_image=picture(1), neg_content_prompt="a star")


def test_sdxl_with_another_adapters_tower_is_refused(written: Any) -> None:
    """What `load_content_encoder` gave goes before SDXL's own, also when it does not fit."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = loaded(host, written[host.family, "plain"])
    pipe.load_content_encoder(content_encoder())
    with refused(pipe, host, ValueError, f" {WIDTH}", f" {CLIP_WIDTH['sd15']}", "`load_content_encoder`"):
        pipe(**host.inputs(), ip_adapter_image=picture(1), neg_content_prompt="a star")


def content_sources(folder: Path) -> dict[str, tuple[Any, Any, tuple[str, ...]]]:
    """Return what cannot be a content encoder, the error's type and what it says."""
    parts = components("sd15")
    plain, tokenizer = parts["text_encoder"], parts["tokenizer"]
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "no projection": ((plain, tokenizer), TypeError, ("`source`", "CLIPTextModelWithProjection", "CLIPTextModel")),
        "no projection on disk": (str(folder), (TypeError, ValueError), ("CLIPTextModelWithProjection",)),
        "a missing folder": (str(folder / "nowhere"), OSError, ("nowhere",)),
        "one module": ((content_encoder()[0],), (TypeError, ValueError), ("`source`", "(text_encoder, tokenizer)")),
        "no modules": (3, (TypeError, ValueError), ("`source`", "3")),
        "swapped": (content_encoder()[::-1], TypeError, ("`source`", "CLIPTextModelWithProjection", "Tokenizer")),
    }


@pytest.mark.parametrize(
    "what", ["no projection", "no projection on disk", "a missing folder", "one module", "no modules", "swapped"]
)
def test_a_content_encoder_is_refused(what: str, written: Any, tmp_path: Path) -> None:
    """The one given before stays in force: the good call with content paints as before."""
    host = TEXT_TO_IMAGE["sd15"]
    pipe = loaded(host, written[host.family, "plain"])
    source, error, says = content_sources(tmp_path)[what]
    removed = {**host.inputs(), "ip_adapter_image": picture(1), "neg_content_prompt": "a star"}
    before = pixels(pipe, **removed)
    with refused(pipe, host, error, *says):
        pipe.load_content_encoder(source)
    removed["generator"] = host.inputs()["generator"]
    assert np.array_equal(before, pixels(pipe, **removed))
