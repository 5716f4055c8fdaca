"""`instantstyle generate`: pictures for prompts, or out of a recipe."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instantstyle.commands.options import option, typed
from instantstyle.console import calm
from instantstyle.files import check_output
from instantstyle.inference.request import Machine, Request, check, laid_over, refuse_encoded, worded


if TYPE_CHECKING:
    from instantstyle.inference.session import Session


# What goes of a recipe where something else is typed.
REPLACES = {"fast": ("steps", "guidance", "fast_weights"), "device_map": ("device",)}


def run(options: argparse.Namespace) -> None:
    """Make the pictures that the command line asks for; their paths go to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    first, machine = asked(options)
    prompts = options.prompt or [first.prompt]
    paths = output_paths(options.output, len(prompts) * options.num_images)
    bars = sys.stderr.isatty() and not options.quiet
    with calm(bars):
        from instantstyle.inference.session import SEED_BITS, Session

        seed = secrets.randbits(SEED_BITS) if first.seed is None else first.seed
        each = [prompt for prompt in prompts for _ in range(options.num_images)]
        requests = [first.but(prompt=prompt, seed=seed + index) for index, prompt in enumerate(each)]
        session = Session(machine, bars)
        tell_unknown_words(session, requests)
        paintings = session.paint(requests)
    for painting, path in zip(paintings, paths, strict=True):
        painting.save(path)
        print(path)


def asked(options: argparse.Namespace) -> tuple[Request, Machine]:
    """Read what to paint first, and where: what is typed, laid over a recipe if one is.

    Raises:
        ValueError, OSError: Something is missing, or contradicts something else.
    """
    given = typed(options, Request) | {"prompt": (options.prompt or [None])[0]}
    given = {name: value for name, value in given.items() if value is not None}
    if options.recipe is not None:
        return repeated(options.recipe, given, typed(options, Machine))
    missing = [name for name in ("prompt", "style") if name not in given]
    if missing:
        raise ValueError(f"`{missing[0]}`: needed, unless --from names a picture whose recipe has it.")
    request, machine = Request(**given), options.machine
    if request.style_file is not None:
        refuse_encoded([name for name in ("adapter", "content_encoder") if name in machine.given])
    if machine.controlnet is not None and request.control_image is None:
        raise ValueError("`controlnet` needs `control_image`.")
    check(request, machine)
    return request, machine


def repeated(path: str, given: Mapping[str, Any], where: Mapping[str, Any]) -> tuple[Request, Machine]:
    """Read the recipe in a picture, with what is typed in place of its values.

    Files are looked for, by their names and contents, beside the picture and here.
    """
    from instantstyle.inference.inputs import find_files
    from instantstyle.inference.recipe import read_recipe, read_request

    try:
        request, machine = read_request(read_recipe(path))
    except (ValueError, OSError) as error:
        raise ValueError(f"--from: {error}") from error
    gone = {old for new, replaced in REPLACES.items() if new in where for old in replaced}
    kept, places = ({k: v for k, v in value.given.items() if k not in gone} for value in (request, machine))
    found = find_files(Request(**laid_over(kept, given)), (Path(path).parent, Path()))
    return found, Machine(**{**places, **where})


def tell_unknown_words(session: Session, requests: Sequence[Request]) -> None:
    """Print which words the model has never seen, if there are any."""
    if remark := session.unknown_words(requests):
        print(f"instantstyle: {worded(remark, option)}", file=sys.stderr)


def output_paths(output: str, number: int) -> list[Path]:
    """Name the files to write: FILE.png, or FILE-0.png, FILE-1.png, ... for several pictures.

    Raises:
        ValueError: The name does not end in .png, or its folder is missing or cannot be written.
    """
    path = check_output("--output", output, ".png", "the recipe")
    return [path] if number == 1 else [path.with_stem(f"{path.stem}-{index}") for index in range(number)]
