"""Ablation: pictures in which one attention group at a time sees the reference, and all but one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from instantstyle.core import adapter_state, attention_blocks, execution_device
from instantstyle.inference.models import knows_world
from instantstyle.inference.recipe import read_recipe, write_recipe
from instantstyle.inference.request import Request
from instantstyle.inference.session import Session
from instantstyle.lab.conditions import digest
from instantstyle.lab.findings import Finding, Groups, mean_scores, plan
from instantstyle.lab.observers import Jury, Observer, Viewer
from instantstyle.lab.proposal import Proposal
from instantstyle.version import versions


PAIRS = 96


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Attributes:
        settings: What decided the pictures: names and fingerprints, but no local path.
        shown: Reference and prompt of the pictures of each finding.
        every: All attention groups.
        findings: What came of it, by the groups that saw the reference.
        proposal: Presets, and why; an empty one where nobody judged.
    """

    settings: dict[str, Any]
    shown: list[tuple[Image.Image, str]]
    every: Groups
    findings: dict[Groups, Finding]
    proposal: Proposal

    @property
    def judged(self) -> bool:
        """Whether there are numbers."""
        return bool(self.findings[()].scores)


def probe(
    session: Session,
    output: str | os.PathLike[str],
    examples: Sequence[tuple[Any, str]] = (),
    *,
    pairs: int = PAIRS,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    bars: bool = False,
) -> Probed:
    """Let one attention group at a time see the reference, and all but one. What is in `output` is not made again.

    Pictures of examples are to be looked at. Where there are judges, of the embedded checkpoint and those trained like
    it, they measure drawn pairs, and presets are concluded from that.

    Args:
        session: What paints.
        output: A folder, which is made if it is not there; pictures and scores are kept in it, in "conditions".
        examples: References, as `Request` takes them, with prompts. Without any, the judges look.
        pairs: How many pairs the judges see.
        seed: Of every example, and part of those of the pairs.
        steps, guidance: Of the sampler; by default what is usual, for the judges that of `tiny.SAMPLING`.
        bars: Whether to show how far it is.

    Raises:
        ValueError: There are neither examples nor judges, or an example is no picture.
        OSError: An example cannot be read, or the folder not be written.

    Example:
        >>> session = Session(Machine(model="stabilityai/stable-diffusion-xl-base-1.0"))
        >>> found = probe(session, "probe", [("reference.png", "a heart")])
        >>> draw_probe(found).save("blocks.png")
    """
    if not examples and not knows_world(session.model):
        raise ValueError(f"`examples`: needed with `model` {session.model.label}, which has no judges.")
    base = Request(prompt="", seed=seed, steps=steps, guidance=guidance)
    observer = Viewer(session, examples, base) if examples else Jury(session, pairs, base)
    session.load([Request(prompt="", style="of any")])
    settings = {**describe_model(session), **observer.settings}
    kept = Path(output) / "conditions" / digest({**settings, "files": stamps(session)})
    kept.mkdir(parents=True, exist_ok=True)
    every = attention_groups(session.pipe)
    findings, proposal = search(observer, every, kept, bars)
    return Probed(settings, observer.shown, every, findings, proposal)


def describe_model(session: Session) -> dict[str, Any]:
    """Write what paints: names, but no local path."""
    return {
        "versions": versions(),
        "pipeline": type(session.pipe).__name__,
        "model": session.model.label,
        "adapter": session.adapter.label,
        "device": execution_device(session.pipe).type,
        "dtype": str(session.pipe.dtype).removeprefix("torch."),
    }


def stamps(session: Session) -> list[Any]:
    """Tell the weights apart from others of the same name: sizes and times of the local files."""
    source = Path(session.model.source)
    local = [source] if source.is_file() else sorted(source.rglob("*.safetensors")) if source.is_dir() else []
    return [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in (*local, adapter_source(session.pipe))
    ]


def adapter_source(pipe: Any) -> Path:
    """Return the file that the pipeline's adapter was read from."""
    return adapter_state(pipe.unet).files[0].source  # type: ignore[union-attr, return-value]


def attention_groups(pipe: Any) -> Groups:
    """Return the names of the UNet's attention groups."""
    return tuple(attention_blocks(pipe.unet))


def search(
    observer: Observer, every: Groups, kept: Path, bars: bool = False
) -> tuple[dict[Groups, Finding], Proposal]:
    """Look until a proposal is final.

    Args:
        observer: What looks.
        every: All attention groups.
        kept: A folder where finished findings are kept; those that are there are not made again.
        bars: Whether to show progress.
    """
    findings: dict[Groups, Finding] = {}
    wanted: Iterable[Groups] = plan(every)
    while wanted := list(wanted):
        paths = {groups: kept / file_name(groups, every) for groups in wanted}
        findings |= {groups: old for groups in wanted if (old := read_finding(paths[groups], len(observer.shown)))}
        missing = [groups for groups in wanted if groups not in findings]
        with tqdm(total=len(missing) * observer.count, desc="pictures", disable=not bars) as bar:
            for groups in missing:
                findings[groups] = observer.look(groups, bar.update)
                write_finding(findings[groups], paths[groups])
        proposal = observer.propose(mean_scores(findings))
        wanted = proposal.wanted
    return findings, proposal


def file_name(groups: Groups, every: Groups) -> str:
    """Name the file of a finding by the groups' numbers."""
    return f"groups-{'-'.join(str(every.index(group)) for group in groups) or 'none'}.png"


def write_finding(finding: Finding, path: Path) -> None:
    """Keep a finding as its pictures side by side, with the scores as their recipe."""
    width, height = finding.pictures[0].size
    strip = Image.new("RGB", (width * len(finding.pictures), height))
    for number, picture in enumerate(finding.pictures):
        strip.paste(picture, (number * width, 0))
    write_recipe(strip, path, {"groups": finding.groups, "scores": finding.scores})


def read_finding(path: Path, count: int) -> Finding | None:
    """Read what `write_finding` wrote, with its `count` pictures; None where there is none."""
    if not path.is_file():
        return None
    found = read_recipe(path)
    with Image.open(path) as strip:
        width = strip.width // count
        pictures = [strip.crop((number * width, 0, (number + 1) * width, strip.height)) for number in range(count)]
    return Finding(tuple(found["groups"]), pictures, found["scores"])
