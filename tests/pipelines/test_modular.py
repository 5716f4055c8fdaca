"""Modular Diffusers: our blocks paint what the classic variant does, under every guider, and leave nothing behind."""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOLERANCE, differ, same
from diffusers import (
    ClassifierFreeGuidance,
    LayerSkipConfig,
    ModularPipeline,
    StableDiffusionXLAutoBlocks,
    StableDiffusionXLModularPipeline,
    guiders,
)
from diffusers.hooks import SmoothedEnergyGuidanceConfig
from diffusers.modular_pipelines.stable_diffusion_xl.before_denoise import StableDiffusionXLInputStep
from hosts import CLIP_WIDTH, HOSTS, SIDE, components, feature_extractor, image_encoder, picture
from hub import serve
from modulars import CFG, GUIDANCE, MODEL, SETTINGS, assembled, call, classic, guide, modular
from packaging.specifiers import SpecifierSet
from PIL import Image
from processes import PLUGIN, run
from traces import Broken, changed, failing_unet, identities

from instantstyle import Style
from instantstyle.core import FITS
from instantstyle.pipelines.modular import InstantStyleIPAdapterStep, InstantStyleXLBlocks, variant_of


ADAPTER = (MODEL, "sdxl_models", "ip-adapter_sdxl.safetensors")
FIRST, SECOND = Image.open(Path(__file__).parents[2] / "examples" / "reference.png"), picture(2)
SEPARATE = 10 * TOLERANCE  # the classic variant runs both halves of guidance in one batch
PROMPTS = ["a heart", "a red ring"]
Adapters = dict[str, tuple[str, str, str]]


@pytest.fixture(scope="module")
def blocks_pipe(pipe: Any) -> Any:
    """Give the modular pipeline of our blocks on the components of the classic variant."""
    return assembled(InstantStyleXLBlocks(), pipe.components)


@pytest.fixture(scope="module")
def styles(pipe: Any) -> tuple[Style, Style]:
    """Encode two references, for different blocks."""
    return pipe.encode_style(FIRST, target_blocks="style"), pipe.encode_style(SECOND, target_blocks="layout")


# --- What the classic variant paints ---------------------------------------------------------------------------------


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mend the host, which for several pictures of several prompts gives pooled embeddings in the order 0 1 0 1."""
    run_step = StableDiffusionXLInputStep.__call__

    def mending(step: Any, components: Any, state: Any) -> Any:
        prompts = len(state.prompt_embeds)
        done = run_step(step, components, state)
        for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
            state.set(name, state.get(name).unflatten(0, (-1, prompts)).transpose(0, 1).flatten(0, 1))
        return done

    monkeypatch.setattr(StableDiffusionXLInputStep, "__call__", mending)


CONTENT = {"neg_content_prompt": "a star"}
MASKS = torch.stack([torch.ones(64, 64).triu(), torch.ones(64, 64).tril()])[None]  # one for each reference
PER_PROMPT = {"prompt": PROMPTS, "ip_adapter_image_per_prompt": True}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what is asked for, and the twin's other words
    "in force": ({}, {"ip_adapter_image": SECOND}),
    "all": ({"target_blocks": "all"}, {"target_blocks": "style"}),
    "style": ({"target_blocks": "style"}, {"target_blocks": "layout"}),
    "scales": ({"target_blocks": {"style": 0.5, "layout": 1.5}}, {"target_blocks": {"style": 1.5, "layout": 0.5}}),
    "content": ({**CONTENT, "neg_content_scale": 0.5}, {"neg_content_scale": 1.0}),
    "content, auto": ({**CONTENT, "neg_content_scale": "auto"}, {"neg_content_prompt": "a ring"}),
    "negative prompt": ({"negative_prompt": "a red ring"}, {"negative_prompt": "a heart"}),
    "prompts": ({"prompt": PROMPTS, **CONTENT}, {"prompt": PROMPTS[::-1]}),
    "pictures": ({"num_images_per_prompt": 2, **CONTENT}, {"neg_content_scale": 0.0}),
    "prompts and pictures": ({"prompt": PROMPTS, "num_images_per_prompt": 2}, {"target_blocks": "style"}),
    "per prompt": (
        {**PER_PROMPT, "ip_adapter_image": [[FIRST, SECOND]], "num_images_per_prompt": 2},
        {"ip_adapter_image": [[SECOND, FIRST]]},
    ),
    "several references": (
        {"ip_adapter_image": [[FIRST, SECOND]], "neg_content_prompt": [["a star", None]]},
        {"neg_content_prompt": [[None, "a star"]]},
    ),
    "masks": (
        {"ip_adapter_image": [[FIRST, SECOND]], "cross_attention_kwargs": {"ip_adapter_masks": [MASKS]}},
        {"cross_attention_kwargs": {"ip_adapter_masks": [MASKS.flip(1)]}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_reference_paints_as_in_the_classic_variant(pipe: Any, blocks_pipe: Any, mended: None, case: str) -> None:
    asked = {"ip_adapter_image": FIRST, **CASES[case][0]}
    painted = classic(pipe, **asked)
    assert same(painted, modular(blocks_pipe, **asked), SEPARATE)
    assert differ(painted, modular(blocks_pipe, **{**asked, **CASES[case][1]}))


STYLE_CASES: dict[str, Any] = {
    "one": lambda one, two: ({"style": one}, {"style": two}),
    "scaled": lambda one, two: ({"style": one, "style_scale": 0.5}, {"style_scale": 1.0}),
    "combined": lambda one, two: ({"style": (one, two), "style_scale": (1.0, 0.5)}, {"style_scale": (0.5, 1.0)}),
    "per prompt": lambda one, two: (
        {"style": [one, two], "prompt": PROMPTS, "num_images_per_prompt": 2},
        {"style": [two, one]},
    ),
}


@pytest.mark.parametrize("case", STYLE_CASES)
def test_a_style_paints_as_in_the_classic_variant(
    pipe: Any, blocks_pipe: Any, mended: None, styles: Any, case: str
) -> None:
    asked, twin = STYLE_CASES[case](*styles)
    painted = classic(pipe, **asked)
    assert same(painted, modular(blocks_pipe, **asked), SEPARATE)
    assert differ(painted, modular(blocks_pipe, **{**asked, **twin}))


def test_a_style_needs_neither_adapter_nor_image_encoder(pipe: Any, styles: Any) -> None:
    found = InstantStyleXLBlocks().init_pipeline(MODEL)
    found.load_components(workflow="style_text2image")
    guide(CFG, found)
    plain = modular(found)
    assert found.image_encoder is None
    assert same(classic(pipe, style=styles[0]), modular(found, style=styles[0]), SEPARATE)
    assert same(plain, modular(found))
    assert differ(plain, modular(found, style=styles[0]))


# --- What the host's modular pipeline paints -------------------------------------------------------------------------

MIDDLE = "mid_block.attentions.0.transformer_blocks"
SKIPPED = LayerSkipConfig(indices=[0], fqn=MIDDLE, skip_attention=True, skip_ff=True)
PERTURBED = LayerSkipConfig(indices=[0], fqn=MIDDLE, skip_attention=False, skip_attention_scores=True, skip_ff=False)
WHOLE = {"start": 0.0, "stop": 1.0}
# All but MagnitudeAwareGuidance, which fails in the host, FrequencyDecoupledGuidance, which needs kornia, and LTX2's.
GUIDERS: dict[str, dict[str, Any]] = {
    "ClassifierFreeGuidance": {},
    "ClassifierFreeZeroStarGuidance": {},
    "AdaptiveProjectedGuidance": {},
    "AdaptiveProjectedMixGuidance": {"adaptive_projected_guidance_start_step": 1},
    "TangentialClassifierFreeGuidance": {},
    "AutoGuidance": {"auto_guidance_config": SKIPPED},
    "SkipLayerGuidance": {
        "skip_layer_config": SKIPPED,
        **{f"skip_layer_guidance_{name}": value for name, value in WHOLE.items()},
    },
    "PerturbedAttentionGuidance": {
        "perturbed_guidance_config": PERTURBED,
        **{f"perturbed_guidance_{name}": value for name, value in WHOLE.items()},
    },
    "SmoothedEnergyGuidance": {"seg_guidance_config": SmoothedEnergyGuidanceConfig(indices=[0], fqn=MIDDLE)},
}


@pytest.fixture(scope="module")
def stock(adapters: Adapters) -> Any:
    """Give the host's blocks with the host's adapter on the style block."""
    found = assembled(StableDiffusionXLAutoBlocks(), parts())
    found.load_ip_adapter(*adapters["sdxl"])
    found.set_ip_adapter_scale({"up": {"block_0": [0.0, 1.0, 0.0]}})
    return found


@pytest.fixture(scope="module")
def ours(adapters: Adapters) -> Any:
    """Give our blocks with our adapter on the style block, which alone has weights."""
    found = assembled(InstantStyleXLBlocks(), parts())
    variant_of(found).load_ip_adapter(*adapters["sdxl"])
    return found


def parts() -> dict[str, Any]:
    """Return tiny random components."""
    towers = {"image_encoder": image_encoder("sdxl"), "feature_extractor": feature_extractor()}
    return {**components("sdxl"), **towers}


@pytest.mark.parametrize("name", GUIDERS)
def test_under_every_guider_it_paints_what_the_host_does(stock: Any, ours: Any, name: str) -> None:
    guide(getattr(guiders, name)(**GUIDERS[name]), stock, ours)
    asked = {"ip_adapter_image": picture(1), "num_inference_steps": 3}
    painted = modular(stock, **asked)
    assert same(painted, modular(ours, **asked), TOLERANCE)
    assert differ(painted, modular(ours, **asked, target_blocks="layout"))
    assert not any(
        hasattr(module, "_diffusers_hook") and module._diffusers_hook.hooks for module in ours.unet.modules()
    )


IMAGE, MASK = picture(101, (SIDE, SIDE)), picture(104, (SIDE, SIDE), "L")
WORKFLOWS: dict[str, dict[str, Any]] = {
    "image2image": {"image": IMAGE, "strength": 0.7},
    "inpainting": {"image": IMAGE, "mask_image": MASK, "strength": 0.7},
    "controlnet_text2image": {"control_image": IMAGE},
}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_in_other_workflows_it_paints_what_the_host_does(stock: Any, ours: Any, name: str) -> None:
    guide(CFG, stock, ours)
    for each in (stock, ours):
        each.update_components(controlnet=HOSTS["stable_diffusion_xl_controlnet"].components()["controlnet"])
    asked = {**WORKFLOWS[name], "ip_adapter_image": picture(1), "num_inference_steps": 3}
    painted = modular(stock, **asked)
    assert same(painted, modular(ours, **asked), TOLERANCE)
    assert differ(painted, modular(ours, **asked, target_blocks="layout"))
    assert differ(painted, modular(ours, ip_adapter_image=picture(1), num_inference_steps=3))


def test_guidance_may_end_before_the_call_does(stock: Any, ours: Any) -> None:
    asked = {"ip_adapter_image": picture(1), "num_inference_steps": 3}
    guide(CFG, stock)
    whole = modular(stock, **asked)
    guide(ClassifierFreeGuidance(guidance_scale=GUIDANCE, stop=0.5), stock, ours)
    cut = modular(stock, **asked)
    assert same(cut, modular(ours, **asked), TOLERANCE)
    assert differ(cut, whole)


def test_without_adapter_it_is_the_host(adapters: Adapters) -> None:
    host, found = assembled(StableDiffusionXLAutoBlocks(), parts()), assembled(InstantStyleXLBlocks(), parts())
    plain = modular(host, prompt=PROMPTS)
    assert same(plain, modular(found, prompt=PROMPTS))
    variant_of(found).load_ip_adapter(*adapters["sdxl"])
    assert same(plain, modular(found, prompt=PROMPTS))
    assert differ(plain, modular(found, prompt=PROMPTS, ip_adapter_image=picture(1)))


def test_the_host_s_own_adapter_is_all(adapters: Adapters, ours: Any, stock: Any) -> None:
    """An adapter that the host loaded is in force everywhere; a call may still choose its blocks."""
    found = assembled(InstantStyleXLBlocks(), parts())
    found.load_ip_adapter(*adapters["sdxl"])
    asked = {"ip_adapter_image": picture(1)}
    guide(CFG, ours, stock)
    assert same(modular(ours, **asked, target_blocks="all"), modular(found, **asked), TOLERANCE)
    assert same(modular(stock, **asked), modular(found, **asked, target_blocks="style"), TOLERANCE)
    assert differ(modular(stock, **asked), modular(found, **asked))


def test_embeddings_made_elsewhere_are_left_alone(stock: Any, ours: Any) -> None:
    guide(CFG, ours, stock)
    state = call(stock, ip_adapter_image=picture(1))
    names = ("ip_adapter_embeds", "negative_ip_adapter_embeds")
    assert same(state.images, modular(ours, **{name: list(state.get(name)) for name in names}), TOLERANCE)
    assert differ(state.images, modular(ours))


def test_blocks_may_be_split(pipe: Any, blocks_pipe: Any) -> None:
    """One pipeline encodes, another paints: what holds for a call is told to the one whose UNet it is about."""
    encoder = assembled(InstantStyleIPAdapterStep(), pipe.components)
    state = encoder(ip_adapter_image=FIRST, **CONTENT)

    def encoded() -> dict[str, Any]:  # the host changes lists that it is given
        return {name: list(state.get(name)) for name in ("ip_adapter_embeds", "negative_ip_adapter_embeds")}

    for target_blocks in ("style", "layout"):
        asked = {"ip_adapter_image": FIRST, **CONTENT, "target_blocks": target_blocks}
        painted, before = modular(blocks_pipe, **asked), identities(pipe)
        assert same(painted, modular(blocks_pipe, **encoded(), target_blocks=target_blocks))
        assert not changed(before, identities(pipe))
        assert differ(painted, modular(blocks_pipe, **encoded()))


def test_split_blocks_keep_to_each_prompt_its_reference(pipe: Any, blocks_pipe: Any) -> None:
    encoder = assembled(InstantStyleIPAdapterStep(), pipe.components)
    references = {"ip_adapter_image": [[FIRST, SECOND]], "ip_adapter_image_per_prompt": True}
    state = encoder(**references, prompt_embeds=torch.zeros(len(PROMPTS), 1, 1))
    asked = {"prompt": PROMPTS, "num_images_per_prompt": 2, "target_blocks": "style"}

    def painted_from(order: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        names = ("ip_adapter_embeds", "negative_ip_adapter_embeds")
        return modular(blocks_pipe, **asked, **{name: [order(rows) for rows in state.get(name)] for name in names})

    painted = modular(blocks_pipe, **asked, **references)
    assert same(painted, painted_from(torch.clone))
    assert differ(painted, painted_from(lambda rows: rows.flip(0)))


# --- Nothing is left behind ------------------------------------------------------------------------------------------


def seen(pipe: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Watch which processors the UNet has while it runs: the hook's handle, and what it saw."""
    saw: list[dict[str, Any]] = []
    hook = pipe.unet.register_forward_pre_hook(lambda unet, _: saw.append(dict(unet.attn_processors)))
    return hook, saw


@pytest.fixture
def asked(styles: Any, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Give settings that hold for one call."""
    yield {
        "targets": {"ip_adapter_image": FIRST, "target_blocks": "layout", **CONTENT},
        "style": {"style": styles[0]},
        "nothing": {},
    }[request.param]


@pytest.mark.parametrize("asked", ["targets", "style", "nothing"], indirect=True)
def test_a_call_leaves_no_trace(pipe: Any, blocks_pipe: Any, asked: dict[str, Any]) -> None:
    """Only while the UNet runs it is not as it was."""
    before, processors = identities(pipe), dict(pipe.unet.attn_processors)
    hook, saw = seen(pipe)
    try:
        modular(blocks_pipe, **asked)
    finally:
        hook.remove()
    assert not changed(before, identities(pipe))
    assert len(saw) == 2 * SETTINGS["num_inference_steps"]
    assert all(one != processors for one in saw)


@pytest.mark.parametrize("asked", ["targets", "style", "nothing"], indirect=True)
def test_an_error_leaves_no_trace(pipe: Any, blocks_pipe: Any, asked: dict[str, Any]) -> None:
    before = identities(pipe)
    for step, error in enumerate((Broken(), KeyboardInterrupt())):
        with failing_unet(pipe, error, step), pytest.raises(type(error)):
            modular(blocks_pipe, **asked)
        assert not changed(before, identities(pipe))


def test_weights_brought_for_a_call_go_with_it(adapters: Adapters, ours: Any) -> None:
    variant = variant_of(ours)
    before = identities(variant)
    painted = [modular(ours, ip_adapter_image=picture(1), target_blocks=name) for name in ("all", "layout")]
    assert differ(*painted)
    assert not changed(before, identities(variant))
    assert list(variant.target_blocks) == ["up_blocks.0.attentions.1"]


# --- Loading ---------------------------------------------------------------------------------------------------------


def test_the_adapter_is_loaded_through_the_variant(pipe: Any) -> None:
    found = InstantStyleXLBlocks().init_pipeline(MODEL)
    found.load_components(workflow="text2image")
    guide(CFG, found)
    before, plain = identities(variant_of(found)), modular(found)
    variant_of(found).load_ip_adapter(*ADAPTER)
    styled = modular(found, ip_adapter_image=FIRST)
    assert same(classic(pipe, ip_adapter_image=FIRST, target_blocks="style"), styled, SEPARATE)
    assert differ(plain, styled)
    variant_of(found).unload_ip_adapter()
    assert (found.image_encoder, found.feature_extractor) == (None, None)
    assert not changed(before, identities(variant_of(found)))
    assert same(plain, modular(found))


def test_a_style_is_encoded_through_the_variant(blocks_pipe: Any, styles: Any) -> None:
    style = variant_of(blocks_pipe).encode_style(FIRST, target_blocks="style")
    assert all(torch.equal(style.tensors[name], tensor) for name, tensor in styles[0].tensors.items())


def test_workflows_expect_what_they_need() -> None:
    blocks = InstantStyleXLBlocks()
    needed = {
        name: {spec.name for spec in blocks.get_workflow(name).expected_components}
        for name in ("text2image", "style_text2image", "ip_adapter_text2image")
    }
    assert ["image_encoder" in needed[name] for name in needed] == [False, False, True]
    assert {name.replace("style", "ip_adapter") for name in blocks.available_workflows} == set(
        StableDiffusionXLAutoBlocks().available_workflows
    )


@pytest.mark.parametrize("kind", ["the host's blocks with the step", "a workflow"])
def test_the_step_works_in_other_blocks(pipe: Any, blocks_pipe: Any, kind: str) -> None:
    if kind == "a workflow":
        blocks = InstantStyleXLBlocks().get_workflow("ip_adapter_text2image")
    else:
        blocks = StableDiffusionXLAutoBlocks()
        blocks.sub_blocks["ip_adapter"] = InstantStyleIPAdapterStep()
    found, asked = assembled(blocks, pipe.components), {"ip_adapter_image": FIRST, "target_blocks": "style", **CONTENT}
    painted = modular(found, **asked)
    assert same(modular(blocks_pipe, **asked), painted)
    assert differ(painted, modular(found, **{**asked, "target_blocks": "layout"}))


def test_saved_blocks_load_by_themselves(blocks_pipe: Any, tmp_path: Path) -> None:
    """In a fresh process that cannot import the package: all blocks from a Hub, the step from a folder."""
    folders = {"all": tmp_path / "all", "step": tmp_path / "step"}
    InstantStyleXLBlocks().save_pretrained(folders["all"])
    InstantStyleIPAdapterStep().save_pretrained(folders["step"])
    config = json.loads((folders["all"] / "modular_config.json").read_text())
    assert config["auto_map"] == {"ModularPipelineBlocks": "modular_instantstyle.InstantStyleXLBlocks"}
    assert (folders["all"] / "pipeline_instantstyle.py").read_bytes() == PLUGIN.read_bytes()
    script = """
        from diffusers import ClassifierFreeGuidance, ModularPipelineBlocks, StableDiffusionXLAutoBlocks

        def load(source):
            return ModularPipelineBlocks.from_pretrained(source, trust_remote_code=True)

        loaded = {name: load(source) for name, source in SOURCES.items()}
        host = StableDiffusionXLAutoBlocks()
        host.sub_blocks["ip_adapter"] = loaded["step"]
        for name, blocks in {"all": loaded["all"], "step": host}.items():
            pipe = blocks.init_pipeline(ADAPTER[0])
            pipe.load_components(workflow="text2image")
            pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=GUIDANCE))
            loaded[name].variant_of(pipe).load_ip_adapter(*ADAPTER)
            found[name] = pipe(
                prompt="a heart",
                ip_adapter_image=picture(2),
                neg_content_prompt="a star",
                generator=torch.Generator().manual_seed(0),
                output="images",
                **SETTINGS,
            )
            try:
                pipe(prompt="a heart", style=object())
            except TypeError as error:
                found[name + " refused"] = np.array("`style` must be a Style" in str(error))
            loaded[name].save_pretrained(f"{AGAIN}/{name} again")
    """
    given = {"SOURCES": {"all": "someone/instantstyle", "step": str(folders["step"])}, "ADAPTER": ADAPTER}
    with serve({"someone/instantstyle": folders["all"]}) as hub:
        settings = {"GUIDANCE": GUIDANCE, "SETTINGS": SETTINGS, "AGAIN": tmp_path}
        found = run(tmp_path / "process", script, {**given, **settings}, hub=hub.url)
    assert hub.unknown == []
    painted = modular(blocks_pipe, ip_adapter_image=SECOND, target_blocks="style", **CONTENT)
    for name, folder in folders.items():
        assert same(painted, found[name], TOLERANCE)
        assert found[name + " refused"]
        for file in folder.iterdir():
            assert file.read_bytes() == (tmp_path / f"{name} again" / file.name).read_bytes()
    assert differ(painted, modular(blocks_pipe, ip_adapter_image=SECOND, target_blocks="style"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save a pipeline of a folder's components, with an adapter on."""
    found = InstantStyleXLBlocks().init_pipeline(Path(MODEL))
    found.load_components(workflow="text2image")
    variant_of(found).load_ip_adapter(*ADAPTER)
    before = identities(variant_of(found))
    found.save_pretrained(tmp_path / "saved", overwrite_modular_index=True)
    assert not changed(before, identities(variant_of(found)))
    return tmp_path / "saved"


def reloaded(folder: Path) -> Any:
    """Load a pipeline with its components, which are in the folder."""
    found = ModularPipeline.from_pretrained(folder, trust_remote_code=True)
    found.load_components(workflow="text2image")
    guide(CFG, found)
    return found


def test_a_saved_pipeline_is_ours_again(pipe: Any, saved: Path) -> None:
    """Also when what was loaded is saved once more; without its adapter, as the classic variant is saved."""
    found = reloaded(saved)
    assert type(found.blocks).__name__ == "InstantStyleXLBlocks"
    assert not any("_ip" in name for name in found.unet.state_dict())
    found.save_pretrained(str(saved.parent / "again"), overwrite_modular_index=True)
    again = reloaded(saved.parent / "again")
    again.blocks.variant_of(again).load_ip_adapter(*ADAPTER)
    painted = modular(again, ip_adapter_image=FIRST)
    assert same(classic(pipe, ip_adapter_image=FIRST, target_blocks="style"), painted, SEPARATE)
    assert differ(painted, modular(again))


def test_saved_as_the_host_does_it_comes_back_as_the_hosts(saved: Path) -> None:
    """The twin: without its blocks in the folder."""
    host = StableDiffusionXLModularPipeline._instantstyle_saves
    host(reloaded(saved), str(saved.parent / "host"), overwrite_modular_index=True)
    assert type(reloaded(saved.parent / "host").blocks) is StableDiffusionXLAutoBlocks


def test_the_hosts_pipelines_are_saved_as_before(tmp_path: Path) -> None:
    StableDiffusionXLAutoBlocks().init_pipeline(MODEL).save_pretrained(str(tmp_path), overwrite_modular_index=True)
    assert [path.name for path in tmp_path.iterdir()] == ["modular_model_index.json"]


@pytest.mark.parametrize("blocks", [InstantStyleXLBlocks, InstantStyleIPAdapterStep])
def test_saved_blocks_say_what_they_require(blocks: Any, tmp_path: Path) -> None:
    """Distributions with versions, as diffusers compares them; those installed fit, and setup.cfg names them all."""
    blocks().save_pretrained(tmp_path)
    required = json.loads((tmp_path / "modular_config.json").read_text())["requirements"]
    assert all(version(name) in SpecifierSet(versions) for name, versions in required.items())
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    floors = dict(re.split("(?=>=)", one) for one in setup["options"]["install_requires"].split())
    assert set(required) == {"diffusers", "huggingface_hub", "safetensors", "transformers"}
    assert required == {name: floors[name] for name in required} | {
        "diffusers": ">=0.40.0"
    }  # as the module says itself


# --- What is refused -------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"style": "a style"}, TypeError, "`style` must be a Style"),
    ({"style_scale": 0.5}, ValueError, "there is no `style`"),
    (CONTENT, ValueError, "`neg_content_prompt` is removed from a reference, but there is none"),
    ({"ip_adapter_image": FIRST, "target_blocks": "stile"}, ValueError, "Did you mean 'style'"),
    ({"ip_adapter_image": FIRST, **CONTENT, "neg_content_scale": "car"}, TypeError, "`neg_content_scale` must be"),
    ({"ip_adapter_image": [FIRST, FIRST]}, ValueError, "must have one entry per IP-Adapter"),
    ({"ip_adapter_embeds": [torch.zeros(1, 1, 8)], "target_blocks": "stile"}, ValueError, "Did you mean 'style'"),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_does_not_fit_is_refused(
    pipe: Any, blocks_pipe: Any, wrong: dict[str, Any], kind: type[Exception], message: str
) -> None:
    before = identities(pipe)
    with pytest.raises(kind, match=message):
        modular(blocks_pipe, **wrong)
    assert not changed(before, identities(pipe))


def test_a_reference_beside_a_style_is_refused(blocks_pipe: Any, styles: Any) -> None:
    with pytest.raises(ValueError, match="`ip_adapter_image` cannot go with a style"):
        modular(blocks_pipe, ip_adapter_image=FIRST, style=styles[0])


def test_a_reference_without_adapter_is_refused() -> None:
    found = assembled(InstantStyleXLBlocks(), components("sdxl"))
    with pytest.raises(ValueError, match="Call `load_ip_adapter` first"):
        modular(found, ip_adapter_image=FIRST)
    with pytest.raises(ValueError, match="Call `load_ip_adapter` first"):
        modular(found, target_blocks="all", ip_adapter_embeds=[torch.zeros(1, 1, CLIP_WIDTH["sdxl"])])


@pytest.mark.parametrize("fit", FITS)
def test_modular_blocks_fit_as_the_classic_pipeline_does(pipe: Any, fit: str) -> None:
    wide = picture(5, (90, 30))
    found = assembled(InstantStyleXLBlocks(), pipe.components)
    painted = modular(found, ip_adapter_image=wide, reference_fit=fit)
    style = pipe.encode_style(wide, reference_fit=fit)
    assert same(painted, modular(found, style=style), 10 * TOLERANCE)
    assert differ(painted, modular(found, ip_adapter_image=wide, reference_fit=FITS[FITS.index(fit) - 1]))
