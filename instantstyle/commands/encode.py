"""`instantstyle encode`: a style file of reference pictures."""

from __future__ import annotations

import argparse
import sys

from instantstyle.commands.generate import tell_unknown_words
from instantstyle.commands.options import typed
from instantstyle.console import calm
from instantstyle.files import check_output
from instantstyle.inference.inputs import open_picture
from instantstyle.inference.request import Reference, Request


def run(options: argparse.Namespace) -> None:
    """Encode the pictures that the command line names; the path of the style file goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    path = check_output("--output", options.output, ".safetensors", "styles")
    weights = options.weights or [1.0] * len(options.reference)
    if len(weights) != len(options.reference):
        raise ValueError(f"--weights has {len(weights)} numbers for {len(options.reference)} pictures; give one each.")
    pictures = [open_picture("PICTURE", name) for name in options.reference]
    style = [Reference(picture, weight) for picture, weight in zip(pictures, weights, strict=True)]
    request = Request(**{**typed(options, Request), "prompt": "", "style": style})
    with calm(sys.stderr.isatty() and not options.quiet):
        import torch

        from instantstyle.inference.session import Session

        session = Session(options.machine)
        tell_unknown_words(session, [request])
        made = session.encode(request)
    # For painting float16 is as good as float32, in half of the room.
    made.to(getattr(torch, options.machine.dtype or "float16")).save(path)
    print(path)
