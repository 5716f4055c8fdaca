"""`python -m training [STAGE ...]`: run the stages that are not done yet."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training.stages import STAGES, run


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run the stages in their order."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help=f"any of {', '.join(STAGES)}; default: all, in order"
    )
    parser.add_argument("--work", type=Path, default=Path("tiny-training"), help="folder of checkpoints and results")
    parser.add_argument("--processes", type=int, default=1, help="processes of one thread each that share every batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="instead of the stage's own number, to try things out elsewhere")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        parser.error(f"no stage is called {', '.join(unknown)}; the stages are {', '.join(STAGES)}")
    for name in options.stages or STAGES:
        done = options.work / "stages" / name / "done"
        if done.exists():
            print(f"{name}: done")
        else:
            run(name, options)


if __name__ == "__main__":
    main()
