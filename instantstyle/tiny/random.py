"""A seeded, random SDXL checkpoint with an IP-Adapter and a ControlNet: real classes at tiny sizes.

Every width differs from every other, so that a tensor that ends up in the wrong place fails instead of fitting. The
networks draw from torch's CPU generator only, and leave it as it was.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.utils import logging


SEED = 0
LATENT_SIZE = 8  # 64 pixels: the autoencoder halves three times
TEXT_WIDTHS = (24, 40)  # the two text encoders; the UNet sees them side by side
CROSS_WIDTH = sum(TEXT_WIDTHS)
CLIP_WIDTH = 56  # the space that text_encoder_2 and the image encoder share
IMAGE_TOKENS = 4
TIME_WIDTH = 8
MAX_TOKENS = 77

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = """
a an and as at beautiful bird black blurry blue bottle car cat circle city cloud cow cross cup diamond dog dragon fish
flower forest gold green grey heart high horse house in ink landscape light line low moon mountain night oil on one
orange painting paper pattern pencil photo picture pink portrait purple quality rabbit red river robot sea ship sketch
sky small square star stone street style sun text the three tree triangle two watercolor watermark white with wood
worst yellow
""".split()


def save(folder: Path) -> None:
    """Write the checkpoint in the layout of an SDXL repository, with the adapter and the ControlNet inside.

    Args:
        folder: Where to write it. The adapter is `sdxl_models/ip-adapter_sdxl.safetensors`, its image encoder
            `sdxl_models/image_encoder`, the ControlNet `controlnet`; the rest is where `from_pretrained` looks.
    """
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`, which seeds every accelerator too.
        torch.default_generator.manual_seed(SEED)
        unet = build_unet()
        pipeline = build_pipeline(unet)
        adapter = build_adapter(unet)
        image_encoder = build_image_encoder()
        controlnet = build_controlnet(unet)

    # transformers loads a file in the precision it was saved in, diffusers in float32: in half precision the encoders
    # would come back unlike the rest, so only the parts of diffusers, which are most of the bytes, are halved.
    for part in (pipeline.unet, pipeline.vae, controlnet):
        part.half()
    half = {name: tensor.half() for name, tensor in adapter.items()}
    with without_progress_bars():
        pipeline.save_pretrained(folder)
        controlnet.save_pretrained(folder / "controlnet")
        image_encoder.save_pretrained(folder / "sdxl_models" / "image_encoder")
    save_file(half, folder / "sdxl_models" / "ip-adapter_sdxl.safetensors", metadata={"format": "pt"})


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from showing a bar for every file of a few kilobytes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def build_pipeline(unet: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    """Put every part of an SDXL pipeline around `unet`."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = build_tokenizer(Path(scratch), pad_token=END)
        tokenizer_2 = build_tokenizer(Path(scratch), pad_token="!")
    return StableDiffusionXLPipeline(
        vae=build_vae(),
        text_encoder=CLIPTextModel(text_config(tokenizer, TEXT_WIDTHS[0])).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer_2, TEXT_WIDTHS[1])).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Build a UNet whose blocks have SDXL's names and order, with 1, 1 and 2 transformer layers per group."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 48, 80),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 3, 5),
        norm_num_groups=16,
        use_linear_projection=True,
        cross_attention_dim=CROSS_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=CLIP_WIDTH + 6 * TIME_WIDTH,
    ).eval()


def build_vae() -> AutoencoderKL:
    """Build an autoencoder that shrinks pictures eightfold, as SDXL's does."""
    levels = (16, 16, 24, 32)
    return AutoencoderKL(
        block_out_channels=levels,
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=8 * LATENT_SIZE,
        scaling_factor=0.13025,
        force_upcast=False,
    ).eval()


def text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    """Describe a text encoder of `width` for the tokenizer's vocabulary."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=CLIP_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_image_encoder() -> CLIPVisionModelWithProjection:
    """Build the adapter's image encoder, into the space of `text_encoder_2`."""
    config = CLIPVisionConfig(
        hidden_size=72,
        intermediate_size=144,
        num_hidden_layers=2,
        num_attention_heads=6,
        image_size=32,
        patch_size=8,
        projection_dim=CLIP_WIDTH,
    )
    return CLIPVisionModelWithProjection(config).eval()


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Copy the UNet's encoder into a ControlNet that, unlike a new one, already heeds its picture."""
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 16, 32, 32))
    for layer in controlnet.controlnet_cond_embedding.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
            layer.get_parameter("bias").data.zero_()
    for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.05)
    return controlnet.eval()


def build_adapter(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """Draw an IP-Adapter for `unet`, with the keys of the published files: odd numbers, in the processors' order."""
    tensors = {
        "image_proj.proj.weight": torch.randn(IMAGE_TOKENS * CROSS_WIDTH, CLIP_WIDTH) * CLIP_WIDTH**-0.5,
        "image_proj.proj.bias": torch.zeros(IMAGE_TOKENS * CROSS_WIDTH),
        "image_proj.norm.weight": torch.ones(CROSS_WIDTH),
        "image_proj.norm.bias": torch.zeros(CROSS_WIDTH),
    }
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if ".attn2." in name]
    for index, layer in enumerate(layers):
        width = unet.get_submodule(layer).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            key = f"ip_adapter.{2 * index + 1}.{part}.weight"
            tensors[key] = torch.randn(width, CROSS_WIDTH) * CROSS_WIDTH**-0.5
    return tensors


def build_tokenizer(scratch: Path, pad_token: str) -> CLIPTokenizer:
    """Build CLIP's tokenizer over every byte and the words of `WORDS`, by way of its two files in `scratch`."""
    vocabulary, merges = build_vocabulary()
    (scratch / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (scratch / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(scratch, pad_token=pad_token, model_max_length=MAX_TOKENS)


def build_vocabulary() -> tuple[dict[str, int], list[str]]:
    """Number the symbols of a byte-level vocabulary, and list the merges that spell each word from left to right."""
    symbols = byte_symbols()
    tokens = dict.fromkeys([*symbols, *(f"{symbol}</w>" for symbol in symbols)])
    merges: dict[str, None] = {}
    for word in WORDS:
        start, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for symbol in rest:
            merges[f"{start} {symbol}"] = None
            start += symbol
            tokens[start] = None
    return {token: number for number, token in enumerate([*tokens, START, END])}, list(merges)


def byte_symbols() -> list[str]:
    """Give each of the 256 bytes the printable character that stands for it in byte-level BPE, "!" first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]
