"""The gallery of the model card: pictures by the embedded checkpoint, and the style files that it paints with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from instantstyle import tiny
from instantstyle.inference import grid
from instantstyle.inference.grid import METHODS, drawn
from instantstyle.inference.models import TINY
from instantstyle.inference.recipe import write_recipe
from instantstyle.inference.request import Machine, Request
from instantstyle.inference.session import Session
from instantstyle.inference.values import Picture
from instantstyle.tiny import world
from instantstyle.tiny.world import reference_pictures
from instantstyle.version import versions


REFERENCES = {
    "pink-dots": {"shape": "star", "palette": "pink", "background": "navy", "texture": "dotted"},
    "blue-stripes": {"shape": "circle", "palette": "blue", "background": "cream", "texture": "striped"},
}
"""What the references show, by the names of their styles. The first is `examples/reference.png`."""

LAYOUT = {"x": 30.0, "y": 34.0, "size": 22.0, "angle": 0.15, "line": 2.2}
REFERENCE_PIXELS = 512
PROMPTS = ("a heart", "a moon")
BASE = Request(prompt="", seed=0, **tiny.SAMPLING)
ENLARGED = 4  # times: a browser would blur pictures of 64 pixels


def draw_reference(words: Mapping[str, str]) -> Image.Image:
    """Draw one shape in a style that is easy to recognise.

    Args:
        words: The name of each attribute of `world.NAMES`.
    """
    named = {name: torch.tensor([world.NAMES[name].index(word)]) for name, word in words.items()}
    scene = world.Scenes(**named, **{name: torch.tensor([value]) for name, value in LAYOUT.items()})
    return reference_pictures(scene, REFERENCE_PIXELS)[0]


def write_gallery(folder: Path, bars: bool) -> list[dict[str, Any]]:
    """Write `images/` and `styles/` into a folder. Every picture that was painted carries its recipe.

    The same versions on the same machine write the same bytes, so that nothing has to be published twice.

    Args:
        folder: Where to.
        bars: Whether to show progress.

    Returns:
        The card's `widget`: prompts with their pictures.
    """
    images, styles = folder / "images", folder / "styles"
    images.mkdir()
    styles.mkdir()
    session = Session(Machine(device="cpu", dtype="float32"))
    references = {name: drawn(draw_reference(words), words) for name, words in REFERENCES.items()}
    for name, picture in references.items():
        picture.image.save(images / f"{name}.png", optimize=True)
        style = session.encode(Request(prompt="", style=picture))
        style.to(torch.float16).save(styles / f"{name}.safetensors")
    return paint_gallery(session, references, images, bars)


def paint_gallery(
    session: Session, references: Mapping[str, Picture], images: Path, bars: bool
) -> list[dict[str, Any]]:
    """Paint every prompt in every style; `grid.png` compares them with what else there is."""
    methods = {name: grid.read_method(name) for name in METHODS}
    pairs = [(name, prompt) for name in references for prompt in PROMPTS]
    pictures, each = list(references.values()), list(methods.values())
    cells = grid.requests(BASE, pictures, [None] * len(pictures), PROMPTS, each)
    with tqdm(desc="pictures", disable=not bars) as bar:
        rows = grid.paint(session, cells, bar.update)
    painted = [[one.image for one in row] for row in rows]
    fitting = [grid.beside(picture.image, painted[0][0].size) for picture in pictures]
    write_recipe(
        grid.tall(fitting, PROMPTS, list(methods), painted).draw(), images / "grid.png", describe_grid(methods)
    )
    widget = []
    for (name, prompt), row in zip(pairs, rows, strict=True):
        path = images / f"{prompt.split()[-1]}-{name}.png"
        write_recipe(enlarge(row[-1].image), path, row[-1].recipe)
        widget.append({"text": prompt, "output": {"url": f"{images.name}/{path.name}"}})
    return widget


def describe_grid(methods: Mapping[str, grid.Method]) -> dict[str, Any]:
    """Write the recipe of `grid.png`."""
    return {
        "versions": versions(),
        "model": TINY,
        "references": REFERENCES,
        "prompts": PROMPTS,
        "methods": {name: None if blocks is None else dict(blocks) for name, blocks in methods.items()},
        "seed": BASE.seed,
        **tiny.SAMPLING,
    }


def enlarge(picture: Image.Image) -> Image.Image:
    """Enlarge a picture, every pixel of one colour."""
    width, height = picture.size
    return picture.resize((ENLARGED * width, ENLARGED * height), Image.Resampling.NEAREST)
