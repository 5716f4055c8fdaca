"""Styles: encoded references, their files, and their way onto a UNet."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from instantstyle.styles.apply import applied
    from instantstyle.styles.encoder import encode
    from instantstyle.styles.provenance import Provenance, Source
    from instantstyle.styles.style import Style


__all__ = ["Provenance", "Source", "Style", "applied", "encode"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: a style is read without the pipelines.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = [f"{__name__}.{home}" for home in ("provenance", "style", "apply", "encoder")]
    return next(getattr(module, name) for module in map(import_module, homes) if name in vars(module))
