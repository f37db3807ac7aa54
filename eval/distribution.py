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
from .features import Features, extract, make
from .pictures import PictureSet
from .work import rank

Figure = dict[str, Any]

METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
NEIGHBOURS = 3
SPLIT = 5000  # samples of an Inception score
MOST_OF_ORDER = 0.02  # by which another order may change an Inception score
SUBSETS, SUBSET = 100, 1000  # of a KID
SENSIBLE = {"fid": 10_000, "sfid": 10_000, "precision": 1000, "recall": 1000}
LEAST = {"fid": 2, "sfid": 2, "is": 2, "precision": 4, "recall": 4, "kid": 2}
POOL, SPATIAL = 2048, 2023  # dimensions


def key_of(metric: str, extractor: Extractor) -> str:
    """The name of a figure: `fid`, but `fd_dinov2` or `kid_dinov2` with another extractor."""
    if extractor.kind == "inception":
        return metric
    return f"{'fd' if metric == 'fid' else metric}_{extractor.kind}"


def impossible(
    made: PictureSet, reference: PictureSet | None, extractor: Extractor
) -> dict[str, str]:
    """Metrics that these inputs do not allow, with the reason."""
    found = {}
    if "logits" not in extractor.gives:
        found["is"] = f"features {extractor.kind} have no classes; take `inception`"
    if reference is None:
        why = "needs a reference to compare with; name one"
        return _too_few(made, None, {**found, **{m: why for m in METRICS if m != "is"}})
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
    for metric in ("precision", "recall", "kid"):
        if not pictures:
            found[metric] = f"{reference.name} holds moments and no pictures (`arr_0`)"
    return _too_few(made, reference, found)


def _too_few(
    made: PictureSet, reference: PictureSet | None, found: dict[str, str]
) -> dict[str, str]:
    """With the metrics that need more pictures, where no other reason is found."""
    for metric in METRICS:
        counts = {made.name: len(made)}
        if metric != "is" and reference is not None and len(reference):
            counts[reference.name] = len(reference)
        for name, n in counts.items():
            if n < LEAST[metric]:
                found.setdefault(
                    metric, f"{name} has {n} pictures; it needs {LEAST[metric]} or more"
                )
    return found


def measure(
    made: PictureSet,
    reference: PictureSet | None,
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
        reference: real ones, or a reference file; an Inception score needs none.
        extractor: of `make_extractor`.
        metrics: some of `METRICS`; None takes those that the inputs allow (`impossible` says which
            they do not), an empty list none.
        work: where features are kept (default: the user's cache).
        made_work: where those of `made` are kept (default: there, too).

    Raises:
        UserError: a metric that the inputs do not allow, or a damaged picture.
    """
    unknown = sorted(set(metrics or ()) - set(METRICS))
    if unknown:
        raise UserError(f"metric {unknown[0]}: choose from {', '.join(METRICS)}")
    cannot = impossible(made, reference, extractor)
    wanted = [m for m in METRICS if (m not in cannot if metrics is None else m in metrics)]
    for metric in wanted:
        if metric in cannot:
            raise UserError(f"{key_of(metric, extractor)}: {cannot[metric]}")
    if not wanted and metrics is None:
        sets = " and ".join(s.name for s in (made, reference) if s is not None)
        raise UserError(f"{sets}: {next(cannot[m] for m in METRICS if m in cannot)}")
    if not wanted:
        return {}
    if reference is not None and made.size != reference.size:
        raise UserError(f"{made.name}: size {made.size}, and the reference {reference.size}")
    of_reference = reference if _needs_pictures(reference, extractor, wanted) else None
    if rank() > 0:  # it helps with the features, and holds none
        make(made, extractor, made_work or work)
        if of_reference is not None:
            make(of_reference, extractor, work)
        return {}
    ours = extract(made, extractor, made_work or work)
    theirs = None if of_reference is None else extract(of_reference, extractor, work)
    return _Measurement(made, reference, extractor, wanted, ours, theirs).figures()


def _needs_pictures(reference: PictureSet | None, extractor: Extractor, metrics: list[str]) -> bool:
    """Whether a reference's pictures are looked at, not its moments alone."""
    without = {"is"}
    moments = reference.moments if reference is not None and extractor.kind == "inception" else None
    if moments:
        without |= {"fid"} | ({"sfid"} if moments.mu_s is not None else set())
    return bool(set(metrics) - without)


class _Measurement:
    """One call of `measure`."""

    def __init__(
        self,
        made: PictureSet,
        reference: PictureSet | None,
        extractor: Extractor,
        metrics: list[str],
        ours: Features,
        theirs: Features | None,
    ) -> None:
        self.made, self.reference = made, reference
        self.extractor, self.metrics = extractor, metrics
        self.moments = (
            reference.moments if reference is not None and extractor.kind == "inception" else None
        )
        self.ours, self.theirs = ours, theirs
        if self.theirs and self.theirs.features.shape[1] != self.ours.features.shape[1]:
            dimensions = [f.features.shape[1] for f in (self.ours, self.theirs)]
            raise UserError(
                f"features {extractor.name}: {dimensions[0]} numbers for {made.name}, "
                f"{dimensions[1]} for {self.theirs.source}; give both the same size with --size"
            )

    def figures(self) -> dict[str, Figure]:
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
        # ADM's evaluator takes samples as they come, whose labels it drew at random.
        order = np.random.default_rng(0).permutation(self.ours.n)
        mixed, _ = inception_score(self.ours.logits[order], SPLIT)
        figure: Figure = {"value": mean, "std": deviation, "split": SPLIT, "shuffled": mixed}
        if abs(mixed / mean - 1) > MOST_OF_ORDER:
            figure["warning"] = (
                f"in random order it is {mixed:.4g}, which is the one to compare: splits score "
                "too low where classes come one after another, and too high where they take turns"
            )
        return figure

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
            "size": self.made.size,
        }
        if metric != "is" and self.reference is not None:
            digest = self.reference.digest
            about |= {"reference": self.reference.name, "reference_sha256": digest}
        found = [about.pop("warning", ""), self._warning(metric, figure.get("n_reference"))]
        found.append(self.extractor.doubt)
        of_moments = "reference_moments" in figure
        found += self._of_pictures(None if metric == "is" or of_moments else self.theirs)
        if of_moments:
            found.append(self._of_moments())
        if any(found):
            about["warning"] = "; ".join(filter(None, found))
        return about

    def _of_pictures(self, theirs: Features | None) -> list[str]:
        """What is wrong with the pictures that a figure is of."""
        found = []
        sets = [self.made] + ([self.reference] if theirs and self.reference is not None else [])
        for each in sets:
            if each.passed_over:
                found.append(
                    f"{each.passed_over:,} other files in {each.name} were passed over, as their "
                    "names do not end as pictures' do"
                )
        features = [self.ours] + ([theirs] if theirs else [])
        sizes = np.unique(np.concatenate([f.sizes for f in features]), axis=0)
        named = " and ".join(f"{width} x {height}" for height, width in sizes[:2])
        if len(sizes) > 1:
            found.append(
                f"pictures of {len(sizes):,} sizes, such as {named}, were each brought to the "
                "network's: the figure is of that, too; give --size"
            )
        elif sizes[0, 0] != sizes[0, 1] and not self.extractor.one_size:
            found.append(
                f"pictures of {named} were squeezed or cut to the network's square; give --size"
            )
        return found

    def _of_moments(self) -> str:
        """Whether a reference's moments are of pictures of another size."""
        side = self.reference.side if self.reference is not None else None
        others = self.ours.sizes[(self.ours.sizes != side).any(1)] if side else []
        if side is None or not len(others):
            return ""
        (height, width), (high, wide) = others[0], side
        return (
            f"the reference's moments are of pictures of {wide} x {high}, and these are "
            f"{width} x {height}: the distance is of the sizes, too"
        )

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
