"""`instantstyle export`: the plugin's Hub repository, as a folder."""

from __future__ import annotations

import argparse
import sys

from instantstyle.commands.options import called
from instantstyle.console import calm
from instantstyle.hub import export, find_checkpoint
from instantstyle.hub.checkpoint import Checkpoint


TYPED = {"folder": "FOLDER", "repo_id": "REPO_ID", "private": "--private"}
TYPED |= dict.fromkeys(("checkpoint", "model"), "--checkpoint")
"""Argument -> what is typed for it."""


def run(options: argparse.Namespace) -> None:
    """Write the folder that the command line names; its path goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    bars = sys.stderr.isatty() and not options.quiet
    with calm(bars), called(**TYPED):
        print(export(options.folder, chosen(options), bars))


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
