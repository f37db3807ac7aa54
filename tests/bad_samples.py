"""Samples whose facts or latents are odd but fine, and samples where they are not.

Each has a task, its members, and what is to become of it: `reason` None means that it is used.
"""

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bad_pictures import RED, solid
from material import npy, saved

from mmfusion.errors import printable

LABEL = 29  # of the odd sample; the good ones have other labels
SHAPE = (1, 2, 4, 8, 8)
PNG = saved(solid("RGB", RED, (8, 8)))
CLASS, DRAW, SAY, MIXED = "class_to_image", "text_to_image", "image_to_text", "interleaved"


class Kind(NamedTuple):
    task: str
    members: dict[str, Any]
    reason: str | None = None
    said: str = ""


def facts(task: str, text: str | bytes, reason: str | None = None, said: str = "") -> Kind:
    data = text.encode() if isinstance(text, str) else text
    return Kind(task, {"json": data, "png": PNG}, reason, said)


def label(value: str, said: str = "") -> Kind:
    return facts(CLASS, f'{{"label": {value}}}', "label", said or f"`label` is {value}")


def caption(text: str | bytes, reason: str | None = None, said: str = "") -> Kind:
    return facts(DRAW, text, reason, said)


def content(parts: list, said: str = "", reason: str = "content") -> Kind:
    return facts(MIXED, json.dumps({"content": parts}), reason if said else None, said)


def lacks(name: str, *more: dict) -> Kind:
    """A document whose picture is not in the sample."""
    return content([{"image": name}, *more], f"no picture {printable(name)}", "picture")


def archive(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def latents(data: bytes, said: str = "") -> Kind:
    members = {"json": {"label": LABEL}, "moments.npy": data}
    return Kind(CLASS, members, "latents" if said else None, said)


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
NO_ARRAY = "not a plain array"
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
        CLASS, {"json": b"{" + b" " * 17_000_000 + b"}", "png": PNG}, "json", "bytes are more"
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
    "label 1e999": label("1e999", "`label` is inf"),
    "label of 4,000 digits": label("9" * 4000, "9..."),
    "label a deep list": label("[" * 900 + "]" * 900, "`label` is "),
    "label an object": label("{}"),
    "no label": facts(CLASS, "{}", "label", "`label` is None"),
    "cls": Kind(CLASS, {"cls": b" 29\n", "png": PNG}),
    "cls in words": Kind(CLASS, {"cls": b"seven", "png": PNG}, "label", "number of a class"),
    "cls with an underscore": Kind(CLASS, {"cls": b"2_9", "png": PNG}, "label", "number of"),
    "cls of a million digits": Kind(
        CLASS, {"cls": b"9" * 1_000_000, "png": PNG}, "label", "number of"
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
    "txt of no UTF-8": Kind(DRAW, {"txt": b"odd \xff\xfe\xf0\x90", "png": PNG}),
    "txt of UTF-16": Kind(DRAW, {"txt": "a dog".encode("utf-16"), "png": PNG}, "caption", "UTF-16"),
    "txt empty": Kind(DRAW, {"txt": b"", "png": PNG}, "caption", "holds no text"),
    "txt of 17 MB": Kind(
        DRAW, {"txt": b"a" * 17_000_000, "png": PNG}, "caption", "bytes are more than"
    ),
    # content
    "no content": facts(MIXED, "{}", "content", "needs a `content` list"),
    "content empty": content([], "needs a `content` list"),
    "content an object": facts(MIXED, '{"content": {"text": "a"}}', "content", "needs a"),
    "content of odd kinds": content([{"text": "a"}, 3], "content 1 is 3; expected"),
    "content in content": content([{"content": [{"content": [{}]}]}], "content 0 is {'content': "),
    "content of a text of odd kind": content([{"text": ["a"]}], "content 0 is"),
    "content of odd terminal codes": content(
        [{"\x1b[2J": "\n\x00"}], r"content 0 is {'\x1b[2J': '\n\x00'}"
    ),
    "more markers than pictures": lacks("1.png", {"image": "png"}, {"answer": "a"}),
    "a picture elsewhere": lacks("/etc/passwd"),
    "a picture above": lacks("../odd.png"),
    "a picture from a command": lacks("pipe:touch ran"),
    "a picture of no name": lacks(""),
    "a picture of surrogates": lacks("\ud800\n.png"),
    "a picture that is JSON": content([{"image": "json"}], "not a readable", "picture"),
    "very many parts": content([{"text": ""}] * 200_000, "a row holds 128", "length"),
    "a picture a thousand times": content(
        [{"image": "png"}] * 1000, "its first 9 parts have", "length"
    ),
    "a picture more than markers": content([{"text": "odd"}, {"answer": "odd"}]),
    "a target of another kind": content([{"text": "odd"}, {"image": "png", "target": [0]}]),
}

LATENT_KINDS = {
    "float16": latents(npy(odd().astype(np.float16))),
    "float64, big-endian": latents(npy(odd().astype(">f8"))),
    "Fortran order": latents(npy(np.asfortranarray(odd()))),
    "pickled": latents(npy(np.full(SHAPE, Evil()), pickled=True), NO_ARRAY),
    "a bare pickle": latents(b"\x80\x04cpathlib\nPath\n.", NO_ARRAY),
    "structured with objects": latents(header("(1,)", "|O"), NO_ARRAY),
    "code for a header": latents(header("__import__('pathlib').Path('ran').touch()"), NO_ARRAY),
    "integers": latents(npy(odd().astype(np.int32)), "int32 latents of shape"),
    "complex": latents(npy(odd().astype(np.complex64)), "complex64 latents of shape"),
    "booleans": latents(npy(odd() > 0), "bool latents of shape"),
    "texts": latents(npy(odd().astype("U9")), "latents of shape"),
    "another shape": latents(npy(odd()[..., :4]), "config's image section needs"),
    "no picture in it": latents(npy(odd()[:0]), "config's image section needs"),
    "one number": latents(npy(np.float32(1)), "config's image section needs"),
    "NaN": latents(npy(odd(deviation=np.nan)), "not finite"),
    "infinite": latents(npy(odd(mean=-np.inf)), "not finite"),
    "1e30": latents(npy(odd(mean=1e30)), "not finite, or above 1000"),
    "1e300": latents(npy(odd().astype(np.float64) * 1e300), "not finite"),
    "a terabyte declared": latents(
        header("(1, 2, 4, 250000, 125000)"), "1,000,000,000,000 bytes are declared"
    ),
    "more than there can be": latents(header(f"({2**62}, 8)"), NO_ARRAY),
    "less than nothing": latents(header("(-1, -4)"), NO_ARRAY),
    "numbers of no size": latents(header(f"({2**40},)", "|V0", b""), "latents of shape"),
    "a deep header": latents(header("(" * 5000 + ")" * 5000), NO_ARRAY),
    "a long header": latents(header("(" + "1, " * 15_000 + ")"), NO_ARRAY),
    "version 9": latents(header("(4,)", version=9), NO_ARRAY),
    "an archive": latents(archive(odd()), NO_ARRAY),
    "cut short": latents(npy(odd())[:-1], "bytes are declared"),
    "too long": latents(npy(odd()) + b"x", "bytes are declared"),
    "zero bytes of latents": latents(b"", NO_ARRAY),
    "pictures only": Kind(
        CLASS, {"json": {"label": LABEL}, "png": PNG}, "latents", "no `moments.npy`"
    ),
}
