"""The parts of the embedded checkpoint, untrained: the real classes of diffusers and transformers at tiny sizes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from instantstyle.tiny import world


TEXT_WIDTHS = (48, 80)  # the two text encoders; the UNet sees them side by side
CROSS_WIDTH = sum(TEXT_WIDTHS)
CLIP_WIDTH = 96  # the space that text_encoder_2 and the image encoder share
IMAGE_TOKENS = 4
TIME_WIDTH = 8
MAX_TOKENS = 16
LATENT_CHANNELS = 4
LATENT_PIXELS = world.PIXELS // 4
NORM_GROUPS = 16

START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """Build CLIP's byte-level tokenizer, with one token for each word of the world."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, end_of_word_suffix="</w>", initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(world.words(), trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    symbols = [*sorted(alphabet), *(f"{symbol}</w>" for symbol in sorted(alphabet))]
    tokens = dict.fromkeys([*symbols, *sorted(learnt["vocab"], key=learnt["vocab"].__getitem__), START, END])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
        merges = [" ".join(merge) for merge in learnt["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, pad_token=pad_token, model_max_length=MAX_TOKENS)


def text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    """Describe a text encoder of `width` for the tokenizer's vocabulary."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=width // 16,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=CLIP_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder() -> CLIPTextModel:
    """Build SDXL's first text encoder."""
    return CLIPTextModel(text_config(build_tokenizer(), TEXT_WIDTHS[0]))


def build_text_encoder_2() -> CLIPTextModelWithProjection:
    """Build SDXL's second text encoder, which projects into the space of the image encoder."""
    return CLIPTextModelWithProjection(text_config(build_tokenizer("!"), TEXT_WIDTHS[1]))


def build_image_encoder() -> CLIPVisionModelWithProjection:
    """Build the adapter's image encoder, into the space of `text_encoder_2`."""
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=world.PIXELS,
        patch_size=8,
        projection_dim=CLIP_WIDTH,
    )
    return CLIPVisionModelWithProjection(config)


def build_image_processor() -> CLIPImageProcessor:
    """Build what turns pictures into the image encoder's input: CLIP's processing at the world's size."""
    edge = world.PIXELS
    return CLIPImageProcessor(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})


def build_vae() -> AutoencoderKL:
    """Build an autoencoder that shrinks pictures fourfold; SDXL's own shrinks them eightfold."""
    levels = (16, 32, 48)
    return AutoencoderKL(
        block_out_channels=levels,
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        sample_size=world.PIXELS,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Build a UNet whose blocks have SDXL's names and order, with 1, 1 and 2 transformer layers per group."""
    widths = (32, 48, 64)
    return UNet2DConditionModel(
        sample_size=LATENT_PIXELS,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=widths,
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=tuple(width // 16 for width in widths),
        norm_num_groups=NORM_GROUPS,
        use_linear_projection=True,
        cross_attention_dim=CROSS_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=CLIP_WIDTH + 6 * TIME_WIDTH,
    )


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Build a ControlNet from the UNet's encoder; its picture is shrunk fourfold, as the autoencoder does."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 32))


def build_scheduler() -> DDIMScheduler:
    """Build the noise schedule: SDXL's, ended in pure noise, which then tells nothing of a background's lightness.

    DDIM, because SDXL's Euler scheduler stands in for pure noise with a sigma of 4096, and loses digits by it.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
