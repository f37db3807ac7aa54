"""What visitors may send. gradio opens pictures before any function of ours sees them."""

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from mmfusion.codecs.image import FORMATS
from mmfusion.errors import UserError

MOST_BYTES = 10_000_000
MOST_PIXELS = 20_000_000
MOST_TEXT = 1000  # characters
SENT_WRONG = (
    f"not a picture that is read here: send {', '.join(FORMATS)} of at most "
    f"{MOST_PIXELS // 1_000_000} million pixels"
)
UNREADABLE = (UnidentifiedImageError, PILImage.DecompressionBombError, OSError, SyntaxError)


def limit_pictures() -> None:
    """Make Pillow in this process refuse other formats and larger pictures, whoever calls it.

    Above all EPS, which starts Ghostscript.
    """
    PILImage.init()
    PILImage.ID[:] = [name for name in PILImage.ID if name in FORMATS]
    PILImage.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # an error above twice as many


def say_what_was_sent_wrong(page: gr.Blocks) -> None:
    """One line for a picture that cannot be opened, where gradio has none."""
    read: Callable[..., Awaitable[Any]] = page.preprocess_data

    async def reading(*arguments: Any, **options: Any) -> Any:
        try:
            return await read(*arguments, **options)
        except Exception as error:
            if isinstance(error.__cause__ or error, UNREADABLE):
                raise gr.Error(SENT_WRONG, print_exception=False) from None
            raise

    page.preprocess_data = reading  # type: ignore[method-assign]


def checked(text: str | None) -> str:
    """A text that was sent, if it is not too long."""
    text = text or ""
    if len(text) > MOST_TEXT:
        raise UserError(f"a text of {len(text)} characters: send at most {MOST_TEXT}")
    return text
