"""`instantstyle show`: what a style file is made of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from instantstyle.console import calm
from instantstyle.styles.describe import describe


if TYPE_CHECKING:
    pass


def run(options: argparse.Namespace) -> None:
    """Print the recipe of a style file.

    Raises:
        ValueError, OSError: It is none.
    """
    with calm(bars=False):
        from instantstyle.styles.style import Style

        if options.file.endswith(".safetensors") and not Path(options.file).is_file():
            raise OSError(f"FILE: {options.file}: there is no such file.")
        print(describe(Style.load(options.file)))
