"""Which digit a picture shows, and whether it is a copy; which digit a caption names.

The judge of pictures takes the nearest of the real training digits, in pixel space: it shares
nothing with the model that it judges, anybody can rebuild it in a line, and its mistakes are known
from held-out pictures. (Votes of up to five neighbours are right no more often on these.) A model
that only repeats its training pictures would please it, so `memorised` stands beside its verdicts.
"""

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image as PILImage
from sklearn.neighbors import NearestNeighbors

from mmfusion.data_pipelines.converters.digits import NAMES

from .real import Digits

QUANTILE = 0.05
"""A copy is nearer to a training picture than all but this share of the real held-out ones."""
# A number such as 1.5 or 1,000 and a compound such as twenty-one are one word each.
_WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:[-'’]\w+)*")
_DIGITS = {word: digit for digit in range(10) for word in (NAMES[digit], str(digit))}

Pictures = Sequence[PILImage.Image] | np.ndarray
"""PIL's, or 8-bit grey (n, H, W)."""


def features(pictures: Pictures) -> np.ndarray:
    """Pictures as points (n, H * W): grey p becomes p / 127.5 - 1."""
    grey = np.stack([np.asarray(p.convert("L")) if isinstance(p, PILImage.Image) else p
                     for p in pictures])  # fmt: skip
    return grey.reshape(len(grey), -1) / 127.5 - 1


class Judge:
    """Says which digit a picture shows.

    Attributes:
        accuracy: share of the `n_held_out` held-out pictures that it judges rightly.
        threshold: Euclidean distance to the nearest training picture below which a picture counts
            as memorised: the 5% quantile of the held-out pictures' distances.
    """

    k = 1

    def __init__(self, train: Digits, held_out: Digits) -> None:
        self._labels = train.labels
        self._known = NearestNeighbors(n_neighbors=self.k).fit(features(train.pictures))
        index, distance = self.nearest(held_out.pictures)
        self.accuracy = float((self._labels[index] == held_out.labels).mean())
        self.n_held_out = len(held_out)
        self.threshold = float(np.quantile(distance, QUANTILE))

    def __call__(self, pictures: Pictures) -> np.ndarray:
        """The digit that each picture shows, (n,)."""
        return self._labels[self.nearest(pictures)[0]]

    def nearest(self, pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
        """Index of each picture's nearest training picture (n,) and its distance (n,)."""
        distances, indices = self._known.kneighbors(features(pictures))
        return indices[:, 0], distances[:, 0]


def named_digit(caption: str) -> int | None:
    """The one digit that a caption names, by word or numeral; None if it names none or several.

    Only whole words count, in any case: "77", "10" and "seventh" name no digit.
    """
    named = {_DIGITS[word] for word in _WORD.findall(caption.lower()) if word in _DIGITS}
    return named.pop() if len(named) == 1 else None
