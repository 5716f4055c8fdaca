"""How Sphinx builds these pages: `sphinx-build -W -n -b html docs docs/_build`."""

from __future__ import annotations

import argparse
from functools import partial

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from instantstyle.commands import cli
from instantstyle.version import __version__


project = html_title = "InstantStyle for diffusers"
author = copyright = "The InstantStyle for diffusers authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_show_sphinx = False

myst_heading_anchors = 3
default_role = "code"  # docstrings write names between single backticks
autodoc_member_order = "bysource"
# Names of other libraries would be looked up on the network; ours must be found.
nitpick_ignore_regex = [("py:.*", r"(?!instantstyle\.|pipeline_instantstyle\.).*")]

WIDTH = 92  # letters in a line of help
PAGES = {  # READMEs elsewhere in the repository -> the page that includes them
    "../instantstyle/tiny/README.md": "reference/tiny.md",
    "../benchmarks/README.md": "reference/benchmarks.md",
}


class Commands(SphinxDirective):
    """A section for each command, with what its `--help` says."""

    def run(self) -> list[nodes.Node]:
        """Ask the parser of the command line."""
        (commands,) = [
            action for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction)
        ]
        return [command_section(name, parser) for name, parser in commands.choices.items()]


def command_section(name: str, parser: argparse.ArgumentParser) -> nodes.section:
    """Make the section of one command."""
    parser.formatter_class = partial(argparse.HelpFormatter, width=WIDTH)
    title, text = f"instantstyle {name}", parser.format_help()
    section = nodes.section(ids=[nodes.make_id(title)], names=[nodes.fully_normalize_name(title)])
    section += nodes.title(title, title)
    section += nodes.literal_block(text, text, language="text")
    return section


def link_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links to READMEs, which serve those who read the sources, into links to the pages that include them."""
    for readme, page in PAGES.items():
        source[0] = source[0].replace(f"]({readme}", f"]({page}")


def hide_constructors(app: Sphinx, what: str, *rest: object) -> tuple[str, None] | None:
    """Show classes by their names: pipelines come from `from_pretrained`, styles from `encode_style`."""
    return ("", None) if what == "class" else None


def setup(app: Sphinx) -> None:
    """Add what the pages need."""
    app.connect("autodoc-process-signature", hide_constructors)
    app.add_directive("commands", Commands)
    app.connect("source-read", link_pages)
