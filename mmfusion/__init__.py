"""One decoder over interleaved text and images: next tokens for text, causal diffusion for images.

import mmfusion
pipeline = mmfusion.Pipeline.from_pretrained("digits")
picture = pipeline.text_to_image("a handwritten seven")
"""

from typing import TYPE_CHECKING, Any

from mmfusion.home import find_home

if TYPE_CHECKING:
    from mmfusion.errors import UserError as UserError
    from mmfusion.generation.prompt import ImageSlot as ImageSlot
    from mmfusion.generation.prompt import TextSlot as TextSlot
    from mmfusion.pipeline import Pipeline as Pipeline
    from mmfusion.training.image_grid import grid as grid

find_home()  # before a library is imported that asks for it

__version__ = "0.2.0"
__all__ = ["ImageSlot", "Pipeline", "TextSlot", "UserError", "grid"]

_HOMES = {
    "Pipeline": "mmfusion.pipeline",
    "ImageSlot": "mmfusion.generation.prompt",
    "TextSlot": "mmfusion.generation.prompt",
    "UserError": "mmfusion.errors",
    "grid": "mmfusion.training.image_grid",
}


def __getattr__(name: str) -> Any:
    # Loaded when first used: torch takes seconds, `mmfusion --help` need not.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
