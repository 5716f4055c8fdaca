"""Files: where weights are found, and outputs that are there whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(option: str, text: str, suffix: str, keeps: str) -> Path:
    """Check the name of a file that an option asks for.

    Args:
        option: The option, for errors.
        text: What it was given.
        suffix: What the name must end in.
        keeps: What files of this kind keep, for errors.

    Raises:
        ValueError: It does not end in `suffix`, or its folder is missing or cannot be written.
    """
    path = Path(text)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{option}: {text} does not end in {suffix}, the format that keeps {keeps}.")
    if not path.parent.is_dir():
        raise ValueError(f"{option}: the folder {path.parent} does not exist.")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option}: {text} cannot be written.")
    return path


def output_folder(option: str, text: str) -> Path:
    """Check the folder that an option asks for, which is made when there is something to put into it.

    Raises:
        ValueError: It is a file, or it or the folder that it is to be in cannot be written.
    """
    folder = Path(text)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{option}: {text} is not a folder.")
    if not folder.exists() and not folder.parent.is_dir():
        raise ValueError(f"{option}: the folder {folder.parent} does not exist.")
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise ValueError(f"{option}: {text} cannot be written.")
    return folder


@contextmanager
def atomically(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the name of a scratch file beside `path` that takes its place when the block ends well.

    Args:
        path: The file to write; an older one is replaced.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:  # which names the scratch file
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    try:
        yield scratch
        # A scratch file is private; the file gets the permissions that any new file of this user has.
        os.chmod(scratch, 0o666 & ~current_umask())
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def remove_scratch(folder: Path, names: Collection[str]) -> None:
    """Remove what `atomically` left in a folder when it was killed, of files of these names."""
    for path in folder.glob(".*-*"):
        if path.name[1:].rpartition("-")[0] in names:
            path.unlink()


def current_umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS = (".safetensors", ".bin")


def tensor_names(path: Path, who: str) -> list[str]:
    """Read the names in a safetensors file, without its tensors. `who` named it, for errors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{who} {path.name} is not a safetensors file ({error}).") from error


def find_file(name: str, text: str, default: str) -> tuple[str, str]:
    """Find a file of weights: FILE, or FOLDER_OR_REPOSITORY[:SUBFOLDER/FILE].

    Args:
        name: The option that gave it, for errors.
        text: What it was given.
        default: The file in a folder or repository that is named alone.

    Returns:
        The folder or repository, and the file in it.

    Raises:
        ValueError: It is neither, or the folder has no such file.
    """
    if Path(text).is_file():
        return str(Path(text).parent), Path(text).name
    source, file = split_file(text, default)
    if Path(source).is_dir():
        if not (Path(source) / file).is_file():
            raise ValueError(f"{name}: {source} has no {file}; name the file as FOLDER:SUBFOLDER/FILE.")
    elif not REPOSITORY.fullmatch(source):
        raise ValueError(
            f"{name}: {source!r} is not a folder or file here, nor a Hub repository; "
            "expected a file, FOLDER[:SUBFOLDER/FILE] or OWNER/NAME[:SUBFOLDER/FILE]."
        )
    return source, file


def split_file(text: str, default: str) -> tuple[str, str]:
    """Split "SOURCE:SUBFOLDER/FILE"; a colon with no file of weights after it belongs to the source, or to a drive."""
    drive = Path(text).drive
    source, colon, file = text.removeprefix(drive).rpartition(":")
    if colon and file.endswith(WEIGHTS):
        return drive + source, Path(file).as_posix()
    return text, default


def label_of_file(text: str, default: str) -> str:
    """Name a file of weights as `find_file` takes it, without its local path."""
    if Path(text).is_file():
        return Path(text).name
    source, file = split_file(text, default)
    return f"{label_of(source)}:{file}"


def label_of(source: str) -> str:
    """Name a folder by its last part, and a Hub repository in full."""
    return Path(source).resolve().name if Path(source).exists() else source
