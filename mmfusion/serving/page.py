"""The page of `mmfusion demo`: a model, to be tried by hand in a browser."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import gradio as gr

from mmfusion.errors import UserError, user_error
from mmfusion.serving import looks, tabs, uploads
from mmfusion.serving.controls import AT_ONCE, Model, Tray
from mmfusion.serving.engine import Engine

MOST_WAITING = 64
MOST_VISITORS = 200  # whose pictures and chats are kept; the longest away goes first


def make_page(engine: Engine, name: str, prompts: Sequence[str] = ()) -> gr.Blocks:
    """The page of a model: a tab for each thing that it can do.

    Args:
        name: what the page calls the model.
        prompts: examples of what it knows how to draw. Styles that they name ("a rocket, twemoji
            style") are offered for restyling and analogies.
    """
    model = Model(engine, prompts)
    if not model.text and not model.classes:
        raise UserError(f"model {name}: knows no text and no classes; there is nothing to ask it")
    shown = {"Draw": tabs.draw_tab, "Edit": tabs.edit_tab}
    if model.text:
        shown["Caption"] = tabs.caption_tab
    if model.styles:
        shown |= {"Restyle": tabs.restyle_tab, "Analogy": tabs.analogy_tab}
    if model.text:
        shown["Chat"] = tabs.chat_tab
    page = gr.Blocks(title=f"mmfusion: {name}", analytics_enabled=False, delete_cache=(600, 3600))
    with page:
        gr.HTML(looks.front(name, _facts(model)))
        with gr.Tabs(overflow_behavior="wrap") as row:
            made = [gr.Tab(title, id=title) for title in shown]
        tray = Tray(model, row, "Draw")
        for tab, fill in zip(made, shown.values(), strict=True):
            with tab:
                fill(model, tray)
        page.load(
            lambda: [model.own_pictures()] * 2, None, [tray.pictures, tray.gallery],
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=AT_ONCE, api_open=False)
    uploads.say_what_was_sent_wrong(page)
    return page


def _facts(model: Model) -> str:
    millions = sum(weight.numel() for weight in model.pipeline.decoder.parameters()) / 1e6
    can = [*(["words"] if model.text else []), *(["classes"] if model.classes else [])]
    return f"{millions:.2f}M parameters · {model.size}×{model.size} pixels · {' and '.join(can)}"


@contextmanager
def serving(
    engine: Engine, name: str, prompts: Sequence[str], host: str, port: int
) -> Iterator[str]:
    """The page while it is served; gives its address.

    What visitors send lies in a folder of this process alone, which goes with it.
    """
    uploads.limit_pictures()
    with tempfile.TemporaryDirectory(prefix="mmfusion-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = make_page(engine, name, prompts)
        with user_error(f"{host}:{port}: cannot be served on; take another --port", OSError):
            page.launch(
                server_name=host, server_port=port, share=False, quiet=True, inbrowser=False,
                prevent_thread_lock=True, ssr_mode=False, theme=looks.THEME, css=looks.CSS,
                footer_links=[], run_history=False, enable_monitoring=False, mcp_server=False,
                max_file_size=uploads.MOST_BYTES, state_session_capacity=MOST_VISITORS,
            )  # fmt: skip
        try:
            yield str(page.local_url)
        finally:
            page.close(verbose=False)
