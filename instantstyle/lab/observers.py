"""Observers: what looks at the pictures of a probe, a person at examples or the judges at drawn pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from instantstyle import tiny
from instantstyle.inference.request import Request
from instantstyle.inference.session import Session
from instantstyle.inference.values import Picture
from instantstyle.lab.conditions import Condition
from instantstyle.lab.findings import Finding, Groups
from instantstyle.lab.metrics import estimate, score
from instantstyle.lab.pairs import sample_pairs
from instantstyle.lab.pictures import make_pictures
from instantstyle.lab.proposal import Proposal, propose
from instantstyle.tiny.judges import Judges
from instantstyle.tiny.world import PIXELS, reference_pictures, to_picture


SHOWN = 6  # of the drawn pairs in the picture
SPLIT = "selection"

Progress = Callable[[int], object]
"""Is told how many pictures were made."""


class Observer(Protocol):
    """What shows groups the reference, and looks at what comes of it.

    Attributes:
        shown: Reference and prompt of the pictures that are kept.
        count: Pictures of one look.
        settings: What decides the pictures beside the model: names and fingerprints, but no local path.
    """

    shown: list[tuple[Image.Image, str]]
    count: int
    settings: dict[str, Any]

    def look(self, groups: Groups, progress: Progress) -> Finding:
        """Make the pictures in which these groups see the reference."""

    def propose(self, scores: Mapping[Groups, Mapping[str, float]]) -> Proposal:
        """Conclude from the means, or ask for more."""


class Viewer:
    """A person, who looks at examples. Nothing is measured, and nothing concluded.

    Args:
        session: What paints.
        examples: References, as `Request` takes them, with prompts.
        base: Seed, and steps and guidance if they are not the usual ones.

    Raises:
        ValueError, OSError: A reference is a style file, or cannot be read.
    """

    def __init__(self, session: Session, examples: Sequence[tuple[Any, str]], base: Request) -> None:
        self.session = session
        completed = [session.complete(base.but(prompt=prompt, style=reference)) for reference, prompt in examples]
        self.requests = [session.reader.opened(request) for request in completed]
        pictures = [reference_of(request) for request in self.requests]
        self.shown = [(one.image, request.prompt) for one, request in zip(pictures, self.requests, strict=True)]
        self.count = len(self.shown)
        first = self.requests[0]
        self.settings = {
            "examples": [
                {"reference": one.written, "prompt": request.prompt}
                for one, request in zip(pictures, self.requests, strict=True)
            ],
            "seed": first.seed,
            "steps": first.steps,
            "guidance": first.guidance,
        }

    def look(self, groups: Groups, progress: Progress) -> Finding:
        """Paint every example."""
        seen: dict[str, Any] = {"target_blocks": groups} if groups else {"style": ()}
        pictures = []
        for request in self.requests:
            pictures.append(self.session.paint([request.but(**seen)])[0].image)
            progress(1)
        return Finding(groups, pictures)

    def propose(self, scores: Mapping[Groups, Mapping[str, float]]) -> Proposal:
        """Leave it to the person."""
        return Proposal()


def reference_of(request: Request) -> Picture:
    """Return the picture that blocks may see.

    Raises:
        ValueError: It is a style file, whose blocks are chosen already.
    """
    (reference,) = request.style
    if not isinstance(reference.picture, Picture):
        raise ValueError("`examples`: a style file is encoded for some blocks already; give the picture instead.")
    return reference.picture


class Jury:
    """The judges of a model of the drawn world, who look at pairs that are drawn.

    Args:
        session: What paints.
        pairs: How many pairs, of the selection split.
        base: Seed, and steps and guidance if they are not those of `tiny.SAMPLING`.
    """

    def __init__(self, session: Session, pairs: int, base: Request) -> None:
        self.session, self.judges = session, Judges.load(session.model.source)
        self.pairs, self.count = sample_pairs(pairs, SPLIT), pairs
        drawn = reference_pictures(self.pairs.references[:SHOWN], PIXELS)
        self.shown = [(picture, self.pairs.prompt(row)) for row, picture in enumerate(drawn)]
        given = {name: value for name, value in base.given.items() if name in tiny.SAMPLING and value is not None}
        self.sampling = {**tiny.SAMPLING, **given}
        self.seed = base.seed or 0
        self.settings = {"split": SPLIT, "pairs": pairs, "seed": self.seed, **self.sampling}

    def look(self, groups: Groups, progress: Progress) -> Finding:
        """Make a picture of every pair, and have it judged."""
        condition = Condition("seen", "adapter" if groups else "none", target_blocks=list(groups))
        made = make_pictures(self.session, condition, self.pairs, [self.seed], **self.sampling, progress=progress)
        pictures = made[:, 0].cpu()
        scores = {name: one.to_json() for name, one in estimate(score(self.judges(pictures), self.pairs)).items()}
        return Finding(groups, [to_picture(picture) for picture in pictures[:SHOWN]], scores)

    def propose(self, scores: Mapping[Groups, Mapping[str, float]]) -> Proposal:
        """Conclude as `proposal.propose` does."""
        return propose(scores)
