"""What a picture is made from, as a user of the demo chose it."""

from __future__ import annotations

from dataclasses import dataclass

from instantstyle.inference.request import Reference, Request
from instantstyle.inference.values import Picture


Targets = tuple[tuple[str, float], ...]
STYLE: Targets = (("style", 1.0),)
EVERYTHING: Targets = (("all", 1.0),)
# What a request has by the same name.
PLAIN = (
    *("prompt", "size", "scale", "negative", "guidance", "steps", "seed"),
    *("image", "mask", "strength", "control_image", "controlnet_scale"),
)
STYLE_FILE, CONTENT, AMOUNT = "Style file", "Leave out", "Amount"  # controls that errors name


@dataclass(frozen=True)
class Settings:
    """The settings of one run. Names and meanings are those of the options of `instantstyle generate`.

    Attributes:
        prompt: What to show.
        size: Width and height in pixels.
        references: Whose style to take, ...
        style: ... or else the path of a style file.
        target_blocks: Presets and blocks with their scales.
        scale: Strength of all of them.
        content: What the references show, to be subtracted.
        content_scale: How much of that, or "auto".
        image: What to start from; it and the next two are cropped to `size`.
        mask: The part of `image` to repaint (white).
        control_image: The ControlNet's picture.
        edges: Whether `control_image` is a picture whose edges are to be found first.
        preview: Whether to show pictures while they are made.
    """

    prompt: str
    size: tuple[int, int]
    references: tuple[Reference, ...] = ()
    style: str | None = None
    target_blocks: Targets = STYLE
    scale: float = 1.0
    content: str | None = None
    content_scale: float | str = 1.0
    negative: str | None = None
    guidance: float = 5.0
    steps: int = 30
    num_images: int = 1
    seed: int = 0
    image: Picture | None = None
    mask: Picture | None = None
    strength: float | None = None
    control_image: Picture | None = None
    edges: bool = False
    controlnet_scale: float | None = None
    preview: bool = False

    @property
    def masked(self) -> bool:
        """Whether a reference acts in a part of the result only."""
        return not self.style and any(reference.mask for reference in self.references)

    @property
    def request(self) -> Request:
        """What to paint. What steers the encoding is not for a style file."""
        encoding: tuple[str, ...] = () if self.style else ("target_blocks", "content", "content_scale")
        given = {name: getattr(self, name) for name in (*PLAIN, *encoding)}
        given = {name: value for name, value in given.items() if value is not None}
        edges = self.edges and self.control_image is not None
        return Request(**given, style=self.style or self.references, edges=edges)

    def check(self) -> None:
        """Raise ValueError where something without which nothing can be painted is missing."""
        if not self.prompt.strip():
            raise ValueError("Prompt: it is empty. Say what to show, such as: a heart")
        self.check_style()

    def check_style(self) -> None:
        """Raise ValueError where there is nothing to take a style from."""
        if not self.references and not self.style:
            raise ValueError("Reference: there is neither a picture nor a style file. Give one of them.")
