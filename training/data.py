"""Scenes with their latents and image embeddings, encoded once and read by every stage that trains on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from instantstyle.files import atomically
from instantstyle.identity import fingerprint
from instantstyle.tiny import world
from training import loop
from training.clip import normalise


SHARDS = 16
SHARD_SIZE = 4096


def make_latents(work: Path, device: torch.device, rank: int, processes: int) -> Path:
    """Write this process's share of the shards of latents that are not there yet; return their folder."""
    vae = AutoencoderKL.from_pretrained(work / "checkpoint" / "vae").to(device)

    def encode(pictures: Tensor) -> Tensor:
        return vae.encode(pictures * 2 - 1).latent_dist.mean * vae.config.scaling_factor

    # The decoder, which is trained on later, decides no latents.
    known = fingerprint(vae.encoder, vae.quant_conv, exact=True)
    return make(work / "latents" / known, encode, device, rank, processes)


def make_image_embeds(work: Path, device: torch.device, rank: int, processes: int) -> Path:
    """Write this process's share of the shards of image embeddings that are not there yet; return their folder."""
    folder = work / "checkpoint" / "sdxl_models" / "image_encoder"
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder).to(device)
    known = work / "image_embeds" / fingerprint(encoder, exact=True)
    return make(known, lambda pictures: encoder(normalise(pictures)).image_embeds, device, rank, processes)


@torch.no_grad()
def make(folder: Path, encode: Callable[[Tensor], Tensor], device: torch.device, rank: int, processes: int) -> Path:
    """Draw the scenes of every missing shard of this process and write what `encode` makes of the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(rank, SHARDS, processes):
        path = folder / f"{shard:03}.pt"
        if not path.exists():
            parts = [encode(world.draw(rows).to(device)).half().cpu() for rows in chunks(shard_scenes(shard))]
            with atomically(path) as scratch:
                torch.save(torch.cat(parts), scratch)
    return folder


def chunks(scenes: world.Scenes, size: int = 128) -> list[world.Scenes]:
    """Cut scenes into batches."""
    return [scenes[start : start + size] for start in range(0, len(scenes), size)]


def shard_scenes(shard: int) -> world.Scenes:
    """Return the scenes of one shard, always the same."""
    return world.sample(SHARD_SIZE, torch.Generator().manual_seed(loop.hash_seed("shard", shard, 0)))


def read(folder: Path) -> Tensor:
    """Return all shards of a folder as one tensor of half precision."""
    return torch.cat([torch.load(folder / f"{shard:03}.pt", weights_only=True) for shard in range(SHARDS)])


def read_scenes() -> world.Scenes:
    """Return the scenes of all shards."""
    return world.Scenes.cat([shard_scenes(shard) for shard in range(SHARDS)])
