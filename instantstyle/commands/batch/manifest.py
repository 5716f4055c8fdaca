"""Manifests: tables of pictures to make, a row for each, as CSV or JSON lines. Columns are options of `generate`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instantstyle.inference.request import ENCODED, is_style_file
from instantstyle.inference.values import (
    changed,
    content_scale,
    count,
    enlargement,
    fraction,
    number,
    seed,
    size,
    targets,
    truth,
    words,
)


EXTRA = "cells than columns"  # where the CSV reader puts them
LONGEST = 240  # bytes of a file's name: disks allow 255, and a scratch file has a longer name


def one_prompt(text: str) -> list[str]:
    """Read a prompt; `generate` takes several."""
    return [text]


def picture_name(text: str) -> str:
    """Read the name of a picture to make."""
    of_a_file = Path(text).name == text and text.isprintable() and len(os.fsencode(text)) <= LONGEST
    if not of_a_file or Path(text).suffix.lower() != ".png" or text.startswith("."):
        raise argparse.ArgumentTypeError(f"expected a name in the output folder that ends in .png, got {text!r}")
    return text


COLUMNS: Mapping[str, Callable[[str], Any]] = {
    "prompt": one_prompt,
    "output": picture_name,
    "style": str,
    "content": words,
    "content_scale": content_scale,
    "target_blocks": targets,
    "scale": number,
    "negative": str,
    "steps": count,
    "guidance": number,
    "seed": seed,
    "size": size,
    "image": str,
    "mask": str,
    "strength": fraction,
    "control_image": str,
    "controlnet_scale": number,
    "hires": truth,
    "upscale": enlargement,
    "upscale_strength": fraction,
}
"""What a row may say, and how it is read."""


@dataclass(frozen=True)
class Row:
    """A picture to make.

    Attributes:
        place: Where it stands, for errors.
        name: The file to make.
        given: What the row says, by column.
    """

    place: str
    name: str
    given: Mapping[str, Any]

    def options(self, defaults: argparse.Namespace) -> argparse.Namespace:
        """Say the row as `generate` would be told it.

        Args:
            defaults: What the command line says, for what the row leaves open. A style file is encoded already, so
                what steers the encoding is not for rows that name one.
        """
        own = changed(defaults, **self.given)
        if own.style is not None and is_style_file(own):
            for name in ENCODED:
                setattr(own, name, self.given.get(name))
        return own


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put the place in the manifest before an error."""
    try:
        yield
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{place}: {error}") from error


def read(path: str) -> list[Row]:
    """Read a manifest.

    Args:
        path: A `.csv` file whose first line names the columns, or a `.jsonl` file with an object on each line. Empty
            cells, empty lines and nulls say nothing.

    Raises:
        ValueError: It is of another kind, has no rows, unknown columns or rows without a prompt, a value cannot be
            read, or two rows make the same file. It names the line.
        OSError: It cannot be read.
    """
    kinds = {".csv": read_csv, ".jsonl": read_json_lines}
    kind = Path(path).suffix.lower()
    if kind not in kinds:
        raise ValueError(f"MANIFEST: {path} does not end in .csv or .jsonl, the kinds that are read.")
    try:
        # What spreadsheets write begins with a byte order mark.
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OSError(f"MANIFEST: {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"MANIFEST: {path} is not text in UTF-8.") from error
    found = kinds[kind](text, Path(path).name)
    rows = [read_row(place, order, cells) for order, (place, cells) in enumerate(found, start=1)]
    if not rows:
        raise ValueError(f"MANIFEST: {path} has no rows.")
    check_names(rows)
    return rows


def read_csv(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the cells of each row by column, with their place: the line that the row ends on."""
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=EXTRA, strict=True, skipinitialspace=True)
    try:
        columns = [column_name(column) for column in reader.fieldnames or []]
        check_columns(f"{name}, line 1", columns)
        reader.fieldnames = columns
        for cells in reader:
            yield f"{name}, line {reader.line_num}", cells
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.reader.line_num}: {error}.") from error


def read_json_lines(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the object on each line, with its place."""
    for where, line in enumerate(text.split("\n"), start=1):
        place = f"{name}, line {where}"
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place} is not JSON ({error}).") from error
        if not isinstance(cells, dict):
            raise ValueError(f'{place}: expected an object such as {{"prompt": "a heart"}}, got {line:.80}')
        check_columns(place, [column_name(column) for column in cells])
        yield place, {column_name(column): value for column, value in cells.items()}


def column_name(text: str) -> str:
    """Read a column's name, which may be spelt as the option is."""
    return text.strip().replace("-", "_")


def check_columns(place: str, columns: Sequence[str]) -> None:
    """Refuse columns that there are not, and the same twice."""
    for column in columns:
        if column not in COLUMNS:
            raise ValueError(
                f"{place}: {column!r} is no column; expected {', '.join(COLUMNS)}. "
                "Options about the model or the machine are for the command line."
            )
        if columns.count(column) > 1:
            raise ValueError(f"{place}: the column {column!r} is there twice.")


def read_row(place: str, order: int, cells: Mapping[str, Any]) -> Row:
    """Read the row that comes in this order."""
    if EXTRA in cells:
        raise ValueError(f"{place} has more {EXTRA}; put quotes around a text with commas.")
    given = {}
    for column, value in cells.items():
        with at(f"{place}: {column}"):
            if value not in (None, ""):
                given[column] = COLUMNS[column](read_text(value))
    if "prompt" not in given:
        raise ValueError(f"{place} has no prompt.")
    return Row(place, given.pop("output", f"{order:06}.png"), given)


def read_text(value: Any) -> str:
    """Read what JSON holds as the word that the command line would be given."""
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"expected text or a number, got {value!r}")
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_names(rows: Sequence[Row]) -> None:
    """Refuse two rows that make the same file; some disks do not tell small letters from capitals."""
    places: dict[str, str] = {}
    for row in rows:
        first = places.setdefault(row.name.lower(), row.place)
        if first != row.place:
            raise ValueError(f"{row.place}: output: {row.name!r} is made at {first} already.")
