"""`instantstyle probe`: what each attention group carries, seen and measured one at a time, and presets from that."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from instantstyle.console import calm
from instantstyle.files import check_output, output_folder
from instantstyle.inference import grid, models, recipe
from instantstyle.inference.inputs import open_picture, upright
from instantstyle.inference.models import Adapter, Model
from instantstyle.inference.request import Request, worded
from instantstyle.inference.session import Session
from instantstyle.inference.values import Picture
from instantstyle.lab.conditions import Condition, digest
from instantstyle.lab.findings import Finding, Progress, Scorer, means, name_of, plan
from instantstyle.lab.likeness import NO_PROMPT_NOTE, NOTE, Towers
from instantstyle.lab.metrics import estimate, score
from instantstyle.lab.pairs import sample_pairs
from instantstyle.lab.pictures import make_pictures
from instantstyle.lab.presets import write_presets
from instantstyle.lab.probe_report import report
from instantstyle.lab.proposal import Groups, Proposal, propose, propose_by_proxy
from instantstyle.tiny import judges
from instantstyle.tiny.world import reference_pictures, to_picture
from instantstyle.version import versions


PAIRS = 96
STEPS, GUIDANCE = 16, 3.5  # with judges; without, what `generate` uses
PROXY_STEPS, PROXY_GUIDANCE = 30, 5.0
SHOWN = 6  # of the drawn pairs in the picture
SPLIT = "selection"
JUDGES_NOTE = "Scored by the judges on the selection split; quote numbers from `instantstyle evaluate`, on the other."


class Judged:
    """Measure with the judges of the drawn world, on drawn pairs of the selection split.

    Args:
        pipe: A pipeline that was trained on the world, with an adapter.
        jury: Its judges.
        pairs: How many pairs.
        seed, steps, guidance: As in `painting.make_pictures`.
    """

    name = "judges"

    def __init__(self, pipe: Any, jury: judges.Judges, pairs: int, seed: int, steps: int, guidance: float) -> None:
        self.pipe, self.jury, self.seed = pipe, jury, seed
        self.sampling: dict[str, Any] = {"steps": steps, "guidance": guidance}
        self.pairs = sample_pairs(pairs, SPLIT)
        self.count = pairs
        self.notes = [JUDGES_NOTE]
        shares = ("content_right", "content_leaked", "unrecognised", "style", "palette", "background", "texture")
        self.columns = {**dict.fromkeys((*shares, "layout_copied"), ".3f"), "distance": ".1f"}
        drawn = reference_pictures(self.pairs.references[:SHOWN], judges.world.PIXELS)
        self.shown = [(picture, self.pairs.prompt(row)) for row, picture in enumerate(drawn)]

    def measure(self, groups: Groups, progress: Progress) -> Finding:
        """Make a picture of every pair, and judge it."""
        method = "adapter" if groups else "none"
        condition = Condition(name_of(groups, ()), method, target_blocks=list(groups))
        made = make_pictures(self.pipe, condition, self.pairs, [self.seed], **self.sampling, progress=progress)
        pictures = made[:, 0].cpu()
        scores = {name: one.to_json() for name, one in estimate(score(self.jury(pictures), self.pairs)).items()}
        return Finding(groups, scores, [to_picture(picture) for picture in pictures[:SHOWN]])

    def propose(self, scores: Mapping[Groups, Mapping[str, float]]) -> Proposal:
        """Conclude as `proposal.propose` does."""
        return propose(scores)


class ByProxy:
    """Measure with the pipeline's own CLIP towers, on every pair of the given references and prompts.

    Args:
        session: What paints, loaded with its adapter.
        references: Pictures.
        prompts: What to show.
        base: Seed, steps and guidance.
    """

    name = "proxy"

    def __init__(self, session: Session, references: Sequence[Picture], prompts: Sequence[str], base: Request) -> None:
        self.session, self.base, self.towers = session, base, Towers(session.pipe)
        pairs = list(itertools.product(references, prompts))
        self.requests = [base.but(prompt=prompt, style=reference) for reference, prompt in pairs]
        self.shown = [(reference.image, prompt) for reference, prompt in pairs]
        self.count = len(self.shown)
        self.columns = {"reference_likeness": ".3f"}
        self.notes = [NOTE]
        turned = {reference: upright(reference.image) for reference in references}
        self.references = self.towers.images([turned[reference] for reference, _ in pairs])
        if self.towers.sees_prompts:
            self.columns["prompt_likeness"] = ".3f"
            self.prompts = self.towers.prompts([prompt for _, prompt in self.shown])
        else:
            self.notes.append(NO_PROMPT_NOTE)

    def measure(self, groups: Groups, progress: Progress) -> Finding:
        """Make a picture of every pair, and compare it with both halves of the pair."""
        seen: dict[str, Any] = {"target_blocks": groups} if groups else {"style": ()}
        pictures = []
        for request in self.requests:
            pictures.append(self.session.paint([request.but(**seen)])[0].image)
            progress(1)
        embeddings = self.towers.images(pictures)
        likeness = {"reference_likeness": (embeddings * self.references).sum(-1)}
        if self.towers.sees_prompts:
            likeness["prompt_likeness"] = (embeddings * self.prompts).sum(-1)
        values = {name: np.asarray(cosines, dtype=np.float64) for name, cosines in likeness.items()}
        return Finding(groups, {name: one.to_json() for name, one in estimate(values).items()}, pictures)

    def propose(self, scores: Mapping[Groups, Mapping[str, float]]) -> Proposal:
        """Conclude as `proposal.propose_by_proxy` does."""
        return propose_by_proxy(scores)


def run(options: argparse.Namespace) -> None:
    """Probe what the command line asks for; the table and the paths of the files go to standard output.

    Raises:
        ValueError, OSError: A user's mistake, or nothing to save.
    """
    folder = output_folder("--output", options.output)
    save = None if options.save is None else check_output("--save", options.save, ".safetensors", "presets")
    given = [open_picture("--reference", path) for path in options.reference or []]
    bars = sys.stderr.isatty() and not options.quiet

    with calm(bars):
        session = Session(options.machine)
        model, adapter = session.model, session.adapter
        if save is not None and not adapter.weight_name.endswith(".safetensors"):
            raise ValueError(
                f"--save: {adapter.label} is not a .safetensors file, the only kind that carries presets."
            )
        judged = not given and not options.prompt and models.knows_world(model)
        examples = None if judged else grid.choose(given, options.prompt, model, ("--reference", "--prompt"))
        if not judged and options.pairs is not None:
            raise ValueError("--pairs: only judges draw pairs; without them, each --reference meets each --prompt.")
        fill_in(options, judged)
        session.load([Request(prompt="", style="of any")])
        pipe = session.pipe
        if remark := models.unknown_words(model, options.prompt or []):
            print(f"instantstyle: {worded(remark, '--{}'.format)}", file=sys.stderr)
        settings = describe(options, pipe, model, adapter, examples)
        scorer = choose_scorer(options, session, examples)
        kept = folder / "conditions" / digest({**settings, "files": stamps(pipe, model)})
        kept.mkdir(parents=True, exist_ok=True)
        findings, proposal = search(scorer, attention_groups(pipe), kept, bars)

    presets = named_presets(proposal, pipe)
    report(folder, scorer, findings, proposal, presets, settings)
    if save is not None:
        if not proposal.style:
            raise ValueError(f"--save: nothing was written to {save}, as no style block was found.")
        write_presets(adapter_source(pipe), save, presets)
        print(save)


def fill_in(options: argparse.Namespace, judged: bool) -> None:
    """Set the options that were left open."""
    steps, guidance = (STEPS, GUIDANCE) if judged else (PROXY_STEPS, PROXY_GUIDANCE)
    options.steps = options.steps or steps
    options.guidance = guidance if options.guidance is None else options.guidance
    options.pairs = (options.pairs or PAIRS) if judged else None


def choose_scorer(options: argparse.Namespace, session: Session, examples: Any) -> Scorer:
    """Take the judges where there are no examples of the user's, else the CLIP towers."""
    if examples is None:
        jury = judges.Judges.load(session.model.source)
        return Judged(session.pipe, jury, options.pairs, options.seed, options.steps, options.guidance)
    references, prompts = examples
    base = Request(prompt="", seed=options.seed, steps=options.steps, guidance=options.guidance)
    return ByProxy(session, references, prompts, base)


def describe(options: argparse.Namespace, pipe: Any, model: Model, adapter: Adapter, examples: Any) -> dict[str, Any]:
    """Write what decides the result: names and fingerprints, but no local path."""
    from instantstyle.core import execution_device

    references, prompts = examples or (None, None)
    return {
        "versions": versions(),
        "pipeline": type(pipe).__name__,
        "model": model.label,
        "adapter": adapter.label,
        "split": SPLIT if examples is None else None,
        "pairs": options.pairs,
        "references": references and [reference.written for reference in references],
        "prompts": prompts,
        "seed": options.seed,
        "steps": options.steps,
        "guidance": options.guidance,
        "device": execution_device(pipe).type,
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }


def stamps(pipe: Any, model: Model) -> list[Any]:
    """Tell the weights apart from others of the same name: sizes and times of the local files."""
    source = Path(model.source)
    local = [source] if source.is_file() else sorted(source.rglob("*.safetensors")) if source.is_dir() else []
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in (*local, adapter_source(pipe))]


def adapter_source(pipe: Any) -> Path:
    """Return the file that the pipeline's adapter was read from."""
    from instantstyle.core import adapter_state

    return adapter_state(pipe.unet).files[0].source  # type: ignore[union-attr, return-value]


def attention_groups(pipe: Any) -> Groups:
    """Return the names of the UNet's attention groups."""
    from instantstyle.core import attention_blocks

    return tuple(attention_blocks(pipe.unet))


def search(scorer: Scorer, every: Groups, kept: Path, bars: bool = False) -> tuple[dict[Groups, Finding], Proposal]:
    """Measure until a proposal is final.

    Args:
        scorer: How to measure.
        every: All attention groups.
        kept: A folder where finished measurements are kept; those that are there are not made again.
        bars: Whether to show progress.
    """
    findings: dict[Groups, Finding] = {}
    wanted: Iterable[Groups] = plan(every)
    while wanted := list(wanted):
        paths = {groups: kept / file_name(groups, every) for groups in wanted}
        findings |= {groups: old for groups in wanted if (old := read_finding(paths[groups], len(scorer.shown)))}
        missing = [groups for groups in wanted if groups not in findings]
        with tqdm(total=len(missing) * scorer.count, desc="pictures", disable=not bars) as bar:
            for groups in missing:
                findings[groups] = scorer.measure(groups, bar.update)
                write_finding(findings[groups], paths[groups])
        proposal = scorer.propose(means(findings))
        wanted = proposal.wanted
    return findings, proposal


def file_name(groups: Groups, every: Groups) -> str:
    """Name the file of a measurement by the groups' numbers."""
    return f"groups-{'-'.join(str(every.index(group)) for group in groups) or 'none'}.png"


def write_finding(finding: Finding, path: Path) -> None:
    """Keep a finding as its pictures side by side, with the scores as their recipe."""
    width, height = finding.pictures[0].size
    strip = Image.new("RGB", (width * len(finding.pictures), height))
    for number, picture in enumerate(finding.pictures):
        strip.paste(picture, (number * width, 0))
    recipe.write_recipe(strip, path, {"groups": finding.groups, "scores": finding.scores})


def read_finding(path: Path, count: int) -> Finding | None:
    """Read what `write_finding` wrote, with its `count` pictures; None where there is none."""
    if not path.is_file():
        return None
    found = recipe.read_recipe(path)
    with Image.open(path) as strip:
        width = strip.width // count
        pictures = [strip.crop((number * width, 0, (number + 1) * width, strip.height)) for number in range(count)]
    return Finding(tuple(found["groups"]), found["scores"], pictures)


def named_presets(proposal: Proposal, pipe: Any) -> dict[str, Any]:
    """Return the presets to carry. "style+layout" is always among them, so that it is never another model's.

    Its layout is the one proposed, else the one in force: what the adapter carries already, or the family's.
    """
    from instantstyle.core import adapter_state, presets

    if not proposal.style:
        return {}
    style = list(proposal.style)
    if proposal.layout:
        return {"style": style, "layout": list(proposal.layout), "style+layout": style + list(proposal.layout)}
    file = adapter_state(pipe.unet).files[0]  # type: ignore[union-attr]
    layout = (presets(pipe.unet) | (file.presets if file else {})).get("layout")
    if layout is None:
        return {"style": style}
    scales = (
        layout if isinstance(layout, Mapping) else dict.fromkeys([layout] if isinstance(layout, str) else layout, 1.0)
    )
    return {"style": style, "style+layout": {**scales, **dict.fromkeys(style, 1.0)}}
