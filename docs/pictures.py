"""Make the pictures of these pages, by the commands that the pages show.

python docs/pictures.py [NAME ...]

From the same checkpoint they come out the same, but for rounding: no colour of a pixel is more than `TOLERANCE` away.
What an interrupted evaluation or probe found is kept in `build/pictures`, and is not made again.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from instantstyle.commands import cli


ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
WORK = ROOT / "build" / "pictures"
TOLERANCE = 8  # of 255

ONE = 'grid --reference examples/reference.png --prompt "a heart" --guidance 3.5'
COMMANDS = {
    "quickstart.png": ONE,
    "blocks.png": f"{ONE} --method style=0.5 style all=0.5 all",
    "content.png": f'{ONE} --content "a star" --content-scale 0.5',
    "grid.png": 'grid --wide --method "plain IP-Adapter" InstantStyle '
    '--prompt "a heart" "a star" "a moon" --guidance 3.5',
    "probe.png": "probe",
    "evaluation.png": "evaluate --curves",
}


def make(name: str, work: Path) -> Path:
    """Make one picture.

    Args:
        name: Which of `COMMANDS`.
        work: An existing folder for it and for all else that the command writes.

    Returns:
        The path of the picture, in `work`.
    """
    words = shlex.split(COMMANDS[name])
    output = work / name if words[0] == "grid" else work
    code = cli.main([*words, "-o", str(output)])
    if code:
        sys.exit(code)
    return work / name


def main(names: list[str]) -> None:
    """Make the pictures of these names, by default all."""
    os.chdir(ROOT)  # where the commands find the reference
    for name in names or COMMANDS:
        work = WORK / Path(name).stem
        work.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(make(name, work), IMAGES / name)


if __name__ == "__main__":
    main(sys.argv[1:])
