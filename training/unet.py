"""The UNet: latents from captions."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from torch.optim import Optimizer
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from instantstyle.tiny import networks, world
from training import data, loop
from training.clip import tokenise
from training.muon import Muon


class Captions:
    """The checkpoint's tokenizers and text encoders, as the pipeline uses them."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        names = ("tokenizer", "tokenizer_2")
        self.tokenizers = [CLIPTokenizer.from_pretrained(folder / name) for name in names]
        self.encoders = [
            CLIPTextModel.from_pretrained(folder / "text_encoder").to(device),
            CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").to(device),
        ]
        self.device = device

    @torch.no_grad()
    def encode(self, texts: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the texts' hidden states and the added conditions, as `UNet2DConditionModel` takes them."""
        found = [
            encoder(tokenise(tokenizer, texts).to(self.device), output_hidden_states=True)
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        ]
        hidden = torch.cat([output.hidden_states[-2] for output in found], dim=-1)
        edge = float(world.PIXELS)
        time_ids = torch.tensor([[edge, edge, 0, 0, edge, edge]], device=self.device).repeat(len(texts), 1)
        return hidden, {"text_embeds": found[1].text_embeds, "time_ids": time_ids}


class LatentStage(loop.Stage):
    """What the stages share that predict velocities of noisy latents from captions."""

    def __init__(self, work: Path, device: torch.device) -> None:
        super().__init__(work, device)
        self.captions = Captions(work / "checkpoint", device)
        self.noise_schedule = DDPMScheduler.from_config(networks.build_scheduler().config)

    def prepare(self, rank: int, processes: int) -> None:
        self.latents_folder = data.make_latents(self.work, self.device, rank, processes)

    def read(self) -> None:
        self.scenes = data.read_scenes()
        self.latents = data.read(self.latents_folder)

    def noisy(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return noisy latents, their timesteps, and the velocities to predict (arXiv 2202.00512).

        The noisier, the more often: that is where a caption or a picture decides; the rest is seen in the latents.
        """
        latents = self.latents[rows].float()
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = (torch.rand(len(rows), generator=generator).sqrt() * 1000).long().clamp(max=999)
        mixed = self.noise_schedule.add_noise(latents, noise, timesteps)
        velocity = self.noise_schedule.get_velocity(latents, noise, timesteps)
        return mixed.to(self.device), timesteps.to(self.device), velocity.to(self.device)


def velocity_error(found: Tensor, wanted: Tensor, timesteps: Tensor) -> Tensor:
    """Return the squared error, every timestep divided by about what it comes to, so that all count alike.

    Unweighted, the noisiest timesteps, at which there is little to know, would outweigh those that decide the shape.
    """
    expected = 0.15 + 0.7 * (timesteps / 1000) ** 3
    return ((found - wanted).square().mean((1, 2, 3)) / expected).mean()


class UNetStage(LatentStage):
    """Train the UNet on captions that name no style, some of it or all; a tenth are empty, for guidance.

    The pooled text, which tells the whole caption, is mostly that of no text. A UNet of this size would take style
    from it and leave only content to its cross-attentions; an IP-Adapter, which acts on those, could bring no style.
    """

    name = "unet"
    steps = 8000
    batch = 64
    rate = 1.5e-3
    matrix_rate = 3e-3
    pooled_dropout = 0.8

    def __init__(self, work: Path, device: torch.device) -> None:
        super().__init__(work, device)
        self.network = networks.build_unet()
        self.nothing = self.captions.encode([""])[1]["text_embeds"]

    def loss(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(self.scenes), (count,), generator=generator)
        chance = loop.make_chance(generator)
        hidden, added = self.captions.encode(write_captions(self.scenes[rows], chance))
        untold = (torch.rand(count, generator=generator) < self.pooled_dropout).to(self.device)
        added["text_embeds"] = torch.where(untold[:, None], self.nothing, added["text_embeds"])
        mixed, timesteps, velocity = self.noisy(rows, generator)
        found = self.network(mixed, timesteps, hidden, added_cond_kwargs=added, return_dict=False)[0]
        return velocity_error(found, velocity, timesteps), {}

    def optimizers(self) -> list[Optimizer]:
        ends = ("conv_in.", "conv_out.")
        parameters = dict(self.network.named_parameters())
        inner = [name for name, p in parameters.items() if p.ndim > 1 and not name.startswith(ends)]
        matrices = [parameters.pop(name) for name in inner]
        return [Muon(matrices, self.matrix_rate, self.weight_decay), loop.adamw(list(parameters.values()), self)]

    def save(self, folder: Path) -> None:
        self.network.save_pretrained(folder / "unet")
        networks.build_scheduler().save_pretrained(folder / "scheduler")
        pipeline(folder, self.device).save_config(folder)

    def picture(self) -> Tensor:
        texts = [world.caption(shape) for shape in world.SHAPES]
        full = [world.sample(8, torch.Generator().manual_seed(2)).words(row) for row in range(8)]
        prompts = [*texts, *texts, *(world.caption(**words) for words in full)]
        pictures = pipeline(self.work / "checkpoint", self.device)(
            prompts, generator=torch.Generator().manual_seed(0), output_type="pt", **SAMPLING
        ).images
        return loop.tile(pictures.cpu(), 8)


SAMPLING = {"guidance_scale": 3.5, "num_inference_steps": 20, "height": world.PIXELS, "width": world.PIXELS}
"""How the training's own pictures are made."""


def pipeline(folder: Path, device: torch.device) -> StableDiffusionXLPipeline:
    """Put the pipeline together from the checkpoint's parts."""
    from diffusers import AutoencoderKL, DDIMScheduler

    captions = Captions(folder, device)
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=captions.encoders[0],
        text_encoder_2=captions.encoders[1],
        tokenizer=captions.tokenizers[0],
        tokenizer_2=captions.tokenizers[1],
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_captions(scenes: world.Scenes, chance: random.Random) -> list[str]:
    """Write captions: a tenth empty, a fifth of the content alone, the rest with most or all of the style."""
    return [write_caption(scenes.words(row), chance) for row in range(len(scenes))]


def write_caption(words: dict[str, str], chance: random.Random) -> str:
    """Write one caption for what `words` names."""
    kind = chance.random()
    if kind < 0.1:
        return ""
    if kind < 0.3:
        return world.phrase(chance, words["shape"])
    told = {name: word for name, word in words.items() if chance.random() < (0.9 if name == "shape" else 0.75)}
    return world.phrase(chance, **told)
