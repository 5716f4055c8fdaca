"""The demo on the embedded checkpoint, for the tests of its parts and of its page."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instantstyle.commands import cli
from instantstyle.demo.studio import Studio


ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "examples" / "reference.png"


def demo_options(*words: str) -> argparse.Namespace:
    """Read the options of `instantstyle demo`; on a CPU and without a browser of its own."""
    return cli.read(["demo", "--device", "cpu", "--no-open", *words])


@contextmanager
def served(studio: Studio, library: Path) -> Iterator[str]:
    """Serve the page on a free port; give its address."""
    from instantstyle.demo.server import serve

    with serve(studio, demo_options("--library", str(library))) as address:
        yield address
