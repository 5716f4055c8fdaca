"""Files: written whole, with nobody holding what they replace, and found under the names that every system gives."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest

from instantstyle import files


def test_a_file_that_is_held_would_not_be_replaced_on_windows(tmp_path: Path) -> None:
    """The suite writes all files under this rule; here is one that breaks it."""
    path = tmp_path / "kept.txt"
    with files.atomically(path) as scratch:
        Path(scratch).write_text("first")
    with path.open(), pytest.raises(AssertionError, match="is open"), files.atomically(path) as scratch:
        Path(scratch).write_text("second")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("first", [path])


@pytest.mark.parametrize(
    ("text", "split"),
    [
        (r"C:\models", (r"C:\models", "default")),
        (r"C:\models\missing.safetensors", (r"C:\models\missing.safetensors", "default")),
        (r"C:\models:sdxl\adapter.safetensors", (r"C:\models", "sdxl/adapter.safetensors")),
        ("models:adapter.bin", ("models", "adapter.bin")),
        ("owner/name:sdxl/adapter.bin", ("owner/name", "sdxl/adapter.bin")),
    ],
)
def test_a_drive_is_part_of_a_folder(text: str, split: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its colon does not separate a folder from a file in it."""
    monkeypatch.setattr(files, "Path", PureWindowsPath)
    assert files.split_file(text, "default") == split
