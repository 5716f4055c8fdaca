"""The demo's page: what is on it and where. What its controls do is in `actions`."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from instantstyle.demo.actions import DAY, HOUR, RESTORED, Actions
from instantstyle.demo.reading import REFERENCES, label
from instantstyle.demo.studio import Studio
from instantstyle.inference import grid
from instantstyle.inference.grid import METHODS, PROMPTS
from instantstyle.inference.models import knows_world
from instantstyle.inference.request import GUIDANCE, STEPS, Request
from instantstyle.inference.values import PIXELS, STYLE_FILE
from instantstyle.tiny import SAMPLING


MODES = {"style": "Style", "layout": "Layout", "style+layout": "Style and layout", "all": "Everything"}
SCALES = {"minimum": 0.0, "maximum": 2.0, "step": 0.05}
DRAWN = 256  # pixels of the references that are drawn as examples
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
# One at a time: what a call asks for is on the pipeline while it runs. Gradio shows the place in this queue.
QUEUED = {"concurrency_limit": 1, "concurrency_id": "pipeline"}


class Page:
    """The page, with its controls by their names in the API, and what it shows.

    Args:
        studio: What there is to choose from.
        actions: What the controls do.
        folder: Where example pictures are put.
    """

    def __init__(self, studio: Studio, actions: Actions, folder: Path) -> None:
        self.studio = studio
        self.actions = actions
        self.folder = folder
        self.session = studio.session
        self.controls: dict[str, Any] = {}
        # The embedded checkpoint is small, quick and knows few words.
        self.small = knows_world(self.session.model)
        self.crisp = ["crisp"] if self.small else []

    def build(self) -> gr.Blocks:
        """Lay the page out."""
        with gr.Blocks(title="InstantStyle", analytics_enabled=False, delete_cache=(HOUR, DAY)) as blocks:
            gr.HTML(self._title(), padding=False)
            with gr.Row(elem_id="studio"):
                with gr.Column(elem_id="ask"):
                    self._ask()
                with gr.Column(elem_id="show"):
                    self._show()
                with gr.Column(elem_id="more"):
                    self._more()
            self._wire_painting()
            self._wire_targets()
            self._wire_styles()
            self._wire_recipe()
            blocks.load(lambda: gr.Dropdown(choices=self.actions.library_names()), None, self.library, **QUIET)
        return blocks

    def _title(self) -> str:
        parts = [self.session.model.label, self.session.adapter.label, str(self.session.device)]
        facts = "".join(f"<li>{html.escape(part)}</li>" for part in parts)
        return (
            '<header id="title"><h1>InstantStyle</h1><p>A prompt’s content in the style of a reference picture, '
            f"without training.</p><ul>{facts}</ul></header>"
        )

    # What to paint

    def _ask(self) -> None:
        examples = self._draw_examples() if self.small else []
        with gr.Row(elem_id="first"):
            self.controls["reference"] = self._picture(
                "Reference", value=examples[0][0] if examples else None, height=300, elem_id="reference", min_width=180
            )
            with gr.Column(min_width=180):
                names = [(MODES[name], name) for name in self.studio.modes]
                self.mode = gr.Radio(names, value=self.studio.modes[0], label="Take over", elem_id="mode")
                self._slider("scale", elem_id="scale")
        self.controls["prompt"] = gr.Textbox(
            "a heart" if self.small else "",
            label=label("prompt"),
            placeholder="What to show, such as: a heart",
            elem_id="prompt",
        )
        with gr.Row():
            self.controls["content"] = gr.Textbox(
                "",
                label=label("content"),
                placeholder="such as: a star",
                scale=3,
                min_width=180,
                elem_id="content",
            )
            self.controls["content_scale"] = gr.Dropdown(
                ["0.25", "0.5", "0.75", "1.0", "1.5", "auto"],
                value="0.5",
                label=label("content_scale"),
                allow_custom_value=True,
                min_width=110,
            )
        with gr.Row(elem_id="buttons"):
            self.paint = gr.Button("Generate", variant="primary", min_width=110, scale=2, elem_id="generate")
            self.compare = gr.Button("Compare", min_width=90, elem_id="compare")
            self.stop = gr.Button("Stop", min_width=70, elem_id="stop")
        if examples:
            filled = [self.controls[name] for name in ("reference", "prompt", "content")]
            gr.Examples(
                examples,
                filled,
                label="Examples",
                visible_columns=[0],
                preload=False,
                api_visibility="private",
                elem_id="examples",
            )

    def _draw_examples(self) -> list[list[str]]:
        """Draw references of the embedded checkpoint's world: path, prompt, and nothing to leave out.

        There the style block alone brings nothing of what a reference shows, and leaving that out costs style.
        """
        examples = []
        for reference, prompt in zip(grid.draw_references(DRAWN), cycle(PROMPTS), strict=False):
            path = self.folder / reference.file
            reference.image.save(path)
            examples.append([str(path), prompt, ""])
        return examples

    # What was painted

    def _show(self) -> None:
        self.status = gr.HTML("Ready.", elem_id="status", padding=False)
        with gr.Tabs() as self.tabs:
            with gr.Tab("Pictures", id="pictures"):
                self.gallery = self._show_pictures("Pictures", elem_id="pictures", columns=2)
            with gr.Tab("Comparison", id="comparison"):
                self._show_comparison()
            with gr.Tab("Recipe", id="recipe"):
                self.recipe = gr.JSON(label="Recipe of the first picture", elem_id="recipe", max_height=420)
                self.dropped = gr.File(
                    label="Drop a PNG to set the controls as its recipe says",
                    file_types=[".png"],
                    height=140,
                    elem_id="dropped",
                )

    def _show_pictures(self, label: str, **layout: Any) -> gr.Gallery:
        return gr.Gallery(
            show_label=False,
            label=label,
            format="png",
            object_fit="contain",
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_classes=self.crisp,
            **layout,
        )

    def _show_comparison(self) -> None:
        named = "No reference, plain IP-Adapter, InstantStyle"
        self.compared = self._show_pictures(named, elem_id="compared", columns=len(METHODS), height=230)
        self.slider = gr.ImageSlider(
            label="Left and right", type="filepath", format="png", elem_id="slider", elem_classes=self.crisp
        )
        with gr.Row():
            self.sides = [
                gr.Dropdown(list(METHODS), value=METHODS[place], label=label, min_width=140)
                for place, label in ((1, "Left"), (2, "Right"))
            ]

    # What else can be chosen

    def _more(self) -> None:
        with gr.Accordion("Sampling and size", open=False, elem_id="sampling"):
            self._sampling()
        with gr.Accordion("More references, weights and masks", open=False, elem_id="references"):
            self._references()
        with gr.Accordion("Attention blocks", open=False, elem_id="blocks"):
            self._blocks()
        with gr.Accordion("Style files and library", open=False, elem_id="styles"):
            self._styles()
        with gr.Accordion("Layout from a picture (ControlNet)", open=False, elem_id="control"):
            self._control()
        with gr.Accordion("Start from a picture, repaint parts", open=False, elem_id="start"):
            self._start()

    def _sampling(self) -> None:
        side = self.studio.side
        usual = SAMPLING if self.small else {"steps": STEPS, "guidance": GUIDANCE}
        self.controls["negative"] = gr.Textbox("", label=label("negative"), placeholder="What not to show")
        with gr.Row():
            self._slider("steps", value=usual["steps"], minimum=1, maximum=100, step=1)
            self._slider("guidance", value=usual["guidance"], minimum=0.0, maximum=20.0, step=0.5)
        with gr.Row():
            for name in ("width", "height"):
                shape = {"minimum": side // 2, "maximum": 2 * side, "step": PIXELS}
                self._slider(name, label=name.title(), value=side, **shape)
        with gr.Row():
            self._slider("num_images", label="Pictures", value=1, minimum=1, maximum=8, step=1)
            self.controls["seed"] = gr.Number(
                0, label=label("seed"), precision=0, minimum=0, min_width=120, elem_id="seed"
            )
        self.controls["randomise"] = gr.Checkbox(True, label="Draw a seed for every run")
        offloaded = self.session.machine.offload != "none"
        self.controls["preview"] = gr.Checkbox(
            not offloaded,
            label="Show the pictures while they are made" + (", which cannot go with --offload" * offloaded),
            interactive=not offloaded,
        )

    def _references(self) -> None:
        field = Request.model_fields["reference_fit"]
        self.controls["reference_fit"] = gr.Radio(
            get_args(field.annotation), value=field.default, label=label("reference_fit"), info=field.description
        )
        gr.Markdown("Several pictures are mixed by their weights. With a mask, white says where a picture acts.")
        for number, end in enumerate(REFERENCES, start=1):
            with gr.Row():
                if end:
                    self.controls[f"reference{end}"] = self._picture(f"Reference {number}", height=130)
                self.controls[f"mask{end}"] = self._picture(f"Mask {number}", height=130)
                self._slider(f"weight{end}", label=f"Weight {number}", value=1.0)

    def _blocks(self) -> None:
        self.controls["target_blocks"] = gr.Textbox(
            self.studio.modes[0],
            label=label("target_blocks"),
            info="The blocks that see the reference, as --target-blocks takes them",
            interactive=False,
            elem_id="target-blocks",
        )
        scales = self.studio.scales([(self.studio.modes[0], 1.0)])
        with gr.Row(elem_id="sliders"):
            self.scales = [gr.Slider(value=one, label=name, min_width=200, **SCALES) for name, one in scales.items()]

    def _styles(self) -> None:
        gr.Markdown("A style file stands for the reference pictures, until it is taken away.")
        self.controls["style"] = gr.File(
            label=label("style"), file_types=[STYLE_FILE], height=110, elem_id="style-file"
        )
        self.encode = gr.Button("Encode the references", size="md", elem_id="encode")
        with gr.Row():
            self.name = gr.Textbox(label="Name", placeholder="ukiyo-e", min_width=140, elem_id="style-name")
            self.save = gr.Button("Save to the library", size="md", min_width=170, elem_id="save-style")
        # Any value is let through, because others may have saved it since; the library knows what there is.
        self.library = gr.Dropdown(
            self.actions.library_names(),
            value=None,
            label="Take from the library",
            allow_custom_value=True,
            elem_id="library",
        )
        self.made_of = gr.Textbox(
            label="What the style is made of", lines=1, max_lines=14, interactive=False, elem_id="made-of"
        )

    def _control(self) -> None:
        if self.session.machine.controlnet is None:
            gr.Markdown("Start the demo with `--controlnet` to use this.")
        self.controls["control_image"] = self._picture(label("control_image"), height=200, elem_id="control-image")
        self.controls["edges"] = gr.Checkbox(True, label=label("edges"))
        self._slider("controlnet_scale", value=0.6)

    def _start(self) -> None:
        gr.Markdown("Paint over what to repaint. Without paint, the whole picture is changed.")
        self.controls["start"] = gr.ImageEditor(
            label=label("image"),
            type="pil",
            sources=["upload", "clipboard"],
            transforms=(),
            layers=False,
            brush=gr.Brush(colors=["#e11d48"], color_mode="fixed"),
            height=360,
            elem_id="start-editor",
        )
        start = self.controls["start"]
        gr.on([start.upload, start.change], None, js="studio.loaded", **QUIET)
        self._slider("strength", value=0.9, minimum=0.0, maximum=1.0)

    def _slider(self, name: str, **more: Any) -> None:
        field = Request.model_fields.get(name)
        own = {"label": label(name), "value": field.default} if field else {}
        self.controls[name] = gr.Slider(**{"min_width": 140, **SCALES, **own, **more})

    def _picture(self, label: str, **more: Any) -> Any:
        component = gr.Image(
            label=label,
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            placeholder="Drop or click",
            **{"min_width": 140} | more,
        )
        # The package opens the file and says what is wrong with it; Gradio would say less.
        component.preprocess = lambda data: data and data.path
        component.upload(self.actions.check_picture, component, None, trigger_mode="multiple", **QUIET)
        return component

    # What happens

    def _wire_painting(self) -> None:
        runs = [
            self._run(
                [self.paint.click, self.controls["prompt"].submit],
                self.actions.generate,
                [self.gallery, self.recipe, self.status],
                "pictures",
            ),
            self._run(
                [self.compare.click],
                self.actions.compare,
                [self.compared, self.slider, self.recipe, self.status],
                "comparison",
            ),
        ]
        # Asked first, the server has answered what was asked before, and what is to be cancelled has a name.
        self.stop.click(lambda: None, js="studio.stop", cancels=runs, queue=False, **QUIET)
        self.stop.click(None, js="studio.stopped", outputs=self.status, **QUIET)
        for side in self.sides:
            side.input(self.actions.pair, [self.compared, *self.sides], self.slider, **QUIET)

    def _run(self, triggers: Sequence[Any], action: Callable[..., Any], outputs: list[Any], tab: str) -> Any:
        """Paint when one of these is triggered, as soon as all controls are set, and show the tab of the result."""
        ready = gr.on(triggers, None, js=f"() => studio.painting('{tab}')", outputs=self.tabs, **QUIET)
        run = ready.then(
            action,
            inputs_kwargs=self.controls,
            outputs=outputs,
            show_progress="minimal",
            show_progress_on=self.status,
            api_name=action.__name__,
            **QUEUED,
        )
        seed = self.controls["seed"]
        run.success(None, [self.recipe, self.controls["randomise"], seed], seed, js="studio.seed", **QUIET)
        run.failure(None, js="studio.failed", outputs=self.status, **QUIET)
        return run

    def _wire_targets(self) -> None:
        text, modes, blocks = self.controls["target_blocks"], self.studio.modes, list(self.studio.blocks)
        presets = {mode: [mode, *self.studio.scales([(mode, 1.0)]).values()] for mode in modes}
        choose = f"mode => studio.choose({json.dumps(presets)}, mode)"
        slide = f"(...scales) => studio.slide({json.dumps(blocks)}, scales)"
        self.mode.input(None, self.mode, [text, *self.scales], js=choose, **QUIET)
        gr.on([scale.input for scale in self.scales], None, self.scales, [text, self.mode], js=slide, **QUIET)

    def _wire_styles(self) -> None:
        style, actions = self.controls["style"], self.actions
        encoding = self.encode.click(None, js="studio.settled", **QUIET)
        encoding.then(
            actions.encode,
            inputs_kwargs=self.controls,
            outputs=style,
            show_progress="minimal",
            api_name="encode",
            **QUEUED,
        )
        style.change(actions.describe, style, self.made_of, api_name="describe", show_progress="hidden")
        saving = self.save.click(None, js="studio.settled", **QUIET)
        saving.then(
            actions.save_style, [style, self.name], self.library, api_name="save_style", show_progress="hidden"
        )
        self.library.input(actions.load_style, self.library, style, api_name="load_style", show_progress="hidden")
        gr.api(actions.library_names, api_name="library")

    def _wire_recipe(self) -> None:
        restored = [*(self.controls[name] for name in RESTORED), self.mode, *self.scales]
        self.dropped.upload(
            self.actions.restore,
            self.dropped,
            [self.recipe, *restored],
            api_name="restore",
            show_progress="hidden",
        )
