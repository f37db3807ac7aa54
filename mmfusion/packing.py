"""Rows side by side as tensors: the one input that the decoder takes, in training and inference.

The kinds of token are index lists into each row: B rows, L tokens, C entries of a kind. A list
shorter than its capacity is padded with the index L, one past the row: the decoder writes such
entries to a place that is cut off again, and losses give them weight 0.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from mmfusion.sequence import IMAGE, LABEL, TEXT, Counts, Row


@dataclass(frozen=True)
class Batch:
    """B rows of L tokens.

    Attributes:
        doc, order, stream: (B, L), see `mmfusion.sequence`.
        position: (B, L, 3) time, row, column.
        text_at, text_id: (B, C) places and ids of text tokens.
        label_at, label_id: (B, C) places of label tokens; class * label_tokens + which token.
        image_at: (B, C) places of image tokens, and their `latent` (B, C, D).
        noisy_at, timestep: (B, C) places and timesteps of noisy tokens.
        target, weight: (B, C, D) and (B, C) what noisy tokens predict, and its loss weight.
        predict_at, predict_id: (B, C) places that predict text, and the id; -1 is padding.
    """

    doc: Tensor
    order: Tensor
    stream: Tensor
    position: Tensor
    text_at: Tensor
    text_id: Tensor
    label_at: Tensor
    label_id: Tensor
    image_at: Tensor
    latent: Tensor
    noisy_at: Tensor
    timestep: Tensor
    target: Tensor
    weight: Tensor
    predict_at: Tensor
    predict_id: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        )

    def pin(self) -> "Batch":
        """The same batch in page-locked memory: copies to a GPU need not be waited for."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    def rows(self, at: slice) -> "Batch":
        """A part of the rows."""
        return Batch(**{f.name: getattr(self, f.name)[at] for f in fields(self)})

    def repeat(self, times: int) -> "Batch":
        """The rows repeated as a whole, `times` times."""
        return Batch(**{f.name: torch.cat([getattr(self, f.name)] * times) for f in fields(self)})

    def with_noisy(self, latent: Tensor, timestep: Tensor) -> "Batch":
        """The same places with other latents (B, C, D) and timesteps (B, C)."""
        return replace(self, latent=latent, timestep=timestep)


def collate(rows: list[Row], capacity: Counts | None = None) -> Batch:
    """Rows of one length as a batch; lists as long as `capacity`, or as the longest of the rows.

    Every list has at least one entry, so that each embedder and head runs at every step: a head
    that one rank skips would stop DeepSpeed's reduction.
    """

    def column(name: str) -> np.ndarray:
        return np.stack([getattr(row, name) for row in rows])

    kind, stream, predict = column("kind"), column("stream"), column("predict")
    length = kind.shape[1]
    image = kind == IMAGE
    noisy = image & (stream > 0)

    def places(chosen: np.ndarray, size: int | None) -> np.ndarray:
        counts = chosen.sum(1)
        most = max(int(counts.max()), 1) if size is None else size
        out = np.full((len(chosen), most), length)
        row, at = np.nonzero(chosen)
        out[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = at
        return out

    def take(values: np.ndarray, at: np.ndarray, fill: float = 0) -> Tensor:
        padded = np.pad(
            values, [(0, 0), (0, 1)] + [(0, 0)] * (values.ndim - 2), constant_values=fill
        )
        return torch.from_numpy(padded[np.arange(len(at))[:, None], at])

    text_at = places(kind == TEXT, capacity and capacity.text)
    label_at = places(kind == LABEL, capacity and capacity.label)
    image_at = places(image, capacity and capacity.image)
    noisy_at = places(noisy, capacity and capacity.noisy)
    predict_at = places(predict >= 0, capacity and capacity.predict)
    content = column("content")
    return Batch(
        doc=torch.from_numpy(column("doc")),
        order=torch.from_numpy(column("order")),
        stream=torch.from_numpy(stream),
        position=torch.from_numpy(column("position")),
        text_at=torch.from_numpy(text_at),
        text_id=take(content, text_at),
        label_at=torch.from_numpy(label_at),
        label_id=take(content, label_at),
        image_at=torch.from_numpy(image_at),
        latent=take(column("latent"), image_at),
        noisy_at=torch.from_numpy(noisy_at),
        timestep=take(column("timestep"), noisy_at),
        target=take(column("target"), noisy_at),
        weight=take(column("weight"), noisy_at),
        predict_at=torch.from_numpy(predict_at),
        predict_id=take(predict, predict_at, -1),
    )
