"""`instantstyle export`: the plugin's Hub repository, as a folder."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instantstyle.console import calm
from instantstyle.hub.checkpoint import Checkpoint, Take, copy_checkpoint, find_checkpoint
from instantstyle.version import require


ANYONE = "someone/instantstyle"  # in the card's examples, where no name is given yet


def run(options: argparse.Namespace) -> None:
    """Write the folder that the command line names; its path goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    folder = check_folder(options.folder)
    bars = sys.stderr.isatty() and not options.quiet
    with calm(bars), whole(folder) as scratch:
        write_repository(scratch, ANYONE, None, chosen(options), shutil.copyfile, bars)
    print(folder)


def check_folder(text: str) -> Path:
    """Refuse a folder that something is in, or that cannot be made: what is left over in it would be published."""
    folder = Path(text)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"FOLDER: {text} is there already; name a new or an empty folder.")
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"FOLDER: the folder {folder.parent} does not exist.")
    if not os.access(folder.absolute().parent, os.W_OK):
        raise ValueError(f"FOLDER: {text} cannot be written.")
    return folder


def chosen(options: argparse.Namespace) -> Checkpoint | None:
    """Find what `--checkpoint` names, and say so where nobody has named its license."""
    if options.checkpoint is None:
        return None
    checkpoint = find_checkpoint(options.checkpoint)
    if checkpoint.terms["license"] == "unknown":
        print(
            f"instantstyle: {options.checkpoint} has no README.md whose metadata names its license; "
            'the card says "unknown".',
            file=sys.stderr,
        )
    return checkpoint


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
    from instantstyle.core import write_code
    from instantstyle.hub.card import write_card
    from instantstyle.hub.gallery import write_gallery
    from instantstyle.pipelines.modular import InstantStyleXLBlocks

    variants = write_variants(folder)
    InstantStyleXLBlocks().save_pretrained(folder)
    if checkpoint is not None:
        copy_checkpoint(checkpoint, folder, write_code(checkpoint.host, folder), take)
    widget = write_gallery(folder, bars)
    write_card(folder / "README.md", repo_id, revision, variants, widget, checkpoint)


def write_variants(folder: Path) -> dict[str, str]:
    """Write the plugin as `pipeline.py`, which `custom_pipeline="OWNER/NAME"` loads, and what loads all variants.

    Returns:
        Class -> file that loads it.
    """
    from instantstyle.core import write_code
    from instantstyle.pipelines import variants

    others = [cls for cls in vars(variants).values() if getattr(cls, "__module__", None) == variants.__name__]
    every = [variants.StableDiffusionXLInstantStylePipeline, *others]
    entries = [write_code(variant._instantstyle_host, folder) for variant in every]
    shutil.copyfile(folder / "pipeline_instantstyle.py", folder / "pipeline.py")
    return {name: f"{module}.py" for module, name in entries}
