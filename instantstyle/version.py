"""The version of this package, and of what it paints with."""

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Name the versions of what paints."""
    import diffusers
    import torch
    import transformers

    used = {module.__name__: str(module.__version__) for module in (diffusers, torch, transformers)}
    return {"instantstyle": __version__, **used}
