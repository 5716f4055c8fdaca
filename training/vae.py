"""The autoencoder, and the decoder polished once the latents are settled."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from instantstyle.tiny import networks, world
from training import loop


FIGURE_WEIGHT = 4.0  # the loss on the figure against that on the background, which is most of the picture and easy
KL_WEIGHT = 2e-4


class VAEStage(loop.Stage):
    """Train encoder and decoder together on absolute and squared error, with a little pull towards a unit normal."""

    name = "vae"
    steps = 1500
    batch = 16
    rate = 2e-3

    def __init__(self, work: Path, device: torch.device) -> None:
        super().__init__(work, device)
        self.network = networks.build_vae()

    def loss(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes = world.sample(count, generator)
        pictures = world.draw(scenes).to(self.device)
        posterior = self.network.encode(pictures * 2 - 1).latent_dist
        decoded = self.network.decode(posterior.sample(generator)).sample
        error, figures = picture_error(decoded, pictures, scenes)
        return error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel(), figures

    def save(self, folder: Path) -> None:
        with torch.no_grad():
            pictures = world.draw(world.sample(512, torch.Generator().manual_seed(0)))
            latents = self.network.encode(pictures.to(self.device) * 2 - 1).latent_dist.mean
        self.network.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
        self.network.save_pretrained(folder / "vae")

    def picture(self) -> Tensor:
        return before_and_after(self.network, self.device)


class DecoderStage(VAEStage):
    """Train the decoder alone for longer: it makes pictures crisper and leaves the latents as the UNet knows them."""

    name = "decoder"
    steps = 1200
    rate = 1e-3

    def __init__(self, work: Path, device: torch.device) -> None:
        loop.Stage.__init__(self, work, device)
        self.network = AutoencoderKL.from_pretrained(work / "checkpoint" / "vae")
        self.network.encoder.requires_grad_(False)
        self.network.quant_conv.requires_grad_(False)

    def loss(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes = world.sample(count, generator)
        pictures = world.draw(scenes).to(self.device)
        with torch.no_grad():
            latents = self.network.encode(pictures * 2 - 1).latent_dist.sample(generator)
        return picture_error(self.network.decode(latents).sample, pictures, scenes)

    def save(self, folder: Path) -> None:
        self.network.save_pretrained(folder / "vae")


def picture_error(decoded: Tensor, pictures: Tensor, scenes: world.Scenes) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted error of decoded pictures in [-1, 1], and their signal-to-noise ratio in decibels."""
    difference = decoded - (pictures * 2 - 1)
    weight = 1 + (FIGURE_WEIGHT - 1) * figure(scenes).to(difference.device)
    error = ((difference.abs() + 2 * difference.square()) * weight).mean()
    psnr = -10 * torch.log10(difference.detach().square().mean() / 4)
    return error, {"psnr": float(psnr)}


def figure(scenes: world.Scenes) -> Tensor:
    """Return where the figure is, edge included: (n, 1, height, width) of 0 and 1."""
    x, y = world.places(scenes, world.PIXELS)
    return (torch.hypot(x, y) < scenes.size[:, None, None] + 2)[:, None].float()


def before_and_after(vae: AutoencoderKL, device: torch.device) -> Tensor:
    """Return rows of drawings, each above its reconstructions."""
    pictures = world.draw(world.sample(16, torch.Generator().manual_seed(1))).to(device)
    decoded = vae.decode(vae.encode(pictures * 2 - 1).latent_dist.mean).sample / 2 + 0.5
    return loop.tile(torch.cat((pictures[:8], decoded[:8], pictures[8:], decoded[8:])), 8)


@torch.no_grad()
def decibels(vae: AutoencoderKL) -> float:
    """Return the signal-to-noise ratio of reconstructions of drawings that were not trained on."""
    pictures = world.draw(world.sample(512, torch.Generator().manual_seed(0))) * 2 - 1
    decoded = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in pictures.split(64)])
    return round(-10 * float(torch.log10((decoded - pictures).square().mean() / 4)), 2)
