"""The judges, on drawings that are clean, blurred, noisy or seen through the autoencoder, and on blobs to refuse."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from instantstyle.tiny import judges, world
from training import loop


BLOBS = 1 / 6  # of a batch
RECONSTRUCTED = 3 / 8
EXAMINED = 2048  # pictures, in the end
LAYOUT_WEIGHTS = {"x": 100.0, "y": 100.0, "size": 40.0, "angle": 4.0, "line": 4.0}
"""Places are asked for to the pixel; the rest is read as well as it goes."""


class JudgesStage(loop.Stage):
    """Train the judges; they share nothing with the generator but the autoencoder that degrades some drawings."""

    name = "judges"
    steps = 4500
    batch = 64
    rate = 1.5e-3

    def __init__(self, work: Path, device: torch.device) -> None:
        super().__init__(work, device)
        self.vae = AutoencoderKL.from_pretrained(work / "checkpoint" / "vae").to(device)
        self.network = judges.Network()

    def loss(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes = world.sample(count, generator)
        blobs = int(count * BLOBS)
        pictures = torch.cat((blob(scenes[:blobs], generator), world.draw(scenes[blobs:])))
        pictures = degrade(pictures.to(self.device), self.vae, generator)
        named, layout = self.network(pictures)
        wanted = {name: getattr(scenes, name).to(self.device) for name in world.NAMES}
        wanted["shape"][:blobs] = len(world.SHAPES)
        loss = sum(F.cross_entropy(named[name], wanted[name]) for name in world.NAMES)
        numbers = [(getattr(scenes, name) - low) / (high - low) for name, (low, high) in judges.LAYOUT.items()]
        wrong = (layout - torch.stack(numbers, dim=-1).to(self.device))[blobs:]
        weights = wrong.new_tensor([LAYOUT_WEIGHTS[name] for name in judges.LAYOUT])
        accuracy = (named["shape"].argmax(-1) == wanted["shape"]).float().mean()
        return loss + (weights * wrong.square()).sum(-1).mean(), {"shape": float(accuracy)}

    def save(self, folder: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(tensors, folder / judges.FILE)
        print(examine(judges.Judges(self.network.cpu()), self.vae.cpu()))


def blob(scenes: world.Scenes, generator: torch.Generator) -> Tensor:
    """Draw figures without a name: circles bent by a smooth random field, in the scenes' style."""
    x, y = world.places(scenes, world.PIXELS * world.SUPERSAMPLING)
    field = torch.randn(len(scenes), 1, 6, 6, generator=generator)
    bend = F.interpolate(field, x.shape[-2:], mode="bicubic")[:, 0]
    size = scenes.size[:, None, None]
    outside = torch.hypot(x, y) - 0.75 * size + 0.45 * size * bend
    return F.avg_pool2d(world.paint(scenes, x, y, outside), world.SUPERSAMPLING)


@torch.no_grad()
def degrade(pictures: Tensor, vae: AutoencoderKL, generator: torch.Generator) -> Tensor:
    """Send some pictures through the autoencoder, latents disturbed; blur and speckle others; leave a part clean."""
    through = int(len(pictures) * RECONSTRUCTED)
    order = torch.randperm(len(pictures), generator=generator).to(pictures.device)
    pictures = pictures.clone()
    rows = order[:through]
    latents = vae.encode(pictures[rows] * 2 - 1).latent_dist.mean
    unit = latents.std() * 0.3 * torch.rand(len(rows), 1, 1, 1, generator=generator).to(latents.device)
    latents = latents + unit * torch.randn(latents.shape, generator=generator).to(latents.device)
    pictures[rows] = vae.decode(latents).sample / 2 + 0.5
    rows = order[through : 2 * through]
    smooth = F.avg_pool2d(F.pad(pictures[rows], (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = torch.rand(len(rows), 1, 1, 1, generator=generator).to(pictures.device)
    blurred = pictures[rows] + (smooth - pictures[rows]) * amount
    noise = torch.randn(blurred.shape, generator=generator).to(pictures.device)
    pictures[rows] = blurred + 0.08 * noise * torch.rand(len(rows), 1, 1, 1, generator=generator).to(pictures.device)
    return pictures.clamp(0, 1)


@torch.no_grad()
def examine(judge: judges.Judges, vae: AutoencoderKL) -> dict[str, dict[str, float]]:
    """Return the part of each attribute judged rightly on drawings and reconstructions that were not trained on.

    A layout is right within 3 pixels of the centre and 2 of the size; blobs are right when they are refused.
    """
    generator = torch.Generator().manual_seed(loop.hash_seed("examination", 0, 0))
    scenes = world.sample(EXAMINED, generator)
    drawings = world.draw(scenes)
    decoded = [vae.decode(vae.encode(part * 2 - 1).latent_dist.mean).sample / 2 + 0.5 for part in drawings.split(64)]
    found = {
        "drawings": score(judge(drawings), scenes),
        "reconstructions": score(judge(torch.cat(decoded).clamp(0, 1)), scenes),
    }
    refused = ~judge(blob(scenes, generator).clamp(0, 1)).recognised
    found["blobs"] = {"refused": round(float(refused.float().mean()), 4)}
    return found


def score(verdicts: judges.Verdicts, scenes: world.Scenes) -> dict[str, float]:
    """Return the part of the verdicts on each attribute that agrees with the scenes."""
    right = {name: getattr(verdicts, name) == getattr(scenes, name) for name in world.NAMES}
    away = torch.hypot(verdicts.x - scenes.x, verdicts.y - scenes.y)
    right["layout"] = (away < 3) & ((verdicts.size - scenes.size).abs() < 2)
    return {name: round(float(part.float().mean()), 4) for name, part in right.items()}
