"""The towers: two text encoders, trained against a small convolutional teacher, and the image encoder after it.

A vision transformer learns slowly from a contrastive loss; a convolutional network learns fast. So the texts are
trained together with a convolutional teacher, and the image encoder then learns the teacher's embedding.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection

from instantstyle.tiny import networks, world
from training import loop


LAYOUT = {"line": world.LINE_WEIGHTS, "x": (18, 46), "y": (18, 46), "size": world.SIZES, "angle": world.ANGLES}
"""The attributes without words, with their ranges."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, as the image processor applies them."""


class Teacher(nn.Module):
    """A convolutional network into the shared space, and heads that keep every attribute in its embedding."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1, groups=8), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 256), nn.SiLU())
        self.projection = nn.Linear(256, networks.CLIP_WIDTH, bias=False)
        self.names = nn.ModuleDict(
            {name: nn.Linear(networks.CLIP_WIDTH, len(words)) for name, words in world.NAMES.items()}
        )
        self.layout = nn.Linear(networks.CLIP_WIDTH, len(LAYOUT))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.projection(self.body(normalise(pictures)))

    def loss(self, embeds: Tensor, scenes: world.Scenes) -> Tensor:
        """Return how badly the attributes can be read off the embeddings."""
        device = embeds.device
        named = [F.cross_entropy(head(embeds), getattr(scenes, name).to(device)) for name, head in self.names.items()]
        truth = [(getattr(scenes, name) - low) / (high - low) for name, (low, high) in LAYOUT.items()]
        return sum(named) + 2 * F.mse_loss(self.layout(embeds), torch.stack(truth, dim=-1).to(device) * 2 - 1)


class ClipStage(loop.Stage):
    """Train both text encoders and the teacher, contrastively."""

    name = "clip"
    steps = 900
    batch = 128
    rate = 2e-3

    def __init__(self, work: Path, device: torch.device) -> None:
        super().__init__(work, device)
        self.tokenizers = networks.build_tokenizer(), networks.build_tokenizer("!")
        self.network = nn.ModuleDict(
            {
                "teacher": Teacher(),
                "text_encoder": networks.build_text_encoder(),
                "text_projection": nn.Linear(networks.TEXT_WIDTHS[0], networks.CLIP_WIDTH, bias=False),
                "text_encoder_2": networks.build_text_encoder_2(),
                "temperature": Temperature(),
            }
        )

    def loss(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes = world.sample(count, generator)
        texts, mask = describe(scenes, loop.make_chance(generator))
        images = self.network["teacher"](world.draw(scenes).to(self.device))
        ids, ids_2 = (tokenise(tokenizer, texts).to(self.device) for tokenizer in self.tokenizers)
        first = self.network["text_projection"](self.network["text_encoder"](ids).pooler_output)
        second = self.network["text_encoder_2"](ids_2).text_embeds
        scale = self.network["temperature"]()
        mask = mask.to(self.device)
        contrast = contrastive(second, images, mask, scale)
        loss = contrast + contrastive(first, images, mask, scale) + self.network["teacher"].loss(images, scenes)
        return loss, {"contrast": float(contrast)}

    def save(self, folder: Path) -> None:
        tokenizer, tokenizer_2 = self.tokenizers
        tokenizer.save_pretrained(folder / "tokenizer")
        tokenizer_2.save_pretrained(folder / "tokenizer_2")
        self.network["text_encoder"].save_pretrained(folder / "text_encoder")
        self.network["text_encoder_2"].save_pretrained(folder / "text_encoder_2")
        print(zero_shot(self.network["teacher"], self.network["text_encoder_2"]))


class VisionStage(loop.Stage):
    """Train the image encoder towards the teacher's embeddings and the texts."""

    name = "vision"
    steps = 2400
    batch = 96
    rate = 1.5e-3

    def __init__(self, work: Path, device: torch.device) -> None:
        super().__init__(work, device)
        towers = ClipStage(work, device).network
        towers.load_state_dict(torch.load(work / "stages" / "clip" / "state.pt", weights_only=True)["network"])
        self.teacher = towers["teacher"].eval().requires_grad_(False).to(device)
        self.text_encoder = towers["text_encoder_2"].eval().requires_grad_(False).to(device)
        self.scale = towers["temperature"]().detach().to(device)
        self.tokenizer = networks.build_tokenizer("!")
        self.network = networks.build_image_encoder()

    def loss(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes = world.sample(count, generator)
        pictures = world.draw(scenes).to(self.device)
        texts, mask = describe(scenes, loop.make_chance(generator))
        with torch.no_grad():
            wanted = self.teacher(pictures)
            text_embeds = self.text_encoder(tokenise(self.tokenizer, texts).to(self.device)).text_embeds
        found = self.network(normalise(pictures)).image_embeds
        distance = F.mse_loss(found, wanted) / wanted.var(0).mean()
        contrast = contrastive(text_embeds, found, mask.to(self.device), self.scale)
        return distance + 0.1 * contrast + 0.1 * self.teacher.loss(found, scenes), {"distance": float(distance)}

    def save(self, folder: Path) -> None:
        # The loss looks at directions alone, so the lengths are free; equal ones make a strength of 1 mean something.
        pictures = world.draw(world.sample(512, torch.Generator().manual_seed(0))).to(self.device)
        with torch.no_grad():
            texts = self.text_encoder(
                tokenise(self.tokenizer, [world.caption(shape) for shape in world.SHAPES]).to(self.device)
            )
            found = self.network(normalise(pictures)).image_embeds
            self.network.visual_projection.weight *= texts.text_embeds.norm(dim=-1).mean() / found.norm(dim=-1).mean()
        self.network.save_pretrained(folder / "sdxl_models" / "image_encoder")
        networks.build_image_processor().save_pretrained(folder / "sdxl_models" / "image_encoder")
        print(zero_shot(lambda pictures: self.network(normalise(pictures)).image_embeds, self.text_encoder))


class Temperature(nn.Module):
    """The learnt factor on cosines, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.tensor(2.5))

    def forward(self) -> Tensor:
        return self.logarithm.clamp(max=3.7).exp()


def normalise(pictures: Tensor) -> Tensor:
    """Turn pictures in [0, 1] into the towers' input."""
    mean, std = (pictures.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pictures - mean) / std


def describe(scenes: world.Scenes, chance: random.Random) -> tuple[list[str], Tensor]:
    """Write a caption for each scene that names some of its attributes.

    Returns:
        The captions, and a boolean matrix (captions, scenes): which caption is true of which scene.
    """
    texts, told = [], {name: torch.zeros(len(scenes), dtype=torch.bool) for name in world.NAMES}
    for row in range(len(scenes)):
        words = {name: word for name, word in scenes.words(row).items() if chance.random() < 0.55}
        for name in words:
            told[name][row] = True
        texts.append(world.phrase(chance, **words))
    mask = torch.ones(len(scenes), len(scenes), dtype=torch.bool)
    for name in world.NAMES:
        value = getattr(scenes, name)
        mask &= (value[:, None] == value[None, :]) | ~told[name][:, None]
    return texts, mask


def tokenise(tokenizer: Any, texts: list[str]) -> Tensor:
    """Return token numbers (n, tokens), padded to the encoders' length."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def contrastive(texts: Tensor, images: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """Return CLIP's loss where several pictures may match a text, and the other way round: each shares the target."""
    logits = scale * F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    both = [(logits, mask.float()), (logits.T, mask.T.float())]
    parts = [F.cross_entropy(rows, targets / targets.sum(-1, keepdim=True)) for rows, targets in both]
    return torch.stack(parts).mean()


@torch.no_grad()
def zero_shot(encode: Callable[[Tensor], Tensor], text_encoder: CLIPTextModelWithProjection) -> dict[str, float]:
    """Return how often the nearest of an attribute's texts is the right one, on drawings that were not trained on."""
    scenes = world.sample(512, torch.Generator().manual_seed(0))
    device = text_encoder.device
    images = F.normalize(encode(world.draw(scenes).to(device)), dim=-1)
    tokenizer, found = networks.build_tokenizer("!"), {}
    for name, words in world.NAMES.items():
        ids = tokenise(tokenizer, [world.caption(**{name: word}) for word in words]).to(device)
        texts = F.normalize(text_encoder(ids).text_embeds, dim=-1)
        right = (images @ texts.T).argmax(-1).cpu() == getattr(scenes, name)
        found[name] = round(float(right.float().mean()), 4)
    return found
