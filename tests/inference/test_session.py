"""Sessions: from requests to pictures, together or alone the same, with nothing loaded twice or in vain."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image

import instantstyle
from instantstyle.inference.request import Machine, Reference, Request
from instantstyle.inference.session import Session


REFERENCE = str(Path(__file__).parents[2] / "examples" / "reference.png")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Files that requests name."""
    folder = tmp_path_factory.mktemp("files")
    drawn = {
        "image": Image.effect_noise((64, 48), 120).convert("RGB"),
        "mask": Image.linear_gradient("L").resize((64, 48)).point(lambda shade: 255 * (shade > 127)),
        "other": Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB"),
    }
    for name, picture in drawn.items():
        picture.save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in drawn}


def ask(**given: Any) -> Request:
    return Request(**{"prompt": "a heart", "style": REFERENCE, "steps": 2, "seed": 0, **given})


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.int16)


def apart(first: Image.Image, second: Image.Image) -> int:
    assert first.size == second.size
    return int(abs(pixels(first) - pixels(second)).max())


def every_kind(files: dict[str, str]) -> list[Request]:
    """Two requests of each kind, none beside its like."""
    kinds = [
        {},
        {"style": ()},
        {"content": "a star"},
        {"negative": "a circle"},
        {"image": files["image"], "steps": 4},
        {"image": files["image"], "mask": files["mask"], "steps": 4},
        {"target_blocks": "style,layout=0.5", "scale": 0.8},
        {"size": "64x48"},
        {"upscale": 1.5, "upscale_strength": 0.5, "steps": 4},
        {"style": [Reference(REFERENCE, 0.25), Reference(files["other"], 0.75)]},
        {"style": [REFERENCE, Reference(files["other"], mask=files["mask"])]},
    ]
    prompts = ("a heart", "a ring")
    return [ask(**kind, prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts) for kind in kinds]


def test_together_requests_are_what_they_are_alone_in_as_few_calls_as_kinds(session, files, monkeypatch):
    calls, original = [], Session._call
    monkeypatch.setattr(Session, "_call", lambda *given: calls.append(len(given[2])) or original(*given))
    requests = every_kind(files)
    together = session.paint(requests)
    assert calls == [2] * 12  # one of the eleven has a second pass
    assert [painting.recipe["prompt"] for painting in together] == [request.prompt for request in requests]
    alone = [painting for request in requests for painting in session.paint([request])]
    for number, (first, second) in enumerate(zip(together, alone, strict=True)):
        # A row of a batch is computed in another order; a second pass starts from what was rounded.
        assert apart(first.image, second.image) <= (4 if requests[number].upscale else 1), number
        assert first.recipe == second.recipe
    half = len(requests) // 2
    assert all(apart(together[n].image, together[n + half].image) > 10 for n in range(half))


def test_a_request_is_the_call_that_it_says(session):
    (painting,) = session.paint([ask(content="a star", content_scale=0.5, target_blocks="layout=0.5", scale=0.8)])
    pipe = session.pipe
    pipe.set_target_blocks({"layout": 0.5}, scale=0.8)
    session._aim = None

    def paint(**given: Any) -> Image.Image:
        generator = torch.Generator().manual_seed(0)
        picture = Image.open(REFERENCE)
        call = {"ip_adapter_image": picture, "neg_content_prompt": "a star", "neg_content_scale": 0.5, **given}
        return pipe("a heart", num_inference_steps=2, generator=generator, **call).images[0]

    assert apart(painting.image, paint()) == 0
    assert apart(painting.image, paint(neg_content_scale=1.0)) > 0


def test_references_are_meant_by_their_weights(session, files):
    pair = [Reference(REFERENCE, 0.25), Reference(files["other"], 0.75)]
    mean, first, second = (one.image for one in session.paint([ask(style=s) for s in (pair, pair[:1], pair[1:])]))
    session.aim_at((("style", 1.0),))
    pictures = [Image.open(path) for path in (REFERENCE, files["other"])]
    style = session.pipe.encode_style(pictures, weights=[0.25, 0.75])
    call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "style": style}
    assert apart(mean, session.pipe("a heart", **call).images[0]) == 0
    assert apart(mean, first) > 1 and apart(mean, second) > 1
    assert (
        apart(session.paint([ask(style=[Reference(REFERENCE, 1), Reference(files["other"], 0)])])[0].image, first) <= 1
    )


def test_a_reference_that_is_not_square_is_fitted_as_asked(session, files):
    fits = ("crop", "pad", "squash", "tiles")
    painted = [one.image for one in session.paint([ask(style=files["image"], reference_fit=fit) for fit in fits])]
    session.aim_at((("style", 1.0),))
    for fit, image in zip(fits, painted, strict=True):
        call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "reference_fit": fit}
        assert (
            apart(image, session.pipe("a heart", ip_adapter_image=Image.open(files["image"]), **call).images[0]) == 0
        )
    assert all(apart(first, second) > 0 for first, second in combinations(painted, 2))


def test_masks_keep_references_in_their_places(session, files):
    pair = [Reference(REFERENCE), Reference(files["other"], mask=files["mask"])]
    masked, everywhere = session.paint(
        [ask(style=pair, size=64), ask(style=[pair[0], Reference(files["other"])], size=64)]
    )
    session.aim_at((("style", 1.0),))
    styles = tuple(session.pipe.encode_style(Image.open(path)) for path in (REFERENCE, files["other"]))
    masks = [Image.new("L", (64, 64), "white"), Image.open(files["mask"]).crop((8, 0, 56, 48)).resize((64, 64))]
    process = IPAdapterMaskProcessor().preprocess
    call = {
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(0),
        "style": styles,
        "cross_attention_kwargs": {"ip_adapter_masks": [process(mask, height=64, width=64) for mask in masks]},
    }
    assert apart(masked.image, session.pipe("a heart", **call).images[0]) <= 1
    assert apart(masked.image, everywhere.image) > 1


def test_nothing_is_loaded_twice_and_all_share_it(files, monkeypatch):
    loaded, original = [], Session._loaded
    monkeypatch.setattr(Session, "_loaded", lambda *given: loaded.append(given[1:]) or original(*given))
    session = Session(Machine(device="cpu", controlnet="tiny"))
    requests = [
        ask(style=()),
        ask(),
        ask(control_image=files["image"]),
        ask(control_image=files["image"], image=files["image"], steps=4),
        ask(style=()),
    ]
    assert loaded == []
    painted = [session.paint([request])[0] for request in requests]
    assert loaded == [("StableDiffusionXLInstantStyleControlNetPipeline", False)]
    assert len({id(session.pipeline(request).unet) for request in requests}) == 1
    assert len({id(session.pipeline(request)) for request in requests}) == 3
    assert apart(painted[0].image, painted[-1].image) == 0  # an adapter without a reference changes nothing
    assert apart(painted[0].image, painted[1].image) > 1
    assert [one.recipe["controlnet"] for one in painted] == [None, None, "tiny", "tiny", None]


def test_mistakes_are_found_before_anything_is_loaded(files, tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "_loaded", lambda *_: pytest.fail("it was loaded"))
    session = Session(Machine(device="cpu"))
    (tmp_path / "torn.png").write_bytes(Path(REFERENCE).read_bytes()[:200])
    for wrong, message in (
        ({"style": "none.png"}, "`style`: none.png: No such file"),
        ({"style": str(tmp_path / "torn.png")}, "`style`: .* is not a picture"),
        ({"style": [Reference(REFERENCE, mask="none.png")]}, "none.png"),
        ({"image": files["image"], "mask": files["other"]}, "`mask` is 64x64 pixels, but `image` is 64x48"),
        ({"control_image": files["image"]}, "`control_image` needs `controlnet`"),
        ({"image": files["image"], "steps": 1, "strength": 0.5}, "`strength` 0.5 of 1 steps leaves none"),
        ({"hires": True, "size": 128}, "`hires`: tiny: HiDiffusion has tables for"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            session.paint([ask(), ask(**wrong)])


def test_a_run_can_be_followed_and_stopped(session):
    steps: list[int] = []

    def follow(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        pipe._interrupt = step == 1
        return tensors

    session.paint([ask(steps=3)], follow)
    assert steps == [0, 1]


def test_a_session_knows_its_words(session):
    assert session.unknown_words([ask(prompt="a heart")]) is None
    assert "'fluffy', 'lowres'" in session.unknown_words([ask(), ask(prompt="a fluffy heart", negative="lowres")])


def test_variants_are_the_packages_own(session, files):
    assert (
        type(session.pipeline(ask(image=files["image"]))) is instantstyle.StableDiffusionXLInstantStyleImg2ImgPipeline
    )
