"""What a batch is to do, and what of it is not done yet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from instantstyle.commands.batch.manifest import Row
from instantstyle.console import one_line
from instantstyle.inference.recipe import read_recipe
from instantstyle.inference.request import Request, told
from instantstyle.inference.session import Session


# Where two recipes of the same row may differ: the machine that made it, and what `asked_size` stands for.
NOT_ASKED = ("versions", "device", "dtype", "offload", "size")


@dataclass(frozen=True)
class Job:
    """What a run is to do.

    Attributes:
        rows: The rows of the manifest.
        requests: What each asks for.
        folder: Where the pictures go.
        session: What paints them.
    """

    rows: Sequence[Row]
    requests: Sequence[Request]
    folder: Path
    session: Session


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
        request = job.requests[number]
        try:
            if not is_made(job.folder / job.rows[number].name, job.session.describe(request)):
                found.append(Missing(number, repr(job.session.order(request).kind)))
        except (ValueError, OSError) as error:
            failed[number] = reason(error)
    return found


def reason(error: Exception) -> str:
    """Say in one line why a row failed; what is no mistake of the user, with its kind."""
    named = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
    return named + one_line(ValueError(told(error, "{}".format)))


def is_made(path: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a file is the picture that a recipe asks for. One without a seed is content with any."""
    try:
        found = read_recipe(path)
    except (ValueError, OSError):
        return False
    if asked["seed"] is None:
        asked = {**asked, "seed": found.get("seed")}
    return essence(found) == essence(json.loads(json.dumps(asked)))


def essence(written: Mapping[str, Any]) -> dict[str, Any]:
    """Leave of a recipe what was asked for; files count by their content, not by their names."""
    kept = {name: value for name, value in written.items() if name not in NOT_ASKED}
    return {name: value.get("sha256", value) if isinstance(value, dict) else value for name, value in kept.items()}


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
