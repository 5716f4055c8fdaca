"""Kinds of values: what each expects, and how it is read from text and written as text, wherever the text stands."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, Field, PlainValidator, StringConstraints, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import core_schema


if TYPE_CHECKING:
    from PIL import Image


PIXELS = 8  # what the autoencoders of both families need sides to be a multiple of
STYLE_FILE = ".safetensors"


@dataclass(frozen=True)
class Kind:
    """What a value is, in words, for errors and for help; beside a type in `Annotated`.

    Attributes:
        expected: What an error says was expected.
        metavar: What help writes for the value; None for a switch, which takes none.
        repeated: Whether several texts make one value.
    """

    expected: str
    metavar: str | None
    repeated: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return core_schema.no_info_wrap_validator_function(self.read, handler(source))

    def read(self, value: Any, handler: Callable[[Any], Any]) -> Any:
        """Read a value, or say what was expected and what came."""
        if not isinstance(value, bool) or self.metavar is None:  # to Python True is a number
            try:
                return handler(value)
            except (ValidationError, TypeError):  # TypeError: what readers meet that take texts apart
                pass
        raise ValueError(f"expected {self.expected}, got {value!r}")


def kind_of(field: FieldInfo) -> Kind:
    """Return the kind of a field, which may also be left open."""
    alternatives = [field.annotation, *get_args(field.annotation)]
    described = [*field.metadata, *(note for one in alternatives for note in getattr(one, "__metadata__", ()))]
    for note in described:
        if isinstance(note, Kind):
            return note
    names = next(get_args(one) for one in alternatives if get_origin(one) is Literal)
    return Kind(" or ".join(names), f"{{{','.join(names)}}}")


# Files


@dataclass(frozen=True)
class Named:
    """A file as recipes keep it: by its name and its SHA-256. Files of the same content are equal."""

    file: str = field(compare=False)
    sha256: str

    @property
    def written(self) -> dict[str, str]:
        """What a recipe keeps."""
        return {"file": self.file, "sha256": self.sha256}


@dataclass(frozen=True)
class Picture(Named):
    """A picture at hand."""

    image: Image.Image = field(compare=False, repr=False)


Source = str | Named
"""A file: its path, a picture that is at hand, or what a recipe keeps of one."""


def read_source(value: Any) -> Source:
    """Take a path, a PIL picture, or what is a source already."""
    if isinstance(value, Named):
        return value
    if isinstance(value, (str, os.PathLike)) and os.fspath(value):
        return str(os.fspath(value))
    from PIL import Image

    if isinstance(value, Image.Image):
        return as_given(value)
    raise ValueError(f"expected the path of a file, or a picture, got {value!r}")


def as_given(image: Image.Image, name: str = "picture") -> Picture:
    """Take a picture that has no file as one that was given."""
    return Picture(name, hashlib.sha256(image.tobytes()).hexdigest(), image)


def name_of(source: Source) -> str:
    """Return the name of a file, without the folder that it is in."""
    return os.path.basename(source) if isinstance(source, str) else source.file


def is_style_file(source: Source) -> bool:
    """Whether it is an encoded style rather than a picture, by its name."""
    return name_of(source).endswith(STYLE_FILE)


# Sizes and target blocks


def read_size(value: Any) -> tuple[int, int]:
    """Read "WIDTHxHEIGHT", one number for both, or a pair."""
    parts = str(value).lower().split("x") if isinstance(value, (str, int)) else list(value)
    sides = [int(part) for part in parts if str(part).isdecimal()]
    if not 1 <= len(parts) <= 2 or len(sides) != len(parts) or any(side == 0 or side % PIXELS for side in sides):
        raise ValueError
    return sides[0], sides[-1]


def read_targets(value: Any) -> Iterable[tuple[str, Any]]:
    """Read "NAME[=SCALE],...", several such texts, or a mapping, as pairs of name and scale."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    texts = [value] if isinstance(value, str) else value
    parts = [part for text in texts for part in (text.split(",") if isinstance(text, str) else [text])]
    return tuple(dict(read_target(part) if isinstance(part, str) else part for part in parts).items())


def read_target(text: str) -> tuple[str, str | float]:
    """Read one "NAME" or "NAME=SCALE"."""
    name, equals, scale = text.strip().partition("=")
    return name, scale if equals else 1.0


def write_targets(targets: Iterable[tuple[str, float]]) -> str:
    """Write target blocks as `read_targets` reads them; a scale of 1 goes without saying."""
    return ", ".join(name if scale == 1 else f"{name}={scale}" for name, scale in targets)


# Kinds

Text = Annotated[str, Kind("text", "TEXT")]
Words = Annotated[str, StringConstraints(pattern=r"\S"), Kind("words (leave it out to remove nothing)", "TEXT")]
Where = Annotated[str, StringConstraints(min_length=1), Kind("a place", "WHERE")]
Switch = Annotated[bool, Kind("true or false", None)]
Number = Annotated[float, Field(allow_inf_nan=False), Kind("a number", "X")]
Fraction = Annotated[float, Field(ge=0, le=1), Kind("a number from 0 to 1", "X")]
Enlargement = Annotated[float, Field(gt=1, allow_inf_nan=False), Kind("a number above 1", "X")]
ContentScale = Annotated[Number | Literal["auto"], Kind('a number or "auto"', "X")]
Count = Annotated[int, Field(gt=0), Kind("a whole number above 0", "N")]
Numbers = Annotated[
    tuple[Number, ...],
    BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value),
    Kind("numbers with commas between", "X,..."),
]
Port = Annotated[int, Field(gt=0, lt=2**16), Kind(f"a port from 1 to {2**16 - 1}", "N")]
Seed = Annotated[int, Field(ge=0, lt=2**63), Kind("a whole number from 0 to 2**63 - 1", "N")]
Size = Annotated[tuple[int, int], BeforeValidator(read_size), Kind(f"WxH or N in multiples of {PIXELS} pixels", "WxH")]
Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Targets = Annotated[
    tuple[tuple[Name, Number], ...],
    Field(min_length=1),
    BeforeValidator(read_targets),
    Kind("NAME or NAME=SCALE, with commas between several", "NAME[=SCALE],...", repeated=True),
]
File = Annotated[Source, PlainValidator(read_source), Kind("a file", "FILE")]


def read(kind: Any, value: Any) -> Any:
    """Read one value of a kind, for what is no field of a request.

    Raises:
        ValueError: What was expected, and what came.
    """
    return TypeAdapter(kind).validate_python(value)
