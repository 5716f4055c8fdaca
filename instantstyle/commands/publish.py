"""`instantstyle publish`: the plugin's repository, on the Hub."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from instantstyle.commands.export import TYPED, chosen
from instantstyle.commands.options import called
from instantstyle.console import calm, table
from instantstyle.hub import publish
from instantstyle.hub.upload import list_files


def run(options: argparse.Namespace) -> None:
    """Publish, or list what would be; the commit's address or the list goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake, or what the Hub does not allow.
    """
    bars = sys.stderr.isatty() and not options.quiet
    with calm(bars), called(**TYPED):
        asked = {"revision": options.revision, "bars": bars}
        if options.dry_run:
            print(listing(list_files(options.repo_id, chosen(options), **asked)))
        else:
            print(publish(options.repo_id, chosen(options), private=options.private, **asked))


def listing(sizes: Mapping[str, int]) -> str:
    """Write files with their sizes as a table."""
    rows = [*sorted(sizes.items()), (f"{len(sizes)} files", sum(sizes.values()))]
    return table([[name, f"{size / 1e3:,.1f} kB"] for name, size in rows], right=(1,))
