"""Tiny, real, seeded pipelines of the SDXL and SD1.5 families: the fixtures on which every test runs, offline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
from diffusers import (
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    MotionAdapter,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline  # the public name asks for sentencepiece
from PIL import Image
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)


FAMILIES = ("sdxl", "sd15")
SIDE = 16  # of a picture in pixels: latents of 8x8
CLIP_SIDE = 32  # of a picture as the image encoder sees it

# Widths: no two that meet in one pipeline are the same, so that mixing them up cannot go unnoticed.
UNET_WIDTHS = {"sdxl": (8, 16, 24), "sd15": (8, 12, 16, 24)}
TEXT_WIDTHS = {"sdxl": (12, 20), "sd15": (20,)}
CLIP_WIDTH = {"sdxl": 40, "sd15": 28}
VISION_WIDTH = {"sdxl": 36, "sd15": 44}

# A freshly initialised tiny network hardly listens to its attention and paints grey. These gains give cross-attentions
# and adapter a say and the picture contrast: any one block moves pixels by 0.002 to 1, float32 noise by 2e-6.
ATTENTION_GAIN = 3.0
CONTRAST_GAIN = 1.5
ADAPTER_GAIN = 3.0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed within the block and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Text and image encoders
# ---------------------------------------------------------------------------------------------------------------------


def _vocabulary() -> dict[str, int]:
    """Number every byte, inside and at the end of a word, then the two special tokens, as CLIP does."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


VOCABULARY = _vocabulary()


def _tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Return a CLIP tokenizer that spells words letter by letter. All versions of transformers make one of files."""
    with TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, pad_token=pad_token, model_max_length=77)


def _text_config(width: int, projection_dim: int) -> CLIPTextConfig:
    """Describe a text tower of two layers."""
    return CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection_dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act="gelu",
        bos_token_id=VOCABULARY["<|startoftext|>"],
        eos_token_id=VOCABULARY["<|endoftext|>"],
        pad_token_id=VOCABULARY["<|endoftext|>"],
    )


def _share_direction(norm: torch.nn.LayerNorm, projection: torch.nn.Linear) -> None:
    """Add the direction that all embeddings of a CLIP share: a text and a picture meet at an acute angle."""
    norm.bias.data.fill_(1.0)
    projection.weight.data += (1 - projection.weight.sum(1, keepdim=True)) / projection.in_features


def _text_tower(width: int, projection_dim: int, seed: int) -> CLIPTextModelWithProjection:
    """Return the text tower of a CLIP."""
    with seeded(seed):
        model = CLIPTextModelWithProjection(_text_config(width, projection_dim)).eval()
    _share_direction(model.text_model.final_layer_norm, model.text_projection)
    return model


def image_encoder(family: str, seed: int = 0) -> CLIPVisionModelWithProjection:
    """Return the image tower that the family's adapters were made for."""
    config = CLIPVisionConfig(
        hidden_size=VISION_WIDTH[family],
        intermediate_size=2 * VISION_WIDTH[family],
        projection_dim=CLIP_WIDTH[family],
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=CLIP_SIDE,
        patch_size=CLIP_SIDE // 4,
        hidden_act="gelu",
        initializer_factor=2.0,
    )
    with seeded(seed):
        model = CLIPVisionModelWithProjection(config).eval()
    _share_direction(model.vision_model.post_layernorm, model.visual_projection)
    return model


def feature_extractor() -> CLIPImageProcessor:
    """Return the preprocessing of the image tower."""
    return CLIPImageProcessor(size=CLIP_SIDE, crop_size=CLIP_SIDE)


def content_encoder(seed: int = 0) -> tuple[CLIPTextModelWithProjection, CLIPTokenizer]:
    """Return the text tower of SD1.5's image encoder ("ViT-H") with its tokenizer."""
    return _text_tower(48, CLIP_WIDTH["sd15"], seed), _tokenizer()


# ---------------------------------------------------------------------------------------------------------------------
# The diffusion networks
# ---------------------------------------------------------------------------------------------------------------------


def _blocks(family: str) -> dict[str, Any]:
    """Describe the levels that the family's UNet and ControlNets share."""
    shared = {
        "block_out_channels": UNET_WIDTHS[family],
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": sum(TEXT_WIDTHS[family]),
    }
    if family == "sd15":
        return {**shared, "attention_head_dim": 2}
    return {
        **shared,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + CLIP_WIDTH["sdxl"],
    }


def _unet(family: str, seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """Return the family's UNet with its real levels and block names; `config` overrides its description."""
    up = {"sdxl": {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}, "sd15": {}}
    with seeded(seed):
        model = UNet2DConditionModel(**{"sample_size": SIDE // 2, **_blocks(family), **up[family], **config}).eval()
    for name, module in model.named_modules():
        if name.endswith("attn2"):
            module.to_out[0].weight.data.mul_(ATTENTION_GAIN)
    return model


def _vae(seed: int) -> AutoencoderKL:
    """Return a VAE that halves the sides of a picture."""
    with seeded(seed):
        model = AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            sample_size=SIDE,
            force_upcast=False,
        ).eval()
    model.decoder.conv_out.weight.data.mul_(CONTRAST_GAIN)
    return model


Control = TypeVar("Control", ControlNetModel, ControlNetUnionModel)


def _controlnet(family: str, cls: type[Control] = ControlNetModel, **config: Any) -> Control:
    """Return a ControlNet of the family, with weights for the convolutions that start at zero."""
    with seeded(0):
        model = cls(**_blocks(family), conditioning_embedding_out_channels=(4, 8), **config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 4 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.5)
    return model


def _scheduler() -> EulerDiscreteScheduler:
    """Return the scheduler of every host that does not need its own."""
    return EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


def components(family: str, seed: int = 0) -> dict[str, Any]:
    """Return the components of the family's text-to-image host, without an image encoder."""
    models = {"vae": _vae(seed), "unet": _unet(family, seed), "scheduler": _scheduler()}
    texts = _sdxl_texts(seed) if family == "sdxl" else _sd15_texts(seed)
    return {**models, **texts, "image_encoder": None, "feature_extractor": None}


def _text_encoder(width: int, seed: int) -> CLIPTextModel:
    """Return a text encoder without projection."""
    with seeded(seed):
        return CLIPTextModel(_text_config(width, width)).eval()


def _sdxl_texts(seed: int) -> dict[str, Any]:
    """Return SDXL's two text towers and tokenizers."""
    first, second = TEXT_WIDTHS["sdxl"]
    return {
        "text_encoder": _text_encoder(first, seed),
        "text_encoder_2": _text_tower(second, CLIP_WIDTH["sdxl"], seed),
        "tokenizer": _tokenizer(),
        "tokenizer_2": _tokenizer(pad_token="!"),
    }


def _sd15_texts(seed: int) -> dict[str, Any]:
    """Return SD1.5's text tower and tokenizer, and no safety checker."""
    (width,) = TEXT_WIDTHS["sd15"]
    return {
        "text_encoder": _text_encoder(width, seed),
        "tokenizer": _tokenizer(),
        "safety_checker": None,
        "requires_safety_checker": False,
    }


# ---------------------------------------------------------------------------------------------------------------------
# IP-Adapters and checkpoints on disk
# ---------------------------------------------------------------------------------------------------------------------

State = dict[str, dict[str, torch.Tensor]]


def adapter_state(family: str, seed: int = 0, kind: str = "plain", unet: UNet2DConditionModel | None = None) -> State:
    """Return an IP-Adapter for `unet` (the family's by default) in the layout of the published files."""
    unet = _unet(family) if unet is None else unet
    text_width = unet.config.cross_attention_dim
    with seeded(seed):
        if kind == "plain":
            image_proj = _plain_projection(CLIP_WIDTH[family], text_width)
        elif kind == "plus":
            image_proj = _plus_projection(VISION_WIDTH[family], text_width)
        elif kind == "full":
            image_proj = _full_projection(VISION_WIDTH[family], text_width)
        else:
            raise ValueError(f"`kind` is 'plain', 'plus' or 'full', not {kind!r}")
        return {"image_proj": image_proj, "ip_adapter": _keys_and_values(unet)}


def _matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
    """Draw a matrix that multiplies the size of its input by `gain`."""
    return torch.randn(rows, columns) * gain / columns**0.5


def _norm(name: str, width: int) -> dict[str, torch.Tensor]:
    """Draw a LayerNorm that is not the identity."""
    return {f"{name}.weight": 1 + 0.2 * torch.randn(width), f"{name}.bias": 0.2 * torch.randn(width)}


def _keys_and_values(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """Draw key and value projections for each text cross-attention, numbered 1, 3, 5, ... as published."""
    names = [
        name for name in unet.attn_processors if name.endswith("attn2.processor") and "motion_modules" not in name
    ]
    state = {}
    for number, name in enumerate(names):
        rows, columns = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
        for kind in ("k", "v"):
            state[f"{2 * number + 1}.to_{kind}_ip.weight"] = _matrix(rows, columns, ADAPTER_GAIN)
    return state


def _plain_projection(image_width: int, text_width: int, tokens: int = 4) -> dict[str, torch.Tensor]:
    """Draw the linear projection of a global embedding to four tokens."""
    linear = {"proj.weight": _matrix(tokens * text_width, image_width), "proj.bias": torch.randn(tokens * text_width)}
    return {**linear, **_norm("norm", text_width)}


def _full_projection(image_width: int, text_width: int) -> dict[str, torch.Tensor]:
    """Draw the two-layer projection of every patch that "full" adapters have."""
    return {
        "proj.0.weight": _matrix(image_width, image_width),
        "proj.0.bias": torch.randn(image_width),
        "proj.2.weight": _matrix(text_width, image_width),
        "proj.2.bias": torch.randn(text_width),
        **_norm("proj.3", text_width),
    }


def _plus_projection(
    image_width: int, text_width: int, width: int = 22, inner: int = 64, tokens: int = 6
) -> dict[str, torch.Tensor]:
    """Draw the resampler of "plus" adapters: four layers of one head, as diffusers expects."""
    state = {
        "latents": torch.randn(1, tokens, width),
        "proj_in.weight": _matrix(width, image_width),
        "proj_in.bias": torch.randn(width),
        "proj_out.weight": _matrix(text_width, width),
        "proj_out.bias": torch.randn(text_width),
        **_norm("norm_out", text_width),
    }
    for layer in (f"layers.{number}" for number in range(4)):
        state |= _norm(f"{layer}.0.norm1", width) | _norm(f"{layer}.0.norm2", width) | _norm(f"{layer}.1.0", width)
        state[f"{layer}.0.to_q.weight"] = _matrix(inner, width)
        state[f"{layer}.0.to_kv.weight"] = _matrix(2 * inner, width)
        state[f"{layer}.0.to_out.weight"] = _matrix(width, inner)
        state[f"{layer}.1.1.weight"] = _matrix(4 * width, width)
        state[f"{layer}.1.3.weight"] = _matrix(width, 4 * width)
    return state


ADAPTER_NAMES = {"plain": "ip-adapter", "plus": "ip-adapter-plus", "full": "ip-adapter-full-face"}


def write_adapter(
    folder: str | Path,
    family: str,
    kind: str = "plain",
    format: str = "safetensors",
    presets: dict[str, Any] | None = None,
    seed: int = 0,
) -> tuple[str, str, str]:
    """Write an adapter and its image encoder as h94/IP-Adapter does; return what `load_ip_adapter` is called with."""
    subfolder = "sdxl_models" if family == "sdxl" else "models"
    weight_name = f"{ADAPTER_NAMES[kind]}_{family}.{format}"
    home = Path(folder, subfolder)
    home.mkdir(parents=True, exist_ok=True)
    state = adapter_state(family, seed, kind)
    if format == "safetensors":
        metadata = None if presets is None else {"instantstyle.presets": json.dumps(presets)}
        save_file(
            {f"{part}.{key}": value for part in state for key, value in state[part].items()},
            home / weight_name,
            metadata,
        )
    else:
        torch.save(state, home / weight_name)
    image_encoder(family).save_pretrained(home / "image_encoder")
    return str(folder), subfolder, weight_name


def write_checkpoint(folder: str | Path, family: str) -> str:
    """Save the family's text-to-image pipeline and return its folder."""
    cls = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    cls(**components(family)).save_pretrained(folder)
    return str(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Hosts
# ---------------------------------------------------------------------------------------------------------------------


def picture(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    """Paint smooth random fields of colour."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).convert(mode)


@dataclass(frozen=True)
class Host:
    """A stock pipeline class, how to build a tiny one, and a call that makes a small picture."""

    name: str
    cls: type[DiffusionPipeline]
    family: str
    components: Callable[[], dict[str, Any]]
    inputs: Callable[[], dict[str, Any]]


def make(host: Host, cls: type[DiffusionPipeline] | None = None) -> DiffusionPipeline:
    """Build the host, or `cls` from the host's components."""
    with seeded(0):
        pipe = (cls or host.cls)(**host.components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(pipe: DiffusionPipeline, **inputs: Any) -> np.ndarray:
    """Run the pipeline and return its pictures or frames."""
    return np.asarray(pipe(**inputs)[0], dtype=np.float32)


def _inputs(pictures: dict[str, tuple[int, str]] | None = None, **settings: Any) -> dict[str, Any]:
    """Return fresh arguments of a call: a generator, a picture for each name of a seed and mode, and the settings."""
    return {
        "prompt": "a red star",
        "generator": torch.Generator("cpu").manual_seed(0),
        "num_inference_steps": 2,
        "guidance_scale": 5.0,
        "output_type": "np",
        **{name: picture(seed, (SIDE, SIDE), mode) for name, (seed, mode) in (pictures or {}).items()},
        **settings,
    }


def _controlled(family: str) -> dict[str, Any]:
    """Return the components of the family's ControlNet hosts."""
    return {**components(family), "controlnet": _controlnet(family)}


IMAGE, MASK, CONTROL = (101, "RGB"), (104, "L"), (103, "RGB")
PARTIAL = {"num_inference_steps": 3, "strength": 0.7}  # two steps

# What each of the six adds to the family's class name and host name, and its arguments.
TASKS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "": ("", _inputs),
    "Img2Img": ("_img2img", partial(_inputs, {"image": IMAGE}, **PARTIAL)),
    "Inpaint": ("_inpaint", partial(_inputs, {"image": IMAGE, "mask_image": MASK}, **PARTIAL)),
    "ControlNet": ("_controlnet", partial(_inputs, {"image": CONTROL})),
    "ControlNetImg2Img": (
        "_controlnet_img2img",
        partial(_inputs, {"image": IMAGE, "control_image": CONTROL}, **PARTIAL),
    ),
    "ControlNetInpaint": (
        "_controlnet_inpaint",
        partial(_inputs, {"image": IMAGE, "mask_image": MASK, "control_image": CONTROL}, **PARTIAL),
    ),
}


def _task_host(family: str, task: str) -> Host:
    """Describe the family's host for one of the six tasks."""
    prefix, name = {
        "sdxl": ("StableDiffusionXL", "stable_diffusion_xl"),
        "sd15": ("StableDiffusion", "stable_diffusion"),
    }[family]
    suffix, inputs = TASKS[task]
    build = _controlled if "ControlNet" in task else components
    return Host(name + suffix, getattr(diffusers, f"{prefix}{task}Pipeline"), family, partial(build, family), inputs)


def _named(*hosts: Host) -> dict[str, Host]:
    """Index hosts by name."""
    return {host.name: host for host in hosts}


HOSTS = _named(*(_task_host(family, task) for family in FAMILIES for task in TASKS))


# ---------------------------------------------------------------------------------------------------------------------
# Other hosts
# ---------------------------------------------------------------------------------------------------------------------

GLM_WIDTH = 18  # of Kolors' text encoder


def _with_pag(family: str) -> dict[str, Any]:
    """Return components for perturbed-attention guidance in a block large enough for attention to matter."""
    return {**components(family), "pag_applied_layers": "down_blocks.1"}


def _with_t2i_adapter() -> dict[str, Any]:
    """Return SDXL's components and a T2I-Adapter that matches the UNet's levels."""
    first, second, third = UNET_WIDTHS["sdxl"]
    with seeded(0):
        adapter = T2IAdapter(
            channels=[first, second, third, third], downscale_factor=4, adapter_type="full_adapter_xl"
        ).eval()
    return {**components("sdxl"), "adapter": adapter}


def _with_controlnet_union() -> dict[str, Any]:
    """Return SDXL's components and a ControlNet for six kinds of control pictures."""
    width = UNET_WIDTHS["sdxl"][0]
    config = {"num_trans_channel": width, "num_proj_channel": width, "num_trans_head": 2}
    return {**components("sdxl"), "controlnet": _controlnet("sdxl", cls=ControlNetUnionModel, **config)}


def _with_motion(family: str) -> dict[str, Any]:
    """Return components for AnimateDiff: a motion adapter, and no safety checker to switch off."""
    with seeded(0):
        motion_adapter = MotionAdapter(
            block_out_channels=UNET_WIDTHS[family],
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
            motion_max_seq_length=8,
            use_motion_mid_block=family == "sd15",
        ).eval()
    parts = {name: part for name, part in components(family).items() if "safety_checker" not in name}
    return {**parts, "motion_adapter": motion_adapter}


def _with_consistency() -> dict[str, Any]:
    """Return SD1.5's components with a UNet that is told the guidance scale, and its scheduler."""
    return {**components("sd15"), "unet": _unet("sd15", time_cond_proj_dim=10), "scheduler": LCMScheduler()}


def _kolors() -> dict[str, Any]:
    """Return Kolors' components without a text encoder: ChatGLM's tokenizer would need sentencepiece."""
    model = _unet(
        "sdxl",
        encoder_hid_dim_type="text_proj",
        encoder_hid_dim=GLM_WIDTH,
        projection_class_embeddings_input_dim=6 * 8 + GLM_WIDTH,
    )
    parts = {name: part for name, part in components("sdxl").items() if not name.endswith("_2")}
    return {**parts, "unet": model, "text_encoder": None, "tokenizer": None}


def _kolors_inputs() -> dict[str, Any]:
    """Return a call of Kolors with its texts already encoded."""
    with seeded(7):
        sequences, pooled = torch.randn(2, 1, 9, GLM_WIDTH), torch.randn(2, 1, GLM_WIDTH)
    return {
        **_inputs(prompt=None),
        "prompt_embeds": sequences[0],
        "negative_prompt_embeds": sequences[1],
        "pooled_prompt_embeds": pooled[0],
        "negative_pooled_prompt_embeds": pooled[1],
    }


OTHER_HOSTS = _named(
    Host("stable_diffusion_xl_pag", StableDiffusionXLPAGPipeline, "sdxl", partial(_with_pag, "sdxl"), _inputs),
    Host("stable_diffusion_pag", StableDiffusionPAGPipeline, "sd15", partial(_with_pag, "sd15"), _inputs),
    Host(
        "stable_diffusion_xl_adapter",
        StableDiffusionXLAdapterPipeline,
        "sdxl",
        _with_t2i_adapter,
        partial(_inputs, {"image": CONTROL}),
    ),
    Host(
        "stable_diffusion_xl_controlnet_union",
        StableDiffusionXLControlNetUnionPipeline,
        "sdxl",
        _with_controlnet_union,
        partial(_inputs, {"control_image": CONTROL}, control_mode=1),
    ),
    Host("kolors", KolorsPipeline, "sdxl", _kolors, _kolors_inputs),
    Host("animatediff", AnimateDiffPipeline, "sd15", partial(_with_motion, "sd15"), partial(_inputs, num_frames=2)),
    Host(
        "animatediff_sdxl",
        AnimateDiffSDXLPipeline,
        "sdxl",
        partial(_with_motion, "sdxl"),
        partial(_inputs, num_frames=2),
    ),
    Host("latent_consistency", LatentConsistencyModelPipeline, "sd15", _with_consistency, _inputs),
)
