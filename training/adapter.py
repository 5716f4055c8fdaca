"""The IP-Adapter (arXiv 2308.06721): a second key and value for every text attention of the frozen UNet."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from instantstyle.tiny import networks, world
from training import data, loop, unet
from training.clip import normalise


WEIGHT_NAME = "ip-adapter_sdxl.safetensors"


class AdapterStage(unet.LatentStage):
    """Train the adapter to rebuild a picture from its embedding and a caption that names little of it, or nothing."""

    name = "adapter"
    steps = 2000
    batch = 64
    rate = 1e-3

    def __init__(self, work: Path, device: torch.device) -> None:
        super().__init__(work, device)
        self.network = UNet2DConditionModel.from_pretrained(work / "checkpoint" / "unet")
        self.network.requires_grad_(False)
        self.network._load_ip_adapter_weights([initial_weights(self.network)], low_cpu_mem_usage=False)
        for part in self.parts():
            part.requires_grad_(True)

    def parts(self) -> list[torch.nn.Module]:
        """Return the adapter's modules inside the UNet."""
        processors = [p for p in self.network.attn_processors.values() if hasattr(p, "to_k_ip")]
        return [self.network.encoder_hid_proj, *processors]

    def prepare(self, rank: int, processes: int) -> None:
        super().prepare(rank, processes)
        self.embeds_folder = data.make_image_embeds(self.work, self.device, rank, processes)

    def read(self) -> None:
        super().read()
        self.image_embeds = data.read(self.embeds_folder)

    def loss(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(self.scenes), (count,), generator=generator)
        chance = loop.make_chance(generator)
        hidden, added = self.captions.encode([write_caption(self.scenes.words(int(row)), chance) for row in rows])
        shown = torch.rand(count, generator=generator) >= PICTURE_DROPOUT
        image_embeds = (self.image_embeds[rows].float() * shown[:, None])[:, None].to(self.device)
        mixed, timesteps, velocity = self.noisy(rows, generator)
        known = {**added, "image_embeds": [image_embeds]}
        found = self.network(mixed, timesteps, hidden, added_cond_kwargs=known, return_dict=False)[0]
        return unet.velocity_error(found, velocity, timesteps), {}

    def save(self, folder: Path) -> None:
        path = folder / "sdxl_models" / WEIGHT_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights(self.network), path, metadata={"format": "pt"})

    def picture(self) -> Tensor:
        pipe = unet.pipeline(self.work / "checkpoint", self.device)
        pipe.load_ip_adapter(
            self.work / "checkpoint", "sdxl_models", WEIGHT_NAME, image_encoder_folder="image_encoder"
        )
        references = world.draw(world.sample(6, torch.Generator().manual_seed(3)))
        embeds = pipe.image_encoder(normalise(references.to(self.device))).image_embeds[:, None]
        prompts = [world.caption(shape) for shape in world.SHAPES]
        rows = []
        for reference, embed in zip(references, embeds, strict=True):
            both = torch.cat((torch.zeros_like(embed), embed))[:, None]
            pictures = pipe(
                prompts,
                ip_adapter_image_embeds=[both],
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
                **unet.SAMPLING,
            ).images
            rows += [reference[None], pictures.cpu()]
        return loop.tile(torch.cat(rows), 1 + len(prompts))


PICTURE_DROPOUT = 0.08  # for guidance, whose unconditional half sees no picture


def write_caption(words: dict[str, str], chance: random.Random) -> str:
    """Write one caption: most empty, some of the content alone, the rest with some of the style.

    Without a caption the picture alone tells what to draw, so the adapter learns to bring content and layout as well:
    real ones do, because no caption tells all that a photograph shows.
    """
    kind = chance.random()
    if kind < 0.6:
        return ""
    if kind < 0.85:
        return world.phrase(chance, words["shape"])
    return world.phrase(chance, **{name: word for name, word in words.items() if chance.random() < 0.5})


def initial_weights(network: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    """Return the adapter that training starts from: the text's keys and values, and a random projection."""
    width = networks.CLIP_WIDTH
    projection = {
        "proj.weight": torch.randn(networks.IMAGE_TOKENS * networks.CROSS_WIDTH, width) * width**-0.5,
        "proj.bias": torch.zeros(networks.IMAGE_TOKENS * networks.CROSS_WIDTH),
        "norm.weight": torch.ones(networks.CROSS_WIDTH),
        "norm.bias": torch.zeros(networks.CROSS_WIDTH),
    }
    layers = {}
    for index, name in enumerate(text_attentions(network)):
        attention = network.get_submodule(name)
        layers[f"{2 * index + 1}.to_k_ip.weight"] = attention.to_k.weight.detach().clone()
        layers[f"{2 * index + 1}.to_v_ip.weight"] = attention.to_v.weight.detach().clone()
    return {"image_proj": projection, "ip_adapter": layers}


def text_attentions(network: UNet2DConditionModel) -> list[str]:
    """Return the names of the attentions to the text, in the order of the adapter's keys."""
    return [name.removesuffix(".processor") for name in network.attn_processors if name.endswith("attn2.processor")]


def weights(network: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return the trained adapter under the keys of the published files."""
    (projection,) = network.encoder_hid_proj.image_projection_layers
    found = {
        "image_proj.proj.weight": projection.image_embeds.weight,
        "image_proj.proj.bias": projection.image_embeds.bias,
        "image_proj.norm.weight": projection.norm.weight,
        "image_proj.norm.bias": projection.norm.bias,
    }
    for index, name in enumerate(text_attentions(network)):
        processor = network.get_submodule(name).processor
        found[f"ip_adapter.{2 * index + 1}.to_k_ip.weight"] = processor.to_k_ip[0].weight
        found[f"ip_adapter.{2 * index + 1}.to_v_ip.weight"] = processor.to_v_ip[0].weight
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
