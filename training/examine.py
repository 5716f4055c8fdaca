"""`python -m training.examine`: measure the autoencoder, the towers and the judges of a checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from instantstyle import tiny
from instantstyle.tiny.judges import Judges
from training import clip, judges, vae


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and print what was measured, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.examine", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=tiny.path(), help="its folder; default: the embedded one")
    options = parser.parse_args(arguments)
    print(json.dumps(examine(options.checkpoint), indent=2))


def examine(checkpoint: Path) -> dict[str, Any]:
    """Return decibels of reconstructions, and parts of drawings named rightly by the towers and by the judges."""
    autoencoder = AutoencoderKL.from_pretrained(checkpoint / "vae")
    texts = CLIPTextModelWithProjection.from_pretrained(checkpoint / "text_encoder_2")
    images = CLIPVisionModelWithProjection.from_pretrained(checkpoint / "sdxl_models" / "image_encoder")
    return {
        "autoencoder": {"decibels": vae.decibels(autoencoder)},
        "nearest text": clip.zero_shot(lambda pictures: images(clip.normalise(pictures)).image_embeds, texts),
        "judges": judges.examine(Judges.load(checkpoint), autoencoder),
    }


if __name__ == "__main__":
    main()
