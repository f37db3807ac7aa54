"""The tabs of the page, one function each."""

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import open_image
from mmfusion.errors import UserError
from mmfusion.generation.edit_masks import REGIONS
from mmfusion.generation.prompt import ImageSlot, Prompt, TextSlot
from mmfusion.pipeline import Pipeline
from mmfusion.serving import looks
from mmfusion.serving.controls import (
    EVENT,
    MOST_DRAWN,
    MOST_EXAMPLES,
    Dial,
    Model,
    Picture,
    Tray,
    Updates,
    Wish,
    one_line,
)
from mmfusion.serving.live import Report
from mmfusion.serving.uploads import checked

BRUSH = "#ff3d71"
PAINTED = "painted"


def draw_tab(model: Model, tray: Tray) -> None:
    """Pictures from words or a class."""
    with gr.Row():
        with gr.Column(min_width=300):
            wish = Wish(model, model.prompts[0] if model.prompts else "what to draw")
            if model.prompts:
                gr.Examples(
                    [[p] for p in model.prompts],
                    [wish.words],
                    label="For example",
                    examples_per_page=MOST_EXAMPLES,
                )
            count = gr.Slider(1, MOST_DRAWN, 1, step=1, label="Pictures")
            run, stop = _buttons("Draw")
            dial = Dial(model, _drawn_by(model, model.text), budget=True)
        with gr.Column(min_width=300):
            out = gr.HTML(looks.blank("the picture forms here"), elem_id="drawn")

    @one_line
    def draw(
        kept: list[Picture], kind: str, words: str, label: int, n: int, *dials: Any
    ) -> Updates:
        options = dial.read(*dials)
        yield {dial.seed: options["seed"]}
        asked = wish.read(kind, words, label)
        task = "text_to_image" if "prompt" in asked else "class_to_image"
        given = [*asked.values()] * int(n)

        def call(pipeline: Pipeline, **on: Any) -> list[Picture]:
            return getattr(pipeline, task)(given, **options, **on)

        yield from tray.drawing(kept, out, call, int(n))

    parts = [tray.pictures, *wish.parts, count, *dial.parts]
    _starts([run.click, wish.words.submit], draw, parts, _out(out, tray, dial), stop)
    wish.kind.change(
        lambda kind: dial.defaults(_drawn_by(model, kind == "words")),
        wish.kind, [*dial.shown.values()], queue=False, api_visibility="private",
    )  # fmt: skip


def _drawn_by(model: Model, words: bool) -> Any:
    return model.generation.text_to_image if words else model.generation.class_to_image


def edit_tab(model: Model, tray: Tray) -> None:
    """A part of a picture, painted over or named, drawn anew."""
    with gr.Row():
        with gr.Column(min_width=300):
            canvas = gr.ImageEditor(
                label="Paint over a part", type="pil", format="png",
                sources=("upload", "clipboard"), transforms=(), layers=False, buttons=[],
                brush=gr.Brush(56, colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
                eraser=gr.Eraser(56), canvas_size=(512, 512), elem_id="canvas", height=480,
            )  # fmt: skip
            where = gr.Radio([PAINTED, *REGIONS], value=PAINTED, label="Draw anew")
            wish = Wish(model, "what the picture shall be")
            run, stop = _buttons("Edit")
            dial = Dial(model, model.generation.edit)
        with gr.Column(min_width=300):
            out = gr.HTML(looks.blank("the edited picture"), elem_id="edited")

    @one_line
    def edit(kept: list[Picture], painted: Any, where: str, *values: Any) -> Updates:
        options = dial.read(*values[3:])
        yield {dial.seed: options["seed"]}
        picture = _given((painted or {}).get("background"))
        mask = _mask(painted) if where == PAINTED else where
        asked = wish.read(*values[:3])

        def call(pipeline: Pipeline, **on: Any) -> list[Picture]:
            return pipeline.edit([picture], mask, **asked, **options, **on)

        yield from tray.drawing(kept, out, call)

    parts = [tray.pictures, canvas, where, *wish.parts, *dial.parts]
    _starts([run.click], edit, parts, _out(out, tray, dial), stop)
    tray.goes_to("Edit", lambda picture: {canvas: looks.enlarged(picture)}, [], [canvas])


def _mask(painted: dict[str, Any]) -> PILImage.Image:
    """White where anything was painted."""
    layers = [np.asarray(layer.convert("RGBA"))[..., 3] > 0 for layer in painted["layers"]]
    if not any(layer.any() for layer in layers):
        raise UserError("nothing is painted: paint over a part of the picture, or take a region")
    return PILImage.fromarray(np.any(layers, axis=0))


def caption_tab(model: Model, tray: Tray) -> None:
    """What is in a picture."""
    with gr.Row():
        with gr.Column(min_width=300):
            picture = _picture(model, "Picture", 320)
            run = gr.Button("Caption", variant="primary")
        with gr.Column(min_width=300):
            hint = "what the model says of the picture"
            out = gr.HTML(looks.said("", hint), elem_id="caption")

    @one_line
    def caption(picture: Picture | None) -> Updates:
        given = _given(picture)

        def work(pipeline: Pipeline, report: Report) -> str:
            return pipeline.image_to_text(given, on_token=lambda _, text: report(text))

        for done, text in model.live(work):
            yield {out: looks.said(text, "(no words)" if done else "...")}

    _starts([run.click], caption, [picture], [out])
    tray.goes_to("Caption", lambda clicked: {picture: clicked}, [], [picture])


def restyle_tab(model: Model, tray: Tray) -> None:
    """A picture and words; the picture that follows."""
    words_of = [f"the same in {style} style" for style in model.styles]
    with gr.Row():
        with gr.Column(min_width=300):
            picture = _picture(model, "Picture", 280)
            words = gr.Textbox(words_of[0] if words_of else "", label="And then", max_length=1000)
            if words_of:
                gr.Examples([[text] for text in words_of], [words], label="For example")
            run, stop = _buttons("Restyle")
            dial = Dial(model, model.generation.interleaved)
        with gr.Column(min_width=300):
            out = gr.HTML(looks.blank("the same, otherwise"), elem_id="restyled")

    @one_line
    def restyle(kept: list[Picture], picture: Picture | None, words: str, *dials: Any) -> Updates:
        options = dial.read(*dials)
        yield {dial.seed: options["seed"]}
        yield from _follows(tray, kept, out, [_given(picture), checked(words)], options)

    parts = [tray.pictures, picture, words, *dial.parts]
    _starts([run.click, words.submit], restyle, parts, _out(out, tray, dial), stop)
    tray.goes_to("Restyle", lambda clicked: {picture: clicked}, [], [picture])


def analogy_tab(model: Model, tray: Tray) -> None:
    """Three pictures; the fourth, which is to the third as the second is to the first."""
    with gr.Row():
        names = ("This", "is to this", "as this")
        given = [_picture(model, name, 220, min_width=150) for name in names]
        with gr.Column(min_width=150):
            out = gr.HTML(looks.blank("is to what?"), elem_id="fourth")
    run, stop = _buttons("Draw the fourth")
    dial = Dial(model, model.generation.interleaved)

    @one_line
    def analogy(kept: list[Picture], a: Any, b: Any, c: Any, *dials: Any) -> Updates:
        options = dial.read(*dials)
        yield {dial.seed: options["seed"]}
        yield from _follows(tray, kept, out, [_given(one) for one in (a, b, c)], options)

    def fill(clicked: Picture, *there: Picture | None) -> dict[Any, Any]:
        """The first free place; where none is, all are freed first."""
        if None not in there:
            return {**dict.fromkeys(given), given[0]: clicked}
        return {given[there.index(None)]: clicked}

    parts = [tray.pictures, *given, *dial.parts]
    _starts([run.click], analogy, parts, _out(out, tray, dial), stop)
    tray.goes_to("Analogy", fill, given, given)


def chat_tab(model: Model, tray: Tray) -> None:
    """Text and pictures in, text or a picture out, again and again."""
    hint = "Send words and pictures; then let the model say or draw what follows."
    turns = gr.State([])
    out = gr.HTML(looks.talk([], hint), elem_id="talk")
    box = gr.MultimodalTextbox(
        show_label=False, file_types=["image"], placeholder="words, a picture, or nothing more",
        sources=["upload"], submit_btn=False, elem_id="box",
    )  # fmt: skip
    with gr.Row():
        say = gr.Button("Say what follows", variant="primary", min_width=180)
        draw = gr.Button("Draw what follows", variant="primary", min_width=180)
        new = gr.Button("Start over", min_width=180)
    dial = Dial(model, model.generation.interleaved)

    def follow(
        slot: TextSlot | ImageSlot, kept: Any, before: Any, sent: Any, dials: Any
    ) -> Updates:
        options = dial.read(*dials)
        yield {dial.seed: options["seed"]}
        asked = [*before, *(("user", what) for what in _sent(sent))]
        if not asked:
            raise UserError("the prompt is empty: send words or a picture first")
        prompt = [*(what for _, what in asked), slot]

        def work(pipeline: Pipeline, report: Report) -> Any:
            def partly(_: int, *news: Any) -> None:
                report(news[-1])

            made = pipeline.generate(prompt, on_token=partly, on_picture=partly, **options)
            return made[-1]

        for done, what in model.live(work):
            now = [*asked, ("model", what)]
            yield {out: looks.talk(now, hint)}
            if done:
                now = now if what != "" else asked  # an empty text would be refused from then on
                made = [] if isinstance(what, str) else [what]
                yield {turns: now, box: None, **tray.keep(made, kept)}

    @one_line
    def say_next(kept: Any, before: Any, sent: Any, *dials: Any) -> Updates:
        yield from follow(TextSlot(), kept, before, sent, dials)

    @one_line
    def draw_next(kept: Any, before: Any, sent: Any, *dials: Any) -> Updates:
        yield from follow(ImageSlot(), kept, before, sent, dials)

    parts, shown = [tray.pictures, turns, box, *dial.parts], [*_out(out, tray, dial), turns, box]
    _starts([say.click, box.submit], say_next, parts, shown)
    _starts([draw.click], draw_next, parts, shown)
    new.click(lambda: ([], looks.talk([], hint)), None, [turns, out], api_visibility="private")

    def add(clicked: Picture, before: list[looks.Turn]) -> dict[Any, Any]:
        now = [*before, ("user", clicked)]
        return {turns: now, out: looks.talk(now, hint)}

    tray.goes_to("Chat", add, [turns], [turns, out])


def _follows(
    tray: Tray, kept: list[Picture], out: gr.HTML, prompt: Prompt, options: Any
) -> Updates:
    """Draw the picture that follows a prompt."""

    def call(pipeline: Pipeline, **on: Any) -> list[Picture]:
        return pipeline.generate([*prompt, ImageSlot()], **options, **on)[-1:]

    return tray.drawing(kept, out, call)


def _sent(sent: dict[str, Any] | None) -> list[str | Picture]:
    """What stands in the box of the chat: pictures, then words."""
    if not sent:
        return []
    pictures = [open_image(Path(file).read_bytes(), "the picture") for file in sent["files"]]
    words = checked(sent["text"]).strip()
    return [*pictures, *([words] if words else [])]


def _given(picture: Picture | None) -> Picture:
    if picture is None:
        raise UserError("a picture is missing: upload one, or click one of those below")
    return picture


def _picture(model: Model, label: str, height: int, min_width: int = 300) -> gr.Image:
    return gr.Image(
        label=label, type="pil", image_mode=None, format="png", sources=["upload", "clipboard"],
        height=height, min_width=min_width, buttons=[],
        elem_classes=["given", *looks.coarse(model.size)],
    )  # fmt: skip


def _buttons(name: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        run = gr.Button(name, variant="primary", min_width=140, scale=3)
        return run, gr.Button("Stop", min_width=80, scale=1)


def _starts(
    triggers: list[Any], answer: Any, parts: list[Any], out: list[Any], stop: Any = None
) -> None:
    """An event whose answer is shown in the first of `out`; a click on `stop` ends it."""
    started = gr.on(triggers, answer, parts, out, show_progress_on=out[0], **EVENT)
    if stop:
        stop.click(None, cancels=[started])


def _out(out: gr.HTML, tray: Tray, dial: Dial) -> list[Any]:
    return [out, tray.pictures, tray.gallery, dial.seed]
