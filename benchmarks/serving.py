"""How fast are many requests answered at once, and is each answered as if it were alone?

    python -m benchmarks.serving [--model digits,FOLDER] [--requests 200] [--at-once 1,32]

A server is started for each model (`mmfusion serve`), and asked by OpenAI's client: pictures,
edits, captions and chat, mixed, in random order, by so many callers at once, each of whom asks
again as soon as it is answered. Steps, AR splits, guidance and prompts differ from request to
request. Every answer is compared with the pipeline's own: a picture's pixels may differ by 1, a
text must be the same, or as likely within 1e-3. Printed are a table and JSON: requests a second,
seconds a request (p50, p95), to the first token and to the first partial picture, the server's CPU
time a request, and its memory after the first fifth and at the end. `--rounds` asks the same again.
"""

import base64
import io
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openai
from PIL import Image as PILImage

from benchmarks import options
from mmfusion import ImageSlot, Pipeline, jsonl
from mmfusion.codecs.image import encoded
from mmfusion.eval.pages import data_uri
from mmfusion.texts import read_text

PROMPTS = ["a handwritten seven", "the digit three", "a nine", "somebody wrote the digit zero"]
TICK = os.sysconf("SC_CLK_TCK")
LIKE = 1e-3  # nats by which two texts may differ and count as equally likely


class Ask(NamedTuple):
    """A request: how it is put to a server, and to a pipeline."""

    kind: str
    ask: Callable[[openai.OpenAI], Iterator[Any]]  # pieces of the answer, the whole one last
    alone: Callable[[Pipeline], Any]
    given: PILImage.Image | None = None


class Answer(NamedTuple):
    """What came of a request: the answer, and the seconds to its first piece and to its end."""

    what: Any
    first: float
    whole: float


def main() -> None:
    """Measure and print."""
    parser = options("serving", __doc__)
    parser.add_argument("--model", default="digits", help="names or folders, with commas")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", default="1,32")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prompts", type=Path, help="a file of prompts, one a line")
    args = parser.parse_args()
    prompts = read_text(args.prompts).rstrip("\n").split("\n") if args.prompts else PROMPTS
    found = []
    for model in args.model.split(","):
        pipeline = Pipeline.from_pretrained(model, "cpu")
        asks = list(mixed(pipeline, args.requests, prompts))
        expected = [ask.alone(pipeline) for ask in asks]
        for at_once in map(int, args.at_once.split(",")):
            with server(model) as (client, process):
                answers, line = measured(client, process.pid, asks * args.rounds, at_once)
            wrong = [
                number
                for number, (answer, alone) in enumerate(
                    zip(answers, expected * args.rounds, strict=True)
                )
                if not equal(pipeline, asks[number % len(asks)], answer.what, alone)
            ]
            found.append({"model": model, "at once": at_once, **line, "wrong": len(wrong)})
            print(jsonl.dumps(found[-1]), flush=True)
    table(found)


def mixed(pipeline: Pipeline, count: int, prompts: list[str]) -> Iterator[Ask]:
    """So many requests, a quarter of each kind, in random order."""
    rng = random.Random(0)
    pictures = pipeline.text_to_image([rng.choice(prompts) for _ in range(8)], seed=0)
    size = pipeline.config.image.size
    hole = np.zeros((size, size), bool)
    hole[:, size // 2 :] = True
    kinds = [number % 4 for number in range(count)]
    rng.shuffle(kinds)
    for number, kind in enumerate(kinds):
        prompt, picture = rng.choice(prompts), rng.choice(pictures)
        own = {
            "num_inference_steps": rng.choice([8, 12, 20]),
            "ar_steps": rng.choice([1, 2, 4]),
            "guidance": rng.choice([1.0, 1.5, 2.0]),
            "seed": number,
        }
        makers = [
            lambda: _draw(prompt, own),  # noqa: B023 - called at once
            lambda: _edit(prompt, picture, hole, own),  # noqa: B023
            lambda: _caption(picture),  # noqa: B023
            lambda: _chat(prompt, picture, own),  # noqa: B023
        ]
        yield makers[kind]()


def _draw(prompt: str, own: dict[str, Any]) -> Ask:
    def ask(client: openai.OpenAI) -> Iterator[Any]:
        given: dict[str, Any] = {"prompt": prompt, "stream": True, "partial_images": 1}
        for event in client.images.generate(**given, extra_body=own):
            yield opened(event.b64_json)

    return Ask("draw", ask, lambda p: p.text_to_image(prompt, **own))


def _edit(prompt: str, picture: PILImage.Image, hole: np.ndarray, own: dict[str, Any]) -> Ask:
    alpha = PILImage.fromarray(np.where(hole, 0, 255).astype(np.uint8))
    clear = picture.convert("RGB")
    clear.putalpha(alpha)

    def ask(client: openai.OpenAI) -> Iterator[Any]:
        given: dict[str, Any] = {"prompt": prompt, "stream": True, "partial_images": 1}
        files = {"image": encoded(picture), "mask": encoded(clear)}
        for event in client.images.edit(**files, **given, extra_body=own):
            yield opened(event.b64_json)

    return Ask("edit", ask, lambda p: p.edit(picture, hole, prompt=prompt, **own))


def _caption(picture: PILImage.Image) -> Ask:
    def ask(client: openai.OpenAI) -> Iterator[Any]:
        said = ""
        content = [{"type": "image_url", "image_url": {"url": data_uri(picture)}}]
        for delta in _deltas(client, content, max_tokens=16):
            said += delta.content or ""
            if said:
                yield said

    return Ask("caption", ask, lambda p: p.image_to_text(picture, max_new_tokens=16), picture)


def _chat(prompt: str, picture: PILImage.Image, own: dict[str, Any]) -> Ask:
    dials = {name: value for name, value in own.items() if name != "seed"}

    def ask(client: openai.OpenAI) -> Iterator[Any]:
        content: list[Any] = [{"type": "image_url", "image_url": {"url": data_uri(picture)}}]
        content.append({"type": "text", "text": prompt})
        given = {"seed": own["seed"], "modalities": ["image"], "extra_body": dials}
        for delta in _deltas(client, content, **given):
            for image in getattr(delta, "images", None) or []:
                yield opened(image["image_url"]["url"].partition(",")[2])

    def alone(p: Pipeline) -> Any:
        return p.generate([picture, prompt, ImageSlot(**dials)], seed=own["seed"])[2]

    return Ask("chat", ask, alone)


def _deltas(client: openai.OpenAI, content: list[Any], **given: Any) -> Iterator[Any]:
    messages: Any = [{"role": "user", "content": content}]
    for chunk in client.chat.completions.create(
        model="model", messages=messages, stream=True, **given
    ):
        yield chunk.choices[0].delta


@contextmanager
def server(model: str, *options: str) -> Iterator[tuple[openai.OpenAI, subprocess.Popen[str]]]:
    """A server of a model in a process of its own: a client, and the process."""
    command = [sys.executable, "-m", "mmfusion", "serve", "--model", model, "--name", "model"]
    command += ["--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    try:
        address = re.search(r"http\S+/v1", process.stdout.readline())
        assert address, "the server has not started"
        client = openai.OpenAI(base_url=address[0], api_key="-", max_retries=0, timeout=600)
        yield client, process
    finally:
        process.terminate()
        process.wait(60)


def measured(
    client: openai.OpenAI, process: int, asks: list[Ask], at_once: int
) -> tuple[list[Answer], dict[str, Any]]:
    """The answers, and a line about the time they took."""
    memory: list[float] = []
    for ask in asks[:8]:  # imports, samplers
        list(ask.ask(client))

    def answer(ask: Ask) -> Answer:
        begun, first, pieces = time.perf_counter(), 0.0, []
        for piece in ask.ask(client):
            first = first or time.perf_counter() - begun
            pieces.append(piece)
        memory.append(megabytes(process))
        return Answer(pieces[-1] if pieces else "", first, time.perf_counter() - begun)

    begun, cpu = time.perf_counter(), cpu_seconds(process)
    with ThreadPoolExecutor(at_once) as threads:
        answers = list(threads.map(answer, asks))
    took, cpu = time.perf_counter() - begun, cpu_seconds(process) - cpu
    said = [a.first for ask, a in zip(asks, answers, strict=True) if ask.kind == "caption"]
    drawn = [a.first for ask, a in zip(asks, answers, strict=True) if ask.kind in ("draw", "edit")]
    return answers, {
        "requests": len(asks),
        "requests a second": len(asks) / took,
        **quantiles("seconds", [a.whole for a in answers]),
        **quantiles("first token", said),
        **quantiles("first partial picture", drawn),
        "CPU seconds a request": cpu / len(asks),
        "MB early": memory[len(memory) // 5],
        "MB late": memory[-1],
    }


def quantiles(name: str, seconds: list[float]) -> dict[str, float]:
    """The median and the 95th percentile."""
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {f"{name}, p50": statistics.median(seconds), f"{name}, p95": cuts[-1]}


def equal(pipeline: Pipeline, ask: Ask, found: Any, alone: Any) -> bool:
    """Whether an answer is that of the request alone."""
    if isinstance(alone, str):
        if found == alone:
            return True
        one, other = pipeline.log_likelihood([ask.given] * 2, [found, alone])
        return abs(one.log_probability - other.log_probability) < LIKE
    apart = np.asarray(found).astype(int) - np.asarray(alone)
    return bool(np.abs(apart).max() <= 1)


def cpu_seconds(process: int) -> float:
    """CPU time of a process so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def megabytes(process: int) -> float:
    """Memory that a process holds (Linux)."""
    pages = 0
    with suppress(OSError):
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def opened(data: str | None) -> PILImage.Image:
    """The picture of an answer."""
    return PILImage.open(io.BytesIO(base64.b64decode(data or "")))


def table(found: list[dict[str, Any]]) -> None:
    """All lines as a table, and how the last number at once compares with the first."""
    names = list(found[0])
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for line in found:
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in line.values()]
        print(f"| {' | '.join(cells)} |")
    for model in {line["model"]: None for line in found}:
        first, *_, last = [line for line in found if line["model"] == model] * 2
        rates = [line["requests a second"] for line in (first, last)]
        work = [line["CPU seconds a request"] for line in (first, last)]
        print(
            f"{model}: {last['at once']} at once against {first['at once']}: "
            f"{rates[1] / rates[0]:.2f} times the requests a second, "
            f"{work[0] / work[1]:.2f} times the requests a CPU second"
        )


if __name__ == "__main__":
    main()
