"""Shards that are odd but fine, and shards that are not. Each holds one sample, or seems to."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bad_pictures import RED, saved, solid

LABEL = 29
JSON, PNG = f'{{"label": {LABEL}}}'.encode(), saved(solid("RGB", RED, (8, 8)))
SAMPLE = [("odd.json", JSON), ("odd.png", PNG)]
EVIL = b"import pathlib; pathlib.Path('ran').touch()\n"
BLOCK = 512


class Shard(NamedTuple):
    """What writes it, reason and message of its loss, and whether its label comes."""

    make: Callable[[Path], Any]
    reason: str | None = None
    said: str = ""
    used: bool = False


def tar(members: list, format: int = tarfile.GNU_FORMAT, **options: Any) -> bytes:
    """Members are a name and data, or a TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format, **options) as out:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                out.addfile(member, io.BytesIO(bytes(member.size)))
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            out.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> Any:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, target, size
    return found


def block(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header alone, of any size: also below 0 or beyond all disks."""
    data = bytearray(info(name, kind).tobuf(tarfile.GNU_FORMAT))
    if 0 <= size < 8**11:
        data[124:136] = b"%011o\0" % size
    else:
        data[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def pax(name: str, **fields: str) -> list:
    found = info(name, size=len(PNG))
    found.pax_headers = {key.replace("_", "."): value for key, value in fields.items()}
    return [found]


def holed(start: int, end: int, fill: bytes = b"\0") -> bytes:
    """A tar of a sample of two blocks and more, of which some blocks were overwritten."""
    data = tar([("odd.txt", b"a"), ("b.txt", b"b"), *SAMPLE])
    return data[: start * BLOCK] + fill * ((end - start) * BLOCK) + data[end * BLOCK :]


def plain(members: list, **how: Any) -> Shard:
    options = {key: how.pop(key) for key in ("format", "pax_headers") if key in how}
    return Shard(lambda path: path.write_bytes(tar(members, **options)), **how)


def raw(data: Callable[[], bytes], reason: str | None, said: str, used: bool = False) -> Shard:
    return Shard(lambda path: path.write_bytes(data()), reason, said, used)


def refused(*members: Any, said: str, used: bool = True) -> Shard:
    """Beside a whole sample, members that are lost."""
    return plain([*SAMPLE, *members], reason="member", said=said, used=used)


LONG = "deep/" * 40 + "odd"
WHOLE = tar(SAMPLE)
ONE = WHOLE[: 4 * BLOCK]  # both members, without an end mark
LOST = f"bytes {len(ONE)} to"
NOISE = np.random.default_rng(0).bytes(50_000)
SHARDS = {
    # not a tar
    "empty": raw(lambda: b"", "shard", "cut short"),
    "zeros": raw(lambda: bytes(100_000), "shard", "nothing in it is a part of a sample"),
    "noise": raw(lambda: NOISE, "shard", "not a tar file with samples"),
    "gzip": raw(lambda: gzip.compress(WHOLE), "shard", "not a tar file with samples"),
    "zip": raw(lambda: b"PK\3\4" + bytes(5000), "shard", "not a tar file with samples"),
    "a web page": raw(lambda: b"<html>denied</html>", "shard", "not a tar file with samples"),
    "no samples": plain([("a" * 9, bytes(20_000))], reason="shard", said="nothing in it is a part"),
    "a folder": Shard(Path.mkdir, "shard", "no plain file"),
    "a pipe": Shard(os.mkfifo, "shard", "no plain file"),
    "a link to nowhere": Shard(lambda path: path.symlink_to("gone"), "shard", "cannot be read"),
    "a device": Shard(lambda path: path.symlink_to("/dev/zero"), "shard", "no plain file"),
    # cut, overwritten, lying
    "no end mark": raw(lambda: WHOLE[: 4 * BLOCK], "shard", "the end mark is missing", True),
    "cut in a member": raw(lambda: WHOLE[: 3 * BLOCK + 20], "shard", "it is cut short"),
    "a hole of zeros": raw(lambda: holed(2, 4), "shard", "bytes 1024 to"),
    "a hole of noise": raw(lambda: holed(2, 4, b"x"), "shard", "bytes 1024 to"),
    "a hole at its start": raw(lambda: holed(0, 2), "shard", "bytes 0 to"),
    "a size beyond the end": raw(
        lambda: ONE + block("a.txt", 8**11 - 1), "shard", "a.txt: it is cut short", True
    ),
    "a size beyond all disks": raw(
        lambda: ONE + block("a.txt", 2**62), "shard", "a.txt: it is cut short", True
    ),
    "a size below 0": raw(lambda: ONE + block("a.txt", -1024) + WHOLE, "shard", LOST, True),
    "a size that leads back": raw(
        lambda: ONE + block("a.txt", 0) + block("b.txt", -1024) + WHOLE, "shard", "bytes", True
    ),
    "a size too small": raw(
        lambda: ONE + block("a.txt", 3) + bytes(512) + b"x" * 512, "shard", "bytes", True
    ),
    "a long name without an end": raw(
        lambda: ONE + block("././@LongLink", 0, b"L") * 500 + WHOLE, "shard", LOST, True
    ),
    "a long name of a terabyte": raw(
        lambda: ONE + block("././@LongLink", 10**12, b"L") + WHOLE, "shard", LOST, True
    ),
    "pax that lies of its size": plain(
        [*SAMPLE, *pax("a.txt", size="-5000"), ("b.txt", b"b")],
        format=tarfile.PAX_FORMAT,
        reason="shard",
        said=LOST,
        used=True,
    ),
    "pax for all members": plain(
        SAMPLE,
        format=tarfile.PAX_FORMAT,
        pax_headers={"path": "odd.json"},
        reason="member",
        said="the name is there twice",
    ),
    # sparse files
    "GNU sparse": refused(info("a.png", tarfile.GNUTYPE_SPARSE), said="no plain file"),
    "pax sparse": plain(
        [*SAMPLE, *pax("a.png", GNU_sparse_major="1", GNU_sparse_minor="0")],
        format=tarfile.PAX_FORMAT,
        reason="shard",
        said=LOST,
        used=True,
    ),
    # names and kinds of members
    "absolute path": refused(("/tmp/ran.txt", b"x"), said="/tmp/ran.txt: a name that leads out"),
    "path upwards": refused(("../../ran.txt", b"x"), said="a name that leads out"),
    "path upwards for Windows": refused(
        ("odd\\..\\..\\ran.txt", b"x"), said="a name that leads out"
    ),
    "symbolic link": refused(info("a.png", tarfile.SYMTYPE, "/etc/passwd"), said="no plain file"),
    "hard link": refused(info("a.png", tarfile.LNKTYPE, "../x"), said="no plain file"),
    "device": refused(info("a.png", tarfile.CHRTYPE), said="no plain file"),
    "pipe": refused(info("a.png", tarfile.FIFOTYPE), said="no plain file"),
    "a kind of its own": refused(info("a.png", b"V"), said="no plain file"),
    "member twice": refused(("odd.png", b"again"), said="odd.png: the name is there twice"),
    "terminal codes in a name": refused(
        ("\x1b[2J\nodd.png", b"x"), ("\x1b[2J\nodd.png", b"x"), said=r"\x1b[2J\nodd.png: the name"
    ),
    "a name of 5,000 characters": plain(
        [*SAMPLE, ("a" * 5000 + ".txt", b"x")], reason="member", said="more than 4,096", used=True
    ),
    "a name of no UTF-8": refused(
        ("\udcff.txt", b"x"), ("\udcff.txt", b"x"), said=r"\udcff.txt: the name is there twice"
    ),
    "a header that is no JSON": plain(
        [("__mmfusion__", b"{"), *SAMPLE], reason="json", said="header is not valid JSON", used=True
    ),
    "a deep header": plain(
        [("__mmfusion__", b"[" * 5000), *SAMPLE], reason="json", said="not valid JSON", used=True
    ),
    "a header of 2 MB": plain(
        [("__mmfusion__", b"{}" + b" " * 2_000_000), *SAMPLE],
        reason="json",
        said="not valid",
        used=True,
    ),
    # odd but fine
    "names in pax": plain(
        [(f"{LONG}ü.json", JSON), (f"{LONG}ü.png", PNG)], format=tarfile.PAX_FORMAT, used=True
    ),
    "long names": plain([(f"{LONG}.json", JSON), (f"{LONG}.png", PNG)], used=True),
    "keys that differ in case": plain([*SAMPLE, ("ODD.json", JSON), ("ODD.png", PNG)], used=True),
    "a member in capitals": plain([("odd.JSON", JSON), ("odd.PNG", PNG)], used=True),
    "members out of order": plain(
        [("odd.png", PNG), ("a.txt", b"a"), ("odd.json", JSON)], used=True
    ),
    "a colon in a key": plain([("a:b.json", JSON), ("a:b.png", PNG)], used=True),
    "a jpg that is a PNG": plain([("odd.json", JSON), ("odd.jpg", PNG)], used=True),
    "code beside a sample": plain(
        [
            *SAMPLE,
            *((f"odd.{ext}", EVIL) for ext in ("py", "pyd", "pth", "so", "pkl", "pt")),
            ("conftest.py", EVIL),
            ("sitecustomize.py", EVIL),
            ("odd.pipe:touch ran", EVIL),
        ],
        used=True,
    ),
    "bytes after the end": raw(lambda: WHOLE + b"x" * 3000, None, "", True),
    "a tar after the end": raw(lambda: WHOLE + tar([("a.txt", b"a")]), "shard", LOST, True),
    "the kind of a folder": plain([info("folder", tarfile.DIRTYPE), *SAMPLE], used=True),
}
