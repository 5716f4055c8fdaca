"""The style library: a folder of style files, each under the name that a user gave it."""

from __future__ import annotations

import re
from pathlib import Path

from instantstyle.styles.file import SUFFIX
from instantstyle.styles.style import Style


NAME = re.compile(r"\w[\w .+-]{0,59}")


class Library:
    """Styles by name.

    Args:
        folder: Where the files are; it is made when the first is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """The names of all styles, sorted."""
        found = (path.stem for path in self.folder.glob(f"*{SUFFIX}"))
        return sorted(name for name in found if NAME.fullmatch(name))

    def path(self, name: str) -> Path:
        """The file of a style.

        Raises:
            ValueError: There is none of this name.
        """
        if name not in self.names():
            raise ValueError(f"Library: there is no style {name!r}; there are: {', '.join(self.names()) or 'none'}.")
        return self.folder / f"{name}{SUFFIX}"

    def save(self, name: str, style: Style) -> None:
        """Keep a style under a new name.

        Raises:
            ValueError: The name cannot be a file's, or is taken.
            OSError: The folder cannot be written.
        """
        name = name.strip()
        if not NAME.fullmatch(name):
            raise ValueError(
                f"Library: {name!r} cannot be a name; expected up to 60 letters, digits, spaces and . _ + - after a "
                "letter or digit."
            )
        path = self.folder / f"{name}{SUFFIX}"
        if path.exists():
            raise ValueError(f"Library: there is a style {name!r} already. Choose another name.")
        self.folder.mkdir(parents=True, exist_ok=True)
        style.save(path)
