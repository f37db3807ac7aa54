"""Documents side by side as tensors: the one input that the decoder takes.

T tokens lie one after another, document after document. What they hold is in lists by kind, and
each token says where in these lists, taken as one, its content is: x = lists[place], one gather.
What is to be predicted are lists of places. On the CPU T is what there is. Where shapes must stay
the same (CUDA) rows keep their padding and lists have a set length: entries too many point to the
first token, and losses give them weight 0.

Shapes: T tokens, D numbers in a latent token, M noisy tokens, I image tokens with these, P text
targets, C entries of another kind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfusion.sequence import IMAGE, LABEL, TEXT, Counts, Row


@dataclass(frozen=True)
class Batch:
    """T tokens.

    Attributes:
        doc, order, stream: (T,), see `mmfusion.sequence`; no two rows share a document's number.
        position: (T, 3) time, row, column.
        place: (T,) where each token's content is in text, label and image tokens, in this order.
        text_id: (C,) ids of text tokens.
        label_id: (C,) of label tokens, class * label_tokens + which token.
        latent, cell: (I, D) and (I,) image tokens, the noisy ones first, and their grid indices.
        timestep, level: the timesteps that there are, and (M,) which of them a noisy token has.
        target, weight: (M, D) and (M,) what noisy tokens are to predict, and its loss weight.
        noisy_at, predict_at: (M,) and (P,) places of the tokens that predict latents and text.
        predict_id: (P,) the text id to predict; -1 is padding.
        rows: how many rows of one length T is; 0 where nothing is padded.
        noisy, targets: how many noisy tokens and text targets there are, padding aside.
    """

    doc: Tensor
    order: Tensor
    stream: Tensor
    position: Tensor
    place: Tensor
    text_id: Tensor
    label_id: Tensor
    latent: Tensor
    cell: Tensor
    timestep: Tensor
    level: Tensor
    target: Tensor
    weight: Tensor
    noisy_at: Tensor
    predict_at: Tensor
    predict_id: Tensor
    rows: int
    noisy: int
    targets: int

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """The same batch in page-locked memory: copies to a GPU need not be waited for."""
        return self._each(Tensor.pin_memory)

    def __reduce__(self) -> tuple[Any, ...]:
        """From a worker it comes as arrays: tensors would each take a file descriptor."""
        return _from_arrays, (self._fields(Tensor.numpy),)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(**self._fields(change))

    def _fields(self, change: Callable[[Tensor], Any]) -> dict[str, Any]:
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return {n: change(x) if isinstance(x, Tensor) else x for n, x in held.items()}


def _from_arrays(held: dict[str, Any]) -> Batch:
    arrays = {n: torch.from_numpy(x) for n, x in held.items() if isinstance(x, np.ndarray)}
    return Batch(**{**held, **arrays})


LISTS = "text_id", "label_id", "level", "cell"
"""Each as long as what `Batch.place` counts: text, labels, noisy tokens, image tokens."""


def join(batches: Sequence[Batch]) -> Batch:
    """The documents of several batches, all with padding or all without, as one batch."""
    if len(batches) == 1:
        return batches[0]
    sizes = np.array([[len(getattr(batch, name)) for name in LISTS] for batch in batches])
    sizes[:, 3] -= sizes[:, 2]
    # Each batch's lists, one batch after another, are taken apart and laid side by side by kind.
    starts = np.cumsum(sizes.T.ravel()).reshape(4, -1).T - sizes
    to = np.repeat(starts.ravel(), sizes.ravel()) + _within(sizes.ravel())
    tokens = np.array([len(batch.doc) for batch in batches])
    documents = tokens  # or more than there are, which no GPU needs to be asked for
    if not batches[0].rows:
        documents = np.array([int(batch.doc[-1]) + 1 for batch in batches])
    levels = np.array([len(batch.timestep) for batch in batches])

    def joined(name: str, counts: np.ndarray | None = None) -> Tensor:
        """The parts one after another, as numbers that go on from those of the parts before."""
        parts = [getattr(batch, name) for batch in batches]
        if counts is None:
            return torch.cat(parts)
        shift = torch.from_numpy(np.repeat(np.cumsum(counts) - counts, [len(p) for p in parts]))
        return torch.cat(parts) + shift.to(parts[0])

    doc = torch.cat([batch.doc for batch in batches])
    return Batch(
        **{name: joined(name) for name in ("order", "stream", "position", "text_id", "label_id")},
        **{name: joined(name) for name in ("timestep", "target", "weight", "predict_id")},
        **{name: joined(name, tokens) for name in ("noisy_at", "predict_at")},
        doc=torch.where(doc < 0, doc, joined("doc", documents)),
        level=joined("level", levels),
        place=torch.from_numpy(to).to(doc.device)[joined("place", sizes.sum(1))],
        latent=noisy_first(batches, "latent"),
        cell=noisy_first(batches, "cell"),
        rows=sum(batch.rows for batch in batches),
        noisy=sum(batch.noisy for batch in batches),
        targets=sum(batch.targets for batch in batches),
    )


class Parts(tuple[Batch, ...]):
    """Parts of a batch, joined on the device that they are brought to."""

    @property
    def noisy(self) -> int:
        return sum(batch.noisy for batch in self)

    @property
    def targets(self) -> int:
        return sum(batch.targets for batch in self)

    def to(self, device: torch.device | str) -> Batch:
        """The whole batch."""
        return join([batch.to(device) for batch in self])


def noisy_first(batches: Sequence[Batch], name: str) -> Tensor:
    """A list of image tokens: the noisy ones of all batches, then the clean ones."""
    parts = [getattr(batch, name).tensor_split([len(batch.level)]) for batch in batches]
    return torch.cat([part for kind in zip(*parts, strict=True) for part in kind])


def _within(sizes: np.ndarray) -> np.ndarray:
    """0 to size - 1 for each of some sizes, one after another."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def collate(rows: Sequence[Row], padded: bool = False, capacity: Counts | None = None) -> Batch:
    """Rows of documents as one batch.

    Every list has at least one entry, so that each embedder and head runs at every step: a head
    that one rank skips would stop DeepSpeed's reduction.

    Args:
        padded: whether rows keep their padding, or only what is written becomes tokens.
        capacity: how many tokens of each kind a row has room for, which makes lists as long as
            the room in all rows; without it they are as long as needed.
    """
    sizes = [row.length if padded else row.used for row in rows]
    sizes[0] = max(sizes[0], 1)  # a decoder must have something to read

    def joined(name: str) -> np.ndarray:
        parts = zip(rows, sizes, strict=True)
        return np.concatenate([getattr(row, name)[:size] for row, size in parts])

    kind, stream, predict, content = map(joined, ("kind", "stream", "predict", "content"))
    noise = (kind == IMAGE) & (stream > 0)
    kinds = kind == TEXT, kind == LABEL, noise, (kind == IMAGE) & ~noise, predict >= 0
    room: Sequence[int | None] = [None] * len(kinds)
    if capacity:
        room = capacity.text, capacity.label, capacity.noisy, capacity.image, capacity.predict
    lists = [_places(k, most and most * len(rows)) for k, most in zip(kinds, room, strict=True)]
    _, _, noisy, clean, targets = lists
    place, held = _contents(kinds[:4], lists[:4], content)
    timestep, level = joined("timestep")[noisy], np.arange(len(noisy))
    if not padded:
        timestep, level = np.unique(timestep, return_inverse=True)
    weight, predict_id = joined("weight")[noisy], predict[targets]
    weight[noise.sum() :], predict_id[kinds[4].sum() :] = 0, -1
    doc, first = joined("doc"), np.cumsum([0, *(row.doc_id + 1 for row in rows[:-1])])
    arrays = {
        "doc": np.where(doc < 0, -1, doc + np.repeat(first, sizes)).astype(np.int32),
        "order": joined("order"),
        "stream": stream,
        "position": joined("position"),
        "place": place,
        "text_id": held[0],
        "label_id": held[1],
        "latent": joined("latent")[np.concatenate([noisy, clean])],
        "cell": np.concatenate(held[2:]),
        "timestep": timestep,
        "level": level,
        "target": joined("target")[noisy],
        "weight": weight,
        "noisy_at": noisy,
        "predict_at": targets,
        "predict_id": predict_id,
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Batch(
        **tensors,
        rows=len(rows) if padded else 0,
        noisy=int(noise.sum()),
        targets=int(kinds[4].sum()),
    )


def _places(chosen: np.ndarray, most: int | None) -> np.ndarray:
    """Where the chosen tokens are, filled up with the first token to `most`, or to one."""
    found = np.flatnonzero(chosen)
    most = max(len(found), 1) if most is None else most
    if len(found) > most:
        raise ValueError(f"{len(found)} tokens of a kind do not fit a list of {most}")
    return np.concatenate([found, np.zeros(most - len(found), int)])


def _contents(
    kinds: Sequence[np.ndarray], lists: Sequence[np.ndarray], content: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Each token's place in the lists taken as one, and what each list holds; filling holds 0."""
    place, start, held = np.zeros(len(content), int), 0, []
    for chosen, at in zip(kinds, lists, strict=True):
        number = chosen.sum()
        place[chosen] = start + np.arange(number)
        start += len(at)
        held.append(np.where(np.arange(len(at)) < number, content[at], 0))
    return place, held
