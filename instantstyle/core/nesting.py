"""Nested lists: of references, and of what is removed from each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


Content = str | Sequence[Any] | None  # one for all, or nested as the references are; None removes nothing


def spread(content: Any, references: Any, name: str) -> list[Any]:
    """One content for each reference, in order: the same for all, or each its own in exactly the references' nesting.

    Args:
        content: one for all, or nested lists.
        references: nested lists.
        name: the argument that gave the content, for errors.

    Raises:
        ValueError: the nesting differs; both are printed.
    """

    def pair(inner: Any, reference: Any) -> list[Any]:
        if not isinstance(inner, (list, tuple)) and not isinstance(reference, list):
            return [inner]
        if isinstance(inner, (list, tuple)) and isinstance(reference, list) and len(inner) == len(reference):
            return [leaf for i, r in zip(inner, reference, strict=True) for leaf in pair(i, r)]
        raise ValueError(
            f"`{name}` must be one for everything, or nested as the references are: they are {nesting(references)}, "
            f"the content is {nesting(content)}."
        )

    if not isinstance(content, (list, tuple)):
        return [content] * len(flatten(references))
    return pair(content, references)


def nesting(value: Any) -> str:
    return "[" + ", ".join(map(nesting, value)) + "]" if isinstance(value, (list, tuple)) else "*"


def flatten(value: Any) -> list[Any]:
    return [leaf for inner in value for leaf in flatten(inner)] if isinstance(value, (list, tuple)) else [value]


def tree(pictures: Any) -> Any:
    if isinstance(pictures, list):
        return [tree(one) for one in pictures]
    return [None] * len(pictures) if getattr(pictures, "ndim", 0) == 4 else None


def fold(count: int, inner: Any) -> Any:
    return inner if count == 1 else [inner] * count


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
