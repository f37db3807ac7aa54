"""Shards that are odd but fine, and shards that are not. Each holds one sample, or seems to."""

import gzip
import os
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bad_pictures import RED, solid
from material import saved
from material import tar as any_tar

LABEL = 29
tar = partial(any_tar, format=tarfile.GNU_FORMAT)
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


def raw(data: bytes, reason: str | None, said: str, used: bool = False) -> Shard:
    return Shard(lambda path: path.write_bytes(data), reason, said, used)


def plain(members: list, reason: str | None = None, said: str = "", used: bool = True) -> Shard:
    return raw(tar(members), reason, said, used)


def paxed(members: list, reason: str | None = None, said: str = "", used: bool = True) -> Shard:
    return raw(any_tar(members), reason, said, used)


def refused(*members: Any, said: str, used: bool = True) -> Shard:
    """Beside a whole sample, members that are lost."""
    return plain([*SAMPLE, *members], "member", said, used)


def headed(header: bytes) -> Shard:
    return plain([("__mmfusion__", header), *SAMPLE], "json", "header is not valid JSON")


LONG = "deep/" * 40 + "odd"
WHOLE = tar(SAMPLE)
ONE = WHOLE[: 4 * BLOCK]  # both members, without an end mark
LOST, CUT = f"bytes {len(ONE)} to", "a.txt: it is cut short"
OUT, TWICE = "a name that leads out", "the name is there twice"
CODE = [f"odd.{ext}" for ext in ("py", "pyd", "pth", "so", "pkl", "pt", "pipe:touch ran")]
CODE += ["conftest.py", "sitecustomize.py"]
NOISE = np.random.default_rng(0).bytes(50_000)
NO_TAR, PLAIN = "not a tar file with samples", "no plain file"
SHARDS = {
    # not a tar
    "empty": raw(b"", "shard", "cut short"),
    "zeros": raw(bytes(100_000), "shard", "nothing in it is a part of a sample"),
    "noise": raw(NOISE, "shard", NO_TAR),
    "gzip": raw(gzip.compress(WHOLE), "shard", NO_TAR),
    "a web page": raw(b"<html>denied</html>", "shard", NO_TAR),
    "no samples": plain([("a" * 9, bytes(20_000))], "shard", "nothing in it is a part", False),
    "a folder": Shard(Path.mkdir, "shard", PLAIN),
    "a pipe": Shard(os.mkfifo, "shard", PLAIN),
    "a link to nowhere": Shard(lambda path: path.symlink_to("gone"), "shard", "cannot be read"),
    "a device": Shard(lambda path: path.symlink_to("/dev/zero"), "shard", PLAIN),
    # cut, overwritten, lying
    "no end mark": raw(ONE, "shard", "the end mark is missing", True),
    "cut in a member": raw(WHOLE[: 3 * BLOCK + 20], "shard", "it is cut short"),
    "a hole of zeros": raw(holed(2, 4), "shard", "bytes 1024 to"),
    "a hole of noise": raw(holed(2, 4, b"x"), "shard", "bytes 1024 to"),
    "a hole at its start": raw(holed(0, 2), "shard", "bytes 0 to"),
    "a size beyond the end": raw(ONE + block("a.txt", 8**11 - 1), "shard", CUT, True),
    "a size beyond all disks": raw(ONE + block("a.txt", 2**62), "shard", CUT, True),
    "a size below 0": raw(ONE + block("a.txt", -1024) + WHOLE, "shard", LOST, True),
    "a size that leads back": raw(
        ONE + block("a.txt", 0) + block("b.txt", -1024) + WHOLE, "shard", "bytes", True
    ),
    "a size too small": raw(
        ONE + block("a.txt", 3) + bytes(512) + b"x" * 512, "shard", "bytes", True
    ),
    "a long name without an end": raw(
        ONE + block("././@LongLink", 0, b"L") * 500 + WHOLE, "shard", LOST, True
    ),
    "a long name of a terabyte": raw(
        ONE + block("././@LongLink", 10**12, b"L") + WHOLE, "shard", LOST, True
    ),
    "pax that lies of its size": paxed(
        [*SAMPLE, *pax("a.txt", size="-5000"), ("b.txt", b"b")], "shard", LOST
    ),
    "pax for all members": raw(
        any_tar(SAMPLE, pax_headers={"path": "odd.json"}),
        "member", "the name is there twice",
    ),
    # sparse files
    "GNU sparse": refused(info("a.png", tarfile.GNUTYPE_SPARSE), said=PLAIN),
    "pax sparse": paxed(
        [*SAMPLE, *pax("a.png", GNU_sparse_major="1", GNU_sparse_minor="0")], "shard", LOST
    ),
    # names and kinds of members
    "absolute path": refused(("/tmp/ran.txt", b"x"), said=f"/tmp/ran.txt: {OUT}"),
    "path upwards": refused(("../../ran.txt", b"x"), said=OUT),
    "path upwards for Windows": refused(("odd\\..\\..\\ran.txt", b"x"), said=OUT),
    "symbolic link": refused(info("a.png", tarfile.SYMTYPE, "/etc/passwd"), said=PLAIN),
    "hard link": refused(info("a.png", tarfile.LNKTYPE, "../x"), said=PLAIN),
    "device": refused(info("a.png", tarfile.CHRTYPE), said=PLAIN),
    "pipe": refused(info("a.png", tarfile.FIFOTYPE), said=PLAIN),
    "a kind of its own": refused(info("a.png", b"V"), said=PLAIN),
    "member twice": refused(("odd.png", b"again"), said=f"odd.png: {TWICE}"),
    "terminal codes in a name": refused(
        *[("\x1b[2J\nodd.png", b"x")] * 2, said=rf"\x1b[2J\nodd.png: {TWICE}"
    ),
    "a name of 5,000 characters": refused(("a" * 5000 + ".txt", b"x"), said="more than 4,096"),
    "a name of no UTF-8": refused(*[("\udcff.txt", b"x")] * 2, said=rf"\udcff.txt: {TWICE}"),
    "a header that is no JSON": headed(b"{"),
    "a deep header": headed(b"[" * 5000),
    "a header of 2 MB": headed(b"{}" + b" " * 2_000_000),
    # odd but fine
    "names in pax": paxed([(f"{LONG}ü.json", JSON), (f"{LONG}ü.png", PNG)]),
    "long names": plain([(f"{LONG}.json", JSON), (f"{LONG}.png", PNG)]),
    "keys that differ in case": plain([*SAMPLE, ("ODD.json", JSON), ("ODD.png", PNG)]),
    "a member in capitals": plain([("odd.JSON", JSON), ("odd.PNG", PNG)]),
    "members out of order": plain([("odd.png", PNG), ("a.txt", b"a"), ("odd.json", JSON)]),
    "a colon in a key": plain([("a:b.json", JSON), ("a:b.png", PNG)]),
    "a jpg that is a PNG": plain([("odd.json", JSON), ("odd.jpg", PNG)]),
    "code beside a sample": plain([*SAMPLE, *((name, EVIL) for name in CODE)]),
    "bytes after the end": raw(WHOLE + b"x" * 3000, None, "", True),
    "a tar after the end": raw(WHOLE + tar([("a.txt", b"a")]), "shard", LOST, True),
    "the kind of a folder": plain([info("folder", tarfile.DIRTYPE), *SAMPLE]),
}  # fmt: skip
