"""`instantstyle grid`: references x prompts x methods, as one labelled picture with its recipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from instantstyle.commands.generate import output_paths, tell_unknown_words
from instantstyle.commands.options import typed
from instantstyle.console import calm
from instantstyle.inference import grid
from instantstyle.inference.inputs import open_picture
from instantstyle.inference.recipe import write_recipe
from instantstyle.inference.request import Request, told
from instantstyle.inference.session import Session


OF_A_CELL = ("prompt", "style", "target_blocks")  # what the recipe of a grid has not


def run(options: argparse.Namespace) -> None:
    """Make the grid that the command line asks for; its path goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    (path,) = output_paths(options.output, 1)
    given = [open_picture("--reference", path) for path in options.reference or []]
    methods = {name: read_method(name) for name in options.method or grid.METHODS}
    same = {name: text for name, text in typed(options, Request).items() if name not in ("prompt", "content")}
    base = Request(**same, prompt="")
    bars = sys.stderr.isatty() and not options.quiet

    with calm(bars):
        session = Session(options.machine)
        references, prompts = grid.choose(given, options.prompt, session.model, ("--reference", "--prompt"))
        contents = spread(options.content, len(references))
        rows = grid.requests(base, references, contents, prompts, list(methods.values()))
        cells = [cell for row in rows for cell in row]
        for cell in cells:
            session.complete(cell)
        tell_unknown_words(session, cells)
        check_methods(session, methods, cells)
        with tqdm(total=len(set(cells)), desc="pictures", disable=not bars) as bar:
            painted = grid.paint(session, rows, bar.update)

    pictures = [[one.image for one in row] for row in painted]
    shown = [grid.beside(reference.image, pictures[0][0].size) for reference in references]
    lay_out = grid.wide if options.wide else grid.tall
    sheet = lay_out(shown, prompts, list(methods), pictures).draw()
    described = {**painted[0][0].recipe, **describe(session, base, options.content), "prompts": prompts}
    described |= {"references": [one.written for one in references], "methods": written(methods)}
    write_recipe(sheet, path, {name: value for name, value in described.items() if name not in OF_A_CELL})
    print(path)


def read_method(text: str) -> grid.Method:
    """Read a method, or say that it is none."""
    try:
        return grid.read_method(text)
    except ValueError as error:
        raise ValueError(f"--method: {told(error)}.") from error


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


def check_methods(session: Session, methods: Mapping[str, grid.Method], cells: Sequence[Request]) -> None:
    """Refuse methods that this model does not have, before anything is painted."""
    session.load(cells)
    for blocks in filter(None, methods.values()):
        session.aim_at(blocks)


def describe(session: Session, base: Request, contents: Sequence[str] | None) -> dict[str, Any]:
    """Write what of the grid's recipe is not that of a cell."""
    return {
        "adapter": session.adapter.label,
        "reference_fit": base.reference_fit,
        "content": contents,
        "content_scale": None if contents is None else base.content_scale,
    }


def written(methods: Mapping[str, grid.Method]) -> dict[str, dict[str, float] | None]:
    """Write methods by the scales of their blocks; None where no reference is given."""
    return {name: None if blocks is None else dict(blocks) for name, blocks in methods.items()}
