"""JSON for any reader: numbers that are not finite are null, and only a newline ends a line."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """As `json.dumps`; NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects on a file's lines; a line that was cut short, as by a kill, is left out.

    `str.splitlines` would end lines at U+2028 too, which may stand inside a JSON string.
    """
    for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
