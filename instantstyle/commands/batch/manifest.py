"""Manifests: tables of pictures to make, a row for each, as CSV or JSON lines. Columns are fields of requests."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instantstyle.commands.options import option
from instantstyle.inference.request import Machine, Request, check, laid_over, told


COLUMNS = ("prompt", "output", *(name for name in Request.model_fields if name != "prompt"))
EXTRA = "cells than columns"  # where the CSV reader puts them
LONGEST = 240  # bytes of a file's name: disks allow 255, and a scratch file has a longer name


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
    given: Mapping[str, str]

    def request(self, defaults: Mapping[str, Any], machine: Machine) -> Request:
        """Read what to paint.

        Args:
            defaults: What the command line says, for what the row leaves open.
            machine: What paints.

        Raises:
            ValueError: A value cannot be read, or contradicts another one. It names the place, and columns or options.
        """
        with self.blamed():
            request = Request(**laid_over(defaults, self.given))
            if not request.style:
                raise ValueError(
                    "no style; name a picture or a style file in the column 'style', or for all: `style`."
                )
            check(request, machine)
            return request

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Put the place before an error, and write fields as the row or the command line has them."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.place}: {told(error, self._name)}") from error

    def _name(self, field: str) -> str:
        return field if field in self.given else option(field)


def read(path: str) -> list[Row]:
    """Read a manifest.

    Args:
        path: A `.csv` file whose first line names the columns, or a `.jsonl` file with an object on each line. Empty
            cells, empty lines and nulls say nothing.

    Raises:
        ValueError: It is of another kind, has no rows, unknown columns or rows without a prompt, or two rows make the
            same file. It names the line.
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
    given = {
        column: read_cell(f"{place}: {column}", value) for column, value in cells.items() if value not in (None, "")
    }
    if "prompt" not in given:
        raise ValueError(f"{place} has no prompt.")
    return Row(place, picture_name(f"{place}: output", given.pop("output", f"{order:06}.png")), given)


def read_cell(place: str, value: Any) -> str:
    """Read what JSON holds as the word that the command line would be given."""
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{place}: expected text or a number, got {value!r}")
    return str(value).lower() if isinstance(value, bool) else str(value)


def picture_name(place: str, text: str) -> str:
    """Check the name of a picture to make."""
    of_a_file = Path(text).name == text and text.isprintable() and len(os.fsencode(text)) <= LONGEST
    if not of_a_file or Path(text).suffix.lower() != ".png" or text.startswith("."):
        raise ValueError(f"{place}: expected a name in the output folder that ends in .png, got {text!r}")
    return text


def check_names(rows: Sequence[Row]) -> None:
    """Refuse two rows that make the same file; some disks do not tell small letters from capitals."""
    places: dict[str, str] = {}
    for row in rows:
        first = places.setdefault(row.name.lower(), row.place)
        if first != row.place:
            raise ValueError(f"{row.place}: output: {row.name!r} is made at {first} already.")
