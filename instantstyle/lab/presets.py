"""Presets that an adapter's file carries: named from a proposal, written into a copy, tensors untouched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from instantstyle.core import adapter_state, presets
from instantstyle.files import atomically
from instantstyle.lab.proposal import Proposal


KEY = "instantstyle.presets"
ALIGNMENT = 8  # bytes; safetensors' data begins at a multiple


def named_presets(proposal: Proposal, unet: Any) -> dict[str, Any]:
    """Return the presets to carry. "style+layout" is always among them, so that it is never another model's.

    Its layout is the one proposed, else the one in force: what the adapter carries already, or the family's.

    Args:
        proposal: The proposal.
        unet: A UNet with an adapter.

    Returns:
        Name -> target blocks; nothing without a style block.
    """
    if not proposal.style:
        return {}
    style = list(proposal.style)
    if proposal.layout:
        return {"style": style, "layout": list(proposal.layout), "style+layout": style + list(proposal.layout)}
    file = adapter_state(unet).files[0]  # type: ignore[union-attr]
    layout = (presets(unet) | (file.presets if file else {})).get("layout")
    if layout is None:
        return {"style": style}
    scales = (
        layout if isinstance(layout, Mapping) else dict.fromkeys([layout] if isinstance(layout, str) else layout, 1.0)
    )
    return {"style": style, "style+layout": {**scales, **dict.fromkeys(style, 1.0)}}


def write_presets(source: Path, target: Path, named: Mapping[str, Any]) -> None:
    """Copy an adapter's `.safetensors` file, with presets in its metadata.

    Other presets and metadata are kept, and the tensors are copied byte by byte. The file appears whole or not at all.

    Args:
        source: The adapter.
        target: The file to write, which may be `source` itself; an older one is replaced.
        named: Name -> target blocks, as `set_target_blocks` takes them.

    Raises:
        ValueError: `source` is no safetensors file.
        OSError: A file cannot be read or written.
    """
    # The source is closed before the target takes its place: Windows replaces no open file.
    with atomically(target) as scratch, open(source, "rb") as old, open(scratch, "wb") as new:
        header = read_header(old, source)
        metadata = header.get("__metadata__", {})
        merged = {**json.loads(metadata.get(KEY, "{}")), **named}
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
