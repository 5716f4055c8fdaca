"""Draw `reference.png`: one star, in a style that is easy to recognise, from the world of the embedded checkpoint.

python examples/make_reference.py
"""

from pathlib import Path

import torch
from PIL import Image

from instantstyle.tiny import world


SIZE = 512


def main() -> None:
    """Draw the picture beside this file."""
    words = {"shape": "star", "palette": "pink", "background": "navy", "texture": "dotted"}
    named = {name: torch.tensor([world.NAMES[name].index(word)]) for name, word in words.items()}
    layout = {"x": 30.0, "y": 34.0, "size": 22.0, "angle": 0.15, "line": 2.2}
    scene = world.Scenes(**named, **{name: torch.tensor([value]) for name, value in layout.items()})
    picture = (world.draw(scene, SIZE)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(Path(__file__).with_name("reference.png"), optimize=True)


if __name__ == "__main__":
    main()
