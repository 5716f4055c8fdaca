"""A style as text tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instantstyle.console import table


if TYPE_CHECKING:
    from instantstyle.styles.provenance import Source
    from instantstyle.styles.style import Style


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
    pictures = [[_size(one), f"{one.weight:g}", *removed(one)] for one in recipe.sources]
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


def _size(source: Source) -> str:
    return "x".join(map(str, source.size)) + ("" if source.fit == "crop" else f" ({source.fit})")


def removed(source: Source) -> list[str]:
    """Write what was removed of a picture's content, and how much; quoted, so that no file can steer the terminal."""
    return ["-", "-"] if source.content is None else [repr(source.content), str(source.content_scale)]
