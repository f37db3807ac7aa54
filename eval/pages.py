"""HTML pages: each one file that loads nothing, with all its pictures inside.

So a page can be mailed, archived and opened without a network. What a model wrote is escaped: a
caption is as little to be trusted as any other input.
"""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image as PILImage


def render(template: str, **values: Any) -> bytes:
    """A page of a template, whose path is below this folder, as UTF-8."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": data_uri,
        "percent": lambda share: f"{100 * share:.1f}%",
        "duration": lambda s: f"{s:.1f} s" if s < 60 else f"{s // 60:.0f} min {s % 60:.0f} s",
    }
    # A caption from a damaged model may hold lone surrogates, which UTF-8 cannot.
    return environment.get_template(template).render(values).encode("utf-8", "replace")


def data_uri(picture: PILImage.Image | bytes) -> str:
    """A picture, or the bytes of a PNG or SVG, inside a URL."""
    if not isinstance(picture, bytes):
        file = io.BytesIO()
        picture.save(file, "png")
        picture = file.getvalue()
    kind = "svg+xml" if picture.startswith(b"<?xml") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
