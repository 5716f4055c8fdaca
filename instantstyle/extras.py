"""Packages that only some commands need."""

from __future__ import annotations

import importlib.util


def need(package: str, extra: str, why: str) -> None:
    """Refuse to go on without a package of an extra.

    Args:
        package: The package that is imported.
        extra: What brings it.
        why: The sentence that the error ends with "which is missing".

    Raises:
        ValueError: It is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(f'{why}, which is missing: pip install "instantstyle[{extra}]"')
