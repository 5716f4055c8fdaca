"""The loop that every stage of the training shares: processes, checkpoints, rate, progress."""

from __future__ import annotations

import json
import random
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from tqdm import tqdm

from instantstyle.files import atomically


SEED = 2024
WARMUP_STEPS = 100
DECAY = 0.3  # the last part of the steps, over which the rate falls to zero
SAVE_SECONDS = 60


class Stage(ABC):
    """One trained part of the checkpoint.

    Attributes:
        name: What the command calls it.
        steps, batch, rate: Optimiser steps, pictures per step over all processes, and peak learning rate.
        network: What is trained. Set by `__init__`, which also loads what the stage builds on from `work`.
    """

    name: str
    steps: int
    batch: int
    rate: float
    weight_decay = 0.01
    network: Any

    def __init__(self, work: Path, device: torch.device) -> None:
        self.work = work
        self.device = device

    def prepare(self, rank: int, processes: int) -> None:  # noqa: B027 - most stages draw as they go
        """Make this process's share of what `read` reads; all processes have finished before any reads."""

    def read(self) -> None:  # noqa: B027
        """Read the examples that `loss` draws from."""

    @abstractmethod
    def loss(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Draw `count` examples and return the loss to go down, with figures to show."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained part into the checkpoint `folder`, in its published layout."""

    def optimizers(self) -> list[Optimizer]:
        """Return what trains the network, at peak rates."""
        return [adamw([p for p in self.network.parameters() if p.requires_grad], self)]

    def picture(self) -> Tensor | None:
        """Return a picture (3, height, width) in [0, 1] that shows what was learnt."""
        return None


def train(stage: Stage, *, rank: int = 0, processes: int = 1) -> None:
    """Run a stage from its last checkpoint to its end; every process calls this, and the first one writes.

    The examples of a step depend on the seed, the step and the process alone, so an interrupted run goes on as if it
    had not been.
    """
    folder = stage.work / "stages" / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    stage.prepare(rank, processes)
    if processes > 1:
        distributed.barrier()
    stage.read()
    network = stage.network.to(stage.device).train()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizers = stage.optimizers()
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    first, seconds = resume(folder / "state.pt", network, optimizers)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    recent: deque[dict[str, float]] = deque(maxlen=100)
    started = saved = time.monotonic()
    bar = tqdm(
        range(first, stage.steps), initial=first, total=stage.steps, desc=stage.name, disable=rank > 0, mininterval=5
    )
    for step in bar:
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate_factor(step, stage.steps)
        generator = torch.Generator().manual_seed(hash_seed(stage.name, step, rank))
        loss, figures = stage.loss(stage.batch // processes, generator)
        loss.backward()
        if processes > 1:
            average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        network.zero_grad()

        recent.append({"loss": float(loss.detach()), **figures})
        if rank == 0 and (step + 1) % 50 == 0:
            means = {name: sum(row[name] for row in recent) / len(recent) for name in recent[-1]}
            bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()}, refresh=False)
            spent = seconds + time.monotonic() - started
            write_log(folder / "log.jsonl", {"step": step + 1, "seconds": round(spent, 1), **means})
            if time.monotonic() - saved > SAVE_SECONDS:
                write_state(folder / "state.pt", network, optimizers, step + 1, spent)
                saved = time.monotonic()
    if rank == 0:
        network.eval()
        write_state(folder / "state.pt", network, optimizers, stage.steps, seconds + time.monotonic() - started)
        finish(stage, folder)


def write_log(path: Path, row: Mapping[str, float]) -> None:
    """Add a row to a stage's log."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")


def finish(stage: Stage, folder: Path) -> None:
    """Write the trained part and its picture, and note that the stage is done."""
    stage.save(stage.work / "checkpoint")
    with torch.no_grad():
        picture = stage.picture()
    if picture is not None:
        write_picture(picture, folder / "after.png")
    (folder / "done").touch()


def adamw(parameters: list[nn.Parameter], stage: Stage) -> Optimizer:
    """Return the optimiser of most stages."""
    return torch.optim.AdamW(parameters, lr=stage.rate, weight_decay=stage.weight_decay, fused=True)


def resume(path: Path, network: nn.Module, optimizers: list[Optimizer]) -> tuple[int, float]:
    """Load the last checkpoint, if there is one; return the steps done and the seconds they took."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    for optimizer, known in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(known)
    return state["step"], state["seconds"]


def write_state(path: Path, network: nn.Module, optimizers: list[Optimizer], step: int, seconds: float) -> None:
    """Write a checkpoint in the place of the old one; a kill leaves one of the two."""
    state = {
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "seconds": seconds,
    }
    with atomically(path) as scratch:
        torch.save(state, scratch)


def rate_factor(step: int, steps: int) -> float:
    """Return the learning rate at a step, as a part of its peak: up, flat, and down to zero."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY * steps))


def hash_seed(name: str, step: int, rank: int) -> int:
    """Give every stage, step and process its own seed."""
    text = f"{SEED}/{name}/{step}/{rank}".encode()
    seed = 0xCBF29CE484222325
    for byte in text:  # FNV-1a; Python's own hash differs from run to run
        seed = ((seed ^ byte) * 0x100000001B3) % 2**63
    return seed


def make_chance(generator: torch.Generator) -> random.Random:
    """Draw what picks words, so that captions too depend on the generator alone."""
    return random.Random(int(torch.randint(2**62, (1,), generator=generator)))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, in one exchange."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def write_picture(picture: Tensor, path: Path, zoom: int = 2) -> None:
    """Write a picture (3, height, width) in [0, 1] as PNG, every pixel as a square of `zoom`."""
    from PIL import Image

    array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(array)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def tile(pictures: Tensor, columns: int) -> Tensor:
    """Put pictures (n, 3, height, width) side by side in rows of `columns`."""
    rows = pictures.split(columns)
    return torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
