"""What several tabs share: what is wished for, how it is drawn, and the pictures at hand."""

import functools
import html
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from PIL import Image as PILImage

from mmfusion.config import Sampling
from mmfusion.errors import UserError
from mmfusion.pipeline import Pipeline
from mmfusion.serving import looks
from mmfusion.serving.engine import Engine
from mmfusion.serving.live import Report, live
from mmfusion.serving.uploads import checked

MOST_DRAWN = 16
MOST_KEPT = 24  # pictures of a visitor at hand; older ones go
MOST_EXAMPLES = 12
MOST_SEED = 2**53 - 1  # whole numbers that a browser can hold
AT_ONCE = 8  # answers; the others wait
Picture = PILImage.Image
Updates = Iterator[dict[Any, Any]]
EVENT = {
    "concurrency_limit": AT_ONCE,
    "concurrency_id": "model",
    "show_progress": "minimal",
    "api_visibility": "private",
}


class Model:
    """A model that is served, and what a page can offer of it.

    Args:
        prompts: examples of what the model knows how to draw.
    """

    def __init__(self, engine: Engine, prompts: Sequence[str]) -> None:
        self.engine, self.pipeline = engine, engine.pipeline
        pipeline, self.generation = self.pipeline, self.pipeline.config.generation
        self.text, self.classes = pipeline.tokenizer is not None, pipeline.config.classes
        self.prompts = list(prompts)[:MOST_EXAMPLES] if self.text else []
        styles = (re.search(r"([\w-]+) style\b", prompt) for prompt in prompts)
        self.styles = list(dict.fromkeys(found[1] for found in styles if found))
        self.size, self.tokens = pipeline.config.image.size, pipeline.config.image.tokens
        self._own: list[Picture] | None = None

    def live(self, work: Callable[[Pipeline, Report], Any]) -> Iterator[tuple[bool, Any]]:
        """As `live`, of `work(pipeline, report)`; cancelled when nobody waits for its answer."""

        def request(report: Report, left: threading.Event) -> Any:
            with self.engine.request(left) as pipeline:
                return work(pipeline, report)

        return live(request)

    def own_pictures(self) -> list[Picture]:
        """Pictures of the model, drawn when they are first asked for."""
        if self._own is None:
            if self.classes:
                numbers = range(min(len(self.classes), MOST_EXAMPLES))
                self._own = self.pipeline.class_to_image(numbers)
            else:
                prompts = self.prompts
                self._own = self.pipeline.text_to_image(prompts) if prompts else []
        return self._own


class Wish:
    """What a picture shall show: words or a class, whatever the model knows."""

    def __init__(self, model: Model, hint: str) -> None:
        words, classes = model.text, bool(model.classes)
        kinds = [*(["words"] if words else []), *(["class"] if classes else [])]
        self.kind = gr.Radio(kinds, value=kinds[0], show_label=False, visible=len(kinds) > 1)
        self.words = gr.Textbox(
            label="What to draw", placeholder=hint, visible=words, max_length=1000, autofocus=True
        )
        numbered = [(name, number) for number, name in enumerate(model.classes)]
        self.label = gr.Dropdown(
            numbered, value=0 if classes else None, label="Class", visible=not words
        )
        self.kind.change(
            lambda kind: [gr.update(visible=kind == "words"), gr.update(visible=kind == "class")],
            self.kind, [self.words, self.label], queue=False, api_visibility="private",
        )  # fmt: skip
        self.parts = [self.kind, self.words, self.label]

    @staticmethod
    def read(kind: str, words: str, label: int) -> dict[str, Any]:
        """As `Pipeline.edit` takes it."""
        return {"label": label} if kind == "class" else {"prompt": checked(words)}


class Dial:
    """How a picture is drawn; to begin with, as the model's defaults of a task have it."""

    def __init__(self, model: Model, base: Sampling, budget: bool = False) -> None:
        self.shown: dict[str, Any] = {}
        with gr.Accordion("How it is drawn", open=False):
            steps = max(100, base.num_inference_steps)
            self.shown["num_inference_steps"] = gr.Slider(
                1, steps, base.num_inference_steps, step=1, label="Denoising steps"
            )
            self.shown["guidance"] = gr.Slider(
                0, 10, base.guidance, step=0.05, label="Guidance",
                info="how strongly it follows what you ask for; 1 is none",
            )  # fmt: skip
            if base.ar_sizes is None:
                self.shown["ar_steps"] = gr.Slider(
                    1, model.tokens, base.ar_steps, step=1, label="AR steps",
                    info="parts that are drawn one after another, each seeing those before it",
                )  # fmt: skip
            if isinstance(base.order, str):
                self.shown["order"] = gr.Radio(
                    ["random", "raster"], value=base.order, label="Order of the parts"
                )
            if budget:
                self.shown["budget_ms"] = gr.Number(
                    0, label="Budget (ms a picture)", minimum=0,
                    info="0 is none; else it sets steps, guidance and AR steps as measured by "
                    "`mmfusion eval frontier`",
                )  # fmt: skip
            with gr.Row():
                self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MOST_SEED)
                self.fresh = gr.Checkbox(True, label="a new one each time")
        self.parts = [self.seed, self.fresh, *self.shown.values()]

    def read(self, seed: int | None, fresh: bool, *values: Any) -> dict[str, Any]:
        """Options of a call."""
        options = dict(zip(self.shown, values, strict=True))
        budget = options.pop("budget_ms", None)
        if budget:
            options = {"budget_ms": budget, "order": options.get("order")}
        return {**options, "seed": random.randrange(10**6) if fresh else int(seed or 0)}

    def defaults(self, base: Sampling) -> list[Any]:
        """Values of `shown` that are those of a task."""
        return [getattr(base, name, 0) for name in self.shown]


class Tray:
    """The pictures at hand: the model's own, and what a visitor has had drawn."""

    def __init__(self, model: Model, tabs: gr.Tabs, first: str) -> None:
        self.model = model
        self.tab = gr.State(first)
        self.pictures = gr.State([])
        gr.HTML("<div class='hint'>Pictures at hand: click one to use it</div>")
        self.gallery = gr.Gallery(
            show_label=False,
            columns=MOST_KEPT,
            height="auto",
            allow_preview=False,
            format="png",
            object_fit="contain",
            interactive=False,
            elem_classes=["tray", *looks.coarse(model.size)],
            buttons=[],
        )
        tabs.select(self._selected, None, self.tab, queue=False, api_visibility="private")

    @staticmethod
    def _selected(event: gr.SelectData) -> str:
        return event.value

    def goes_to(
        self, tab: str, place: Callable[..., Any], parts: list[Any], out: list[Any]
    ) -> None:
        """While `tab` is open, a picture that is clicked goes where `place(picture, *parts)` says.

        It gives new values of the components `out`, those that change.
        """

        def clicked(event: gr.SelectData, pictures: list[Picture], shown: str, *values: Any) -> Any:
            if shown != tab or not 0 <= event.index < len(pictures):
                return gr.skip()
            return place(pictures[event.index], *values)

        self.gallery.select(
            clicked, [self.pictures, self.tab, *parts], out, queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip

    def drawing(
        self, kept: list[Picture], out: gr.HTML, call: Callable[..., list[Picture]], count: int = 1
    ) -> Updates:
        """Show in `out` how `call(pipeline, on_picture=)` draws `count` pictures; keep them."""

        def work(pipeline: Pipeline, report: Report) -> list[Picture]:
            forming: list[Any] = [None] * count

            def on_picture(number: int, share: float, picture: Picture) -> None:
                forming[number] = picture
                if None not in forming:
                    report((list(forming), share))

            return call(pipeline, on_picture=on_picture)

        for done, news in self.model.live(work):
            if done:
                yield {out: looks.answer(news), **self.keep(news, kept)}
            else:
                yield {out: looks.answer(*news)}

    def keep(self, made: list[Picture], kept: list[Picture]) -> dict[Any, Any]:
        """Put pictures before those that are there."""
        pictures = [*made, *kept][:MOST_KEPT]
        return {self.pictures: pictures, self.gallery: pictures}


def one_line(answer: Callable[..., Updates]) -> Callable[..., Updates]:
    """A user's mistake is one line on the page."""

    @functools.wraps(answer)
    def answering(*arguments: Any) -> Updates:
        try:
            yield from answer(*arguments)
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    return answering
