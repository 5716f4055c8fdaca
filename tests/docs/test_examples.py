"""The examples: every prompt that documentation and help show is in words that the embedded checkpoint knows."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from documents import examples

from instantstyle.commands import cli
from instantstyle.tiny import world


ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "instantstyle" / "tiny" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def helps() -> dict[str, str]:
    """Return what `--help` shows, by command."""
    parser = cli.build_parser()
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {"instantstyle": parser.format_help()} | {name: one.format_help() for name, one in commands.choices.items()}


TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS} | helps()


@pytest.mark.parametrize("name", TEXTS)
def test_every_example_is_in_words_of_the_world(name):
    assert [example for example in examples(TEXTS[name]) if world.unknown_words(example)] == []


def test_examples_are_found_and_one_in_other_words_would_fail():
    assert all(examples(TEXTS[name]) for name in ("README.md", "instantstyle/tiny/README.md", "generate", "grid"))
    assert examples('a "style", then `--content "a\nboat"`, "an orange ring", "apart"') == ["a boat", "an orange ring"]
    assert world.unknown_words("a boat") == ["boat"]
