"""Several pipelines of the same parts."""

from __future__ import annotations

from typing import Any

from instantstyle.console import hushed
from instantstyle.version import in_dtype


def sibling(pipe: Any, name: str, **parts: Any) -> Any:
    """Make another variant of a pipeline's parts; nothing is loaded or copied.

    Args:
        pipe: The pipeline.
        name: The class of the other, one of this package's variants.
        parts: What the other has besides, such as a ControlNet.
    """
    import instantstyle

    with hushed():  # diffusers remarks on every cast, also to what is there
        other = getattr(instantstyle, name).from_pipe(pipe, **in_dtype(pipe.dtype), **parts)
    other.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return other
