r"""Texts that users bring: UTF-8 with or without a byte order mark.

Their lines end at \n alone. Python's own `splitlines` also splits at U+2028, U+0085 and others,
which may stand inside of a caption or of a string in JSON.
"""

from pathlib import Path

from mmfusion.errors import UserError, user_error

UTF8, UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


def is_utf16(data: bytes) -> bool:
    """Whether a text begins with the mark of UTF-16, or with a Latin letter in it."""
    return data.startswith(UTF16) or b"\0" in data[:2]


def begin(data: bytes, where: str | Path) -> bytes:
    """The beginning of a text without its byte order mark."""
    if is_utf16(data):
        raise UserError(f"{where}: is UTF-16 text; save it as UTF-8")
    return data.removeprefix(UTF8)


def read_text(path: Path) -> str:
    """A whole file.

    Raises:
        OSError: it cannot be read.
        UserError: it is not UTF-8.
    """
    with user_error(f"{path}: is not UTF-8 text; save it as UTF-8", UnicodeDecodeError):
        return begin(path.read_bytes(), path).decode()
