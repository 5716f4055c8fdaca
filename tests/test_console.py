"""The console: what is printed arrives, wherever it goes."""

from __future__ import annotations

import io
import sys

import pytest

from instantstyle.commands import cli, show


def test_a_pipe_of_few_letters_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a pipe has the letters of one language; the others are escaped, and nothing fails."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252", newline="\n"))
    monkeypatch.setattr(show, "run", lambda _: print("caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{MINUS SIGN}1"))
    assert cli.main(["show", "style.safetensors"]) == 0
    sys.stdout.flush()
    assert written.getvalue() == b"caf\xe9 \\u22121\n"
