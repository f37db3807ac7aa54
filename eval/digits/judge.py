"""Which digit a picture shows, and whether it is a copy; which digit a caption names.

The judge of pictures takes nearest neighbours among the real training digits, in pixel space: it
shares nothing with the model that it judges, anybody can rebuild it in a line, and its mistakes are
known from held-out pictures. A model that only repeats its training pictures would please it, so
`memorised` stands beside every accuracy.

k is the one of 1 to 5 that is right most often on the held-out pictures (the smallest of equals).
With five candidates for one number this hardly flatters the accuracy that is reported with it.
"""

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image as PILImage
from sklearn.neighbors import KNeighborsClassifier

from mmfusion.data_pipelines.converters.digits import NAMES
from mmfusion.errors import UserError

from .real import Digits

CANDIDATES = (1, 2, 3, 4, 5)
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
        k: how many neighbours vote.
        accuracy: share of the `n_held_out` held-out pictures that it judges rightly.
        threshold: Euclidean distance to the nearest training picture below which a picture counts
            as memorised: the 5% quantile of the held-out pictures' distances.
    """

    def __init__(self, train: Digits, held_out: Digits) -> None:
        """Learn from `train`, choose k and the threshold on `held_out`."""
        known, unseen = features(train.pictures), features(held_out.pictures)
        if len(known) < max(CANDIDATES):
            raise UserError(
                f"the judge needs {max(CANDIDATES)} training pictures, got {len(known)}; "
                "write the data anew with `mmfusion data digits`"
            )
        judges = [KNeighborsClassifier(k).fit(known, train.labels) for k in CANDIDATES]
        scores = [float(judge.score(unseen, held_out.labels)) for judge in judges]
        best = int(np.argmax(scores))
        self._neighbours = judges[best]
        self.k, self.accuracy, self.n_held_out = CANDIDATES[best], scores[best], len(unseen)
        self.threshold = float(np.quantile(self.nearest(held_out.pictures)[1], QUANTILE))

    def __call__(self, pictures: Pictures) -> np.ndarray:
        """The digit that each picture shows, (n,)."""
        return self._neighbours.predict(self._points(pictures))

    def nearest(self, pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
        """Index of each picture's nearest training picture (n,) and its distance (n,)."""
        distances, indices = self._neighbours.kneighbors(self._points(pictures), 1)
        return indices[:, 0], distances[:, 0]

    def _points(self, pictures: Pictures) -> np.ndarray:
        points = features(pictures)
        if points.shape[1] != self._neighbours.n_features_in_:
            raise UserError(
                f"the judge knows pictures of {self._neighbours.n_features_in_} pixels and was "
                f"shown some of {points.shape[1]}; evaluate a model with the size of its data"
            )
        return points


def named_digit(caption: str) -> int | None:
    """The one digit that a caption names, by word or numeral; None if it names none or several.

    Only whole words count, in any case: "77", "10" and "seventh" name no digit.
    """
    named = {_DIGITS[word] for word in _WORD.findall(caption.lower()) if word in _DIGITS}
    return named.pop() if len(named) == 1 else None
