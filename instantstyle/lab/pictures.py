"""Pictures of conditions: what the judges look at, before any rounding to 8 bits."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from instantstyle import tiny
from instantstyle.inference.request import Request
from instantstyle.inference.session import Session
from instantstyle.inference.values import Targets, read
from instantstyle.lab.conditions import Condition
from instantstyle.lab.pairs import Pairs, make_seed
from instantstyle.tiny import world
from instantstyle.tiny.world import reference_pictures


BATCH = 32  # pictures at a time


def make_pictures(
    session: Session,
    condition: Condition,
    pairs: Pairs,
    seeds: Sequence[int],
    *,
    steps: int = tiny.SAMPLING["steps"],
    guidance: float = tiny.SAMPLING["guidance"],
    batch: int = BATCH,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Make the pictures of one condition.

    A pair's picture depends on the pair, the seed and the condition alone, not on what else is in the batch; its noise
    depends on the pair and the seed alone, so that conditions can be compared picture by picture.

    Args:
        session: What paints, on a model of the drawn world.
        condition: How to use the references.
        pairs: What to show, and in whose style.
        seeds: Each pair is painted once with each.
        steps: Sampling steps that are run, also where "img2img" skips the first part of the schedule.
        guidance: The guidance scale.
        batch: Pictures at a time.
        progress: Is told after each batch how many pictures it had.

    Returns:
        Float tensor of shape (pairs, seeds, 3, height, width) in [0, 1].
    """
    pipe = pipeline_for(session, condition)
    rows = [(row, seed) for row in range(len(pairs)) for seed in seeds]
    parts = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        arguments = arguments_for(pipe, condition, pairs, [row for row, _ in part], steps)
        noise = [torch.Generator().manual_seed(make_seed(pairs.split, int(pairs.numbers[r]), s)) for r, s in part]
        parts.append(pipe(**arguments, guidance_scale=guidance, generator=noise, output_type="pt").images.float())
        if progress is not None:
            progress(len(part))
    return torch.cat(parts).unflatten(0, (len(pairs), len(seeds)))


def pipeline_for(session: Session, condition: Condition) -> Any:
    """Return the pipeline that paints a condition, with its adapter on the condition's target blocks."""
    takes = {"adapter": "style", "img2img": "image"}
    given = {takes[condition.method]: "of any pair"} if condition.method in takes else {}
    pipe = session.pipeline(Request(prompt="", **given))
    if condition.method == "adapter":
        session.aim_at(read(Targets, condition.target_blocks), condition.scale)
    return pipe


def arguments_for(pipe: Any, condition: Condition, pairs: Pairs, rows: list[int], steps: int) -> dict[str, Any]:
    """Put a condition and some of its pairs in the words of the pipeline's call."""
    write = pairs.named if condition.method == "prompt" else pairs.prompt
    arguments: dict[str, Any] = {"prompt": [write(row) for row in rows], "num_inference_steps": steps}
    if condition.method == "img2img":
        assert condition.strength is not None
        arguments |= {
            "image": world.draw(pairs.references[rows], picture_size(pipe)),
            "strength": condition.strength,
            # The pipeline runs the last `strength` of its steps.
            "num_inference_steps": math.ceil(steps / condition.strength - 1e-6),
        }
    if condition.method == "adapter":
        pictures = reference_pictures(pairs.references[rows], picture_size(pipe))
        arguments |= {"ip_adapter_image": [pictures], "ip_adapter_image_per_prompt": True}
    if condition.content is not None:
        content = [[condition.phrasing.replace("{}", pairs.content(row)) for row in rows]]
        arguments |= {"neg_content_prompt": content, "neg_content_scale": condition.content}
    return arguments


def picture_size(pipe: Any) -> int:
    """Return the width and height in pixels of what the pipeline makes."""
    return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)


def png_base64(picture: Image.Image) -> str:
    """Write a picture as a PNG file in base64."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
