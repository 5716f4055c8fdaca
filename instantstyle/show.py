"""`instantstyle show`: what a style file is made of, as tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from instantstyle.blocks import table
from instantstyle.console import calm


if TYPE_CHECKING:
    from instantstyle.style import Style
    from instantstyle.style_recipe import Source


def run(options: argparse.Namespace) -> None:
    """Print the recipe of a style file.

    Raises:
        ValueError, OSError: It is none.
    """
    with calm(bars=False):
        from instantstyle.style import Style

        if options.file.endswith(".safetensors") and not Path(options.file).is_file():
            raise OSError(f"FILE: {options.file}: there is no such file.")
        print(describe(Style.load(options.file)))


def describe(style: Style) -> str:
    """Describe a style: what it is, the pictures that it is made of, and the blocks that see it."""
    recipe, size = style.recipe, sum(tensor.nbytes for tensor in style.tensors.values())
    facts = [
        ["family", f"{recipe.family}, text embeddings of width {recipe.text_width}"],
        ["tensors", f"{size / 1e3:.1f} kB in {str(style.dtype).removeprefix('torch.')}, {style.tokens} image tokens"],
        ["encoded in", recipe.dtype],
        ["adapter", recipe.adapter],
        ["image encoder", recipe.image_encoder],
        ["made with", ", ".join(f"{name} {version}" for name, version in recipe.versions.items())],
    ]
    pictures = [["x".join(map(str, one.size)), f"{one.weight:g}", *removed(one)] for one in recipe.sources]
    counts: dict[tuple[str, float], int] = {}
    for layer, scale in recipe.scales.items():
        block = layer.partition(".transformer_blocks.")[0], scale
        counts[block] = counts.get(block, 0) + 1
    blocks = [[name, str(count), f"{scale:g}"] for (name, scale), count in counts.items()]
    tables = [
        table(facts),
        table([["picture", "weight", "content removed", "how much"], *pictures], right=(1,)),
        table([["block", "layers", "scale"], *blocks], right=(1, 2)),
    ]
    return "\n\n".join(tables)


def removed(source: Source) -> list[str]:
    """Write what was removed of a picture's content, and how much; quoted, so that no file can steer the terminal."""
    return ["-", "-"] if source.content is None else [repr(source.content), str(source.content_scale)]
