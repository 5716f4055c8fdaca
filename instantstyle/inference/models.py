"""Models and adapters: where they are, and what is known of them before any weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instantstyle.files import REPOSITORY, WEIGHTS, find_file, label_of, tensor_names
from instantstyle.identity import family_of


TINY = "tiny"

# What a single file leaves out is read where diffusers itself reads it.
BASE_REPOSITORIES = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
ADAPTER_REPOSITORY = "h94/IP-Adapter"
ADAPTER_FILES = {"sdxl": "sdxl_models/ip-adapter_sdxl.safetensors", "sd15": "models/ip-adapter_sd15.safetensors"}
CONTENT_ENCODER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@dataclass(frozen=True)
class Model:
    """A diffusion model.

    Attributes:
        source: A folder, a Hub repository or a single file, as diffusers takes it.
        label: The name to show and to keep; never a local path.
        family: "sdxl" or "sd15".
        single_file: Whether `source` is one file instead of diffusers' layout.
        unet: The UNet's configuration.
    """

    source: str
    label: str
    family: str
    single_file: bool
    unet: dict[str, Any]


@dataclass(frozen=True)
class Adapter:
    """An IP-Adapter, in the words of `load_ip_adapter`, and the label to show and to keep."""

    source: str
    subfolder: str
    weight_name: str
    label: str

    @property
    def uses_vit_h(self) -> bool:
        """Whether the file's name says, as published names do, that its image encoder is ViT-H."""
        return "vit-h" in self.weight_name or "sd15" in self.weight_name

    @property
    def image_encoder_folder(self) -> str:
        """The folder of the image encoder: beside the file, but published SDXL adapters for ViT-H share SD1.5's."""
        return "models/image_encoder" if self.subfolder == "sdxl_models" and self.uses_vit_h else "image_encoder"


def find_controlnet(text: str) -> str:
    """Find the ControlNet that a text names: "tiny", a folder or a Hub repository."""
    if text != TINY:
        return text
    from instantstyle import tiny

    return str(tiny.path() / "controlnet")


def find_model(text: str) -> Model:
    """Find the model that a text names: "tiny", a folder, a `.safetensors` file or a Hub repository.

    Raises:
        ValueError: It is none of them.
        OSError: The Hub cannot be reached, or has no such model.
    """
    if text == TINY:
        from instantstyle import tiny

        return layout_model(str(tiny.path()), TINY)
    path = Path(text)
    if path.is_file():
        return single_file_model(path)
    if path.is_dir() or REPOSITORY.fullmatch(text):
        return layout_model(text, label_of(text))
    raise ValueError(
        f"`model`: {text!r} is not a folder or file here, nor a Hub repository; "
        f'expected "{TINY}", a folder in diffusers\' layout, a .safetensors file or OWNER/NAME.'
    )


def layout_model(source: str, label: str) -> Model:
    """Describe a model in diffusers' layout, local or on the Hub."""
    unet = read_unet_config(source)
    return Model(source=source, label=label, family=family_of(unet), single_file=False, unet=unet)


def single_file_model(path: Path) -> Model:
    """Describe a model in one file, by the names of its tensors."""
    if path.suffix != ".safetensors":
        raise ValueError(
            f"`model`: {path.name} is not a .safetensors file, the only kind of single file that is read."
        )
    family = "sdxl" if any(name.startswith("conditioner.") for name in tensor_names(path, "`model`:")) else "sd15"
    unet = read_unet_config(BASE_REPOSITORIES[family])
    return Model(source=str(path), label=path.name, family=family, single_file=True, unet=unet)


def knows_world(model: Model) -> bool:
    """Whether the model was trained on the drawn world: the embedded one, or a folder that has judges like it."""
    from instantstyle.tiny.judges import FILE

    return (Path(model.source) / FILE).is_file()


def unknown_words(model: Model, texts: Sequence[str]) -> str | None:
    """Say which words a model of the drawn world has never seen, and which it knows; of other models say nothing."""
    if not knows_world(model):
        return None
    from instantstyle.tiny import world

    unknown = world.unknown_words(" ".join(texts))
    if not unknown:
        return None
    return (
        f"`model` {model.label} does not know {', '.join(map(repr, unknown))}; "
        f"it knows: {' '.join(filter(str.isalpha, world.words()))}. Choose a real model with `model`."
    )


def read_unet_config(source: str) -> dict[str, Any]:
    """Read the UNet's configuration of a model in diffusers' layout."""
    if Path(source).is_dir():
        path = Path(source) / "unet" / "config.json"
        if not path.is_file():
            raise ValueError(f"`model`: {source} has no unet/config.json; expected a folder in diffusers' layout.")
    else:
        path = download_unet_config(source)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`model`: the unet/config.json of {source} is not JSON ({error}).") from error


def download_unet_config(repository: str) -> Path:
    """Fetch the UNet's configuration from the Hub, or from its cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "config.json", subfolder="unet"))
    except OSError as error:
        raise OSError(
            f"`model`: {repository!r} is not a folder here, and its unet/config.json cannot be fetched: {error}"
        ) from error


def find_adapter(text: str | None, model: Model) -> Adapter:
    """Find the adapter that a text names, or else the model's own, or the one published for its family.

    Args:
        text: A folder, a Hub repository or a file; after a folder or repository may follow ":SUBFOLDER/FILE".
        model: The model it is for.

    Raises:
        ValueError: It is none of them.
    """
    if text is None:
        text = model.source if own_adapter(model) else ADAPTER_REPOSITORY
    elif Path(text).is_file():
        if not text.endswith(WEIGHTS):
            raise ValueError(
                f"`adapter`: {text} is no file of weights; expected one that ends in .safetensors or .bin."
            )
        path = Path(text)
        return Adapter(source=str(path.parent), subfolder="", weight_name=path.name, label=path.name)
    if text.startswith(f"{model.label}:"):  # as recipes say it
        text = model.source + text.removeprefix(model.label)
    source, file = find_file("`adapter`", text, ADAPTER_FILES[model.family])
    subfolder, _, weight_name = file.rpartition("/")
    name = model.label if source == model.source else label_of(source)
    return Adapter(source=source, subfolder=subfolder, weight_name=weight_name, label=f"{name}:{file}")


def own_adapter(model: Model) -> Path | None:
    """Return the file of the adapter that a model's folder holds, if there is one."""
    path = Path(model.source) / ADAPTER_FILES[model.family]
    return path if path.is_file() else None
