"""Distilled models: few steps, sampled as their makers say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instantstyle.console import hushed, need
from instantstyle.files import find_file, tensor_names
from instantstyle.identity import family_of


ADAPTER = "fast"  # what the LoRA is called until it is fused
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
DOWN = ("lora_down.weight", "lora.down.weight", "lora_A.weight")  # one for each layer of a LoRA, by layout


@dataclass(frozen=True)
class Distilled:
    """How a distilled model is sampled.

    Attributes:
        name: What `--fast` calls it.
        weights: Family -> the LoRA or UNet that was published for it, as REPOSITORY:FILE. None where the model itself
            is the distilled one.
        scheduler: The scheduler's class in diffusers.
        steps: The number of steps.
        guidance: The guidance scale; 1 and less is none.
        settings: What changes in the scheduler's configuration.
        more: What the call is told besides: how much noise each step adds (`eta`), or where the steps are
            (`timesteps`).
    """

    name: str
    weights: Mapping[str, str | None]
    scheduler: str
    steps: int
    guidance: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the pipeline's call needs: `pipe(prompt, **recipe.arguments)`."""
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance, **self.more}


TRAILING = {"timestep_spacing": "trailing"}


def _lightning(steps: int) -> Distilled:
    """SDXL-Lightning (arXiv 2402.13929)."""
    file = f"ByteDance/SDXL-Lightning:sdxl_lightning_{steps}step_lora.safetensors"
    return Distilled(f"lightning-{steps}", {"sdxl": file}, "EulerDiscreteScheduler", steps, 0.0, TRAILING)


def _hyper(name: str, file: str, steps: int, guidance: float = 0.0) -> Distilled:
    """Hyper-SD (arXiv 2404.13686)."""
    return Distilled(name, _hyper_weights(file), "DDIMScheduler", steps, guidance, TRAILING)


def _hyper_weights(file: str) -> dict[str, str | None]:
    families = {"sdxl": "SDXL", "sd15": "SD15"}
    return {family: f"ByteDance/Hyper-SD:Hyper-{name}-{file}-lora.safetensors" for family, name in families.items()}


# LCM-LoRA (arXiv 2311.05556)
LCM: dict[str, str | None] = {
    "sdxl": "latent-consistency/lcm-lora-sdxl:pytorch_lora_weights.safetensors",
    "sd15": "latent-consistency/lcm-lora-sdv1-5:pytorch_lora_weights.safetensors",
}

# The two that are published as whole UNets alone.
LIGHTNING_1: dict[str, str | None] = {"sdxl": "ByteDance/SDXL-Lightning:sdxl_lightning_1step_unet_x0.safetensors"}
HYPER_1: dict[str, str | None] = {"sdxl": "ByteDance/Hyper-SD:Hyper-SDXL-1step-Unet.safetensors"}
SAMPLE = {**TRAILING, "prediction_type": "sample"}

# From the model cards of the weights, and for LCM and Turbo from diffusers' documentation.
DISTILLED = {
    recipe.name: recipe
    for recipe in (
        Distilled("lightning-1", LIGHTNING_1, "EulerDiscreteScheduler", 1, 0.0, SAMPLE),
        *map(_lightning, (2, 4, 8)),
        Distilled("hyper-1", _hyper_weights("1step"), "TCDScheduler", 1, 0.0, more={"eta": 1.0}),
        Distilled("hyper-1-unet", HYPER_1, "LCMScheduler", 1, 0.0, more={"timesteps": [800]}),
        _hyper("hyper-2", "2steps", 2),
        _hyper("hyper-4", "4steps", 4),
        _hyper("hyper-8", "8steps", 8),
        _hyper("hyper-8-cfg", "8steps-CFG", 8, guidance=5.0),
        _hyper("hyper-12-cfg", "12steps-CFG", 12, guidance=5.0),
        Distilled("lcm", LCM, "LCMScheduler", 4, 1.0),
        Distilled("turbo", {"sdxl": None}, "EulerAncestralDiscreteScheduler", 1, 0.0, TRAILING),  # arXiv 2311.17042
    )
}


# The weights


def find_weights(recipe: Distilled, family: str, given: str | None = None) -> Path | None:
    """Find the file that a recipe puts on the UNet, and fetch it if it is on the Hub.

    Args:
        recipe: The recipe.
        family: "sdxl" or "sd15".
        given: What to take in place of the published file: a file, or FOLDER_OR_REPOSITORY[:SUBFOLDER/FILE].

    Returns:
        The file; None where the model itself is the distilled one.

    Raises:
        ValueError: There is none for this family, the file is not there or not safetensors, or peft is missing.
        OSError: The Hub cannot be reached, or has no such file.
    """
    if given is None and family not in recipe.weights:
        fitting = ", ".join(name for name, other in DISTILLED.items() if family in other.weights)
        raise ValueError(
            f"`recipe` is made for {', '.join(recipe.weights)}, not for {family}; take {fitting}, or give weights."
        )
    text = given or recipe.weights[family]
    if text is None:
        return None
    path = _fetch(*find_file("`fast_weights`", text, default_file(recipe, family)))
    if is_lora(path):
        need("peft", "fast", "a LoRA is loaded with peft")
    return path


def default_file(recipe: Distilled, family: str) -> str:
    return (recipe.weights.get(family) or "").partition(":")[2] or UNET_FILE


def _fetch(source: str, file: str) -> Path:
    if Path(source).is_dir():
        return Path(source, file)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, file))
    except OSError as error:
        raise OSError(f"{source}:{file} cannot be fetched: {error}") from error


def is_lora(path: Path) -> bool:
    """Whether a file holds a LoRA rather than a whole UNet, by the names of its tensors.

    Raises:
        ValueError: It is not a safetensors file.
    """
    return any("lora" in name for name in tensor_names(path, "`weights`"))


# On a pipeline


def apply_distilled(pipe: Any, recipe: Distilled, weights: Path | None = None) -> None:
    """Put a recipe's weights and scheduler on a pipeline, for good. Steps and guidance are `recipe.arguments`.

    A LoRA is fused into the weights, as its makers do it: then it costs no time, and an IP-Adapter, loaded before or
    after, stays what it is.

    Args:
        pipe: A pipeline of the SDXL or SD1.5 family.
        recipe: One of `DISTILLED`.
        weights: A file to take in place of the published one: a LoRA, or a UNet in diffusers' layout.

    Raises:
        ValueError: The weights do not fit the UNet, `pipe` has LoRAs already, or see `find_weights`. Nothing is
            changed then.
        OSError: The published file cannot be fetched.
    """
    import diffusers

    if weights is None:
        weights = find_weights(recipe, family_of(pipe.unet.config))
    if weights is not None:
        put = _put_lora if is_lora(weights) else _put_unet
        put(pipe, weights.name, _read(weights))
    scheduler = getattr(diffusers, recipe.scheduler)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **recipe.settings)


def _read(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors = load_file(path)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"`weights` {path.name} holds values that are not finite in {name!r}.")
    return tensors


def _put_lora(pipe: Any, name: str, tensors: dict[str, Any]) -> None:
    if pipe.get_list_adapters():
        raise ValueError("`pipe` has LoRAs already, which would be fused along with this one. Apply the recipe first.")
    try:
        with hushed():  # diffusers remarks on every tower that a LoRA leaves out
            pipe.load_lora_weights(tensors, adapter_name=ADAPTER)
        layers, found = sum(key.endswith(DOWN) for key in tensors), _lora_layers(pipe)
        if found != layers:
            raise ValueError(f"of its {layers} layers {found} are in this model")
        pipe.fuse_lora()
    except (RuntimeError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"`weights` {name} does not fit the model: {reason}.") from error
    finally:
        pipe.unload_lora_weights()  # fused, it is in the weights


def _lora_layers(pipe: Any) -> int:
    towers = [part for part in pipe.components.values() if hasattr(part, "modules")]
    return sum(ADAPTER in getattr(module, "lora_A", ()) for tower in towers for module in tower.modules())


def _put_unet(pipe: Any, name: str, tensors: dict[str, Any]) -> None:
    from instantstyle.core import bare_unet, detached

    unet = bare_unet(pipe)
    with detached(unet):
        expected = {(key, tensor.shape) for key, tensor in unet.state_dict().items()}
        wrong = expected ^ {(key, tensor.shape) for key, tensor in tensors.items()}
        if wrong:
            raise ValueError(f"`weights` {name} does not fit the UNet, as in {min(wrong)[0]!r}.")
        unet.load_state_dict(tensors)
