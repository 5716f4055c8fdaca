"""InstantStyle (arXiv 2404.02733) for the Stable Diffusion XL and 1.5 pipelines of diffusers.

Two training-free additions to an IP-Adapter (arXiv 2308.06721): the reference picture is injected only into the
attention blocks that carry style, and the CLIP text embedding of what it shows is subtracted from its CLIP image
embedding.
"""

from .adapter import (
    AdapterState,
    adapter_state,
    adapter_to_change,
    attach,
    attached,
    component,
    detach,
    detached,
    fetch,
    resolve_each,
    scales_at,
    style_adapter,
)
from .blocks import (
    Scale,
    TargetBlocks,
    attention_blocks,
    check_number,
    presets,
    resolve_target_blocks,
    text_layers,
    times,
)
from .call import Call, Images, check_style_scale, embed_reference, plan_call, read_call, upright
from .checkpoint import AdapterFile, find_file
from .content import remove_content
from .fit import FITS, check_fit, mean_of_squares, squares
from .hosts import plugin_file, write_code
from .nesting import Content
from .offloading import modules, offloading_suspended
from .pipeline import InstantStyleMixin, StableDiffusionXLInstantStylePipeline, with_instantstyle
from .private import execution_device, private, workflows
from .processors import MutedProjection, attention, bare_unet, ip_processors, make_processor


__all__ = [
    "FITS",
    "AdapterFile",
    "AdapterState",
    "Call",
    "Content",
    "Images",
    "InstantStyleMixin",
    "MutedProjection",
    "Scale",
    "StableDiffusionXLInstantStylePipeline",
    "TargetBlocks",
    "adapter_state",
    "adapter_to_change",
    "attach",
    "attached",
    "attention",
    "attention_blocks",
    "bare_unet",
    "check_fit",
    "check_number",
    "check_style_scale",
    "component",
    "detach",
    "detached",
    "embed_reference",
    "execution_device",
    "fetch",
    "find_file",
    "ip_processors",
    "make_processor",
    "mean_of_squares",
    "modules",
    "offloading_suspended",
    "plan_call",
    "plugin_file",
    "presets",
    "private",
    "read_call",
    "remove_content",
    "resolve_each",
    "resolve_target_blocks",
    "scales_at",
    "squares",
    "style_adapter",
    "text_layers",
    "times",
    "upright",
    "with_instantstyle",
    "workflows",
    "write_code",
]
