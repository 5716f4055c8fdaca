"""What a batch is to do, and what of it is not done yet."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from instantstyle.commands.batch.manifest import Row
from instantstyle.console import one_line
from instantstyle.inference import calls, inputs, recipe, request, session
from instantstyle.inference.inputs import PICTURES, Picture, load_style, open_picture
from instantstyle.inference.models import Adapter, Model
from instantstyle.inference.request import is_style_file, option, variant_name


REMEMBERED = 64  # pictures and style files
# Where two recipes of the same row may differ: the machine that made it, and what `asked_size` stands for.
NOT_ASKED = ("versions", "device", "dtype", "offload", "size", "picture")


class Reader:
    """Reads the files that rows name. Rows share styles, so the last files are remembered, and something of all."""

    def __init__(self) -> None:
        self.picture = lru_cache(REMEMBERED)(open_picture)
        self.style = lru_cache(REMEMBERED)(load_style)
        self.describe = cache(inputs.describe_file)
        self.is_picture = cache(lambda name, path: bool(self.picture(name, path)))

    def check(self, options: argparse.Namespace, model: Model) -> None:
        """Refuse files of a row that cannot be read, and a style of another family."""
        for name, path in inputs.picture_paths(options).items():
            self.is_picture(option(name), path)
        if is_style_file(options):
            request.check_family(options, self.style(options.style)[0], model)

    def pictures(self, options: argparse.Namespace) -> dict[str, Picture]:
        """Read the pictures that a row names."""
        paths = inputs.picture_paths(options)
        return {name: self.picture(option(name), path) for name, path in paths.items()}


@dataclass(frozen=True)
class Job:
    """What a run is to do.

    Attributes:
        options: The command line's, which stand in for what rows leave open.
        rows: The rows of the manifest.
        folder: Where the pictures go.
        model: What makes them.
        adapter: The adapter, for rows whose style is a picture.
        reader: Reads the files that rows name.
    """

    options: argparse.Namespace
    rows: Sequence[Row]
    folder: Path
    model: Model
    adapter: Adapter
    reader: Reader = field(default_factory=Reader)

    def ask(self, row: Row) -> argparse.Namespace:
        """Say a row as `generate` would be told it."""
        return row.options(self.options)

    def adapter_for(self, options: argparse.Namespace) -> Adapter | None:
        """Return the adapter of a row."""
        return None if is_style_file(options) else self.adapter


class Missing(NamedTuple):
    """A row whose picture is to be made. Rows of the same kind can be made in one call."""

    number: int
    kind: str


def find_missing(job: Job, numbers: Sequence[int], failed: dict[int, str]) -> list[Missing]:
    """Find the rows whose pictures are not there, or are there with another recipe.

    Args:
        job: What the run is to do.
        numbers: The rows to look at, from 0.
        failed: Takes the rows that name files that cannot be read, and why.
    """
    found = []
    for number in numbers:
        row = job.rows[number]
        options = job.ask(row)
        try:
            if not is_made(job.folder / row.name, expected(job, options)):
                job.reader.check(options, job.model)
                found.append(Missing(number, kind(job, options)))
        except (ValueError, OSError) as error:
            failed[number] = one_line(error)
    return found


def expected(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Write what the recipe of a row's picture must say."""
    names = [name for name in PICTURES if getattr(options, name)]
    named = {name: job.reader.describe(option(name), getattr(options, name)) for name in names}
    used = calls.strengths(options, session.variant_class(options, job.model))
    return recipe.asked(options, job.model, job.adapter_for(options), named, used)


def is_made(path: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a file is the picture that a recipe asks for. One without a seed is content with any."""
    try:
        found = recipe.read(path)
    except (ValueError, OSError):
        return False
    if asked["seed"] is None:
        asked = {**asked, "seed": found.get("seed")}
    return essence(found) == essence(json.loads(json.dumps(asked)))


def essence(written: Mapping[str, Any]) -> dict[str, Any]:
    """Leave of a recipe what was asked for; files count by their content, not by their names."""
    kept = {name: value for name, value in written.items() if name not in NOT_ASKED}
    return {
        name: value.get("sha256") if name in PICTURES and isinstance(value, dict) else value
        for name, value in kept.items()
    }


def kind(job: Job, options: argparse.Namespace) -> str:
    """Name what rows must have in common to be made in one call."""
    sizes = [options.size]
    if options.image or options.control_image:
        given = inputs.fit(job.reader.pictures(options), options.size)
        sizes += [given[name].size for name in ("image", "control_image") if name in given]
    alike = (
        *("steps", "guidance", "content_scale", "target_blocks", "scale", "strength", "controlnet_scale"),
        *("hires", "upscale", "upscale_strength"),
    )
    return repr(
        [
            variant_name(options, job.model.family),
            is_style_file(options),
            sizes,
            [getattr(options, name) for name in alike],
            [options.negative is None, options.content is None],
        ]
    )


def cut(missing: Sequence[Missing], size: int) -> list[list[int]]:
    """Put the numbers of rows that can be made in one call together, at most `size` of them."""
    kinds: dict[str, list[int]] = {}
    for row in missing:
        kinds.setdefault(row.kind, []).append(row.number)
    return [batch for numbers in kinds.values() for batch in chunks(numbers, size)]


def chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Cut a sequence into lists of `size`, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
