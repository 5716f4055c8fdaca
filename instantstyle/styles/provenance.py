"""What a style was made of: kept beside its keys and values, and as JSON in its file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


FORMAT = 2  # of the JSON
FAMILIES = ("sdxl", "sd15", "kolors")
DTYPES = ("float32", "float16", "bfloat16")
LAYER = re.compile(r"((down|up)_blocks\.\d{1,3}|mid_block)\.attentions\.\d{1,3}\.transformer_blocks\.\d{1,3}")
HASH = re.compile(r"[0-9a-f]{64}")
FITS = ("crop", "pad", "squash", "tiles")  # the core's, which a style is read without
LARGEST = 1e6  # of any number in a recipe, either side of zero
NUMBER = f"a finite number of at most {LARGEST:g}"


@dataclass(frozen=True)
class Source:
    """One reference picture.

    Attributes:
        size: Width and height in pixels.
        weight: Its share of the style.
        content: What it shows, which was removed, or None.
        content_scale: How much of the content was removed, or "auto".
        fit: What became of it where it is not square: `reference_fit`.
    """

    size: tuple[int, int]
    weight: float = 1.0
    content: str | None = None
    content_scale: float | str = 1.0
    fit: str = "crop"

    def __post_init__(self) -> None:
        _expect(_is_size(self.size), "size", self.size, "two whole numbers of pixels")
        _expect(_is_number(self.weight), "weight", self.weight, NUMBER)
        _expect(self.content is None or isinstance(self.content, str), "content", self.content, "a string or None")
        is_scale = self.content_scale == "auto" or _is_number(self.content_scale)
        _expect(is_scale, "content_scale", self.content_scale, f'{NUMBER}, or "auto"')
        _expect(self.fit in FITS, "fit", self.fit, f"one of {', '.join(FITS)}")


@dataclass(frozen=True)
class Provenance:
    """Where a style comes from and where it goes.

    Attributes:
        family: "sdxl", "sd15" or "kolors".
        text_width: Width of the text embeddings that the family's UNet takes.
        scales: The layers that see the style, as `text_layers` names them, and their scales.
        sources: The reference pictures.
        adapter: Fingerprint (`baking.fingerprint`) of what made it of the IP-Adapter: the image projection, and the
            key and value projections of these layers.
        image_encoder: Fingerprint of the image encoder.
        dtype: What keys and values were computed in, such as "float16"; they may be kept in another.
        versions: Library -> version.

    Raises:
        ValueError: A value is of another kind; it names what it got and what it expected.
    """

    family: str
    text_width: int
    scales: Mapping[str, float]
    sources: tuple[Source, ...]
    adapter: str
    image_encoder: str
    dtype: str
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        _expect(self.family in FAMILIES, "family", self.family, f"one of {', '.join(FAMILIES)}")
        _expect(_is_count(self.text_width), "text_width", self.text_width, "a whole number above 0")
        _expect(_is_map(self.scales) and len(self.scales) > 0, "scales", self.scales, "layers with their scales")
        for layer, scale in self.scales.items():
            _expect(LAYER.fullmatch(layer), "scales", layer, "layers that are text cross-attentions")
            _expect(_is_number(scale), f"scales[{layer!r}]", scale, NUMBER)
        is_list = isinstance(self.sources, tuple) and len(self.sources) > 0
        _expect(is_list and all(isinstance(one, Source) for one in self.sources), "sources", self.sources, "pictures")
        for name, value in (("adapter", self.adapter), ("image_encoder", self.image_encoder)):
            _expect(isinstance(value, str) and HASH.fullmatch(value), name, value, "a hash of 64 hexadecimal digits")
        _expect(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        words = [*self.versions, *self.versions.values()] if _is_map(self.versions) else [None]
        printable = all(isinstance(word, str) and word.isprintable() for word in words)
        _expect(printable, "versions", self.versions, "names with versions")

    def to_json(self) -> str:
        """Write it as JSON, with the number of the format."""
        sources = [_without_default_fit(asdict(one)) for one in self.sources]
        return json.dumps({"version": FORMAT, **asdict(self), "sources": sources})

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is not JSON, of another format, or a field is missing, unknown or of another kind.
        """
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its recipe is not JSON ({error})") from error
        _expect(isinstance(data, dict), "the recipe", data, "an object")
        version = data.pop("version", None)
        _expect(_is_count(version), "version", version, "a whole number above 0")
        if version != FORMAT:
            remedy = "update instantstyle" if version > FORMAT else "encode the reference again"
            raise ValueError(f"it is of format {version}, but this version reads {FORMAT}: {remedy}")
        _expect(isinstance(data.get("sources"), list), "sources", data.get("sources"), "a list of pictures")
        sources = tuple(_source(one) for one in data["sources"])
        return cls(**_fields_of(cls, data, "its recipe") | {"sources": sources})


def _without_default_fit(source: dict[str, Any]) -> dict[str, Any]:
    # Files of the time before there was a choice have none.
    return {name: value for name, value in source.items() if (name, value) != ("fit", "crop")}


def _source(data: Any) -> Source:
    _expect(_is_map(data) and isinstance(data.get("size"), list), "sources", data, "pictures with their sizes")
    data = {"fit": "crop"} | data
    return Source(**_fields_of(Source, data, "a source in its recipe") | {"size": tuple(data["size"])})


def _fields_of(cls: type, data: dict[str, Any], what: str) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    if data.keys() != names:
        unlike = sorted(data.keys() ^ names)[0]
        raise ValueError(f"{what} {'lacks' if unlike in names else 'has the unknown field'} {unlike!r}")
    return data


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _expect(condition: Any, name: str, came: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"`{name}` must be {expected}, but is {repr(came)[:80]}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_count, value))


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
