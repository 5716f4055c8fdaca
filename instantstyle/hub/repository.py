"""The plugin's Hub repository, as a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instantstyle.core import write_code
from instantstyle.hub.card import write_card
from instantstyle.hub.checkpoint import Checkpoint, Take, copy_checkpoint, parts
from instantstyle.hub.gallery import write_gallery
from instantstyle.pipelines import variants
from instantstyle.version import require


ANYONE = "someone/instantstyle"  # in the card's examples, where no name is given yet
BASE = "stabilityai/stable-diffusion-xl-base-1.0"
BASE_PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")


def export(folder: str | os.PathLike[str], checkpoint: Checkpoint | None = None, bars: bool = False) -> Path:
    """Write what `publish` uploads into a folder.

    Args:
        folder: A new or an empty folder.
        checkpoint: What to put beside the plugin, as `find_checkpoint` finds it.
        bars: Whether to show progress.

    Returns:
        The folder.

    Raises:
        ValueError: Something is in the folder, or it cannot be made.

    Example:
        >>> export("repository", find_checkpoint("tiny"))
    """
    target = check_folder(folder)
    with whole(target) as scratch:
        write_repository(scratch, ANYONE, None, checkpoint, shutil.copyfile, bars)
    return target


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Refuse a folder that something is in, or that cannot be made: what is left over in it would be published."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"`folder`: {path} is there already; name a new or an empty folder.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"`folder`: the folder {path.parent} does not exist.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ValueError(f"`folder`: {path} cannot be written.")
    return path


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Give a scratch folder that takes the place of `folder`, which is new or empty, when the block ends well."""
    folder = folder.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        yield made
        if folder.exists():  # on Windows nothing takes the place of a folder
            folder.rmdir()
        made.replace(folder)


def write_repository(
    folder: Path, repo_id: str, revision: str | None, checkpoint: Checkpoint | None, take: Take, bars: bool
) -> None:
    """Write everything that the repository holds into an empty folder.

    Args:
        folder: The folder.
        repo_id: OWNER/NAME, for the card's examples.
        revision: The branch that they load; by default `main`.
        checkpoint: What to publish beside the plugin, if anything.
        take: How the checkpoint's files come there.
        bars: Whether to show progress.

    Raises:
        ValueError: diffusers is too old for its modular blocks.
    """
    require("diffusers", (0, 40), "a repository, which holds blocks for Modular Diffusers,")
    written = write_variants(folder)
    write_modular(folder, repo_id, revision, checkpoint)
    if checkpoint is not None:
        copy_checkpoint(checkpoint, folder, write_code(checkpoint.host, folder), take)
    widget = write_gallery(folder, bars)
    write_card(folder / "README.md", repo_id, revision, written, widget, checkpoint)


def write_modular(folder: Path, repo_id: str, revision: str | None, checkpoint: Checkpoint | None) -> None:
    """Write the blocks for Modular Diffusers, and the index that `ModularPipeline.from_pretrained` looks for.

    It says where the components are: in the repository, if its checkpoint is of the blocks' family, or else in the
    base model.
    """
    from instantstyle.pipelines.modular import InstantStyleXLBlocks

    blocks = InstantStyleXLBlocks()
    blocks.save_pretrained(folder)
    pipe = blocks.init_pipeline()
    own = checkpoint.index if checkpoint is not None and checkpoint.family == "sdxl" else {}
    source = {"pretrained_model_name_or_path": repo_id if own else BASE, "revision": revision if own else None}
    for name in pipe.config.keys() & set(parts(own) if own else BASE_PARTS):
        library, kind, spec = pipe.config[name]
        spec = spec | source | {"subfolder": name} | ({"type_hint": own[name]} if own else {})
        pipe.register_to_config(**{name: (library, kind, spec)})
    pipe.save_config(folder)


def write_variants(folder: Path) -> dict[str, str]:
    """Write the plugin as `pipeline.py`, which `custom_pipeline="OWNER/NAME"` loads, and what loads all variants.

    Returns:
        Class -> file that loads it.
    """
    others = [cls for cls in vars(variants).values() if getattr(cls, "__module__", None) == variants.__name__]
    every = [variants.StableDiffusionXLInstantStylePipeline, *others]
    entries = [write_code(variant._instantstyle_host, folder) for variant in every]
    shutil.copyfile(folder / "pipeline_instantstyle.py", folder / "pipeline.py")
    return {name: f"{module}.py" for module, name in entries}
