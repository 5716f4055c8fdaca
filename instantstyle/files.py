"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomically(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the name of a scratch file beside `path` that takes its place when the block ends well.

    Args:
        path: The file to write; an older one is replaced.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        yield scratch
        # A scratch file is private; the file gets the permissions that any new file of this user has.
        os.chmod(scratch, 0o666 & ~current_umask())
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def current_umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
