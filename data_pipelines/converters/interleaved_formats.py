"""Records of interleaved documents as parts, whatever format they have.

Which format it is shows in the record's own fields:

- `content`: ours. Its parts say themselves what is learned.
- `text_list` and `image_info`: MMC4. Each picture goes before the sentence it was matched with.
- `images` and `texts`: OBELICS. At each place one of the two is null. A picture is a path, a URL
  or {"bytes": ..., "path": ...}.

Of MMC4 and OBELICS, `Reading` says what is learned. A picture that opens one of their documents is
given in any case: where nothing is said before it, there is nothing to draw it from, and a prompt
would never ask for it. (Drawing from nothing is learned by dropout of the condition.)
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmfusion.errors import CorruptSample, shown

FIELDS = ("content", "text_list", "image_info", "images", "texts")
TARGET: tuple[dict, ...] = ({}, {"target": True}, {"target": False})
Learn = Literal["text", "pictures", "both"]


@dataclass(frozen=True)
class TextItem:
    """Given text, or with `learned` an answer."""

    text: str
    learned: bool = False


@dataclass(frozen=True)
class ImageItem:
    """A picture: the path of its file, the URL it came from, or the file itself.

    Once it was read, `member` is the extension and the bytes that go into the shard.
    """

    path: str | None = None
    url: str | None = None
    data: bytes | None = field(default=None, repr=False)
    learned: bool = False
    member: tuple[str, bytes] | None = field(default=None, repr=False)


Item = TextItem | ImageItem


@dataclass(frozen=True)
class Document:
    """Parts in their order; those of a `web` page mean something without the others.

    Of our own format that is not so: without its picture an answer would be wrong.
    """

    parts: list[Item]
    glue: str | None = None  # between two texts that follow each other; None leaves them apart
    web: bool = True

    def joined(self) -> list[Item]:
        """The parts, with neighbouring texts joined by the glue."""
        if self.glue is None:
            return self.parts
        joined: list[Item] = []
        for part in self.parts:
            before = joined[-1] if joined else None
            if isinstance(part, TextItem) and isinstance(before, TextItem):
                joined[-1] = replace(before, text=f"{before.text}{self.glue}{part.text}")
            else:
                joined.append(part)
        return joined


@dataclass(frozen=True)
class Reading:
    """How records that do not say so themselves are read."""

    learn: Learn = "both"  # the others are given
    min_similarity: float | None = None  # MMC4's pictures of a lower `matched_sim` are passed over

    def text(self, text: str) -> TextItem:
        """A text of a document that does not say what is learned."""
        return TextItem(text, self.learn != "pictures")

    def picture(self, **source: Any) -> ImageItem:
        """A picture of such a document."""
        return ImageItem(**source, learned=self.learn != "text")


def parse(record: dict[str, Any], reading: Reading, where: str) -> Document:
    """The document of a record; texts without any word in them are left out."""
    try:
        if "content" in record:
            return _content(record["content"])
        if "text_list" in record:
            document = _mmc4(record["text_list"], record.get("image_info"), reading)
        elif "texts" in record and "images" in record:
            document = _obelics(record["texts"], record["images"], reading)
        else:
            raise _wrong(
                f"has the fields {shown(sorted(record))}; expected `content`, or `text_list` "
                "and `image_info` (MMC4), or `texts` and `images` (OBELICS)"
            )
        parts = [p for p in document.parts if not isinstance(p, TextItem) or p.text.strip()]
        if not parts:
            raise _wrong("is empty")
    except CorruptSample as error:
        raise CorruptSample(error.reason, f"{where}: {error}") from None
    return replace(document, parts=parts)


def _wrong(what: str) -> CorruptSample:
    return CorruptSample("content", what)


def _content(content: Any) -> Document:
    if not isinstance(content, list) or not content:
        raise _wrong("needs `content`, a list of parts")
    parts: list[Item] = []
    for at, part in enumerate(content):
        match part:
            case {"text": str(text), **rest} if not rest:
                parts.append(TextItem(text))
            case {"answer": str(text), **rest} if not rest:
                parts.append(TextItem(text, learned=True))
            case {"image": str(name), **rest} if rest in TARGET:
                parts.append(ImageItem(**_named(name), learned=bool(rest.get("target"))))
            case _:
                raise _wrong(
                    f"content {at} is {shown(part)}; expected "
                    '{"text": ...}, {"answer": ...} or {"image": ..., "target": true|false}'
                )
    return Document(parts, web=False)


def _mmc4(sentences: Any, info: Any, reading: Reading) -> Document:
    if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
        raise _wrong("`text_list` must be a list of strings")
    if not isinstance(info, list):
        raise _wrong("`image_info` must be a list")
    if len(info) > len(sentences):  # each is matched with a sentence of its own
        raise _wrong(f"{len(info)} pictures in `image_info`, but {len(sentences)} texts")
    before: list[list[Item]] = [[] for _ in sentences]
    for number, entry in enumerate(info):
        told = f"image_info {number}"
        if not isinstance(entry, dict):
            raise _wrong(f"{told} is {shown(entry)}; expected an object")
        index, name, url = map(entry.get, ("matched_text_index", "image_name", "raw_url"))
        if type(index) is not int or not 0 <= index < len(sentences):
            expected = f"expected 0 to {len(sentences) - 1}"
            raise _wrong(f"{told}: matched_text_index is {shown(index)}; {expected}")
        if not all(n is None or isinstance(n, str) for n in (name, url)) or not (name or url):
            raise _wrong(f"{told}: needs `image_name` or `raw_url`, a string")
        if reading.min_similarity is not None:
            similarity: Any = entry.get("matched_sim")
            if type(similarity) not in (int, float) or not math.isfinite(similarity):
                raise _wrong(f"{told}: matched_sim is {shown(similarity)}; expected a number")
            if similarity < reading.min_similarity:
                continue
        before[index].append(reading.picture(path=name, url=url))
    pairs = zip(before, sentences, strict=True)
    return Document([p for some, s in pairs for p in (*some, reading.text(s))], glue=" ")


def _obelics(texts: Any, images: Any, reading: Reading) -> Document:
    if not isinstance(texts, list) or not isinstance(images, list):
        raise _wrong("`texts` and `images` must be lists")
    if len(texts) != len(images):
        raise _wrong(f"{len(texts)} `texts`, but {len(images)} `images`; expected as many")
    parts: list[Item] = []
    for at, (text, image) in enumerate(zip(texts, images, strict=True)):
        if isinstance(image, dict) and image.get("bytes") is None and image.get("path") is None:
            image = None  # how parquet may write null
        match text, image:
            case str(), None:
                parts.append(reading.text(text))
            case None, str(name):
                parts.append(reading.picture(**_named(name)))
            case None, {"bytes": bytes(data)}:
                parts.append(reading.picture(data=data))
            case None, {"path": str(name)}:
                parts.append(reading.picture(**_named(name)))
            case _:
                one = "neither a text nor" if text is None else "both a text and"
                found = shown(text if image is None else image)
                if (text is None) == (image is None):
                    raise _wrong(f"place {at} has {one} a picture; expected one of them")
                told = 'expected a string, or a picture as {"bytes": ..., "path": ...}'
                raise _wrong(f"place {at} is {found}; {told}")
    return Document(parts, glue="\n\n")


def _named(name: str) -> dict[str, Any]:
    return {"url" if "://" in name else "path": name}
