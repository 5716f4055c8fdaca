"""The variants: the mixin, and the pipeline for Stable Diffusion XL."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

from .adapter import (
    adapter_to_change,
    attach,
    attached,
    detach,
    detached,
    loaded,
    placeholders,
    resolve_each,
    style_adapter,
)
from .blocks import (
    Scale,
    TargetBlocks,
)
from .call import (
    Call,
    Images,
    bind,
    check_style_scale,
    cut_with_guidance,
    fit_rows,
    host_pictures,
    make_rows,
    plan_call,
    processors_kept,
    refuse_misspelt,
)
from .checkpoint import hub_arguments, in_host_words
from .content import encode_content, read_content_encoder
from .fit import mean_of_squares
from .hosts import check_host, class_entry, joint_signature, variant_name, write_code
from .loading import load_adapters
from .nesting import Content, as_list
from .offloading import offloading_suspended
from .private import execution_device
from .processors import bare_unet
from .services import naming_strangers
from .targets import in_force, read_scales, retarget, targets_for_call


_Host: Any = object  # to a type checker: whatever class the mixin is put in front of


class InstantStyleMixin(_Host):
    """InstantStyle (arXiv 2404.02733) for a diffusers pipeline that takes IP-Adapters; it stands before the host.

    An IP-Adapter (arXiv 2308.06721) makes of every text cross-attention
    `attention(q, k_text, v_text) + scale * attention(q, k_image, v_image)`. Here only the target blocks have the
    second term, and content can be subtracted from what its keys and values are made of (see `remove_content`).
    """

    _instantstyle_host: Any
    _instantstyle_call: Call | None = None

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # Not by this class's name: diffusers executes a plugin file anew, in the same module, each time it is loaded.
        mixin = next((base for base in cls.__bases__ if "_instantstyle_call" in vars(base)), None)
        if mixin is None:
            return
        cls._instantstyle_host = host = cls.__bases__[cls.__bases__.index(mixin) + 1]
        check_host(host)
        run: Any = mixin.__call__

        # Testers and user interfaces read the signature: it shows the host's parameters and ours.
        @functools.wraps(run)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return run(self, *args, **kwargs)

        vars(call)["__signature__"] = joint_signature(host.__call__, run)
        cls.__call__ = call  # type: ignore[method-assign]

    def __call__(
        self,
        *args: Any,
        neg_content_prompt: Content = None,
        neg_content_embeds: torch.Tensor | Sequence[Any] | None = None,
        neg_content_scale: float | str = 1.0,
        target_blocks: TargetBlocks | Sequence[TargetBlocks] | None = None,
        ip_adapter_image_per_prompt: bool = False,
        reference_fit: str = "crop",
        style: Any = None,
        style_scale: float | Sequence[Any] = 1.0,
        **kwargs: Any,
    ) -> Any:
        """Run the host pipeline. All its arguments are taken, and mean what they mean there.

        Args:
            neg_content_prompt: what the reference shows, to be removed from it: a string for every picture, or strings
                (or None) nested exactly as `ip_adapter_image`.
            neg_content_embeds: the same as projected, un-normalised CLIP text embeddings of shape `(d,)` or `(1, d)`.
            neg_content_scale: how much of it to remove, or "auto" (see `remove_content`).
            target_blocks: the blocks that see the reference in this call only (see `set_target_blocks`), at the scale
                that is set.
            ip_adapter_image_per_prompt: read `ip_adapter_image` as adapter -> prompt -> picture or pictures, one
                reference for each prompt. `ip_adapter_image_embeds` need no flag: dimension 0 is 1 or the number of
                prompts, doubled under guidance.
            reference_fit: what becomes of a reference that is not square: "crop" keeps its middle, as the host does,
                "pad" adds edges, "squash" distorts, "tiles" takes the mean of the embeddings of overlapping squares.
            style: a `Style` in place of a reference; a tuple of them, combined in one picture; or a list with one of
                these for each prompt. `ip_adapter_masks` say where each of a tuple goes, as for adapters.
            style_scale: a number for all, or numbers nested as `style` is. It multiplies the style's own scales.

        Raises:
            ValueError, TypeError: an argument does not fit the others or what is loaded. Nothing is changed then.
            RuntimeError: `style` where another one is applied to the UNet already.
        """
        names = inspect.getfullargspec(InstantStyleMixin.__call__).kwonlyargs
        arguments, unet = bind(super().__call__, args, kwargs, names), bare_unet(self)
        ours: dict[str, Any] = {
            "neg_content_prompt": neg_content_prompt,
            "neg_content_embeds": neg_content_embeds,
            "ip_adapter_image_per_prompt": ip_adapter_image_per_prompt,
            "reference_fit": reference_fit,
        }
        check_style_scale(style, style_scale)
        with ExitStack() as stack:
            if style is not None:
                built = style_adapter(unet, style, style_scale, execution_device(self))
                stack.enter_context(attached(unet, *built))
            state = loaded(self)
            call, targets = plan_call(self, arguments, state, target_blocks, neg_content_scale, **ours)
            if state is not None and call.pictures is None:
                arguments["ip_adapter_image_embeds"] = call.embeds or placeholders(state)
            arguments |= cut_with_guidance(arguments, call)
            stack.enter_context(processors_kept(unet))
            if state is not None:
                stack.enter_context(naming_strangers(unet))
            if state is not None and targets is not None:
                stack.enter_context(targets_for_call(self, state, targets))
            stack.callback(setattr, self, "_instantstyle_call", self._instantstyle_call)
            self._instantstyle_call = call
            return super().__call__(**arguments)

    def prepare_ip_adapter_image_embeds(
        self,
        ip_adapter_image: Images | None,
        ip_adapter_image_embeds: list[torch.Tensor] | None,
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> list[torch.Tensor]:
        """The host's embeddings with content removed and a row for each picture to make: unconditional, conditional.

        Outside of a call this is the host's method unchanged.

        Returns:
            For each adapter a tensor of shape `(rows, pictures, d)`, or `(rows, pictures, patches, d)`; `rows` is the
            number of pictures to make, doubled under guidance.

        Raises:
            ValueError: embeddings of another number of rows, or content of another nesting.
        """
        call, guided = self._instantstyle_call, do_classifier_free_guidance
        counts: list[list[int]] = []  # with fitted references: for each adapter, of how many squares each is made
        prepare = super().prepare_ip_adapter_image_embeds
        if call is None or call.rows:  # a callback of the call may ask for embeddings of its own
            return prepare(ip_adapter_image, ip_adapter_image_embeds, device, num_images_per_prompt, guided)
        if not call.referenced:
            ip_adapter_image_embeds = [e.expand(1 + guided, *e.shape[1:]) for e in ip_adapter_image_embeds or []]
        elif call.embeds is not None:
            call.embeds = ip_adapter_image_embeds = fit_rows(call.embeds, call.prompts, guided)
        elif call.pictures is not None:
            ip_adapter_image, counts = host_pictures(self, call)
        # Content first: with model offloading the text tower leaves the device when the image tower comes.
        contents = None if call.content is None else call.contents(guided)
        content = encode_content(self, contents, device)
        embeds = prepare(ip_adapter_image, ip_adapter_image_embeds, device, 1, guided)
        if counts:
            embeds = [mean_of_squares(rows, count) for rows, count in zip(embeds, counts, strict=True)]
        parts = zip(embeds, content, strict=True)
        call.rows = [make_rows(call, both, removed, num_images_per_prompt, guided) for both, removed in parts]
        return call.rows

    def encode_style(
        self,
        image: Images,
        neg_content_prompt: Content = None,
        neg_content_scale: float | str = 1.0,
        target_blocks: TargetBlocks | None = None,
        weights: Sequence[float] | None = None,
        reference_fit: str = "crop",
    ) -> Any:
        """Encode a reference once: a `Style` does what the reference would, without adapter and image encoder.

        Args:
            image: a picture, or a list of them, of which the weighted mean is taken (of their CLIP embeddings).
            neg_content_prompt: what it shows, to be removed: a string for all, or a list of one (or None) each.
            neg_content_scale: how much of it to remove, or "auto" (see `remove_content`).
            target_blocks: the blocks that see it (see `set_target_blocks`), at the scale that is set. By default those
                in force.
            weights: a number for each picture, divided by their sum. By default all count the same.
            reference_fit: what becomes of a picture that is not square: "crop", "pad", "squash" or "tiles", as in a
                call.

        Raises:
            ValueError, TypeError: an argument does not fit, or there is not exactly one IP-Adapter with its encoder.
            RuntimeError: a style is applied to the UNet.
            ImportError: the package is not there, or `instantstyle.styles` is not imported.

        Example:
            >>> style = pipe.encode_style(reference, neg_content_prompt="a star")
            >>> style.save("pink-dots.safetensors")
            >>> pipe("a heart", style=style).images[0]
        """
        raise ImportError(  # where it is, this method is the function named here
            "`encode_style` needs the package that this file is from: `pip install instantstyle`. Then "
            "`instantstyle.styles.encode(pipe, picture)` makes a style."
        )

    def unload_image_encoder(self) -> None:
        """Let go of the image encoder, once every reference is encoded. `load_ip_adapter` brings it again.

        Other pipelines that have it keep it.

        Raises:
            RuntimeError: a style is applied to the UNet.
        """
        adapter_to_change(self)
        with offloading_suspended(self):
            self.register_modules(image_encoder=None)

    # Where to inject

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Any] | list[Any],
        subfolder: str | list[str],
        weight_name: str | list[str],
        image_encoder_folder: str | None = "image_encoder",
        target_blocks: TargetBlocks | Sequence[TargetBlocks] | None = None,
        **kwargs: Any,
    ) -> None:
        """Load IP-Adapters as the host does, but of their weights only those of the target blocks.

        Args:
            pretrained_model_name_or_path_or_dict: a repository, a folder or a state dict; for several a list.
            subfolder, weight_name: where the file is in it; for several lists.
            image_encoder_folder: where the image encoder is; None loads none.
            target_blocks: the blocks that see the reference (see `set_target_blocks`). By default "style"; on a UNet
                of which it is not known which blocks carry style, "all" as in the host, and the log says so.
            kwargs: the host's, for the Hub.

        Raises:
            OSError: a file is missing.
            ValueError, TypeError: a checkpoint cannot be read, does not fit the model, or has no such target blocks.
                Nothing is changed then.
            RuntimeError: a style is applied to the UNet.

        Example:
            >>> pipe.load_ip_adapter("h94/IP-Adapter", "sdxl_models", "ip-adapter_sdxl.safetensors")
            >>> pipe.target_blocks
            {'up_blocks.0.attentions.1': 1.0}
            >>> pipe("a heart", ip_adapter_image=reference).images[0]
        """
        refuse_misspelt(kwargs, ["target_blocks"])
        adapter_to_change(self)
        names, hub = (as_list(subfolder), as_list(weight_name)), hub_arguments(kwargs)
        sources = as_list(pretrained_model_name_or_path_or_dict)
        load_adapters(self, sources, *names, image_encoder_folder, target_blocks, hub)

    def unload_ip_adapter(self) -> None:
        """Take the adapter off, and put back what `load_ip_adapter` replaced. Modules that the user gave stay.

        Raises:
            RuntimeError: a style is applied to the UNet.
        """
        unet, state = bare_unet(self), adapter_to_change(self)
        if state is None:
            return
        with offloading_suspended(self):
            detach(unet, state)
            ours = [name for name, brought in state.brought.items() if getattr(self, name) is brought()]
            self.register_modules(**dict.fromkeys(ours))
        loras = [name for name in getattr(unet, "peft_config", {}) if name.startswith("faceid_")]
        if loras:
            self.delete_adapters(loras)

    def set_target_blocks(
        self, target_blocks: TargetBlocks | Sequence[TargetBlocks], scale: Scale | list[Scale] = 1.0
    ) -> None:
        """Choose which attention blocks see the reference. Weights of the others are let go, and read again on demand.

        Args:
            target_blocks: "style", "layout", "style+layout" or "all"; a block name such as `up_blocks.0.attentions.1`,
                at any depth; a list of them; or a dict of name -> scale. With several adapters a list has one of these
                for each.
            scale: a number, or a list with an entry per adapter: a number, or a list of them, one per masked picture.

        Raises:
            ValueError, TypeError: no adapter, an unknown name, a wrong scale, or weights that cannot be read again.
                Nothing is changed then.
            RuntimeError: a style is applied to the UNet.

        Example:
            >>> pipe.set_target_blocks({"style": 1.0, "layout": 0.3})
            >>> pipe.target_blocks
            {'down_blocks.2.attentions.1': 0.3, 'up_blocks.0.attentions.1': 1.0}
        """
        state = adapter_to_change(self)
        targets = resolve_each(target_blocks, bare_unet(self), state)
        retarget(self, state, targets, scale if isinstance(scale, list) else [scale] * len(targets), targets)

    def set_ip_adapter_scale(self, scale: Scale | Mapping[str, Any] | list[Any]) -> None:
        """Set scales as the host does.

        Args:
            scale: a number, which scales the blocks that `load_ip_adapter` or `set_target_blocks` chose, also after a
                dict; a dict, which means what it does in the host; or a list of these, one per adapter. A list in
                place of a number has one per masked picture.

        Raises:
            ValueError, TypeError: a wrong scale, or weights that cannot be read again. Nothing is changed then.
            RuntimeError: a style is applied to the UNet.
        """
        state = adapter_to_change(self)
        if state is None:
            return super().set_ip_adapter_scale(scale)
        targets, scales = read_scales(bare_unet(self), state, scale)
        retarget(self, state, targets, scales, state.chosen)

    @property
    def target_blocks(self) -> dict[str, Scale] | list[dict[str, Scale]] | None:
        """The blocks in force as name -> scale, without zeros; a list of dicts with several adapters, None without."""
        state = loaded(self)
        if state is None:
            return None
        found = in_force(bare_unet(self), state)
        return found if len(found) > 1 else found[0]

    # What to remove

    def load_content_encoder(
        self,
        source: str | Path | Sequence[Any],
        subfolder: str = "",
        tokenizer_subfolder: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Give the text tower of the CLIP that the adapter's image encoder belongs to. It goes before SDXL's own.

        Needed for ViT-H adapters (`laion/CLIP-ViT-H-14-laion2B-s32B-b79K`) and for SD1.5. All pipelines on the same
        UNet share it. It is none of their components, and on their device only while it encodes.

        Args:
            source: a repository or folder, or the modules `(text_encoder, tokenizer)`.
            subfolder: where the text encoder is in the repository.
            tokenizer_subfolder: where the tokenizer is, if elsewhere.
            kwargs: for `from_pretrained` (`revision`, `token`, `dtype`, ...).

        Raises:
            OSError, TypeError: it is not there; the text encoder has no projection into CLIP's shared space.
        """
        unet = bare_unet(self)
        unet._instantstyle_content = read_content_encoder(source, subfolder, tokenizer_subfolder, unet.dtype, **kwargs)

    def unload_content_encoder(self) -> None:
        """Forget what `load_content_encoder` gave."""
        bare_unet(self).__dict__.pop("_instantstyle_content", None)

    # Services of the host that copy or save the UNet

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Callable | None = None) -> None:
        """Switch xformers on or off as the host does. The adapter follows."""
        with detached(bare_unet(self)):
            super().set_use_memory_efficient_attention_xformers(valid, attention_op)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """The host's, which before diffusers 0.39 called the dtype `torch_dtype`; `dtype` is understood there too."""
        return super().from_pretrained(*args, **in_host_words(kwargs))

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """The host's `from_pipe`: modules, adapter and content encoder are shared. Without `dtype` all is float32."""
        source = bare_unet(pipeline)
        with detached(source) as adapter:
            new = super().from_pipe(pipeline, **in_host_words(kwargs))
            unet = bare_unet(new)
            if unet is not source and "unet" not in kwargs:  # AnimateDiff copies the weights into another class
                if adapter is not None and adapter[0].standing is None:  # a style that is applied stays where it is
                    copied = replace(adapter[0], projection=copy.deepcopy(adapter[0].projection))
                    attach(unet, copied, copy.deepcopy(adapter[1]))
                if "_instantstyle_content" in source.__dict__:
                    unet._instantstyle_content = source._instantstyle_content
        return new

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as the host does, with the code that loads the folder again, without adapter and content encoder."""
        with detached(bare_unet(self)):
            super().save_pretrained(save_directory, *args, **kwargs)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write `model_index.json`, and beside it the code that its class entry names."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_code(self._instantstyle_host, folder)
        super().save_config(save_directory, *args, **kwargs)

    def to_json_string(self) -> str:
        """The host's, with the class entry that loads the saved folder without a `custom_pipeline` argument."""
        config = json.loads(super().to_json_string()) | {"_class_name": class_entry(self._instantstyle_host)}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def _dict_from_json_file(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # The class entry is for `DiffusionPipeline`; this class already is the code to run.
        config = super()._dict_from_json_file(*args, **kwargs)
        return config | {"_class_name": cls.__name__} if isinstance(config.get("_class_name"), list) else config


@functools.cache
def with_instantstyle(host: Any) -> Any:
    """The variant of a diffusers pipeline class that takes IP-Adapters.

    Args:
        host: such as `StableDiffusionXLPAGPipeline`. A variant is given back as it is.

    Raises:
        TypeError: it is no pipeline class.
        ValueError: the host prepares image embeddings in its own way, or takes none.
    """
    if not (isinstance(host, type) and issubclass(host, DiffusionPipeline)):
        raise TypeError(f"`host` must be a pipeline class of diffusers, but is {host!r}.")
    if hasattr(host, "_instantstyle_host"):
        return host
    doc = f"{host.__name__} in the style of a reference picture (arXiv 2404.02733)."
    return type(variant_name(host), (InstantStyleMixin, host), {"__doc__": doc})


class StableDiffusionXLInstantStylePipeline(InstantStyleMixin, StableDiffusionXLPipeline):
    """Text to image in the style of a reference picture, for Stable Diffusion XL (arXiv 2404.02733)."""
