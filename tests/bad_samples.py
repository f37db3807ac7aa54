"""Samples whose facts or latents are odd but fine, and samples where they are not.

Each has a task, its members, and what is to become of it: `reason` None means that it is used.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bad_pictures import RED, saved, solid

LABEL = 29  # of the odd sample; the good ones have other labels
SHAPE = (1, 2, 4, 8, 8)
PNG = saved(solid("RGB", RED, (8, 8)))
CLASS, DRAW, SAY, MIXED = "class_to_image", "text_to_image", "image_to_text", "interleaved"


class Kind(NamedTuple):
    task: str
    members: Callable[[], dict[str, Any]]
    reason: str | None = None
    said: str = ""


def facts(task: str, text: str | bytes, reason: str | None = None, said: str = "") -> Kind:
    data = text.encode() if isinstance(text, str) else text
    return Kind(task, lambda: {"json": data, "png": PNG}, reason, said)


def label(value: str, said: str = "") -> Kind:
    return facts(CLASS, f'{{"label": {value}}}', "label", said or f"`label` is {value}")


def caption(text: str | bytes, reason: str | None = None, said: str = "") -> Kind:
    return facts(DRAW, text, reason, said)


def content(*parts: Any, reason: str | None = None, said: str = "") -> Kind:
    return facts(MIXED, json.dumps({"content": parts}), reason, said)


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=pickled)
    return file.getvalue()


def archive(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def latents(data: Callable[[], bytes], said: str | None = None) -> Kind:
    def members() -> dict[str, Any]:
        return {"json": {"label": LABEL}, "moments.npy": data()}

    return Kind(CLASS, members, "latents" if said else None, said or "")


def odd(**changed: Any) -> np.ndarray:
    """Latents of which one number is another."""
    array = np.ones(SHAPE, np.float32)
    for where, value in changed.items():
        array[0, {"mean": 0, "deviation": 1}[where], 3, 7, 7] = value
    return array


class Evil:
    """A pickle of it makes a file `ran`."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("ran"),)


def header(shape: str, dtype: str = "<f4", data: bytes = bytes(16), version: int = 1) -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text + data


GOOD = f'"label": {LABEL}'
JSON_KINDS = {
    # JSON
    "empty JSON": facts(CLASS, "", "json", "not valid JSON"),
    "JSON cut short": facts(CLASS, '{"label": ', "json", "not valid JSON"),
    "JSON that is a list": facts(CLASS, "[1]", "json", "expected an object"),
    "JSON of no UTF-8": facts(CLASS, b'{"a": "\xff\xfe\xfa"}', "json", "not valid JSON"),
    "deep JSON": facts(CLASS, '{"a": ' + "[" * 100_000, "json", "not valid JSON"),
    "deep objects": facts(CLASS, '{"a":' * 100_000, "json", "not valid JSON"),
    "a number of 5,000 digits": facts(CLASS, f'{{"label": {"9" * 5000}}}', "json", "not valid"),
    "JSON of 17 MB": Kind(
        CLASS,
        lambda: {"json": b"{" + b" " * 17_000_000 + b"}", "png": PNG},
        "json",
        "bytes are more",
    ),
    "other facts of odd kinds": facts(
        CLASS, f'{{{GOOD}, "a": NaN, "b": -Infinity, "c": 1e999, "d": {"[" * 200 + "]" * 200}}}'
    ),
    "duplicate keys": facts(CLASS, f'{{"label": 3, {GOOD}}}'),
    "JSON in UTF-16": facts(CLASS, f"{{{GOOD}}}".encode("utf-16")),
    "JSON with a byte order mark": facts(CLASS, b"\xef\xbb\xbf{%s}" % GOOD.encode()),
    # labels
    "label of another class": label("30", "expected a number from 0 to 29"),
    "label below 0": label("-1"),
    "label true": label("true", "`label` is True"),
    "label 3.0": label("3.0"),
    "label a string": label('"3"', "`label` is '3'"),
    "label null": label("null", "`label` is None"),
    "label NaN": label("NaN", "`label` is nan"),
    "label Infinity": label("Infinity", "`label` is inf"),
    "label 1e999": label("1e999", "`label` is inf"),
    "label of 4,000 digits": label("9" * 4000, "9..."),
    "label a list": label("[29]"),
    "label a deep list": label("[" * 900 + "]" * 900, "`label` is "),
    "label an object": label("{}"),
    "no label": facts(CLASS, "{}", "label", "`label` is None"),
    "cls": Kind(CLASS, lambda: {"cls": b" 29\n", "png": PNG}),
    "cls in words": Kind(
        CLASS, lambda: {"cls": b"seven", "png": PNG}, "label", "number of a class"
    ),
    "cls with an underscore": Kind(
        CLASS, lambda: {"cls": b"2_9", "png": PNG}, "label", "number of"
    ),
    "cls of a million digits": Kind(
        CLASS, lambda: {"cls": b"9" * 1_000_000, "png": PNG}, "label", "number of"
    ),
    # captions
    "no caption": caption("{}", "caption", "must be a list of strings"),
    "captions empty": caption('{"captions": []}', "caption", "holds no text"),
    "captions blank": caption('{"captions": [" ", "\\u2028\\t"]}', "caption", "holds no text"),
    "captions a string": caption('{"captions": "a"}', "caption", "must be a list"),
    "captions with null": caption('{"captions": ["a", null]}', "caption", "must be a list"),
    "captions an object": caption('{"captions": {"0": "a"}}', "caption", "must be a list"),
    "caption of control characters": caption(
        '{"captions": ["\\u0000\\u001b"]}', "caption", "no text"
    ),
    "caption of 100 kB": caption(
        json.dumps({"captions": ["one " * 25_000]}), "length", "a row holds"
    ),
    "caption of one endless word": caption(
        json.dumps({"captions": ["a" * 900_000]}), "length", "a row holds"
    ),
    "very many captions": caption(json.dumps({"captions": ["odd"] * 300_000})),
    "lone surrogates": caption('{"captions": ["odd \\ud800 \\udfff\\ud800"]}'),
    "control characters": caption('{"captions": ["odd\\u0000\\u001b[2J\\u0085 \\u202e"]}'),
    "control symbols": caption('{"captions": ["odd </s><image><text><pad>"]}'),
    "txt of no UTF-8": Kind(DRAW, lambda: {"txt": b"odd \xff\xfe\xf0\x90", "png": PNG}),
    "txt empty": Kind(DRAW, lambda: {"txt": b"", "png": PNG}, "caption", "holds no text"),
    "txt of 17 MB": Kind(
        DRAW, lambda: {"txt": b"a" * 17_000_000, "png": PNG}, "caption", "bytes are more than"
    ),
    # content
    "no content": facts(MIXED, "{}", "content", "needs a `content` list"),
    "content empty": content(reason="content", said="needs a `content` list"),
    "content an object": facts(MIXED, '{"content": {"text": "a"}}', "content", "needs a"),
    "content of odd kinds": content(
        {"text": "a"}, 3, reason="content", said="content 1 is 3; expected"
    ),
    "content in content": content(
        {"content": [{"content": [{}]}]}, reason="content", said="content 0 is {'content': "
    ),
    "content of a text of odd kind": content(
        {"text": ["a"]}, reason="content", said="content 0 is"
    ),
    "content of odd terminal codes": content(
        {"\x1b[2J": "\n\x00"}, reason="content", said=r"content 0 is {'\x1b[2J': '\n\x00'}"
    ),
    "more markers than pictures": content(
        {"image": "png"},
        {"image": "1.png"},
        {"answer": "a"},
        reason="picture",
        said="no picture 1.png in this sample",
    ),
    "a picture elsewhere": content(
        {"image": "/etc/passwd"}, reason="picture", said="no picture /etc"
    ),
    "a picture above": content({"image": "../odd.png"}, reason="picture", said="no picture ../odd"),
    "a picture from a command": content(
        {"image": "pipe:touch ran"}, reason="picture", said="no picture pipe:touch ran"
    ),
    "a picture of no name": content({"image": ""}, reason="picture", said="no picture"),
    "a picture that is JSON": content({"image": "json"}, reason="picture", said="not a readable"),
    "a picture of surrogates": content(
        {"image": "\ud800\n.png"}, reason="picture", said=r"no picture \ud800\n.png"
    ),
    "very many parts": content(*[{"text": ""}] * 200_000, reason="length", said="a row holds 128"),
    "a picture a thousand times": content(
        *[{"image": "png"}] * 1000, reason="length", said="its first 9 parts have"
    ),
    "a picture more than markers": content({"text": "odd"}, {"answer": "odd"}),
    "a target of another kind": content({"text": "odd"}, {"image": "png", "target": [0]}),
}

LATENT_KINDS = {
    "float16": latents(lambda: npy(odd().astype(np.float16))),
    "float64, big-endian": latents(lambda: npy(odd().astype(">f8"))),
    "Fortran order": latents(lambda: npy(np.asfortranarray(odd()))),
    "pickled": latents(lambda: npy(np.full(SHAPE, Evil()), pickled=True), "not a plain array"),
    "a bare pickle": latents(lambda: b"\x80\x04cpathlib\nPath\n.", "not a plain array"),
    "structured with objects": latents(lambda: header("(1,)", "|O"), "not a plain array"),
    "code for a header": latents(
        lambda: header("__import__('pathlib').Path('ran').touch()"), "not a plain array"
    ),
    "integers": latents(lambda: npy(odd().astype(np.int32)), "int32 latents of shape"),
    "complex": latents(lambda: npy(odd().astype(np.complex64)), "complex64 latents of shape"),
    "booleans": latents(lambda: npy(odd() > 0), "bool latents of shape"),
    "texts": latents(lambda: npy(odd().astype("U9")), "latents of shape"),
    "another shape": latents(lambda: npy(odd()[..., :4]), "config's image section needs"),
    "no picture in it": latents(lambda: npy(odd()[:0]), "config's image section needs"),
    "one number": latents(lambda: npy(np.float32(1)), "config's image section needs"),
    "NaN": latents(lambda: npy(odd(deviation=np.nan)), "not finite"),
    "infinite": latents(lambda: npy(odd(mean=-np.inf)), "not finite"),
    "1e30": latents(lambda: npy(odd(mean=1e30)), "not finite, or above 1000"),
    "1e300": latents(lambda: npy(odd().astype(np.float64) * 1e300), "not finite"),
    "a terabyte declared": latents(
        lambda: header("(1, 2, 4, 250000, 125000)"), "1,000,000,000,000 bytes are declared"
    ),
    "more than there can be": latents(lambda: header(f"({2**62}, 8)"), "not a plain array"),
    "less than nothing": latents(lambda: header("(-1, -4)"), "not a plain array"),
    "numbers of no size": latents(lambda: header(f"({2**40},)", "|V0", b""), "latents of shape"),
    "a deep header": latents(lambda: header("(" * 5000 + ")" * 5000), "not a plain array"),
    "a long header": latents(lambda: header("(" + "1, " * 15_000 + ")"), "not a plain array"),
    "version 9": latents(lambda: header("(4,)", version=9), "not a plain array"),
    "an archive": latents(lambda: archive(odd()), "not a plain array"),
    "cut short": latents(lambda: npy(odd())[:-1], "bytes are declared"),
    "too long": latents(lambda: npy(odd()) + b"x", "bytes are declared"),
    "zero bytes of latents": latents(lambda: b"", "not a plain array"),
    "pictures only": Kind(
        CLASS, lambda: {"json": {"label": LABEL}, "png": PNG}, "latents", "no `moments.npy`"
    ),
}
