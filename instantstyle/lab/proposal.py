"""Which attention groups carry style and layout, concluded from how pictures score when they see the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


Groups = tuple[str, ...]
"""The attention groups that see the reference, in the UNet's order."""

Table = Mapping[Groups, Mapping[str, float]]
"""Groups -> metric -> mean. `()` is without a reference; the longest entry names all groups, in their order."""

STYLE = ("palette", "background", "texture")
LEAST_CONTENT_RIGHT = 0.96
MOST_CONTENT_LEAKED = 0.015
LEAST_STYLE_GAIN = 0.01
LEAST_LAYOUT_DROP = 0.5  # pixels, below which the centre's distance has not dropped


@dataclass(frozen=True)
class Proposal:
    """What was concluded.

    Attributes:
        style, layout: The groups proposed for each preset; empty where none is.
        wanted: What must be measured before the conclusion is final; empty when it is.
        reasons: Why, in sentences.
    """

    style: Groups = ()
    layout: Groups = ()
    wanted: tuple[Groups, ...] = ()
    reasons: tuple[str, ...] = ()


def propose(scores: Table) -> Proposal:
    """Propose presets from the judges' scores.

    Style grows from nothing, each time by the group that adds most (the mean of palette, background and texture
    match), as long as content stays right in 0.96 and leaks in at most 0.015 of the pictures and 0.01 is added. Layout
    is the group outside style that brings the shape's centre nearest to the reference's.

    Args:
        scores: At least `()`, all groups, and each group alone, with `palette`, `background`, `texture`,
            `content_right` and `content_leaked` (shares) and `distance` (pixels).

    Raises:
        ValueError: One of those entries is missing.

    Example:
        >>> while (proposal := propose(scores)).wanted:
        ...     scores |= {groups: measure(groups) for groups in proposal.wanted}
    """
    every = check(scores)
    style: Groups = ()
    reasons: list[str] = []
    while len(style) < len(every):
        larger = [order(every, {*style, group}) for group in every if group not in style]
        if wanted := tuple(groups for groups in larger if groups not in scores):
            return Proposal(style=style, wanted=wanted, reasons=tuple(reasons))
        best = max(
            filter(lambda groups: keeps_content(scores[groups]), larger),
            key=lambda g: style_of(scores[g]),
            default=None,
        )
        gain = style_of(scores[best]) - style_of(scores[style]) if best else 0.0
        if best is None or gain < LEAST_STYLE_GAIN:
            reasons.append(why_style_ends(best, style, gain))
            break
        (added,) = set(best) - set(style)
        reasons.append(f"{added} adds {gain:.3f} to the style match, now {style_of(scores[best]):.3f}.")
        style = best
    layout, reason = find_layout(scores, every, style)
    return Proposal(style=style, layout=layout, reasons=(*reasons, reason))


def check(scores: Table) -> Groups:
    """Return all groups, and refuse a table without the entries that every conclusion needs."""
    every = max(scores, key=len, default=())
    missing = [groups for groups in [(), *((group,) for group in every)] if groups not in scores]
    if not every or missing:
        raise ValueError(f"`scores` must hold (), each group and all groups; {missing or 'all groups'} is missing.")
    return every


def order(every: Groups, chosen: Iterable[str]) -> Groups:
    """Put groups into the UNet's order."""
    chosen = set(chosen)
    return tuple(group for group in every if group in chosen)


def style_of(scores: Mapping[str, float]) -> float:
    """Return the mean match of the attributes of style."""
    return sum(scores[name] for name in STYLE) / len(STYLE)


def keeps_content(scores: Mapping[str, float]) -> bool:
    """Whether the prompt's content is shown and the reference's is not."""
    return scores["content_right"] >= LEAST_CONTENT_RIGHT and scores["content_leaked"] <= MOST_CONTENT_LEAKED


def why_style_ends(best: Groups | None, style: Groups, gain: float) -> str:
    """Say why no group is added."""
    limits = f"content right at least {LEAST_CONTENT_RIGHT} and leaked at most {MOST_CONTENT_LEAKED}"
    which = "No other group" if style else "No group"
    if best is None:
        return f"{which} keeps {limits}."
    return f"{which} within {limits} adds {LEAST_STYLE_GAIN}; the best adds {gain:.3f}."


def find_layout(scores: Table, every: Groups, style: Groups) -> tuple[Groups, str]:
    """Find the group outside style that brings the centre nearest to the reference's, and say by how much."""
    drops = {g: scores[()]["distance"] - scores[(g,)]["distance"] for g in every if g not in style}
    best = max(drops, key=lambda group: drops[group], default=None)
    if best is None or drops[best] < LEAST_LAYOUT_DROP:
        return (), f"No group outside style brings the centre {LEAST_LAYOUT_DROP} pixels nearer to the reference's."
    return (best,), f"{best} brings the centre {drops[best]:.1f} pixels nearer to the reference's."


def propose_by_proxy(scores: Table) -> Proposal:
    """Propose a style block from CLIP's similarities, which is a proposal to look at, no finding.

    It is the group with most likeness to the reference gained and least likeness to the prompt lost, each as a share
    of what all groups together gain and lose. Layout is not proposed: these similarities do not see it.

    Args:
        scores: `()`, all groups and each group alone, with `reference_likeness` and, where it is known,
            `prompt_likeness` (cosines).

    Raises:
        ValueError: One of those entries is missing.
    """
    every = check(scores)
    nothing, everything = scores[()], scores[every]
    gained = everything["reference_likeness"] - nothing["reference_likeness"]
    if gained <= 0:
        return Proposal(reasons=("With all groups the pictures are no more like the references than without.",))
    lost = nothing.get("prompt_likeness", 0.0) - everything.get("prompt_likeness", 0.0)

    def shares(group: str) -> tuple[float, float]:
        own = scores[(group,)]
        gain = (own["reference_likeness"] - nothing["reference_likeness"]) / gained
        loss = nothing.get("prompt_likeness", 0.0) - own.get("prompt_likeness", 0.0)
        return gain, max(0.0, loss / lost) if lost > 0 else 0.0

    best = max(every, key=lambda group: shares(group)[0] - shares(group)[1])
    gain, loss = shares(best)
    if gain <= 0:
        return Proposal(reasons=("No group alone makes the pictures more like the references.",))
    reason = f"{best} alone gains {gain:.0%} of the likeness to the reference that all groups gain"
    if lost > 0:
        reason += f", and loses {loss:.0%} of the likeness to the prompt that they lose"
    return Proposal(style=(best,), reasons=(f"{reason}. This is a proposal to look at.",))
