"""Grids: pictures of references x prompts x methods, and their layout on a sheet."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from instantstyle.inference import models, values
from instantstyle.inference.inputs import open_picture
from instantstyle.inference.models import Model
from instantstyle.inference.sheet import Sheet


METHODS = ("no reference", "plain IP-Adapter", "InstantStyle")
PROMPTS = ("a heart", "a star")
DRAWN = 3
DRAWN_SEED = 7

Targets = dict[str, float] | None
"""Target blocks and their scales; None where no reference is given."""

WORDS: dict[str, Targets] = {
    **dict.fromkeys(("no reference", "none")),
    **dict.fromkeys(("plain IP-Adapter", "plain"), {"all": 1.0}),
    "InstantStyle": {"style": 1.0},
}
"""What a method may be called besides presets and attention blocks."""


@dataclass(frozen=True)
class Reference:
    """A reference picture, and what the recipe keeps of it."""

    image: Image.Image
    source: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What one picture of a grid is made from."""

    prompt: str
    reference: Image.Image | None
    targets: Targets
    content: str | None = None


@dataclass(frozen=True)
class Sampling:
    """What is the same for every picture of a grid."""

    seed: int
    steps: int
    guidance: float
    content_scale: float | str = 1.0


def open_reference(path: str) -> Reference:
    """Read a reference picture from a file."""
    picture = open_picture("--reference", path)
    return Reference(picture.image, {"file": picture.file, "sha256": picture.sha256})


def read_method(text: str) -> Targets:
    """Read a method: a word of `WORDS`, or presets and attention blocks as `--target-blocks` takes them.

    Raises:
        ValueError: A part of it is empty, or a scale is not a number.
    """
    try:
        return WORDS[text] if text in WORDS else dict(values.targets(text))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--method: {error}.") from error


def choose(
    given: Sequence[Reference], prompts: Sequence[str] | None, model: Model
) -> tuple[list[Reference], list[str]]:
    """Return the references and prompts to use; the world of the embedded checkpoint has its own.

    Raises:
        ValueError: Some are missing, and the model does not know that world.
    """
    missing = [name for name, value in (("--reference", given), ("--prompt", prompts)) if not value]
    if missing and not models.knows_world(model):
        raise ValueError(
            f"{' and '.join(missing)}: needed with --model {model.label}; only the embedded one has its own."
        )
    return list(given) or draw_references(), list(prompts or PROMPTS)


def draw_references(pixels: int | None = None) -> list[Reference]:
    """Draw references that share no shape, palette, background or texture, nor show what `PROMPTS` ask for.

    Args:
        pixels: Their width and height; by default those of the world's own drawings.
    """
    import torch

    from instantstyle.tiny import world
    from instantstyle.tiny.world import reference_pictures

    scenes = world.sample(200, torch.Generator().manual_seed(DRAWN_SEED))
    taken = {word for prompt in PROMPTS for word in prompt.split()} | {"plain"}
    chosen: list[int] = []
    for row in range(len(scenes)):
        words = set(scenes.words(row).values())
        if len(chosen) < DRAWN and not words & taken:
            chosen.append(row)
            taken |= words
    return [
        Reference(picture, {"drawn": scenes.words(row), "sha256": hashlib.sha256(picture.tobytes()).hexdigest()})
        for row, picture in zip(chosen, reference_pictures(scenes[chosen], pixels or world.PIXELS), strict=True)
    ]


def spread(content: Sequence[str] | None, count: int) -> list[str | None]:
    """Return the content of each reference.

    Raises:
        ValueError: There is neither one for all nor one for each.
    """
    if content is None:
        return [None] * count
    if len(content) not in (1, count):
        raise ValueError(
            f"--content: expected one text, or one for each of the {count} references, got {len(content)}."
        )
    return [*content] * (count if len(content) == 1 else 1)


def paint(pipe: Any, cells: Sequence[Sequence[Cell]], sampling: Sampling, bars: bool) -> list[list[Image.Image]]:
    """Make the pictures of a grid, one after another, equal cells once.

    Args:
        pipe: A pipeline with an adapter on all blocks, at the scale to use.
        cells: Rows of cells.
        sampling: What is the same for all.
        bars: Whether to show progress.
    """
    made: dict[tuple[Any, ...], Image.Image] = {}
    keys = [[cell_key(cell) for cell in row] for row in cells]
    distinct = {
        key: cell for names, row in zip(keys, cells, strict=True) for key, cell in zip(names, row, strict=True)
    }
    for key, cell in tqdm(distinct.items(), desc="pictures", disable=not bars):
        made[key] = paint_cell(pipe, cell, sampling)
    return [[made[key] for key in row] for row in keys]


def cell_key(cell: Cell) -> tuple[Any, ...]:
    """Return what tells cells apart: values, and the reference by identity."""
    targets = None if cell.targets is None else tuple(cell.targets.items())
    return cell.prompt, id(cell.reference), targets, cell.content


def paint_cell(pipe: Any, cell: Cell, sampling: Sampling) -> Image.Image:
    """Make one picture. The seed is the same for every cell, so that nothing else but the cell differs."""
    import torch

    arguments: dict[str, Any] = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        # On the CPU, so that a seed means the same noise on every device.
        "generator": torch.Generator("cpu").manual_seed(sampling.seed),
    }
    if cell.reference is not None:
        arguments |= {"ip_adapter_image": cell.reference, "target_blocks": cell.targets}
    if cell.reference is not None and cell.content is not None:
        arguments |= {"neg_content_prompt": cell.content, "neg_content_scale": sampling.content_scale}
    return pipe(cell.prompt, **arguments).images[0]


def tall(
    references: Sequence[Image.Image],
    prompts: Sequence[str],
    methods: Sequence[str],
    pictures: Sequence[Sequence[Image.Image]],
) -> Sheet:
    """Lay out a row for each prompt of each reference, and a column for each method.

    Args:
        references: As large as the pictures.
        prompts: What to write before the rows.
        methods: What to write over the columns.
        pictures: For each reference a row for each prompt; the columns are the methods.
    """
    shown = [reference for reference in references for _ in prompts]
    rows = [[reference, *made] for reference, made in zip(shown, pictures, strict=True)]
    return Sheet(rows, columns=["reference", *methods], rows=[*prompts] * len(references))


def wide(
    references: Sequence[Image.Image],
    prompts: Sequence[str],
    methods: Sequence[str],
    pictures: Sequence[Sequence[Image.Image]],
) -> Sheet:
    """Lay out a row for each reference, and a column for each prompt of each method; arguments as for `tall`."""
    rows = []
    for number, reference in enumerate(references):
        made = pictures[number * len(prompts) : (number + 1) * len(prompts)]
        rows.append([reference, *(row[method] for method in range(len(methods)) for row in made)])
    columns = [f"{method}\n{prompt}" for method in methods for prompt in prompts]
    return Sheet(rows, columns=["reference", *columns], rows=[""] * len(references))


def fit(reference: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bring a reference to the size of the pictures beside it, upright and whole."""
    turned = upright(reference)
    return turned if turned.size == size else ImageOps.contain(turned, size, Image.Resampling.LANCZOS)


def upright(reference: Image.Image) -> Image.Image:
    """Turn and convert a reference as the pipeline does."""
    from diffusers.utils import load_image

    return load_image(reference)
