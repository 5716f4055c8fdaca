"""InstantStyle for Modular Diffusers: a step for the SDXL blocks of diffusers, and those blocks with it in place.

The step reads what the classic variant's call reads, through the same code. What holds for one call only is never put
on the pipeline: the step hands the rest of the call a copy of it, whose UNet wears the call's attention processors
while it runs and is as before in between. So there is nothing to undo at the end, however the call ends.
"""

from __future__ import annotations

import copy
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__


if tuple(map(int, __version__.split(".")[:2])) < (0, 40):
    raise ImportError(f"InstantStyle's modular blocks need diffusers 0.40 or newer, but {__version__} is installed.")

from diffusers import AutoPipelineBlocks, StableDiffusionXLAutoBlocks, StableDiffusionXLModularPipeline
from diffusers.modular_pipelines import ComponentSpec, InputParam, ModularPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import StableDiffusionXLIPAdapterStep
from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
    StableDiffusionXLAutoIPAdapterStep,
)
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from instantstyle.core import (
    AdapterState,
    Call,
    Scale,
    StableDiffusionXLInstantStylePipeline,
    adapter_state,
    attention,
    bare_unet,
    check_style_scale,
    detached,
    execution_device,
    fetch,
    ip_processors,
    make_processor,
    plan_call,
    plugin_file,
    resolve_each,
    scales_at,
    style_adapter,
    workflows,
)


SHARED = (
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "unet",
    "scheduler",
    "image_encoder",
    "feature_extractor",
)
OF_THE_HOST = ("prompt_embeds", "ip_adapter_image", "cross_attention_kwargs")
OURS = (
    "neg_content_prompt",
    "neg_content_embeds",
    "neg_content_scale",
    "target_blocks",
    "ip_adapter_image_per_prompt",
    "reference_fit",
)

# What the code beside saved blocks needs, in the Hub's form: diffusers compares it with what is installed.
REQUIREMENTS = {
    "diffusers": ">=0.40.0",
    "huggingface_hub": ">=0.34.0",
    "safetensors": ">=0.5.0",
    "transformers": ">=4.55.0",
}


# --- The variant of a modular pipeline -------------------------------------------------------------------------------


class _Variant(StableDiffusionXLInstantStylePipeline):
    """The variant on a modular pipeline's components. What it registers the modular pipeline gets too."""

    _modular: Any = None

    @property
    def _execution_device(self) -> torch.device:
        return execution_device(self._modular)

    def register_modules(self, **modules: Any) -> None:
        """Register components here and there."""
        super().register_modules(**modules)
        expected = {} if self._modular is None else self._modular.components
        for name in modules.keys() & expected.keys():
            # `update_components` adapts what is known about a component, and warns where there is none any more.
            update = self._modular.register_components if modules[name] is None else self._modular.update_components
            update(**{name: modules[name]})


def variant_of(pipe: Any) -> StableDiffusionXLInstantStylePipeline:
    """The classic variant that shares the components of a modular SDXL pipeline, to do all that it can.

    `variant_of(pipe).load_ip_adapter(...)` loads an adapter for `pipe`: its image encoder, and of its weights only
    those of the target blocks. Likewise `set_target_blocks`, `set_ip_adapter_scale`, `load_content_encoder` and
    `unload_ip_adapter`. What they change is on the UNet, so the variant need not be kept. `styles.encode` takes it
    too.

    Args:
        pipe: A modular pipeline whose components are loaded.
    """
    parts = {name: getattr(pipe, name, None) for name in SHARED}
    zeros = getattr(pipe.config, "force_zeros_for_empty_prompt", True)
    variant = _Variant(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
    variant._modular = pipe
    return variant


# --- The UNet of one call --------------------------------------------------------------------------------------------


class DressedUNet:
    """A UNet that wears processors and an image projection while it runs. All else is the UNet's own.

    Args:
        unet: The UNet, compiled or not.
        processors: Layer name -> processor.
        projection: What makes image tokens, and the kind that the UNet's configuration calls it.
        prompts: The number of prompts.
    """

    def __init__(self, unet: Any, processors: Mapping[str, Any], projection: tuple[Any, str | None], prompts: int = 1):
        self._unet, self._bare = unet, getattr(unet, "_orig_mod", unet)
        self._processors = [(attention(self._bare, layer), processor) for layer, processor in processors.items()]
        self._projection, self._prompts = projection, prompts

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # who asks what this is learns that it is a UNet
        return type(self._unet)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, *args: Any, added_cond_kwargs: Mapping[str, Any], **kwargs: Any) -> Any:
        """Run the UNet, with a row of image embeddings for each picture, in the order of the pictures."""
        rows = added_cond_kwargs.get("image_embeds")
        if rows is not None:
            added_cond_kwargs = {**added_cond_kwargs, "image_embeds": list(map(self._in_order, rows))}
        with self.worn():
            return self._unet(*args, added_cond_kwargs=added_cond_kwargs, **kwargs)

    def _in_order(self, rows: torch.Tensor) -> torch.Tensor:
        # For several pictures of each prompt the host repeats prompts as 0 0 1 1, but image embeddings as 0 1 0 1.
        return rows.unflatten(0, (-1, self._prompts)).transpose(0, 1).flatten(0, 1)

    @contextmanager
    def worn(self) -> Iterator[None]:
        """The UNet in its dress, for the length of the `with`."""
        before = [(attn, attn.processor) for attn, _ in self._processors]
        projection = (self._bare.encoder_hid_proj, getattr(self._bare.config, "encoder_hid_dim_type", None))
        try:
            self._put(self._processors, self._projection)
            yield
        finally:
            self._put(before, projection)

    def _put(self, processors: Sequence[tuple[Any, Any]], projection: tuple[Any, str | None]) -> None:
        for attn, processor in processors:
            attn.set_processor(processor)
        self._bare.encoder_hid_proj, self._bare.config.encoder_hid_dim_type = projection


def retargeted(
    unet: Any, state: AdapterState, targets: Sequence[Mapping[str, Scale]], device: torch.device
) -> dict[str, Any]:
    """Processors for other targets than those in force. They share what is in memory, and read what is not.

    Raises:
        ValueError: The checkpoint is not there any more, or holds values that are not finite.
    """
    loaded, processors = ip_processors(unet), {}
    fetched = {key: nn.ModuleList(pair).to(device) for key, pair in fetch(unet, state, targets, loaded).items()}
    for layer, old in loaded.items():
        pairs = enumerate(zip(old.to_k_ip, old.to_v_ip, strict=True))
        keys, values = zip(*(fetched.get((layer, i), pair) for i, pair in pairs), strict=True)
        processors[layer] = new = make_processor(attention(unet, layer), old.num_tokens, old)
        new.to_k_ip, new.to_v_ip = nn.ModuleList(keys), nn.ModuleList(values)
        new.scale = scales_at(layer, state, targets)
    return processors


# --- The step --------------------------------------------------------------------------------------------------------


class InstantStyleReferenceStep(StableDiffusionXLIPAdapterStep):
    """What `InstantStyleIPAdapterStep` runs with a reference picture."""

    _requirements = REQUIREMENTS

    @property
    def description(self) -> str:
        """What documentation and user interfaces show."""
        return "Encodes a reference picture, without its content, for the attention blocks that shall see it."

    @property
    def expected_components(self) -> list[Any]:
        """The host's, and the text tower that encodes content."""
        content = [
            ComponentSpec("text_encoder_2", CLIPTextModelWithProjection),
            ComponentSpec("tokenizer_2", CLIPTokenizer),
        ]
        return [*super().expected_components, *content]

    @property
    def inputs(self) -> list[Any]:
        """All are optional. They mean what they mean in a call of the classic variant."""
        return [
            InputParam("ip_adapter_image", description="The reference: adapter -> picture or pictures."),
            InputParam(
                "ip_adapter_image_per_prompt",
                default=False,
                description="Read `ip_adapter_image` as adapter -> prompt -> picture or pictures.",
            ),
            InputParam(
                "reference_fit",
                default="crop",
                description='What becomes of a reference that is not square: "crop", "pad", "squash" or "tiles".',
            ),
            InputParam(
                "neg_content_prompt",
                description="What the reference shows, to be removed from it: a string, or strings nested as it is.",
            ),
            InputParam("neg_content_embeds", description="The same as CLIP text embeddings, shape (d,) or (1, d)."),
            InputParam("neg_content_scale", default=1.0, description='How much of it to remove, or "auto".'),
            InputParam("target_blocks", description="The blocks that see the reference in this call."),
            InputParam("style", description="A `Style` in place of a reference, a tuple of them, or one per prompt."),
            InputParam("style_scale", default=1.0, description="A number for all, or numbers nested as `style` is."),
            InputParam("cross_attention_kwargs", description="`ip_adapter_masks` say where references go."),
            InputParam("prompt_embeds", type_hint=torch.Tensor, description="As many as there are prompts."),
            InputParam("ip_adapter_embeds", type_hint=list, description="Embeddings in place of a reference."),
            InputParam("negative_ip_adapter_embeds", type_hint=list, description="Their unconditional counterpart."),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the step.

        Returns:
            A copy of the pipeline for the rest of this call, with a `DressedUNet`, or the pipeline itself where no
            adapter and no style is to be worn; and the state, with a row of embeddings for each prompt.

        Raises:
            ValueError, TypeError: An input does not fit the others or what is loaded. Nothing is changed then.
            RuntimeError: `style` where another one is applied to the UNet already.
        """
        block, pipe = self.get_block_state(state), variant_of(components)
        unet, device = bare_unet(components), execution_device(components)
        adapter, processors = _read_style(block, unet, device)
        arguments, ours = ({name: block[name] for name in names} for names in (OF_THE_HOST, OURS))
        call, targets = plan_call(pipe, arguments, adapter, **ours)
        if not call.referenced:
            return _without_reference(components, block, adapter, device), state
        if targets is not None:
            processors = retargeted(unet, adapter, targets, device)
        projection = (adapter.projection, "ip_image_proj")
        dressed = DressedUNet(components.unet, processors or ip_processors(unet), projection, call.prompts)
        with dressed.worn():
            embeds = _embed(pipe, call, device)
        halves = zip(*(rows.chunk(2) for rows in embeds), strict=True)
        block.negative_ip_adapter_embeds, block.ip_adapter_embeds = map(list, halves)
        self.set_block_state(state, block)
        return _with_unet(components, dressed), state


class InstantStyleWithoutImageStep(InstantStyleReferenceStep):
    """What `InstantStyleIPAdapterStep` runs with an encoded style, or with neither: it needs no image encoder."""

    @property
    def description(self) -> str:
        """What documentation and user interfaces show."""
        return "Paints in an encoded style; with neither style nor reference as if no adapter were loaded."

    @property
    def expected_components(self) -> list[Any]:
        """The UNet alone."""
        return [spec for spec in super().expected_components if spec.name == "unet"]


def _read_style(block: Any, unet: Any, device: torch.device) -> tuple[Any, dict[str, Any] | None]:
    """The style as adapter and processors, or the adapter that is loaded."""
    check_style_scale(block.style, block.style_scale)
    if block.style is None:
        return adapter_state(unet), None
    return style_adapter(unet, block.style, block.style_scale, device)


def _without_reference(components: Any, block: Any, adapter: AdapterState | None, device: torch.device) -> Any:
    """The pipeline for a call that encodes none: it sees embeddings made elsewhere, or else nothing."""
    if adapter is None or (block.ip_adapter_embeds is not None and block.target_blocks is None):
        return components
    if block.ip_adapter_embeds is None:
        return _with_unet(components, DressedUNet(components.unet, adapter.plain, adapter.hid_proj))
    unet = bare_unet(components)
    processors = retargeted(unet, adapter, resolve_each(block.target_blocks, unet, adapter), device)
    prompts = len(block.ip_adapter_embeds[0])
    dressed = DressedUNet(components.unet, processors, (adapter.projection, "ip_image_proj"), prompts)
    return _with_unet(components, dressed)


def _embed(pipe: Any, call: Call, device: torch.device) -> list[torch.Tensor]:
    # With the unconditional rows: which steps the guider will want them for is not known before it is there.
    pipe._instantstyle_call = call
    return pipe.prepare_ip_adapter_image_embeds(None, call.embeds, device, call.prompts, True)


def _with_unet(components: Any, unet: DressedUNet) -> Any:
    changed = copy.copy(components)
    changed.unet = unet
    return changed


# --- The blocks ------------------------------------------------------------------------------------------------------


class _SavedWithCode(ModularPipelineBlocks):
    """Blocks whose folder holds the code that loads it, so that it loads where this package is not installed."""

    variant_of = staticmethod(variant_of)

    def init_pipeline(self, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Make a pipeline of these blocks, for the components of a repository or folder."""
        source = pretrained_model_name_or_path
        # The host keeps it in a configuration, which it writes as JSON.
        return super().init_pipeline(None if source is None else os.fspath(source), *args, **kwargs)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write `modular_config.json`, and beside it the code that its class entry names."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(plugin_file(), folder / "pipeline_instantstyle.py")
        code = Path(__file__).read_text("utf-8")
        code = code.replace("\nfrom instantstyle.core ", "\nfrom .pipeline_instantstyle ")
        (folder / "modular_instantstyle.py").write_text(code, "utf-8")
        # Not the host's entry, which names this module: files of one basename share a module in one process.
        entry = {"ModularPipelineBlocks": f"modular_instantstyle.{type(self).__name__}"}
        self.register_to_config(auto_map=entry)
        super().save_config(save_directory, *args, **kwargs)


def _saving_blocks(save_pretrained: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(save_pretrained)
    def save(pipe: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(pipe.blocks, "variant_of"):
            return save_pretrained(pipe, save_directory, *args, **kwargs)
        pipe.blocks.save_pretrained(save_directory)  # first: the host may send the folder to the Hub
        with detached(bare_unet(pipe)) if pipe.components.get("unet") else nullcontext():
            save_pretrained(pipe, os.fspath(save_directory), *args, **kwargs)

    return save


# The host saves a pipeline without its blocks, and where it finds none it loads its own, without a word.
if not hasattr(StableDiffusionXLModularPipeline, "_instantstyle_saves"):  # saved code is this module once more
    StableDiffusionXLModularPipeline._instantstyle_saves = StableDiffusionXLModularPipeline.save_pretrained
    StableDiffusionXLModularPipeline.save_pretrained = _saving_blocks(StableDiffusionXLModularPipeline.save_pretrained)


class InstantStyleIPAdapterStep(AutoPipelineBlocks, _SavedWithCode):
    """Stands in the place of the host's `StableDiffusionXLAutoIPAdapterStep`, after the text encoder's step.

    Its inputs are those of `InstantStyleReferenceStep`. Without `ip_adapter_image` and `style` the rest of the call
    paints as if no adapter were loaded, and `ip_adapter_embeds` made elsewhere are left as they are.
    """

    block_classes = [InstantStyleReferenceStep, InstantStyleWithoutImageStep, InstantStyleWithoutImageStep]
    block_names = ["reference", "style", "none"]
    block_trigger_inputs = ["ip_adapter_image", "style", None]

    @property
    def description(self) -> str:
        """What documentation and user interfaces show."""
        return "InstantStyle: paints in the style of `ip_adapter_image` or `style`, if one of them is provided."


def _style_workflows() -> dict[str, dict[str, bool]]:
    theirs = {name: inputs for name, inputs in workflows(StableDiffusionXLAutoBlocks).items() if "ip_ad" in name}
    return {
        name.replace("ip_adapter", "style"): {"style": True} | {i: True for i in inputs if i != "ip_adapter_image"}
        for name, inputs in theirs.items()
    }


class InstantStyleXLBlocks(StableDiffusionXLAutoBlocks, _SavedWithCode):
    """The host's blocks for Stable Diffusion XL, all its workflows, with `InstantStyleIPAdapterStep` in place.

    `InstantStyleXLBlocks().init_pipeline(model)` makes a pipeline. `InstantStyleXLBlocks().save_pretrained(folder)`
    writes the folder from which `ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True)` loads the
    blocks, also where this package is not installed; a pipeline's `save_pretrained` writes them too, so that
    `ModularPipeline.from_pretrained` loads it as it was. Encoded styles need the package.
    """

    block_classes = [
        InstantStyleIPAdapterStep if step is StableDiffusionXLAutoIPAdapterStep else step
        for step in StableDiffusionXLAutoBlocks.block_classes
    ]
    _workflow_map = workflows(StableDiffusionXLAutoBlocks) | _style_workflows()

    @property
    def description(self) -> str:
        """What documentation and user interfaces show."""
        return f"{super().description} In the style of a reference picture."
