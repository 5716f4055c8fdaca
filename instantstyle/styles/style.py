"""Style: an encoded style as a value and as a file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub import HfApi

from instantstyle.styles import file
from instantstyle.styles.file import SUFFIX
from instantstyle.styles.provenance import Provenance


FILE_NAME = "style.safetensors"  # in a repository or folder


@dataclass(frozen=True, eq=False)
class Style:
    """A reference, encoded: what an IP-Adapter's blocks would make of it, and how it was made.

    Keys and values of the image tokens depend on the reference and the adapter only; they serve every checkpoint of
    the family. Do not write into the tensors.

    Attributes:
        tensors: For each layer `LAYER.keys` and `LAYER.values` of shape `(2, tokens, width)`, row 0 unconditional and
            row 1 conditional; for adapters of one global embedding also that: `embeds`, of shape `(2, d)`.
        recipe: What it was made of.

    Raises:
        ValueError: The tensors are not what the recipe says, or not finite.

    Example:
        >>> style = Style.load("pink-dots.safetensors")
        >>> with style.applied(stock_pipe, scale=0.8):
        ...     stock_pipe("a heart").images[0]
    """

    tensors: Mapping[str, torch.Tensor]
    recipe: Provenance

    def __post_init__(self) -> None:
        tensors = MappingProxyType(dict(self.tensors))
        layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        try:
            file.check_layout(layout, self.recipe)
            file.check_finite(tensors)
        except ValueError as error:
            raise ValueError(f"`tensors` make no style: {error}.") from error
        object.__setattr__(self, "tensors", tensors)

    def __reduce__(self) -> Any:
        return Style, (dict(self.tensors), self.recipe)

    @property
    def layers(self) -> list[str]:
        """The layers that see the style."""
        return list(self.recipe.scales)

    @property
    def tokens(self) -> int:
        """The number of image tokens."""
        return self.tensors[f"{self.layers[0]}.keys"].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The type of keys and values."""
        return self.tensors[f"{self.layers[0]}.keys"].dtype

    def width(self, layer: str) -> int:
        """The width of a layer's keys and values."""
        return self.tensors[f"{layer}.keys"].shape[2]

    def to(self, dtype: torch.dtype) -> Style:
        """The style in another type: float16 halves the file of one encoded in float32."""
        return Style({name: tensor.to(dtype) for name, tensor in self.tensors.items()}, self.recipe)

    # As a file

    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file with the recipe in its metadata. It appears whole or not at all.

        Raises:
            ValueError: `path` does not end in `.safetensors`.
            OSError: It cannot be written.
        """
        if Path(path).suffix != SUFFIX:
            raise ValueError(f"`path` must end in {SUFFIX}, but is {str(path)!r}.")
        file.write(path, self.tensors, self.recipe)

    @classmethod
    def load(cls, path_or_repo_id: str | Path, filename: str = FILE_NAME, **kwargs: Any) -> Style:
        """Read a file, a folder's or a Hub repository's `style.safetensors`. Nothing in it can run.

        A file of a repository is downloaded whole before it is looked at.

        Args:
            path_or_repo_id: A file (what ends in `.safetensors`), a folder, or OWNER/NAME.
            filename: The file in a folder or repository.
            kwargs: For the Hub: `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Raises:
            OSError: It is not there.
            ValueError: It is damaged, no style, or of another format.
        """
        path = Path(path_or_repo_id)
        if path.suffix == SUFFIX and not path.exists():  # or else a stranger's repository is asked for
            raise FileNotFoundError(f"`path_or_repo_id` {str(path)!r}: there is no such file.")
        if not path.is_file():
            from instantstyle.core import find_file

            path = find_file(path_or_repo_id, filename, **kwargs)
        return cls(*file.read(path))

    def push_to_hub(
        self, repo_id: str, filename: str = FILE_NAME, token: str | None = None, private: bool | None = None
    ) -> str:
        """Upload the file to a Hub repository, which is made if it is not there.

        Args:
            repo_id: OWNER/NAME.
            filename: Its name in the repository.
            token: By default that of `HF_TOKEN` or of `hf auth login`.
            private: Whether nobody else may see a repository that is made.

        Returns:
            The URL of the commit.

        Raises:
            HfHubHTTPError: The Hub refuses it.
        """
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, FILE_NAME)
            self.save(path)
            return str(api.upload_file(path_or_fileobj=path, path_in_repo=filename, repo_id=repo_id))

    # On a pipeline

    # A style is read without the pipelines, which take seconds to import; they come with its use.

    def applied(self, pipe: Any, scale: float = 1.0) -> AbstractContextManager[Any]:
        """`with style.applied(pipe): pipe("a heart")`: see `apply.applied`."""
        from instantstyle.styles.apply import applied

        return applied(pipe, self, scale)

    @staticmethod
    def build_adapter(*arguments: Any) -> Any:
        """What a pipeline's call asks of a style: see `apply.build_adapter`."""
        from instantstyle.styles.apply import build_adapter

        return build_adapter(*arguments)

    # Arithmetic

    @classmethod
    def blend(cls, styles: Sequence[Style], weights: Sequence[float] | None = None, pipe: Any = None) -> Style:
        """Mix styles into one.

        With `pipe`, a variant with the adapter that encoded them, their image embeddings are mixed and encoded again,
        as if one picture had that embedding. Without, the keys and values are mixed, which is near it but not the
        same: a LayerNorm lies between. The unconditional rows stay what they were. In both, the styles must be of one
        adapter and have the same blocks and scales; a tuple of styles combines others in one picture.

        Args:
            styles: Two or more; also one.
            weights: A number for each, divided by their sum; below 0 or above 1 extrapolates. By default all the same.
            pipe: A variant with the adapter at hand, or None.

        Raises:
            ValueError, TypeError: The styles do not fit each other, the weights or the adapter; `pipe` is no variant.
            RuntimeError: A style is applied to `pipe`.
        """
        first, parts = _alike(styles), shares(weights, len(styles), "`styles`")
        weighted = zip(styles, parts, strict=True)
        sources = tuple(replace(s, weight=s.weight * part) for style, part in weighted for s in style.recipe.sources)
        recipe = replace(first.recipe, sources=sources)
        if pipe is not None:
            from instantstyle.styles.projection import project_again

            embeds = _mix(styles, parts, ["embeds"])["embeds"]
            tensors, dtype = project_again(pipe, recipe.adapter, embeds, recipe.scales)
            return cls(tensors, replace(recipe, dtype=dtype))
        return cls(_mix(styles, parts, list(first.tensors)), recipe)

    @classmethod
    def interpolate(cls, first: Style, second: Style, count: int, pipe: Any = None) -> list[Style]:
        """`count` styles in even steps from one to the other, both included: a style for each prompt of a batch.

        Args:
            first, second, pipe: See `blend`.
            count: At least 2.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise ValueError(f"`count` must be a whole number of at least 2, but is {count!r}.")
        steps = [number / (count - 1) for number in range(count)]
        return [cls.blend([first, second], [1 - step, step], pipe) for step in steps]


def _alike(styles: Sequence[Style]) -> Style:
    for style in styles:
        if not isinstance(style, Style):
            raise TypeError(f"`styles` must hold styles, but holds {style!r:.80}.")
    if not styles:
        raise ValueError("`styles` is empty. Pass the styles to blend.")
    first = styles[0]
    for style in styles:
        for name in ("family", "text_width", "scales", "adapter", "image_encoder"):
            if getattr(style.recipe, name) != getattr(first.recipe, name):
                raise ValueError(
                    f"`styles` must be of one adapter, with the same blocks and scales, but differ in {name!r}. "
                    "Encode them alike, or combine them in one picture as a tuple: `pipe(prompt, style=(a, b))`."
                )
        if style.tensors.keys() != first.tensors.keys() or style.tokens != first.tokens:
            raise ValueError("`styles` must have the same tensors, but differ in them. Encode them alike.")
    return first


def _mix(styles: Sequence[Style], parts: Sequence[float], names: Sequence[str]) -> dict[str, torch.Tensor]:
    mixed = {}
    for name in names:
        if name not in styles[0].tensors:
            raise ValueError(f"`styles` hold no {name!r}, so only keys and values can be blended: without `pipe`.")
        first, parted = styles[0].tensors[name], zip(styles, parts, strict=True)
        sum_ = torch.stack([part * style.tensors[name].float() for style, part in parted]).sum(0)
        mixed[name] = torch.cat([first[:1], sum_[1:].to(first.dtype)])
    return mixed


def shares(weights: Sequence[float] | None, count: int, of: str) -> list[float]:
    """Divide `weights` by their sum; None means that all `count` are the same.

    Args:
        weights: A finite number for each.
        count: How many there must be.
        of: The argument whose entries they weigh, for errors.

    Raises:
        TypeError, ValueError: Another number of weights, something that is no finite number, or a sum not above 0.
    """
    given = [1.0] * count if weights is None else weights
    if not isinstance(given, (list, tuple)) or any(isinstance(w, bool) or not isinstance(w, Real) for w in given):
        raise TypeError(f"`weights` must be a list of numbers, but is {weights!r}.")
    if len(given) != count:
        raise ValueError(f"`weights` must have a number for each of the {count} in {of}, but has {len(given)}.")
    total = math.fsum(given)
    if not math.isfinite(total) or total <= 0:
        raise ValueError(f"`weights` must be finite and have a sum above 0, but are {list(given)!r}.")
    return [float(weight) / total for weight in given]
