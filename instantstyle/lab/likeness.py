"""What can be said about pictures without judges: how alike CLIP finds them to the reference and to the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from instantstyle.core import execution_device


NOTE = (
    "These scores are a proxy, from the pipeline's own CLIP towers. Likeness to the reference (cosine of the image "
    "embeddings) grows with the reference's content and layout as much as with its style, and the adapter was made to "
    "reproduce just this embedding. Likeness to the prompt (cosine of image and text embedding) falls when style "
    "covers the content as well as when content leaks. So they cannot tell style from content: look at the pictures."
)
NO_PROMPT_NOTE = (
    "Likeness to the prompt is left out: no text encoder of this pipeline shares its image encoder's space."
)


class Towers:
    """The CLIP towers of a pipeline.

    Args:
        pipe: A pipeline with an image encoder; where its `text_encoder_2` shares that one's space, prompts count too.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        text: Any = getattr(pipe, "text_encoder_2", None)
        width = pipe.image_encoder.config.projection_dim
        self.sees_prompts = hasattr(text, "text_projection") and text.config.projection_dim == width

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit image embeddings of RGB pictures, float32 of shape (n, d) on the CPU."""
        pixels = self.pipe.feature_extractor(images=list(pictures), return_tensors="pt").pixel_values
        encoder = self.pipe.image_encoder
        return unit(encoder(pixels.to(execution_device(self.pipe), encoder.dtype)).image_embeds)

    @torch.no_grad()
    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit text embeddings, float32 of shape (n, d) on the CPU; long prompts are cut as in the pipeline."""
        tokenizer = self.pipe.tokenizer_2
        ids = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return unit(self.pipe.text_encoder_2(ids.to(execution_device(self.pipe))).text_embeds)


def unit(embeddings: Tensor) -> Tensor:
    """Bring embeddings to length 1."""
    return F.normalize(embeddings.float().cpu(), dim=-1)
