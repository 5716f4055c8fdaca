"""Serving the demo: looks, files that last as long as the server, and no word to anyone who was not asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from gradio.themes.utils import fonts

from instantstyle.demo.actions import Actions
from instantstyle.demo.library import Library
from instantstyle.demo.page import Page
from instantstyle.demo.studio import Studio
from instantstyle.styles.file import LARGEST_FILE


HERE = Path(__file__).parent


@contextmanager
def serve(
    studio: Studio,
    library: Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    browse: bool = False,
) -> Iterator[str]:
    """Serve the page for the length of the `with`.

    Args:
        studio: Paints.
        library: The folder where style files are kept.
        host: Who may come: this machine, or with "0.0.0.0" the whole network.
        port: By default 7860, or the next that is free.
        share: Whether to make a public address too, through Gradio's servers.
        browse: Whether to open a browser.

    Yields:
        Its address.

    Raises:
        OSError: The port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="instantstyle-") as folder:
        actions = Actions(studio, Library(library), Path(folder))
        blocks = Page(studio, actions, Path(folder)).build()
        try:
            _, local, public = blocks.queue(default_concurrency_limit=8).launch(
                server_name=host,
                server_port=port,
                share=share,
                inbrowser=browse,
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                run_history=False,
                max_file_size=LARGEST_FILE,
                footer_links=["api", "settings"],
                theme=theme(),
                css_paths=HERE / "look.css",
                head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
            )
            yield public or local
        finally:
            blocks.close(verbose=False)


def theme() -> gr.themes.Base:
    """Return the theme: fonts of the system, so that none is fetched, and greys that can be read."""
    text = [fonts.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "sans-serif")]
    mono = [fonts.Font(name) for name in ("ui-monospace", "Consolas", "monospace")]
    found = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=text, font_mono=mono)
    return found.set(
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_500",
    )
