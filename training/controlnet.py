"""The ControlNet (arXiv 2302.05543): layout from edges, light on dark as a Canny filter gives them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline, UNet2DConditionModel
from torch import Tensor

from instantstyle.tiny import networks, world
from training import loop, unet


class ControlNetStage(unet.LatentStage):
    """Train a copy of the UNet's encoder that sees the figure's outline; the UNet stays as it is."""

    name = "controlnet"
    steps = 1200
    batch = 32
    rate = 1e-3

    def __init__(self, work: Path, device: torch.device) -> None:
        super().__init__(work, device)
        self.unet = UNet2DConditionModel.from_pretrained(work / "checkpoint" / "unet").to(device).requires_grad_(False)
        self.network = networks.build_controlnet(self.unet)

    def loss(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(self.scenes), (count,), generator=generator)
        chance = loop.make_chance(generator)
        scenes = self.scenes[rows]
        hidden, added = self.captions.encode(unet.write_captions(scenes, chance))
        mixed, timesteps, velocity = self.noisy(rows, generator)
        known = {"encoder_hidden_states": hidden, "added_cond_kwargs": added, "return_dict": False}
        down, middle = self.network(mixed, timesteps, controlnet_cond=edges(scenes).to(self.device), **known)
        found = self.unet(
            mixed, timesteps, down_block_additional_residuals=down, mid_block_additional_residual=middle, **known
        )[0]
        return unet.velocity_error(found, velocity, timesteps), {}

    def save(self, folder: Path) -> None:
        self.network.save_pretrained(folder / "controlnet")

    def picture(self) -> Tensor:
        folder = self.work / "checkpoint"
        pipe = StableDiffusionXLControlNetPipeline.from_pretrained(
            folder, controlnet=ControlNetModel.from_pretrained(folder / "controlnet")
        ).to(self.device)
        pipe.set_progress_bar_config(disable=True)
        scenes = world.sample(8, torch.Generator().manual_seed(4))
        hints = edges(scenes)
        prompts = [world.caption(scenes.words(row)["shape"]) for row in range(len(scenes))]
        pictures = pipe(
            prompts, image=hints, generator=torch.Generator().manual_seed(0), output_type="pt", **unet.SAMPLING
        ).images
        return loop.tile(torch.cat((hints, pictures.cpu())), len(scenes))


def edges(scenes: world.Scenes) -> Tensor:
    """Draw the figures' outlines alone, white on black: (n, 3, 64, 64) in [0, 1]."""
    x, y = world.places(scenes, world.PIXELS)
    return world.edge(1 - world.distance(scenes, x, y).abs(), 1)[:, None].expand(-1, 3, -1, -1).contiguous()
