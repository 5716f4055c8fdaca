"""Style files: safetensors with the recipe in the metadata. Everything is checked before any tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from instantstyle.files import atomically
from instantstyle.styles.provenance import Provenance


KEY = "instantstyle.style"  # of the recipe, in the metadata
SUFFIX = ".safetensors"
LARGEST_HEADER, LARGEST_FILE = 1 << 20, 1 << 29  # bytes; all layers of a 257-token adapter take 342 MB in float32
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
Entry = tuple[object, tuple[int, ...]]  # dtype and shape of a tensor; of an unknown dtype the name
Layout = Mapping[str, Entry]


def write(path: str | Path, tensors: Mapping[str, torch.Tensor], recipe: Provenance) -> None:
    """Write a style file. It appears whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    with atomically(path) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, {KEY: recipe.to_json()})


def read(path: str | Path) -> tuple[dict[str, torch.Tensor], Provenance]:
    """Read a style file, as `check_layout` describes it.

    Raises:
        OSError: It is not there.
        ValueError: It is damaged, no style, or of another format. Nothing large was allocated then.
    """
    try:
        _check_size(Path(path))
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise ValueError(f"its metadata lacks {KEY!r}, the recipe of a style")
            recipe = Provenance.from_json(metadata[KEY])
            slices = {name: file.get_slice(name) for name in file.keys()}
            layout = {name: (_dtype(one.get_dtype()), tuple(one.get_shape())) for name, one in slices.items()}
            check_layout(layout, recipe)
            # A copy does not keep the file mapped: it may be changed while the style is used.
            tensors = {name: file.get_tensor(name).clone() for name in layout}
        check_finite(tensors)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as a style: {error}.") from error
    return tensors, recipe


def _dtype(name: str) -> object:
    return DTYPES.get(name, name)


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"it has {size} bytes, and a style at most {LARGEST_FILE}")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > LARGEST_HEADER:
        raise ValueError(f"its header claims {header} bytes, and a style's has at most {LARGEST_HEADER}")


def check_layout(layout: Layout, recipe: Provenance) -> None:
    """Check that tensors are what the recipe says: `LAYER.keys` and `LAYER.values` of shape `(2, tokens, width)` for
    each layer, of one dtype, and, for adapters of one global embedding, `embeds` of shape `(2, d)`.

    Raises:
        ValueError: One is missing, too many, of another shape or dtype.
    """
    expected = [f"{layer}.{part}" for layer in recipe.scales for part in ("keys", "values")]
    for name in expected:
        if name not in layout:
            raise ValueError(f"{name!r}, which the recipe names, is missing")
    if extra := sorted(layout.keys() - {*expected, "embeds"}):
        raise ValueError(f"it holds {extra[0]!r}, which the recipe does not name")
    dtype, first = layout[expected[0]]
    for name in expected:
        width = layout[name.rpartition(".")[0] + ".keys"][1][-1:]
        _check_tensor(name, layout[name], dtype, (2, *first[1:2], *width), "(2, tokens, width)")
    if "embeds" in layout:
        dtype, shape = layout["embeds"]
        _check_tensor("embeds", layout["embeds"], dtype, (2, *shape[1:2]), "(2, d)")


def _check_tensor(name: str, came: Entry, dtype: object, shape: tuple[int, ...], form: str) -> None:
    known = ", ".join(DTYPES)
    if dtype not in DTYPES.values() or came[0] != dtype:
        raise ValueError(f"{name!r} must be of one of the dtypes {known}, all of the same, but is of {came[0]}")
    whole = len(shape) == form.count(",") + 1 and 0 not in shape
    if came[1] != shape or not whole:
        raise ValueError(f"{name!r} must have the shape {shape if whole else form}, but has {came[1]}")


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError where a tensor holds a value that is not finite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name!r} holds values that are not finite")
