"""The server, driven by OpenAI's own client."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any, cast

import httpx
import numpy as np
import openai
import pytest
from conftest import Command
from PIL import Image as PILImage
from served import Running, idle, opened, running, same, seen

from benchmarks.serving import equal, mixed
from benchmarks.serving import server as serving
from mmfusion import Pipeline
from mmfusion.codecs.image import encoded as png
from mmfusion.errors import MemoryFull
from mmfusion.serving.queue import Queue
from mmfusion.serving.refusal import Refusal
from mmfusion.serving.schemas import Limits

DRAW, CHAT = "/v1/images/generations", "/v1/chat/completions"
GOOD: dict[str, Any] = {
    DRAW: {"prompt": "a three"},
    CHAT: {"messages": [{"role": "user", "content": "a three"}]},
}
WRONG_PART = {"type": "text", "text": "a", "texd": "b"}
SLOW: dict[str, Any] = {"num_inference_steps": 40, "ar_steps": 16}  # of a picture to be left alone


@pytest.fixture(scope="module")
def digits() -> Pipeline:
    return Pipeline.from_pretrained("digits", "cpu")


@pytest.fixture(scope="module")
def server(digits: Pipeline) -> Iterator[Running]:
    with running(digits) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.client


@pytest.fixture(scope="module")
def three(digits: Pipeline) -> PILImage.Image:
    return digits.class_to_image(3, seed=1)


# What is asked through OpenAI's client is what the pipeline answers


def test_pictures(client: openai.OpenAI, digits: Pipeline) -> None:
    own = {"seed": 5, "guidance": 1.5, "num_inference_steps": 6, "ar_steps": 2}
    made = client.images.generate(
        prompt="a handwritten seven", n=2, size="16x16", response_format="b64_json", extra_body=own
    )
    expected = digits.text_to_image(["a handwritten seven"] * 2, **own)
    assert made.data
    for each, picture in zip(made.data, expected, strict=True):
        same(opened(each.b64_json), picture.resize((16, 16), PILImage.Resampling.NEAREST))
    assert made.usage
    assert (made.usage.output_tokens, made.usage.input_tokens_details.image_tokens) == (32, 0)


def test_a_picture_is_seen_while_it_forms(client: openai.OpenAI, digits: Pipeline) -> None:
    own = {"seed": 2, "num_inference_steps": 9}
    given: dict[str, Any] = {"prompt": "a three", "extra_body": own}
    events = list(client.images.generate(**given, stream=True, partial_images=2))
    shares: list[tuple[float, PILImage.Image]] = []
    expected = digits.text_to_image(
        "a three", **own, on_picture=lambda i, share, picture: shares.append((share, picture))
    )
    assert [event.type.rpartition(".")[2] for event in events] == [
        "partial_image", "partial_image", "completed",
    ]  # fmt: skip
    wanted = [next(p for share, p in shares if share >= k / 3) for k in (1, 2)]
    for event, picture in zip(events, [*wanted, expected], strict=True):
        same(opened(event.b64_json), picture)


@pytest.mark.parametrize("own_mask", [True, False])
def test_edits(
    client: openai.OpenAI, digits: Pipeline, three: PILImage.Image, own_mask: bool
) -> None:
    """What is transparent, in the mask or in the picture itself, is drawn anew."""
    holes = np.zeros((8, 8), bool)
    holes[:, 4:] = True
    clear = PILImage.merge("LA", [three, PILImage.fromarray(np.where(holes, 0, 255).astype("u1"))])
    files = {"mask": png(clear)} if own_mask else {}
    made = client.images.edit(
        image=png(three if own_mask else clear), prompt="a seven", extra_body={"seed": 4}, **files
    )
    assert made.data
    picture = three if own_mask else clear
    same(opened(made.data[0].b64_json), digits.edit(picture, holes, prompt="a seven", seed=4))
    events = list(
        client.images.edit(
            image=png(clear), prompt="a seven", stream=True, partial_images=1,
            extra_body={"seed": 4},
        )
    )  # fmt: skip
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_chat(client: openai.OpenAI, digits: Pipeline, three: PILImage.Image) -> None:
    made = client.chat.completions.create(model="digits", messages=seen(three))
    said = digits.image_to_text(three)
    assert made.choices[0].message.content == said
    assert made.choices[0].finish_reason == "stop"
    assert made.usage
    assert made.usage.prompt_tokens == 16
    cut = client.chat.completions.create(model="digits", messages=seen(three), max_tokens=1)
    assert (cut.choices[0].finish_reason, said[:1]) == (
        "length",
        cut.choices[0].message.content[:1],
    )  # type: ignore[index]


def test_chat_is_streamed_and_draws(
    client: openai.OpenAI, digits: Pipeline, three: PILImage.Image
) -> None:
    from mmfusion import ImageSlot, TextSlot

    given: dict[str, Any] = {"model": "digits", "messages": seen(three), "seed": 3}
    given |= {"modalities": ["text", "image"], "extra_body": {"num_inference_steps": 5}}
    *_, said, drawn = digits.generate([three, TextSlot(), ImageSlot(num_inference_steps=5)], seed=3)
    whole = client.chat.completions.create(**given).choices[0].message
    chunks = list(
        client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True})
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert whole.content == "".join(delta.content or "" for delta in deltas) == said
    assert sum(bool(delta.content) for delta in deltas) > 1
    images = [image for delta in deltas for image in getattr(delta, "images", [])]
    for (image,) in (images, whole.images):  # type: ignore[attr-defined]
        same(opened(image["image_url"]["url"]), drawn)
    assert chunks[-1].usage
    # What was answered can be sent back.
    history = [*seen(three), {"role": "assistant", "content": said, "images": whole.images}]  # type: ignore[attr-defined]
    again = client.chat.completions.create(model="digits", messages=history, max_tokens=4)
    assert again.usage
    assert again.usage.prompt_tokens > 32


def test_the_model_its_health_and_what_is_measured(server: Running, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["digits"]
    assert client.models.retrieve("digits").id == "digits"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    before = server.count("mmfusion_passes")
    client.images.generate(prompt="a three", extra_body={"num_inference_steps": 3})
    assert server.count("mmfusion_passes") >= before + 4
    assert server.count("mmfusion_running") == server.count("mmfusion_waiting") == 0


# Many at once


def test_requests_of_every_kind_share_passes(
    server: Running, digits: Pipeline, three: PILImage.Image
) -> None:
    def draw(number: int) -> None:
        own = {"seed": number, "num_inference_steps": 3 + number % 4, "ar_steps": 1 + number % 3}
        made = server.client.images.generate(prompt="a nine", extra_body=own)
        assert made.data
        same(opened(made.data[0].b64_json), digits.text_to_image("a nine", **own))

    def caption(number: int) -> None:
        made = server.client.chat.completions.create(model="digits", messages=seen(three))
        assert made.choices[0].message.content == digits.image_to_text(three)

    with ThreadPoolExecutor(12) as threads:
        for call in [threads.submit((draw, caption)[n % 2], n) for n in range(24)]:
            call.result(60)


def test_beyond_its_queue_a_server_says_when_to_come_back(digits: Pipeline) -> None:
    with running(digits, concurrency=1, queue=1) as small, ThreadPoolExecutor(8) as threads:

        def ask(number: int) -> httpx.Response:
            body = {"prompt": "a three", "num_inference_steps": 40}
            return httpx.post(f"{small.url}/v1/images/generations", json=body, timeout=60)

        found = list(threads.map(ask, range(8)))
        refused = [answer for answer in found if answer.status_code == 429]
        assert 1 <= len(refused) <= 6
        assert len(found) - len(refused) == sum(answer.status_code == 200 for answer in found)
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        assert refused[0].json()["error"]["type"] == "rate_limit_error"


def test_a_request_that_takes_too_long_is_ended(digits: Pipeline) -> None:
    with running(digits, seconds=0.2) as small:
        with pytest.raises(openai.InternalServerError, match=r"not done within 0\.2 s"):
            small.client.images.generate(prompt="a three", extra_body=SLOW)
        idle(small)


def test_full_memory_is_no_mistake_of_who_asks() -> None:
    class Full:
        def request(self, cancel: threading.Event) -> Any:
            raise MemoryFull("memory is full (of pictures); ask for less")

    async def ask() -> None:
        gone = asyncio.Event()
        async for _ in Queue(cast(Any, Full()), Limits()).answer(lambda *_: None, gone.wait):
            pass

    with pytest.raises(Refusal, match="memory is full; ask later") as refused:
        asyncio.run(ask())
    assert refused.value.status == 503


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_not_worked_for(server: Running, stream: bool) -> None:
    body = {"prompt": "a three", **SLOW, "stream": stream, "partial_images": 3 * stream}
    before = server.server.engine.stepper.passes
    to = f"{server.url}/v1/images/generations"
    if stream:
        with httpx.stream("POST", to, json=body, timeout=60) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(to, json=body, timeout=0.5)
    idle(server)
    assert server.server.engine.stepper.passes - before < 16 * 40


@pytest.mark.parametrize(
    "given",
    [{"data": {"prompt": "a three"}}, {"json": ["a three"]}, {"content": '{"prompt": "a"}'}],
)
def test_a_body_that_is_no_json_object_is_told_what_to_be(
    server: Running, given: dict[str, Any]
) -> None:
    """Such as curl's -d without its header, which is a form."""
    answer = httpx.post(f"{server.url}/v1/images/generations", **given)
    told = "body: send a JSON object, with the header content-type: application/json"
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, told)


def test_a_body_that_is_no_json_is_told_where(server: Running) -> None:
    header = {"content-type": "application/json"}
    for body, at in (('{"prompt": "a", ', 16), ("{prompt: a}", 1), ("{'prompt': 'a'}", 1)):
        answer = httpx.post(server.url + DRAW, content=body, headers=header)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, None)
        assert error["message"].startswith(f"body: not JSON at character {at}: Expecting")


@pytest.mark.parametrize(
    ("to", "body", "told"),
    [
        (DRAW, {"promt": "a"}, "promt: there is no such field; did you mean prompt?"),
        (DRAW, {"num_inference_step": 9}, "did you mean num_inference_steps?"),
        (CHAT, {"max_token": 9}, "max_token: there is no such field; did you mean max_tokens?"),
        (DRAW, {"body": 1}, "body: there is no such field; choose from"),
        (CHAT, {"zz": 1}, "zz: there is no such field; choose from model, user, seed, guidance, "),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [WRONG_PART]}]},
            "texd: there is no such field; did you",
        ),
    ],
)
def test_a_field_that_there_is_not_is_told_the_nearest(
    server: Running, to: str, body: dict[str, Any], told: str
) -> None:
    answer = httpx.post(server.url + to, json={**GOOD[to], **body})
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_a_field_of_a_form_that_there_is_not_is_told_the_nearest(
    server: Running, three: PILImage.Image
) -> None:
    form: dict[str, Any] = {"files": {"image": png(three)}, "data": {"prompt": "a", "sead": "1"}}
    answer = httpx.post(f"{server.url}/v1/images/edits", **form)
    told = "sead: there is no such field; did you mean seed?"
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, told)


# The command


def test_mistakes_of_the_command_are_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name in ("serve", "demo"):
            told = (
                f"error: {name}: 127.0.0.1 port {port} cannot be had; give another --port, or "
                "another --host (Address already in use)\n"
            )
            assert command(name, "--port", port)[::2] == (2, told)
    module = sys.modules["mmfusion.cli.serve"]  # of its name the package has the function
    monkeypatch.setattr(module, "find_spec", lambda name: name != "uvicorn" or None)
    code, _, told = command("serve")
    assert (code, told) == (2, "error: serve: needs uvicorn; pip install 'mmfusion[serve]'\n")


def test_sigterm_loses_no_accepted_request(digits: Pipeline) -> None:
    """Two are being drawn, one of them streamed, and eighteen wait."""
    given = [SLOW | {"seed": 0, "stream": True}, SLOW | {"seed": 1}]
    given += [{"num_inference_steps": 5, "seed": seed} for seed in range(2, 20)]
    with (
        serving("digits", "--concurrency", "2") as (client, process),
        ThreadPoolExecutor(20) as threads,
    ):

        def draw(own: dict[str, Any]) -> PILImage.Image:
            answer = client.post(
                "/images/generations", body={"prompt": "a three", **own}, cast_to=httpx.Response
            )
            last = answer.text.split("data: ")[-1]  # of events, or all there is
            found = json.loads(last)
            return opened(found.get("b64_json") or found["data"][0]["b64_json"])

        def accepted() -> float:
            text = httpx.get(str(client.base_url.copy_with(path="/metrics"))).text
            return sum(map(float, re.findall(r"^mmfusion_(?:running|waiting) (\S+)$", text, re.M)))

        calls = [threads.submit(draw, own) for own in given]
        until = time.monotonic() + 60
        while accepted() < 20:
            assert time.monotonic() < until
            time.sleep(0.01)
        process.terminate()
        for own, call in zip(given, calls, strict=True):
            dials = {name: value for name, value in own.items() if name != "stream"}
            same(call.result(120), digits.text_to_image("a three", **dials))
        assert process.wait(60) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            accepted()


@pytest.mark.slow
def test_replicas_answer_alike(digits: Pipeline) -> None:
    """Requests of every kind, each put to two processes in turn, several at once."""
    asks = list(mixed(digits, 16, ["a handwritten seven", "the digit three"]))
    with (
        serving("digits") as (one, _),
        serving("digits") as (other, _),
        ThreadPoolExecutor(4) as threads,
    ):
        turns = zip(cycle([one, other]), [ask for ask in asks for _ in range(2)], strict=False)
        calls = [threads.submit(lambda c, a: [*a.ask(c)][-1], *turn) for turn in turns]
        answers = [call.result(120) for call in calls]
    for ask, first, second in zip(asks, answers[::2], answers[1::2], strict=True):
        assert equal(digits, ask, first, second), ask.kind


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_serves_until_it_is_told_to_stop(digits: Pipeline, workers: int) -> None:
    line = [sys.executable, "-m", "mmfusion", "serve", "--port", "0", "--workers", str(workers)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = re.search(r"http\S+/v1", process.stdout.readline())
        assert address

        def draw(number: int) -> None:
            with openai.OpenAI(base_url=address[0], api_key="-", max_retries=0) as client:
                made = client.images.generate(prompt="a three", extra_body={"seed": number})
                assert made.data
                same(opened(made.data[0].b64_json), digits.text_to_image("a three", seed=number))

        with ThreadPoolExecutor(8) as threads:
            for call in [threads.submit(draw, number) for number in range(16)]:
                call.result(120)
        metrics = address[0].removesuffix("v1") + "metrics"
        since = (
            r"mmfusion_requests_created\{route=\"/v1/images/generations\",status=\"200\"\} (\S+)"
        )
        who = {found for _ in range(60) for found in re.findall(since, httpx.get(metrics).text)}
        assert len(who) == workers, "one has answered all"
        process.terminate()
        assert process.wait(60) in (0, -signal.SIGTERM)
