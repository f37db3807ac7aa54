"""Requests that are malformed or meant ill: refused in one line, and others' answers unharmed."""

import base64
import json
import logging
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image as PILImage
from served import Running, idle, opened, running, same, seen

from mmfusion import Pipeline
from mmfusion.codecs.image import encoded as png

EVIL = "\x1b[31m\r\n../../etc/passwd $(touch /tmp/x) \N{RIGHT-TO-LEFT OVERRIDE}\x00"
MARK = "\x1b[31m"
DRAW, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
GOOD: dict[str, dict[str, Any]] = {
    DRAW: {"prompt": "a three", "num_inference_steps": 2},
    CHAT: {"messages": [{"role": "user", "content": "a three"}], "max_tokens": 3},
}
JUNK: list[Any] = [
    None, -1, 0, 1e400, 2**70, "", EVIL, [], {}, [[]], {"a": EVIL}, True, "1" * 5000, 0.5, [None],
    "\ud800",
]  # fmt: skip
JUST = PILImage.new("L", (8, 8), 90)


def chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in a few bytes a row."""
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + (side + 7) // 8) * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BOMB = bomb(20_000)
PICTURES = [
    b"", b"GIF89a" + bytes(200), png(JUST)[:40], BOMB, bomb(1100), b"%!PS-Adobe-3.0 EPSF-3.0\n",
    b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', b"II*\x00" + bytes(99),
    b"\xff\xd8\xff\xe0" + bytes(500),
]  # fmt: skip


def encoded(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


URLS = [
    "http://127.0.0.1:1/a.png", "https://example.com/a.png", "file:///etc/passwd", "data:,", EVIL,
    "data:image/png;base64,%%%", "data:image/png;base64", "", "data:image/png;base64,AAAA" * 50_000,
    *map(encoded, PICTURES),
]  # fmt: skip


# Each kind of request, drawn by a number


def broken_json(rng: random.Random) -> httpx.Request:
    whole = json.dumps(GOOD[DRAW]).encode()
    body = rng.choice(
        [
            whole[: rng.randrange(len(whole))], b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{}",
            b'{"prompt": "a", "seed": ' + b"9" * 6000 + b"}", b'{"prompt": NaN}', b"null", b"[]",
            rng.randbytes(300), b'{"prompt": "\\ud800", "seed": 1, "n": 0}', b"{}", b'"' + whole,
        ]
    )  # fmt: skip
    kind = rng.choice(["application/json", "text/plain", EVIL[:5] + "x", ""])
    to, headers = rng.choice([DRAW, CHAT]), {"content-type": kind.replace(MARK, "")}
    return httpx.Request("POST", to, content=body, headers=headers)


def wrong_type(rng: random.Random) -> httpx.Request:
    to = rng.choice([DRAW, CHAT])
    names = [
        "prompt", "messages", "n", "size", "response_format", "seed", "guidance", "ar_steps",
        "num_inference_steps", "budget_ms", "partial_images", "stream", "modalities", "temperature",
    ]  # fmt: skip
    body = {**GOOD[to], "n": 0, rng.choice(names): rng.choice(JUNK)}
    text = json.dumps(body, ensure_ascii=True)
    return httpx.Request("POST", to, content=text, headers={"content-type": "application/json"})


def unknown_field(rng: random.Random) -> httpx.Request:
    to = rng.choice([DRAW, CHAT])
    return httpx.Request("POST", to, json={**GOOD[to], rng.choice([EVIL, "guidence", ""]): 1})


def too_much(rng: random.Random) -> httpx.Request:
    more = rng.choice(
        [
            {"prompt": "a" * 1_000_000}, {"prompt": "a" * 10_000_000}, {"n": 1000}, {"n": 11},
            {"num_inference_steps": 10**9}, {"size": "100000x100000"},
            {"prompt": "three " * 120}, {"stream": True, "n": 2}, {"model": EVIL}, {"size": EVIL},
        ]
    )  # fmt: skip
    return httpx.Request("POST", DRAW, json={**GOOD[DRAW], **more})


def bad_picture(rng: random.Random) -> httpx.Request:
    part = {"type": "image_url", "image_url": {"url": rng.choice(URLS)}}
    count = rng.choice([1, 1, 12])
    messages = [{"role": "user", "content": [part] * count}]
    return httpx.Request("POST", CHAT, json={"messages": messages})


def bad_form(rng: random.Random) -> httpx.Request:
    clear = png(PILImage.new("LA", (8, 8), (90, 0)))
    files = rng.choice(
        [
            {}, {"image": (EVIL, rng.choice(PICTURES))}, {"image": png(JUST)},
            {"image": png(JUST), "mask": rng.choice(PICTURES)}, {"mask": clear},
            {"image": png(JUST), "mask": png(PILImage.new("LA", (9, 5)))}, {"image": clear},
            {"image": png(JUST), "mask": png(JUST)}, {"image": png(JUST), "other": b"x"},
        ]
    )  # fmt: skip
    many = {f"f{number}": "" for number in range(99)}
    data = rng.choice([{"prompt": "a"}, {}, {"prompt": EVIL, "n": "x"}, many])
    return httpx.Request("POST", EDIT, files=files or {"x": ("", b"")}, data=data)


def broken_form(rng: random.Random) -> httpx.Request:
    kind = rng.choice(
        ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=x",
         "application/x-www-form-urlencoded", "multipart/form-data; boundary=" + "x" * 500]
    )  # fmt: skip
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="../../a"\r\n\r\n'
    bodies = [b"", head, head + b"abc", b"--x\r\n", b"--x--", rng.randbytes(200), b"a=b&" * 99]
    body = rng.choice(bodies)
    return httpx.Request("POST", EDIT, content=body, headers={"content-type": kind})


def odd_address(rng: random.Random) -> httpx.Request:
    paths = [
        "/", "/v1/models/%1b%5b31m", "/../../etc/passwd", "/v1/models/" + "a" * 5000, DRAW, CHAT,
        "/%2e%2e/%00", "/v1/images/generations/", "/docs", "/v1/models/..%2f..%2fetc",
    ]  # fmt: skip
    return httpx.Request(rng.choice(["GET", "PUT", "DELETE", "PATCH"]), rng.choice(paths))


KINDS: list[Callable[[random.Random], httpx.Request]] = [
    broken_json, wrong_type, unknown_field, too_much, bad_picture, bad_form, broken_form,
    odd_address,
]  # fmt: skip


def refused(server: Running, number: int) -> None:
    """The request of a number is answered with 4xx and one printable line."""
    rng = random.Random(number)
    asked = KINDS[number % len(KINDS)](rng)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        headers = {k: v for k, v in asked.headers.items() if k != "host"}
        answer = client.request(asked.method, asked.url, content=asked.read(), headers=headers)
    told = f"{number}: {answer.status_code} {answer.text[:300]}"
    assert 400 <= answer.status_code < 500, told
    message = answer.json()["error"]["message"]
    assert message.isprintable(), told
    assert 0 < len(message) <= 500, told


def raw(server: Running, number: int) -> None:
    """Bytes that are no request, half of one, or one of which little comes: it ends."""
    rng = random.Random(number)
    body = json.dumps(GOOD[DRAW]).encode()
    head = f"POST {DRAW} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    sized = head + f"Content-Length: {len(body)}\r\n\r\n".encode()
    sent = rng.choice(
        [
            b"\x16\x03\x01" + rng.randbytes(200), b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 50,
            head + b"Content-Length: -1\r\n\r\n", head + b"Content-Length: 1e9\r\n\r\n{}",
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"GET\r\n\r\n",
            head + b"X: " + b"a" * 90_000 + b"\r\n\r\n", head + b"X: \x00\x1b[31m\r\n\r\n",
            f"GET /{MARK} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), sized + body,
            sized + body[: rng.randrange(len(body))], sized[: rng.randrange(20, len(sized))],
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
        ]
    )  # fmt: skip
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        connection.sendall(sent)
        if rng.random() < 0.5:
            return  # and leave
        connection.shutdown(socket.SHUT_WR)
        got = connection.recv(100)
    assert not got or got.split(b" ")[1][:1] in b"24", (number, got)


@pytest.fixture(scope="module")
def digits() -> Pipeline:
    return Pipeline.from_pretrained("digits", "cpu")


@pytest.fixture(scope="module")
def server(digits: Pipeline) -> Iterator[Running]:
    with running(digits) as found:
        yield found


@pytest.mark.parametrize("count", [64, pytest.param(1000, marks=pytest.mark.slow)])
def test_what_is_malformed_or_meant_ill_is_refused(
    server: Running, digits: Pipeline, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """Beside good requests, which are answered as ever."""
    caplog.set_level(logging.INFO)
    expected = digits.text_to_image("a three", seed=3, num_inference_steps=2)
    caption = digits.image_to_text(expected)

    def one(number: int) -> None:
        (raw if number % 5 == 4 else refused)(server, number)

    def good(number: int) -> None:
        own = {"seed": 3, "num_inference_steps": 2}
        made = server.client.images.generate(prompt="a three", extra_body=own)
        assert made.data
        same(opened(made.data[0].b64_json), expected)
        said = server.client.chat.completions.create(model="digits", messages=seen(expected))
        assert said.choices[0].message.content == caption

    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(one, number) for number in range(count)]
        calls += [threads.submit(good, number) for number in range(count // 16)]
        for call in calls:
            call.result(300)
    idle(server)
    told = [r.getMessage() for r in caplog.records if not r.name.startswith(("http", "openai"))]
    assert len(told) > count / 2
    assert all(line.isprintable() and "passwd" not in line for line in told)
    assert server.count("mmfusion_requests_total") > count / 2


def test_a_body_that_does_not_come_is_not_waited_for(server: Running) -> None:
    head = f"POST {DRAW} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        connection.sendall(head + b"{")
        assert b" 408 " in connection.recv(100)


def test_a_bomb_is_not_unpacked(server: Running) -> None:
    assert len(BOMB) < 70_000
    for picture, why in ((bomb(1100), "1,000,000"), (BOMB, "bomb"), (b"x", "no picture format")):
        part = {"type": "image_url", "image_url": {"url": encoded(picture)}}
        body = {"messages": [{"role": "user", "content": [part]}]}
        answer = httpx.post(server.url + CHAT, json=body)
        assert answer.status_code == 400
        assert why in answer.json()["error"]["message"]
