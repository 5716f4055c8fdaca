"""The edges of a picture, as ControlNets for them expect: thin, white on black."""

from __future__ import annotations

import numpy as np
from PIL import Image

from instantstyle.console import need


WEAK, STRONG = 50, 200  # of the gradient of eight bits, as InstantStyle's own demo has them


def find_edges(picture: Image.Image) -> Image.Image:
    """Find edges as J. Canny does ("A Computational Approach to Edge Detection", 1986), with OpenCV.

    Args:
        picture: Any picture.

    Returns:
        A picture of the same size in RGB.

    Raises:
        ValueError: OpenCV is missing.
    """
    need("cv2", "demo", "edges are found with OpenCV")
    import cv2

    return Image.fromarray(cv2.Canny(np.asarray(picture.convert("RGB")), WEAK, STRONG)).convert("RGB")
