"""Which attention groups carry style and layout, concluded from how pictures score when they see the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from instantstyle.lab.findings import Groups, in_order


Table = Mapping[Groups, Mapping[str, float]]
"""Groups -> metric -> mean. `()` is without a reference; the longest entry names all groups, in their order."""

ATTRIBUTES = ("palette", "background", "texture")
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
    every = all_groups(scores)
    style: Groups = ()
    reasons: list[str] = []
    while len(style) < len(every):
        larger = [in_order(every, {*style, group}) for group in every if group not in style]
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


def all_groups(scores: Table) -> Groups:
    """Return all groups, and refuse a table without the entries that every conclusion needs."""
    every = max(scores, key=len, default=())
    missing = [groups for groups in [(), *((group,) for group in every)] if groups not in scores]
    if not every or missing:
        raise ValueError(f"`scores` must hold (), each group and all groups; {missing or 'all groups'} is missing.")
    return every


def style_of(scores: Mapping[str, float]) -> float:
    """Return the mean match of the attributes of style."""
    return sum(scores[name] for name in ATTRIBUTES) / len(ATTRIBUTES)


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
