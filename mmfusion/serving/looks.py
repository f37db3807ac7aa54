"""How the page looks: its theme, its style sheet, and answers as HTML."""

import base64
import html
import io
from collections.abc import Sequence

import gradio as gr
from PIL import Image as PILImage

# Fonts of the reader's own machine: nothing is fetched from elsewhere.
THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["ui-sans-serif", "Segoe UI", "Helvetica Neue", "Arial", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
)
COARSE = 32  # pixels: smaller pictures are shown with hard edges, as what they are

CSS = """
.gradio-container { width: 100%; max-width: 1120px !important; margin: 0 auto; }
.html-container { padding: 0 !important; }
.front h1 { margin: 0; font-size: 1.6rem; font-weight: 650; letter-spacing: -0.01em; }
.front p { margin: .15rem 0 0; color: var(--body-text-color-subdued); }
.answer {
  display: grid; gap: 10px; justify-content: center;
  grid-template-columns: repeat(var(--columns), minmax(0, var(--side)));
}
.answer img, .blank {
  width: 100%; aspect-ratio: 1; border-radius: 10px; display: block;
  background: var(--background-fill-secondary);
}
.blank {
  display: grid; place-items: center; border: 1px dashed var(--border-color-primary);
  color: var(--body-text-color-subdued); background: none; padding: 1rem; text-align: center;
}
.answer img, .talk img { border: 1px solid var(--border-color-primary); }
@media (max-width: 640px) { #canvas { height: 400px !important; } }
.bar { height: 4px; margin: 10px auto 0; max-width: 400px; border-radius: 2px; overflow: hidden;
  background: var(--border-color-primary); }
.bar div { height: 100%; background: var(--color-accent); }
.bar.done { visibility: hidden; }
img.coarse, .coarse img { image-rendering: pixelated; }
.given img { width: 100%; height: 100%; object-fit: contain !important; }
.hint { color: var(--body-text-color-subdued); font-size: .875rem; }
.tray, .tray .grid-wrap { border: none !important; background: none !important; }
.tray, .tray .grid-wrap { min-height: 0 !important; padding: 0 !important; }
.tray .grid-wrap { overflow: hidden !important; }
.tray .selected { --ring-color: transparent !important;
  border-color: var(--border-color-primary) !important; }
.tray .grid-container { grid-template-columns: none !important; grid-auto-flow: column;
  grid-auto-columns: 88px; overflow-x: auto; padding: 2px;
  scrollbar-width: thin; scrollbar-color: var(--border-color-primary) transparent; }
.said { font-size: 1.25rem; padding: 1rem; border-radius: 10px; min-height: 4rem;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  overflow-wrap: anywhere; }
.said.empty { color: var(--body-text-color-subdued); font-size: 1rem; }
.talk { display: flex; flex-direction: column; gap: 8px; min-height: 260px; padding: 12px;
  border: 1px solid var(--border-color-primary); border-radius: 10px;
  background: var(--background-fill-primary); }
.talk > div { max-width: 80%; padding: 8px 14px; border-radius: 14px; overflow-wrap: anywhere; }
.talk > .user { align-self: flex-end; background: var(--color-accent-soft);
  color: var(--body-text-color); }
.talk > .model { align-self: flex-start; background: var(--background-fill-secondary); }
.talk > .hint { margin: auto; color: var(--body-text-color-subdued); text-align: center; }
.talk > div:has(img) { padding: 0; background: none; }
.talk img { width: 160px; max-width: 100%; border-radius: 8px; display: block; margin: 2px 0; }
"""


def front(name: str, facts: str) -> str:
    """The head of the page."""
    return f"<div class='front'><h1>{_text(name)}</h1><p>{_text(facts)}</p></div>"


def answer(pictures: Sequence[PILImage.Image], done: float = 1.0) -> str:
    """Pictures side by side, and how much of them is done (0 to 1)."""
    columns = next(n for n in (1, 2, 3, 4) if n * n >= len(pictures) or n == 4)
    side = 400 if columns == 1 else 220
    tiles = "".join(map(_image, pictures))
    bar = (
        f"<div class='bar{' done' if done == 1 else ''}'><div style='width:{done:.0%}'></div></div>"
    )
    return f"<div class='answer' style='--columns:{columns};--side:{side}px'>{tiles}</div>{bar}"


def blank(hint: str) -> str:
    """Where an answer will be."""
    tile = f"<div class='blank'><span>{_text(hint)}</span></div>"
    return f"<div class='answer' style='--columns:1;--side:400px'>{tile}</div>{_NO_BAR}"


_NO_BAR = "<div class='bar done'></div>"


def said(text: str, hint: str = "") -> str:
    """A caption, or what stands in its place until there is one."""
    return f"<div class='said{'' if text else ' empty'}'>{_text(text or hint)}</div>"


Turn = tuple[str, str | PILImage.Image]
"""Who ("user" or "model"), and what: a text or a picture."""


def talk(turns: Sequence[Turn], hint: str) -> str:
    """A conversation."""
    shown = [
        f"<div class='{who}'>{_text(what) if isinstance(what, str) else _image(what)}</div>"
        for who, what in turns
    ]
    return f"<div class='talk'>{''.join(shown) or f'<div class=hint>{_text(hint)}</div>'}</div>"


def coarse(size: int) -> list[str]:
    """The style of what shows pictures of `size` pixels."""
    return ["coarse"] if size <= COARSE else []


def enlarged(picture: PILImage.Image, side: int = 512) -> PILImage.Image:
    """A small picture on a canvas that one can paint on.

    By a power of two: what the codec makes of it is exactly what it makes of the small one.
    """
    factor = 1
    while 2 * factor * max(picture.size) <= side:
        factor *= 2
    size = picture.width * factor, picture.height * factor
    return picture.resize(size, PILImage.Resampling.NEAREST) if factor > 1 else picture


def _image(picture: PILImage.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    kind = " class='coarse'" if max(picture.size) <= COARSE else ""
    return f"<img{kind} alt='' src='data:image/png;base64,{data}'>"


def _text(text: str) -> str:
    """Text as HTML, and so that the page's templates find nothing in it."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;")
