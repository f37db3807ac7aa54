"""How far the distribution of made pictures is from a reference's: FID and its kin.

The protocol is that of the ADM suite (Dhariwal & Nichol 2021, openai/guided-diffusion): Inception
as in TensorFlow 1; FID and sFID against a reference file's moments; Inception score over splits of
5,000; precision and recall with k = 3 on pool_3 against the reference's pictures. KID (Bińkowski et
al. 2018) stands beside them. With another extractor the same distances have other names, such as
`fd_dinov2`: numbers of two extractors cannot be compared, nor those of two sample counts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.errors import UserError

from .distances.frechet import frechet_distance
from .distances.inception_score import inception_score
from .distances.kernel import kernel_distance
from .distances.manifold import precision_recall
from .extractors import Extractor
from .features import Features, extract
from .pictures import PictureSet
from .work import rank

Figure = dict[str, Any]

METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
NEIGHBOURS = 3
SPLIT = 5000  # samples of an Inception score
SUBSETS, SUBSET = 100, 1000  # of a KID
SENSIBLE = {"fid": 10_000, "sfid": 10_000, "precision": 1000, "recall": 1000}
LEAST = {"fid": 2, "sfid": 2, "is": 2, "precision": 4, "recall": 4, "kid": 2}
POOL, SPATIAL = 2048, 2023  # dimensions


def key_of(metric: str, extractor: Extractor) -> str:
    """The name of a figure: `fid`, but `fd_dinov2` or `kid_dinov2` with another extractor."""
    if extractor.kind == "inception":
        return metric
    return f"{'fd' if metric == 'fid' else metric}_{extractor.kind}"


def impossible(made: PictureSet, reference: PictureSet, extractor: Extractor) -> dict[str, str]:
    """Metrics that these inputs do not allow, with the reason."""
    found = {}
    spatial, pictures = "spatial" in extractor.gives, bool(len(reference))
    moments = reference.moments if extractor.kind == "inception" else None
    if not moments and not pictures:
        found["fid"] = (
            f"{reference.name} holds moments of Inception and no pictures; take `--features "
            "inception`, or a reference with pictures"
        )
    if not spatial:
        found["sfid"] = f"features {extractor.kind} have no spatial ones; take `inception`"
    elif moments and moments.mu_s is None and not pictures:
        found["sfid"] = f"{reference.name} has no spatial moments (mu_s, sigma_s)"
    for metric, mean, dimensions in (("fid", "mu", POOL), ("sfid", "mu_s", SPATIAL)):
        given = getattr(moments, mean, None)
        if given is not None and len(given) != dimensions:
            found[metric] = (
                f"{reference.name}: `{mean}` has {len(given)} dimensions and Inception's features "
                f"{dimensions}; these moments are of another network"
            )
    if "logits" not in extractor.gives:
        found["is"] = f"features {extractor.kind} have no classes; take `inception`"
    for metric in ("precision", "recall", "kid"):
        if not pictures:
            found[metric] = f"{reference.name} holds moments and no pictures (`arr_0`)"
    for metric in METRICS:
        counts = {made.name: len(made)}
        if metric != "is" and pictures:
            counts[reference.name] = len(reference)
        for name, n in counts.items():
            if n < LEAST[metric]:
                found.setdefault(
                    metric, f"{name} has {n} pictures; it needs {LEAST[metric]} or more"
                )
    return found


def measure(
    made: PictureSet,
    reference: PictureSet,
    extractor: Extractor,
    metrics: list[str] | None = None,
    work: Path | None = None,
    made_work: Path | None = None,
) -> dict[str, Figure]:
    """Figures by their names (`key_of`), each with all that it depends on.

    Under a launcher every rank calls this and makes some of the features; rank 0 gets the figures,
    the others an empty dict.

    Args:
        made: the pictures to judge.
        reference: real ones, or a reference file.
        extractor: of `make_extractor`.
        metrics: some of `METRICS`; None takes those that the inputs allow (`impossible` says which
            they do not).
        work: where features are kept (default: the user's cache).
        made_work: where those of `made` are kept (default: there, too).

    Raises:
        UserError: a metric that the inputs do not allow, or a damaged picture.
    """
    unknown = sorted(set(metrics or ()) - set(METRICS))
    if unknown:
        raise UserError(f"metric {unknown[0]}: choose from {', '.join(METRICS)}")
    cannot = impossible(made, reference, extractor)
    wanted = [m for m in METRICS if (m in metrics if metrics else m not in cannot)]
    for metric in wanted:
        if metric in cannot:
            raise UserError(f"{key_of(metric, extractor)}: {cannot[metric]}")
    if not wanted:
        raise UserError(f"{made.name} and {reference.name}: {next(iter(cannot.values()))}")
    if made.size != reference.size:
        raise UserError(f"{made.name}: size {made.size}, and the reference {reference.size}")
    return _Measurement(made, reference, extractor, wanted, work, made_work or work).figures()


class _Measurement:
    """One call of `measure`."""

    def __init__(
        self,
        made: PictureSet,
        reference: PictureSet,
        extractor: Extractor,
        metrics: list[str],
        work: Path | None,
        made_work: Path | None,
    ) -> None:
        self.reference, self.extractor, self.metrics = reference, extractor, metrics
        self.moments = reference.moments if extractor.kind == "inception" else None
        self.size = made.size
        self.ours = extract(made, extractor, made_work)
        self.theirs = extract(reference, extractor, work) if self._needs_pictures() else None
        if self.theirs and self.theirs.features.shape[1] != self.ours.features.shape[1]:
            dimensions = [f.features.shape[1] for f in (self.ours, self.theirs)]
            raise UserError(
                f"features {extractor.name}: {dimensions[0]} numbers for {made.name}, "
                f"{dimensions[1]} for {reference.name}; give both the same size with --size"
            )

    def _needs_pictures(self) -> bool:
        from_moments = {"is"}
        if self.moments:
            from_moments |= {"fid"} | ({"sfid"} if self.moments.mu_s is not None else set())
        return bool(set(self.metrics) - from_moments)

    def figures(self) -> dict[str, Figure]:
        if rank() > 0:
            return {}
        makers: dict[str, Callable[[], Figure]] = {
            "fid": self._fid,
            "sfid": self._sfid,
            "is": self._inception_score,
            "kid": self._kid,
        }
        figures = {}
        for metric in self.metrics:
            if metric in makers:
                figures[metric] = self._about(metric, makers[metric]())
        if {"precision", "recall"} & set(self.metrics):
            both = precision_recall(self._real().features, self.ours.features, NEIGHBOURS)
            for metric, value in zip(("precision", "recall"), both, strict=True):
                if metric in self.metrics:
                    figure = {"value": value, "n_reference": self._real().n, "k": NEIGHBOURS}
                    figures[metric] = self._about(metric, figure)
        return {key_of(m, self.extractor): figures[m] for m in METRICS if m in figures}

    def _real(self) -> Features:
        assert self.theirs is not None
        return self.theirs

    def _fid(self) -> Figure:
        theirs = self.theirs.features if self.theirs else None
        given = (self.moments.mu, self.moments.sigma) if self.moments else None
        return self._frechet(self.ours.features, theirs, given)

    def _sfid(self) -> Figure:
        assert self.ours.spatial is not None
        theirs = self.theirs.spatial if self.theirs else None
        given = None
        if self.moments and self.moments.mu_s is not None and self.moments.sigma_s is not None:
            given = self.moments.mu_s, self.moments.sigma_s
        return self._frechet(self.ours.spatial, theirs, given)

    def _frechet(
        self,
        ours: np.ndarray,
        theirs: np.ndarray | None,
        given: tuple[np.ndarray, np.ndarray] | None,
    ) -> Figure:
        """A distance to the reference's moments, or else to its pictures' features."""
        if given is None:
            assert theirs is not None
            return {"value": frechet_distance(ours, theirs), "n_reference": len(theirs)}
        value = frechet_distance(ours, given)
        figure: Figure = {"value": value, "n_reference": None, "reference_moments": True}
        if self.moments and self.moments.mu_s is None:
            figure["warning"] = (
                "the reference's moments come without spatial ones, so not from the ADM suite: if "
                "they were not made as in TensorFlow 1, this is no FID"
            )
        return figure

    def _inception_score(self) -> Figure:
        assert self.ours.logits is not None
        mean, deviation = inception_score(self.ours.logits, SPLIT)
        return {"value": mean, "std": deviation, "split": SPLIT}

    def _kid(self) -> Figure:
        size = min(SUBSET, self.ours.n, self._real().n)
        subsets = SUBSETS if size == SUBSET else 1
        mean, deviation = kernel_distance(
            self.ours.features, self._real().features, subsets=subsets, size=size
        )
        figure = {"value": mean, "std": deviation, "subsets": subsets, "subset": size}
        return {**figure, "n_reference": self._real().n}

    def _about(self, metric: str, figure: Figure) -> Figure:
        """A figure with what it depends on, and a warning where that is too little."""
        ours = self.ours
        about = {
            "value": figure.pop("value"),
            "n": ours.n,
            **figure,
            "extractor": ours.extractor,
            "extractor_sha256": ours.extractor_sha256,
            "source": ours.source,
            "source_sha256": ours.source_sha256,
            "size": self.size,
        }
        if metric != "is":
            digest = self.reference.digest
            about |= {"reference": self.reference.name, "reference_sha256": digest}
        found = [about.pop("warning", ""), self._warning(metric, figure.get("n_reference"))]
        if any(found):
            about["warning"] = "; ".join(filter(None, found))
        return about

    def _warning(self, metric: str, n_reference: int | None) -> str:
        n = self.ours.n
        fewest = n if n_reference is None else min(n, n_reference)
        if metric in ("fid", "sfid"):
            array = self.ours.features if metric == "fid" else self.ours.spatial
            dimensions = 0 if array is None else array.shape[1]
            if fewest <= dimensions:
                return (
                    f"{fewest:,} pictures in {dimensions:,} dimensions: the covariance is singular "
                    "and the distance much too large; compare it at the same N alone"
                )
            if fewest < SENSIBLE[metric]:
                return (
                    f"{fewest:,} pictures: below {SENSIBLE[metric]:,} the distance comes out too "
                    "large; compare it at the same N alone"
                )
        elif metric in ("precision", "recall") and fewest < SENSIBLE[metric]:
            return f"{fewest:,} pictures: below {SENSIBLE[metric]:,} it says little"
        elif metric == "kid" and fewest < SUBSET:
            return f"{fewest:,} pictures: one subset of all, where KID takes {SUBSET:,} a subset"
        elif metric == "is" and n % SPLIT:
            if n < SPLIT:
                return f"{n:,} pictures: less than one split of {SPLIT:,}; the score is too low"
            return f"{n:,} pictures: the last split has {n % SPLIT:,}, not {SPLIT:,}"
        return ""
