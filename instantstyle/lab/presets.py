"""Presets that an adapter's file carries: written into a copy of the file, tensors untouched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from instantstyle.files import atomically


KEY = "instantstyle.presets"
ALIGNMENT = 8  # bytes; safetensors' data begins at a multiple


def write_presets(source: Path, target: Path, presets: Mapping[str, Any]) -> None:
    """Copy an adapter's `.safetensors` file, with presets in its metadata.

    Other presets and metadata are kept, and the tensors are copied byte by byte. The file appears whole or not at all.

    Args:
        source: The adapter.
        target: The file to write, which may be `source` itself; an older one is replaced.
        presets: Name -> target blocks, as `set_target_blocks` takes them.

    Raises:
        ValueError: `source` is no safetensors file.
        OSError: A file cannot be read or written.
    """
    # The source is closed before the target takes its place: Windows replaces no open file.
    with atomically(target) as scratch, open(source, "rb") as old, open(scratch, "wb") as new:
        header = read_header(old, source)
        metadata = header.get("__metadata__", {})
        merged = {**json.loads(metadata.get(KEY, "{}")), **presets}
        header["__metadata__"] = {**metadata, KEY: json.dumps(merged)}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new)


def read_header(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Read the header of an open safetensors file; the file then stands where the tensors begin."""
    size = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(size)) if size < path.stat().st_size else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} is not a safetensors file.")
    return header
