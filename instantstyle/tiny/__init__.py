"""The embedded checkpoint: an SDXL pipeline small enough to try everything on a CPU in seconds.

It was trained on a world that `instantstyle.tiny.world` draws: one shape on a plain ground. The training itself is not
in the package: it is in the folder `training` of the sources.
`instantstyle.tiny.judges` says what a picture of the world shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


SAMPLING: dict[str, Any] = {"steps": 16, "guidance": 3.5}
"""What its pictures are measured with."""


def path() -> Path:
    """Return the folder of the embedded checkpoint.

    The folder has the layout of an SDXL repository. Inside it are also an IP-Adapter
    (`sdxl_models/ip-adapter_sdxl.safetensors` with `sdxl_models/image_encoder`), a ControlNet on edges (`controlnet`)
    and the judges' weights (`judges.safetensors`).
    """
    return Path(__file__).with_name("weights")
