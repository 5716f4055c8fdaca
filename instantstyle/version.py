"""The version of this package, and of what it paints with."""

from __future__ import annotations

from typing import Any


__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Name the versions of what paints."""
    import diffusers
    import torch
    import transformers

    used = {module.__name__: str(module.__version__) for module in (diffusers, torch, transformers)}
    return {"instantstyle": __version__, **used}


def installed(package: str) -> tuple[int, int]:
    """The first two numbers of a package's version."""
    from importlib.metadata import version

    major, minor = version(package).split(".")[:2]
    return int(major), int(minor)


def require(package: str, least: tuple[int, int], what: str) -> None:
    """Refuse what an older version of a package cannot do.

    Args:
        package: The package.
        least: The first two numbers of the version that can.
        what: The feature, for the error.

    Raises:
        ValueError: The installed one is older.
    """
    from importlib.metadata import version

    if installed(package) < least:
        wanted = ".".join(map(str, least))
        raise ValueError(f"{what} needs {package} {wanted} or newer, but {version(package)} is installed.")


def in_dtype(dtype: Any) -> dict[str, Any]:
    """The argument by which diffusers' loaders are told a dtype; before 0.39 its name was `torch_dtype`."""
    return {"dtype" if installed("diffusers") >= (0, 39) else "torch_dtype": dtype}
