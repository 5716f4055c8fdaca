"""Pairs: prompts of the drawn world with a reference each, which conditions are tried on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from instantstyle.tiny import world


SPLITS = ("selection", "reporting")
POOL = 4096  # pairs drawn per split; the first n are used, so that pair i is the same however many are asked for


@dataclass
class Pairs:
    """Prompts with a reference each; the reference never shows what the prompt asks for.

    Attributes:
        split: Where they come from, one of `SPLITS`.
        numbers: Place of each in its split, int64 of shape (n,).
        prompts_shape: Index into `world.SHAPES`, int64 of shape (n,).
        references: The scenes of the references.
    """

    split: str
    numbers: Tensor
    prompts_shape: Tensor
    references: world.Scenes

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Pairs:
        return Pairs(self.split, self.numbers[rows], self.prompts_shape[rows], self.references[rows])

    def prompt(self, row: int) -> str:
        """Return the prompt of one pair."""
        return world.caption(world.SHAPES[int(self.prompts_shape[row])])

    def content(self, row: int) -> str:
        """Return what the reference of one pair shows, in a word."""
        return self.references.words(row)["shape"]

    def named(self, row: int) -> str:
        """Return the prompt of one pair with its reference's style named in it."""
        words = self.references.words(row)
        shape = world.SHAPES[int(self.prompts_shape[row])]
        return world.caption(shape, words["palette"], words["background"], words["texture"])


def sample_pairs(pairs: int, split: str) -> Pairs:
    """Return the first pairs of a split.

    Args:
        pairs: How many, at most `POOL`.
        split: "selection" to choose by, "reporting" to report on: new draws of the same world, which neither meet each
            other nor what anything was trained on.

    Raises:
        ValueError: `pairs` or `split` is none of these.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
    if not 1 <= pairs <= POOL:
        raise ValueError(f"`pairs` must be from 1 to {POOL}, got {pairs}.")
    return pool(split)[:pairs]


@cache
def pool(split: str) -> Pairs:
    """Draw all pairs of a split."""
    generator = torch.Generator().manual_seed(make_seed(split, "pairs"))
    references = world.sample(POOL, generator)
    shapes = len(world.SHAPES)
    others = torch.randint(1, shapes, (POOL,), generator=generator)
    return Pairs(split, torch.arange(POOL), (references.shape + others) % shapes, references)


def make_seed(*parts: str | int) -> int:
    """Make a seed from what it is for."""
    text = "/".join(("instantstyle evaluate", *map(str, parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 2**63
