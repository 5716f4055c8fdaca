"""IP-Adapter files, of which only the tensors asked for are read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__
from diffusers.utils import is_transformers_version
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open


USER_AGENT = {"file_type": "attn_procs_weights", "framework": "pytorch"}
HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
# By what name the loaders of transformers, and of diffusers' pipelines, are told a dtype.
TOWER_DTYPE = "dtype" if is_transformers_version(">=", "4.56") else "torch_dtype"
PIPELINE_DTYPE = "dtype" if tuple(map(int, __version__.split(".")[:2])) >= (0, 39) else "torch_dtype"


class AdapterFile:
    """One IP-Adapter checkpoint, of which only the tensors asked for are read.

    Args:
        source: a `.safetensors` or `.bin` file in the published layout, or its content as a nested dict.

    Raises:
        ValueError: it cannot be read, holds code, or is not an IP-Adapter.
    """

    def __init__(self, source: Path | Mapping[str, Any]):
        self.source: Path | Mapping[str, Any] | None = source
        self.name = str(source) if isinstance(source, Path) else "the state dict"
        self.stamp = self._read_stamp()
        with self._open() as tensors:
            mapped = isinstance(tensors, dict)
            shape = (lambda key: tensors[key].shape) if mapped else (lambda key: tensors.get_slice(key).get_shape())
            self.shapes = {key: tuple(shape(key)) for key in tensors.keys()}
            self.presets = self._read_presets({} if mapped else tensors.metadata() or {})
        found = {key.partition(".")[0] for key in self.shapes}
        if not {"image_proj", "ip_adapter"} <= found:
            raise ValueError(f"{self.name} is not an IP-Adapter: it needs the keys `image_proj` and `ip_adapter`.")

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """Read these tensors. Raises ValueError for one that is missing or not finite."""
        with self._open() as tensors:
            found = {key: tensors[key] if isinstance(tensors, dict) else tensors.get_tensor(key) for key in keys}
        for key, tensor in found.items():
            # A sum takes one pass and no memory; only if it overflows does it say nothing.
            if not (torch.isfinite(tensor.sum(dtype=torch.float32)) or torch.isfinite(tensor).all()):
                raise ValueError(f"{self.name} holds values that are not finite in {key!r}.")
        return found

    def read_part(self, part: str, only: str = "") -> dict[str, torch.Tensor]:
        """Read the tensors of `image_proj` or `ip_adapter` whose names contain `only`, without the part's prefix."""
        keys = [key for key in self.shapes if key.startswith(f"{part}.") and only in key]
        return {key.removeprefix(f"{part}."): tensor for key, tensor in self.read(keys).items()}

    def available(self) -> bool:
        """Whether it can be read: a dict until it is forgotten, a file while it is the one that was opened."""
        return self.source is not None and self.stamp == self._read_stamp()

    def forget(self) -> None:
        """Let go of a dict, so that what was not read takes no memory."""
        self.source = self.source if isinstance(self.source, Path) else None

    def _read_stamp(self) -> tuple[int, int] | None:
        if not isinstance(self.source, Path) or not self.source.exists():
            return None
        return self.source.stat().st_size, self.source.stat().st_mtime_ns

    def _read_presets(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        try:
            parsed = json.loads(metadata.get("instantstyle.presets", "{}"))
        except json.JSONDecodeError as error:
            raise ValueError(f"`instantstyle.presets` in the metadata of {self.name} is not JSON: {error}.") from error
        if not isinstance(parsed, dict):
            raise ValueError(
                f"`instantstyle.presets` in the metadata of {self.name} must be an object: name -> blocks."
            )
        return parsed

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The tensors by name: an open safetensors file, or a dict."""
        with ExitStack() as stack:
            try:
                if isinstance(self.source, Path) and self.source.suffix == ".safetensors":
                    tensors: Any = stack.enter_context(safe_open(self.source, framework="pt"))
                else:
                    tensors = _by_name(_load_pickle(self.source) if isinstance(self.source, Path) else self.source)
            except pickle.UnpicklingError as error:
                raise ValueError(
                    f"{self.name} is refused: it is no checkpoint, or unpickling it could run code."
                ) from error
            except (SafetensorError, OSError, RuntimeError, EOFError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(f"{self.name} cannot be read as an IP-Adapter checkpoint: {reason}") from error
            yield tensors


def _by_name(nested: Any) -> dict[str, torch.Tensor]:
    parts = nested.items() if isinstance(nested, Mapping) else ()
    named = {f"{part}.{key}": t for part, inner in parts if isinstance(inner, Mapping) for key, t in inner.items()}
    return {key: tensor for key, tensor in named.items() if isinstance(tensor, torch.Tensor)}


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def find_file(source: str | Path, name: str, subfolder: str | None = None, **hub: Any) -> Path:
    """Where a file is: it is `source` itself, in that folder, or fetched from that repository of the Hub.

    Raises:
        OSError: it is not there.
    """
    places = [Path(source), Path(source, name), Path(source, subfolder or "", name)]
    found = next((place for place in places if place.is_file()), None)
    if found is None and Path(source).is_dir():
        raise FileNotFoundError(f"{str(source)!r} has no file {name!r}{f' in {subfolder!r}' if subfolder else ''}.")
    try:
        return found or Path(hf_hub_download(str(source), name, subfolder=subfolder or None, **hub))
    except HFValidationError as error:
        raise FileNotFoundError(f"{str(source)!r} is no file, no folder and no repository's name.") from error


def open_files(sources: list[Any], subfolders: list[Any], names: list[Any], hub: dict[str, Any]) -> list[AdapterFile]:
    """Find and open the checkpoints, one per weight name. A single source or subfolder stands for all."""
    sources = sources * len(names) if len(sources) == 1 else sources
    subfolders = subfolders * len(names) if len(subfolders) == 1 else subfolders
    if not len(names) == len(sources) == len(subfolders):
        raise ValueError(
            "`weight_name`, `subfolder` and `pretrained_model_name_or_path_or_dict` must have the same length, but "
            f"have {len(names)}, {len(subfolders)} and {len(sources)}."
        )
    files = []
    for source, subfolder, name in zip(sources, subfolders, names, strict=True):
        if not isinstance(source, (str, Path, Mapping)):
            raise TypeError(
                "`pretrained_model_name_or_path_or_dict` must be a repository, a folder, a file, a dict or a list "
                f"of them, but is {source!r}."
            )
        if not isinstance(source, Mapping):
            source = find_file(source, name, subfolder, user_agent=USER_AGENT, **hub)
        files.append(AdapterFile(source))
    return files


def hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}


def in_host_words(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a pipeline's loader, with `dtype` under the name that this diffusers has for it."""
    return {PIPELINE_DTYPE if name == "dtype" else name: value for name, value in kwargs.items()}
