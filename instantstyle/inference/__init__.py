"""From a request to pictures with recipes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from instantstyle.inference.recipe import read_recipe, read_request, write_recipe
    from instantstyle.inference.request import Machine, Reference, Request
    from instantstyle.inference.session import Painting, Session
    from instantstyle.inference.sheet import Sheet


__all__ = [
    "Machine",
    "Painting",
    "Reference",
    "Request",
    "Session",
    "Sheet",
    "read_recipe",
    "read_request",
    "write_recipe",
]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: a request is written without torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = [f"{__name__}.{home}" for home in ("request", "sheet", "recipe", "session")]
    return next(getattr(module, name) for module in map(import_module, homes) if hasattr(module, name))
