"""The embedded checkpoint: an SDXL pipeline small enough to try everything on a CPU in seconds.

This release makes it from a seed, so it is random and not trained: right for tests, not for pictures.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path


def path() -> Path:
    """Return the folder of the embedded checkpoint, which the first call writes to the user's cache (about a second).

    The folder has the layout of an SDXL repository. Inside it are also an IP-Adapter
    (`sdxl_models/ip-adapter_sdxl.safetensors` with `sdxl_models/image_encoder`) and a ControlNet (`controlnet`).

    Raises:
        OSError: The cache folder cannot be written.
    """
    folder = cache_folder() / f"tiny-{fingerprint()}"
    if not folder.is_dir():
        write(folder)
    return folder


def cache_folder() -> Path:
    """Return the folder where this platform keeps a user's caches for this package."""
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ".cache"
    return base / "instantstyle"


def fingerprint() -> str:
    """Name the checkpoint by the code that makes it: another recipe never finds an older one's files."""
    return hashlib.sha256(Path(__file__).with_name("random.py").read_bytes()).hexdigest()[:12]


def write(folder: Path) -> None:
    """Make the checkpoint beside `folder` and move it there whole, so that nobody ever sees a part of it."""
    from instantstyle.tiny import random

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise OSError(
            f"The embedded checkpoint cannot be written to {folder.parent} ({error.strerror}); "
            "set XDG_CACHE_HOME to a folder that can be written."
        ) from error
    try:
        random.save(scratch)
        publish(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(scratch: Path, folder: Path) -> None:
    """Rename `scratch` to `folder`; where another process was first, its files are the same, and stay."""
    try:
        os.replace(scratch, folder)
    except OSError:
        if not folder.is_dir():
            raise
