"""What turns pictures into features: networks from files, chosen by a short spec.

| spec | features |
|---|---|
| `inception[:FILE]` | Inception's pool_3 as in TF1, also logits and sFID's spatial features |
| `dinov2:FOLDER` or hub id | DINOv2's class token, for FD-DINOv2 |
| `clip:MODEL[:TAG or FILE]` | CLIP's picture embeddings |
| `module:FILE` | whatever a TorchScript gives |
| `pixels` | the pixels themselves, for small pictures |
"""

from mmfusion.errors import UserError

from .base import Extractor, default_device

SPECS = "inception[:FILE], dinov2:FOLDER, clip:MODEL[:TAG], module:FILE, pixels"


def default_features(size: int) -> str:
    """The extractor for pictures of a side in pixels where none is named."""
    return "pixels" if size <= 32 else "inception"


def make_extractor(spec: str, device: str | None = None) -> Extractor:
    """The extractor that a spec names, on a device (default: this rank's GPU, or the CPU).

    Raises:
        UserError: no such kind, or its weights cannot be had.
    """
    kind, _, rest = spec.partition(":")
    device = device or default_device()
    if kind == "inception":
        from .inception import InceptionExtractor

        return InceptionExtractor(rest, device)
    if kind == "dinov2":
        from .dinov2 import Dinov2Extractor

        return Dinov2Extractor(rest, device)
    if kind == "clip":
        from .clip import ClipExtractor

        return ClipExtractor(rest, device)
    if kind == "module":
        from .module import ModuleExtractor

        return ModuleExtractor(rest, device)
    if spec == "pixels":
        from .pixels import PixelExtractor

        return PixelExtractor()
    raise UserError(f"features {spec}: no such extractor; choose from {SPECS}")


__all__ = ["Extractor", "default_features", "make_extractor"]
