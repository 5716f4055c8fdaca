"""The judges: a classifier, trained apart from the generator, that says what a picture of the world shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from instantstyle.tiny import world


LAYOUT = {"x": (0, 64), "y": (0, 64), "size": (8, 32), "angle": (-0.8, 0.8), "line": (0, 4)}
"""What is read off as a number, with the range that the network's outputs from 0 to 1 stand for."""

CERTAIN = 0.6  # below this probability a shape is not recognised
FILE = "judges.safetensors"


@dataclass
class Verdicts:
    """What the judges saw in n pictures.

    Attributes:
        shape: Index into `world.SHAPES`, or -1 where nothing is recognisable; int64 of shape (n,).
        palette, background, texture: Index into `world.NAMES`, int64.
        x, y, size, line: Pixels, at the world's size of 64; float.
        angle: Radians, float.
    """

    shape: Tensor
    palette: Tensor
    background: Tensor
    texture: Tensor
    x: Tensor
    y: Tensor
    size: Tensor
    angle: Tensor
    line: Tensor

    @property
    def recognised(self) -> Tensor:
        """Where there is a shape that has a name, bool of shape (n,)."""
        return self.shape >= 0


class Network(nn.Module):
    """The judges' network: convolutions, and a head for each attribute; the shape's has one answer for "nothing"."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 80, 112)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 5 if before == 3 else 3, 2, 2 if before == 3 else 1)]
            layers += [nn.GroupNorm(8, after), nn.ReLU(), Residual(after)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(112 * 16, 192), nn.ReLU())
        sizes = {name: len(words) + (name == "shape") for name, words in world.NAMES.items()}
        self.heads = nn.ModuleDict({name: nn.Linear(192, size) for name, size in sizes.items()})
        self.layout = nn.Linear(192, len(LAYOUT))

    def forward(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = self.body(pictures * 2 - 1)
        return {name: head(features) for name, head in self.heads.items()}, self.layout(features)


class Residual(nn.Module):
    """A convolution beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Judges:
    """Say what pictures show.

    Example:
        >>> verdicts = Judges.load()(pictures)  # (n, 3, 64, 64) in [0, 1]
        >>> verdicts.shape  # indices into world.SHAPES, -1 for nothing recognisable
    """

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: str | Path | None = None) -> Judges:
        """Load the judges from a checkpoint folder; without one, from the embedded checkpoint."""
        from instantstyle import tiny

        network = Network()
        tensors = load_file(Path(folder or tiny.path()) / FILE)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return cls(network)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Verdicts:
        """Judge pictures.

        Args:
            pictures: Float tensor of shape (n, 3, 64, 64) in [0, 1].

        Raises:
            ValueError: `pictures` has another shape.
        """
        if pictures.ndim != 4 or pictures.shape[1:] != (3, world.PIXELS, world.PIXELS):
            raise ValueError(
                f"`pictures` must be of shape (n, 3, {world.PIXELS}, {world.PIXELS}), got {tuple(pictures.shape)}; "
                "the judges know the embedded checkpoint's world only."
            )
        parts = [self.network(part) for part in pictures.float().split(256)]
        named = {name: torch.cat([heads[name] for heads, _ in parts]) for name in world.NAMES}
        layout = torch.cat([layout for _, layout in parts]).unbind(-1)
        probability, shape = named.pop("shape").softmax(-1).max(-1)
        unsure = (probability < CERTAIN) | (shape == len(world.SHAPES))
        return Verdicts(
            shape=shape.masked_fill(unsure, -1),
            **{name: logits.argmax(-1) for name, logits in named.items()},
            **{
                name: low + (high - low) * part
                for part, (name, (low, high)) in zip(layout, LAYOUT.items(), strict=True)
            },
        )
