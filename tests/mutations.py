"""Random damage to a shard, its index and its members, in a process of its own.

    python tests/mutations.py COUNT SEED FOLDER

Each damaged shard is opened and read, and each sample made into documents of all tasks, within a
time and a memory limit. Only CorruptSample and UserError may come of it. The last line is JSON: how
often what came out.
"""

import json
import random
import resource
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from bad_pictures import noise
from bad_samples import odd
from helpers import make_tokenizer, run_config
from material import npy, saved

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import SourceConfig
from mmfusion.data_pipelines.documents import DocumentMaker
from mmfusion.data_pipelines.shards import Shards, write_shard
from mmfusion.errors import CorruptSample, UserError
from mmfusion.sequence import Image

SECONDS = 10  # for one shard
MEMORY = 2 << 30  # bytes beyond those of the process at its start
TASKS = ("class_to_image", "text_to_image", "image_to_text", "interleaved")
RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen",
        "pickle.find_class"}  # fmt: skip


class TooSlow(BaseException):
    """Not an Exception, which decoders' errors are caught as."""


def stop(*_: Any) -> None:
    raise TooSlow


def samples() -> dict[str, dict[str, Any]]:
    small = noise.resize((24, 20))
    content = [{"image": "0.png"}, {"text": "then"}, {"answer": "ein Hund"}]
    content += [{"image": "1.webp", "target": True}]
    facts = {"label": 1, "captions": ["a dog", "ein Hund \u2028"], "content": content}
    text, one = json.dumps(facts).encode(), b'{"label": 1}'
    return {
        "a": {"json": text, "jpg": saved(small, "jpeg")},
        "b": {"txt": "a cat ü".encode(), "cls": b"2", "png": saved(small)},
        "c": {"json": text, "0.png": saved(small), "1.webp": saved(small, "webp")},
        "d": {"cls": b"1\n", "webp": saved(small, "webp", lossless=True)},
        "e": {"json": one, "moments.npy": npy(odd().astype(np.float16))},
        "f": {"json": one, "png": saved(small.quantize(8), transparency=0)},
    }


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Some flipped, inserted, deleted, cut off, swapped, repeated or interesting bytes."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at, end = sorted(draw.randrange(len(found) + 1) for _ in range(2))
        near = min(at + draw.choice((1, 2, 4, 8, 100)), len(found))
        match draw.randrange(9):
            case 0 | 1 if at < len(found):
                found[at] ^= 1 << draw.randrange(8)
            case 2 if at < len(found):
                found[at] = draw.randrange(256)
            case 3:
                found[at:at] = draw.randbytes(draw.choice((1, 2, 4, 512)))
            case 4:
                del found[at:near]
            case 5:
                del found[end:]
            case 6:  # blocks of a tar, or neighbours
                size = 512 if len(found) > 2048 else 4
                a, b = (draw.randrange(len(found) // size + 1) * size for _ in range(2))
                found[a : a + size], found[b : b + size] = found[b : b + size], found[a : a + size]
            case 7:
                found[at:near] = draw.choice((b"\0", b"\xff", b"9", b"-", b"[", b'"')) * (near - at)
            case _:
                found[at:at] = found[at:near]
    return bytes(found)


def mended(data: bytes, draw: random.Random) -> bytes:
    """A PNG whose chunks are damaged, but whose sums are right, so that decoders look inside."""
    found, at = data[:8], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + size]
        if draw.random() < 0.4 and size:
            body = body[:4] + damaged(body[4:], draw)
        found += (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + size
    return found


def resummed(data: bytes, draw: random.Random) -> bytes:
    """A tar whose headers are damaged, but whose sums are right."""
    found = bytearray(data)
    headers = [at for at in range(0, len(found), 512) if found[at + 257 : at + 262] == b"ustar"]
    for at in draw.sample(headers, draw.randint(1, 3)):
        field = draw.choice((slice(0, 100), slice(124, 136), slice(156, 157), slice(157, 257)))
        size = field.stop - field.start
        start, stop = at + field.start, at + field.stop
        found[start:stop] = damaged(bytes(found[start:stop]), draw)[:size].ljust(size, b"\0")
        if draw.random() < 0.3:
            found[at + 156] = draw.choice(b"01234567LKSxgXNV")
        found[at + 148 : at + 156] = b" " * 8
        found[at + 148 : at + 156] = b"%06o\0 " % (sum(found[at : at + 512]) & 0o777777)
    return bytes(found)


def makers(tokenizer: Tokenizer) -> list[DocumentMaker]:
    """Of pixels, and of latents."""
    latents = {"codec": "vae", "vae": "x", "size": 16, "patch": 2, "latent_channels": 4}
    images = {"size": 8, "channels": 3, "patch": 2}, {**latents, "downsampling": 2}
    given = {"row_length": 512, "text": {"tokenizer": str(tokenizer.path)}}
    unused = Path("unused")
    configs = [run_config(unused, unused, image=image, **given) for image in images]
    return [DocumentMaker(config, tokenizer) for config in configs]


def read(path: Path, makers: list[DocumentMaker], outcomes: Counter) -> None:
    """Open a shard and make all documents of it."""
    try:
        shards = Shards(str(path))
    except UserError:
        outcomes["shard refused"] += 1
        return
    outcomes.update(f"listed: {lost.reason}" for _, lost in shards.lost)
    for number in range(len(shards)):
        try:
            sample = shards[number]
        except CorruptSample as error:
            outcomes[f"lost: {error.reason}"] += 1
            continue
        for maker in makers:
            for task in TASKS:
                source = SourceConfig(name="a", shards="a", task=task)  # type: ignore[arg-type]
                try:
                    document = maker.make(source, sample, np.random.default_rng(0))
                except CorruptSample as error:
                    printable = "" if str(error).isprintable() else " with control characters"
                    outcomes[f"document refused: {error.reason}{printable}"] += 1
                    continue
                images = [part for part in document if isinstance(part, Image)]
                assert all(np.isfinite(part.latents).all() for part in images)
                outcomes["document made"] += 1


def case(draw: random.Random, path: Path, whole: bytes, index: bytes) -> str:
    """Write one damaged shard; what was damaged."""
    beside = Path(f"{path}.index")
    beside.unlink(missing_ok=True)
    kind = draw.choice(("shard", "shard", "headers", "indexed shard", "index", "member", "member"))
    if kind == "member":
        found = samples()
        key = draw.choice(list(found))
        ext = draw.choice(list(found[key]))
        change: Callable = damaged
        if ext.endswith("png") and draw.random() < 0.6:
            change = mended
        found[key][ext] = change(found[key][ext], draw)
        write_shard(path, found.items(), {"made": "here"})
        return f"member {ext.rpartition('.')[2]}"
    change = resummed if kind == "headers" else damaged
    path.write_bytes(whole if kind == "index" else change(whole, draw))
    if kind in ("index", "indexed shard"):
        beside.write_bytes(damaged(index, draw) if kind == "index" else index)
    return kind


def main(count: int, seed: int, folder: Path) -> None:
    tokenizer = make_tokenizer(folder)
    path = folder / "a.tar"
    write_shard(path, samples().items(), {"made": "here"})
    whole, index = path.read_bytes(), Path(f"{path}.index").read_bytes()
    ready = makers(tokenizer)
    outcomes, kinds, wrong = Counter[str](), Counter[str](), list[str]()
    read(path, ready, Counter())  # what is imported late
    ran: list[str] = []
    sys.addaudithook(lambda event, _: ran.append(event) if event in RUNS else None)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, stop)
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        try:
            kinds[case(draw, path, whole, index)] += 1
            signal.alarm(SECONDS)
            read(path, ready, outcomes)
        except TooSlow:
            wrong.append(f"{number}: more than {SECONDS} s")
        except Exception as error:
            wrong.append(f"{number}: {error!r}")
        finally:
            signal.alarm(0)
    print(json.dumps({
        "cases": dict(kinds.most_common()), "outcomes": dict(outcomes.most_common()),
        "wrong": wrong, "ran": ran,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
    }))  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
