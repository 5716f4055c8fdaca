"""`instantstyle demo`: InstantStyle in a browser."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

from instantstyle.console import calm, need


def run(options: argparse.Namespace) -> None:
    """Load the models and serve the page until it is interrupted; its address goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake, or Gradio is missing.
    """
    need("gradio", "demo", "demo is made with Gradio")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with calm(sys.stderr.isatty()):
        from instantstyle.demo.server import serve
        from instantstyle.demo.studio import Studio

        studio = Studio(options.machine)
    where = {"host": options.host, "port": options.port, "share": options.share, "browse": options.open}
    with serve(studio, Path(options.library), **where) as address:
        print(address, flush=True)
        wait()


def wait() -> None:
    """Wait for an interrupt."""
    threading.Event().wait()
