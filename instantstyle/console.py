"""The console: quiet hosts, errors in one line, text tables, and packages that are missing."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def escape_unknown_letters() -> None:
    """Let standard output escape letters that it has not, as standard error does: on Windows a pipe has few."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


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


def one_line(error: Exception) -> str:
    """Join the lines of an error's message, and escape what could steer the terminal."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@contextmanager
def calm(bars: bool) -> Iterator[None]:
    """Silence remarks about optional parts and, unless `bars`, the loading bars; afterwards all is as before."""
    # First of all the imports: transformers remarks on missing optional parts while diffusers imports it.
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    from diffusers.utils import logging as diffusers_logging

    shown = [library for library in (transformers_logging, diffusers_logging) if library.is_progress_bar_enabled()]
    try:
        for library in shown if not bars else []:
            library.disable_progress_bar()
        yield
    finally:
        transformers_logging.set_verbosity(level)
        for library in shown:
            library.enable_progress_bar()


@contextmanager
def hushed() -> Iterator[None]:
    """Silence diffusers' log. Its errors are raised all the same."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Align columns; those numbered in `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if n in right else cell.ljust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
