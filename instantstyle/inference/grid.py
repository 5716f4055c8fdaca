"""Grids: references x prompts x methods as requests, painted once where they are equal, and laid out with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageOps

from instantstyle.inference.inputs import upright
from instantstyle.inference.models import Model, knows_world
from instantstyle.inference.request import STYLE, Request
from instantstyle.inference.session import Painting, Session
from instantstyle.inference.sheet import Sheet
from instantstyle.inference.values import Picture, Targets, read


METHODS = ("no reference", "plain IP-Adapter", "InstantStyle")
PROMPTS = ("a heart", "a star")
DRAWN = 3
DRAWN_SEED = 7

Method = Targets | None
"""Target blocks and their scales; None where no reference is given."""

WORDS: dict[str, Method] = {
    **dict.fromkeys(("no reference", "none")),
    **dict.fromkeys(("plain IP-Adapter", "plain"), (("all", 1.0),)),
    "InstantStyle": STYLE,
}
"""What a method may be called besides presets and attention blocks."""


@dataclass(frozen=True)
class Drawn(Picture):
    """A reference that was drawn.

    Attributes:
        words: What it shows, by attribute of the drawn world.
    """

    words: Mapping[str, str] = field(compare=False)

    @property
    def written(self) -> dict[str, Any]:
        """What a recipe keeps."""
        return {"drawn": dict(self.words), "sha256": self.sha256}


def read_method(text: str) -> Method:
    """Read a method: a word of `WORDS`, or presets and attention blocks as `target_blocks` takes them.

    Raises:
        ValueError: A part of it is empty, or a scale is not a number.
    """
    return WORDS[text] if text in WORDS else read(Targets, text)


def draw_references(pixels: int | None = None) -> list[Drawn]:
    """Draw references that share no shape, palette, background or texture, nor show what `PROMPTS` ask for.

    Args:
        pixels: Their width and height; by default those of the world's own drawings.
    """
    import torch

    from instantstyle.tiny import world

    scenes = world.sample(200, torch.Generator().manual_seed(DRAWN_SEED))
    taken = {word for prompt in PROMPTS for word in prompt.split()} | {"plain"}
    chosen: list[int] = []
    for row in range(len(scenes)):
        words = set(scenes.words(row).values())
        if len(chosen) < DRAWN and not words & taken:
            chosen.append(row)
            taken |= words
    pictures = world.reference_pictures(scenes[chosen], pixels or world.PIXELS)
    return [drawn(picture, scenes.words(row)) for row, picture in zip(chosen, pictures, strict=True)]


def drawn(picture: Image.Image, words: Mapping[str, str]) -> Drawn:
    """Take a picture that was drawn as one that was given."""
    return Drawn(f"{words['shape']}.png", hashlib.sha256(picture.tobytes()).hexdigest(), picture, words)


def choose(
    given: Sequence[Picture], prompts: Sequence[str] | None, model: Model, who: tuple[str, str]
) -> tuple[Sequence[Picture], list[str]]:
    """Return the references and prompts to use; the world of the embedded checkpoint has its own.

    Args:
        given: References, if there are any.
        prompts: Prompts, if there are any.
        model: What paints.
        who: What names references and prompts, for errors.

    Raises:
        ValueError: Some are missing, and the model does not know that world.
    """
    missing = [name for name, value in zip(who, (given, prompts), strict=True) if not value]
    if missing and not knows_world(model):
        raise ValueError(
            f"{' and '.join(missing)}: needed with `model` {model.label}; only the embedded one has its own."
        )
    return given or draw_references(), list(prompts or PROMPTS)


def requests(
    base: Request,
    references: Sequence[Picture],
    contents: Sequence[str | None],
    prompts: Sequence[str],
    methods: Sequence[Method],
) -> list[list[Request]]:
    """Say the cells of a grid: for each reference a row for each prompt; the columns are the methods.

    Args:
        base: What is the same for every cell, the seed above all.
        references: Whose style is taken.
        contents: What each of them shows, to be removed.
        prompts: What to show.
        methods: Which blocks see the reference, if any.
    """
    # Without a reference nothing is removed from it, and cells that are equal are painted once.
    bare = {name: value for name, value in base.given.items() if name not in ("style", "content", "target_blocks")}

    def cell(reference: Picture, content: str | None, prompt: str, method: Method) -> Request:
        seen = {"style": reference, "content": content, "target_blocks": method} if method else {}
        return Request(**{**bare, **seen, "prompt": prompt})

    pairs = [(*pair, prompt) for pair in zip(references, contents, strict=True) for prompt in prompts]
    return [[cell(*pair, method) for method in methods] for pair in pairs]


def paint(
    session: Session, rows: Sequence[Sequence[Request]], progress: Callable[[int], object] = lambda _: None
) -> list[list[Painting]]:
    """Paint the cells of a grid, one after another, equal ones once.

    Args:
        session: What paints.
        rows: The cells.
        progress: Is told of every picture.
    """
    painted: dict[Request, Painting] = {}
    # Those that are seen by the same blocks one after the other, as blocks come with their weights.
    for request in sorted({cell for row in rows for cell in row}, key=lambda cell: cell.target_blocks):
        (painted[request],) = session.paint([request])
        progress(1)
    return [[painted[cell] for cell in row] for row in rows]


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


def beside(reference: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bring a reference to the size of the pictures beside it, upright and whole."""
    turned = upright(reference)
    return turned if turned.size == size else ImageOps.contain(turned, size, Image.Resampling.LANCZOS)
