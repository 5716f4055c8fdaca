"""Conditions: ways to use a reference, and curves of them at several strengths."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


METHODS = ("none", "adapter", "prompt", "img2img")
PHRASING = "a {}"


@dataclass(frozen=True)
class Condition:
    """One way to use a reference.

    Attributes:
        name: What tables and plots call it.
        method: "none" (the prompt alone), "adapter", "prompt" (the reference's style named in the prompt, and no
            reference) or "img2img" (starting from the reference, without the adapter).
        target_blocks: Which blocks see the reference, as `set_target_blocks` takes them. Like the next two, for the
            method "adapter".
        scale: The adapter's strength.
        content: How much of the reference's shape to remove, a number or "auto"; None removes nothing.
        phrasing: How the shape that is removed is put in words; "{}" stands for it.
        strength: How much of the reference "img2img" changes, above 0 and up to 1.

    Raises:
        ValueError: The method is unknown, or does not go with the others.
    """

    name: str
    method: str = "adapter"
    target_blocks: Any = "all"
    scale: float = 1.0
    content: float | str | None = None
    phrasing: str = PHRASING
    strength: float | None = None

    def __post_init__(self) -> None:
        about = f"condition {self.name!r}"
        if self.method not in METHODS:
            raise ValueError(f"{about}: `method` must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if not _is_number(self.scale):
            raise ValueError(f"{about}: `scale` must be a number, got {self.scale!r}.")
        if self.content is not None and self.content != "auto" and not _is_number(self.content):
            raise ValueError(f'{about}: `content` must be a number, "auto" or null, got {self.content!r}.')
        if self.content is not None and self.method != "adapter":
            raise ValueError(f'{about}: `content` is removed from what the adapter sees; expected `method` "adapter".')
        if not isinstance(self.phrasing, str) or "{}" not in self.phrasing:
            raise ValueError(f'{about}: `phrasing` must be a text with "{{}}" in it, got {self.phrasing!r}.')
        if self.phrasing != PHRASING and self.content is None:
            raise ValueError(f"{about}: `phrasing` is of what `content` removes; expected `content` beside it.")
        if (self.strength is not None) != (self.method == "img2img"):
            raise ValueError(f'{about}: `strength` is what `method` "img2img" needs, and no other.')
        if self.strength is not None and not (_is_number(self.strength) and 0 < self.strength <= 1):
            raise ValueError(f"{about}: `strength` must be above 0 and at most 1, got {self.strength!r}.")

    def __hash__(self) -> int:
        return hash((self.name, self.key()))

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Condition:
        """Make a condition from an object of JSON.

        Raises:
            ValueError: It is no object, has no name, or has an attribute that is unknown or wrong.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError(f'A condition must be an object with a "name", got {value!r}.')
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in value if name not in known]
        if unknown:
            raise ValueError(
                f"condition {value['name']!r}: {unknown[0]!r} is unknown; expected some of {', '.join(known)}."
            )
        return cls(**value)

    def settings(self) -> dict[str, Any]:
        """Return what decides the pictures: the attributes that the method uses, without the name."""
        if self.method == "img2img":
            return {"method": self.method, "strength": float(self.strength or 0)}
        if self.method != "adapter":
            return {"method": self.method}
        content = self.content if self.content is None or self.content == "auto" else float(self.content)
        blocks = self.target_blocks
        if isinstance(blocks, Mapping):
            blocks = {name: float(scale) if _is_number(scale) else scale for name, scale in blocks.items()}
        phrasing = None if content is None else self.phrasing
        return {
            "method": self.method,
            "target_blocks": blocks,
            "scale": float(self.scale),
            "content": content,
            "phrasing": phrasing,
        }

    def key(self) -> str:
        """Return a name for the settings, the same on every machine."""
        return digest(self.settings())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def digest(value: Any) -> str:
    """Name a value that JSON can hold by its content."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Curve:
    """One method at several strengths, the weakest first.

    Attributes:
        name: What the plot calls it.
        points: The strength in words, and the condition.
        against: The curve that it is compared with at equal style.
    """

    name: str
    points: tuple[tuple[str, Condition], ...]
    against: str | None


NO_REFERENCE = Condition("no reference", "none")
PLAIN = Condition("plain")
STYLE = Condition("style blocks", target_blocks="style")
NAMED = Condition("style named in the prompt", "prompt")


def headline_conditions() -> list[Condition]:
    """Return the conditions that are compared by default."""
    return [
        NO_REFERENCE,
        PLAIN,
        STYLE,
        without(STYLE, 0.5),
        without(STYLE, "auto"),
        without(PLAIN, 0.5),
        without(PLAIN, 1.0),
        without(PLAIN, "auto"),
        NAMED,
    ]


def quick_conditions() -> list[Condition]:
    """Return the few conditions that show the effect."""
    return [NO_REFERENCE, PLAIN, STYLE, without(STYLE, 0.5)]


def curves() -> list[Curve]:
    """Return every method at several strengths.

    The adapter's curves start where nothing of it is left: without a reference, or without subtraction.
    """
    return [
        scale_curve(PLAIN, (0.25, 0.5, 0.75, 1.0, 1.25), against=None),
        scale_curve(STYLE, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5), against=PLAIN.name),
        content_curve(PLAIN, (0.25, 0.5, 0.75, 1.0, 1.5, "auto")),
        *(content_curve(PLAIN, (0.25, 0.5, 1.0, "auto"), phrasing) for phrasing in ("{}", "a drawing of a {}")),
        content_curve(STYLE, (0.25, 0.5, 0.75, 1.0, 1.5, "auto")),
        Curve("img2img", tuple((f"{s:g}", img2img(s)) for s in (0.9, 0.8, 0.7, 0.6, 0.5)), PLAIN.name),
        Curve(NAMED.name, (("", NAMED),), PLAIN.name),
    ]


def scale_curve(condition: Condition, scales: Sequence[float], against: str | None) -> Curve:
    """Try a condition at several scales."""
    points = [(f"{scale:g}", scaled(condition, scale)) for scale in scales]
    return Curve(condition.name, (("0", NO_REFERENCE), *points), against)


def content_curve(condition: Condition, strengths: Sequence[float | str], phrasing: str = PHRASING) -> Curve:
    """Remove content from a condition at several strengths, against the condition at several scales."""
    points = [(_written(content), without(condition, content, phrasing)) for content in strengths]
    return Curve(f"{condition.name} - content{_quoted(phrasing)}", (("0", condition), *points), condition.name)


def scaled(condition: Condition, scale: float) -> Condition:
    """Return the condition at another scale."""
    return dataclasses.replace(condition, name=f"{condition.name} {scale:g}", scale=scale)


def without(condition: Condition, content: float | str, phrasing: str = PHRASING) -> Condition:
    """Return the condition with content removed."""
    name = f"{condition.name} - content {_written(content)}{_quoted(phrasing)}"
    return dataclasses.replace(condition, name=name, content=content, phrasing=phrasing)


def img2img(strength: float) -> Condition:
    """Return image-to-image from the reference."""
    return Condition(f"img2img {strength:g}", "img2img", strength=strength)


def _written(content: float | str) -> str:
    return content if isinstance(content, str) else f"{content:g}"


def _quoted(phrasing: str) -> str:
    return "" if phrasing == PHRASING else f' "{phrasing.replace("{}", "...")}"'
