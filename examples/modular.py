"""Paint a heart in the style of `reference.png`, with the blocks and a guider of Modular Diffusers.

python examples/modular.py heart.png
"""

import sys
from pathlib import Path

import torch
from diffusers import AdaptiveProjectedGuidance
from diffusers.utils import load_image

from instantstyle import tiny
from instantstyle.pipelines.modular import InstantStyleXLBlocks, variant_of


MODEL = str(tiny.path())


def main(target: str) -> None:
    """Write the picture."""
    pipe = InstantStyleXLBlocks().init_pipeline(MODEL)
    pipe.load_components(workflow="text2image")
    variant_of(pipe).load_ip_adapter(MODEL, subfolder="sdxl_models", weight_name="ip-adapter_sdxl.safetensors")
    pipe.update_components(guider=AdaptiveProjectedGuidance(guidance_scale=3.5))
    images = pipe(
        prompt="a heart",
        ip_adapter_image=load_image(str(Path(__file__).with_name("reference.png"))),
        num_inference_steps=30,
        generator=torch.Generator().manual_seed(0),
        output="images",
    )
    images[0].save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
