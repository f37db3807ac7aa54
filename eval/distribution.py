"""How far the distribution of made pictures is from a reference's: FID and its kin.

The protocol is that of the ADM suite (Dhariwal & Nichol 2021, openai/guided-diffusion): Inception
as in TensorFlow 1; FID and sFID against a reference file's moments; Inception score over splits of
5,000; precision and recall with k = 3 on pool_3 against the reference's pictures. KID (Bińkowski et
al. 2018) stands beside them. With another extractor the same distances have other names, such as
`fd_dinov2`: numbers of two extractors cannot be compared, nor those of two sample counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmfusion.errors import UserError

from .extractors import Extractor
from .features import Arrays, extract
from .image_sets import ImageSet
from .metrics import Moments, frechet_distance, inception_score, kernel_distance
from .precision_recall import precision_recall
from .work import rank

Figure = dict[str, Any]

NEIGHBOURS = 3
SPLIT = 5000  # samples of an Inception score
MOST_OF_ORDER = 0.02  # by which another order may change an Inception score
SUBSETS, SUBSET = 100, 1000  # of a KID


@dataclass
class Measurement:
    """Made pictures, what they are compared with, and the features of both.

    A metric's method gives its numbers, and why to read them with care.
    """

    made: ImageSet
    reference: ImageSet | None
    extractor: Extractor
    ours: Arrays
    theirs: Arrays = field(default_factory=dict)

    def figure(self, metric: str) -> Figure:
        """A metric's value with all that it depends on, and a warning where that is too little."""
        rule, n = METRICS[metric], len(self.ours["sizes"])
        values, warnings = rule.measure(self, metric)
        about = {
            "value": values.pop("value"),
            "n": n,
            **values,
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.sha256,
            "source": self.made.name,
            "source_sha256": self.made.digest,
            "size": self.made.size,
        }
        fewest = min(n, values.get("n_reference") or n)
        if fewest < rule.sensible:
            warnings.append(f"{fewest:,} pictures: below {rule.sensible:,} {rule.few}")
        warnings.append(self.extractor.doubt)
        compared = [(self.made, self.ours["sizes"])]
        if metric != "is" and self.reference is not None:
            digest = self.reference.digest
            about |= {"reference": self.reference.name, "reference_sha256": digest}
            if "reference_moments" not in values:
                compared.append((self.reference, self.theirs["sizes"]))
            elif self.reference.side:
                compared.append((self.reference, np.array([self.reference.side])))
        warning = "; ".join(filter(None, [*warnings, *self._about_pictures(compared)]))
        return {**about, "warning": warning} if warning else about

    def frechet(self, metric: str) -> tuple[Figure, list[str]]:
        """FID or sFID: to the reference's moments, or else to its pictures' features."""
        ours = self.ours[METRICS[metric].needs]
        moments = _moments(metric, self.reference, self.extractor)
        theirs = moments or self.theirs[METRICS[metric].needs]
        figure: Figure = {"value": frechet_distance(ours, theirs), "n_reference": len(theirs)}
        warnings = []
        if moments:
            figure |= {"n_reference": None, "reference_moments": True}
            if not _moments("sfid", self.reference, self.extractor):
                warnings.append(
                    "the reference's moments come without spatial ones, so not from the ADM suite: "
                    "if they were not made as in TensorFlow 1, this is no FID"
                )
        if min(len(ours), figure["n_reference"] or len(ours)) <= ours.shape[1]:
            warnings.append(
                f"in {ours.shape[1]:,} dimensions the covariance of so few pictures is singular, "
                "and the distance much too large"
            )
        return figure, warnings

    def inception_score(self, metric: str) -> tuple[Figure, list[str]]:
        """The score in the pictures' order, and in a random one."""
        logits, warnings = self.ours["logits"], []
        mean, deviation = inception_score(logits, SPLIT)
        # ADM's evaluator takes samples as they come, whose labels it drew at random.
        order = np.random.default_rng(0).permutation(len(logits))
        shuffled, _ = inception_score(logits[order], SPLIT)
        if abs(shuffled / mean - 1) > MOST_OF_ORDER:
            warnings.append(
                f"in random order it is {shuffled:.4g}, which is the one to compare: splits score "
                "too low where classes come one after another, and too high where they take turns"
            )
        whole, last = divmod(len(logits), SPLIT)
        if whole and last:
            warnings.append(f"the last split has {last:,} pictures, not {SPLIT:,}")
        return {"value": mean, "std": deviation, "split": SPLIT, "shuffled": shuffled}, warnings

    def precision_or_recall(self, metric: str) -> tuple[Figure, list[str]]:
        """One of the two, which are measured together."""
        value, n = self._precision_recall[metric], len(self.theirs["sizes"])
        return {"value": value, "n_reference": n, "k": NEIGHBOURS}, []

    @cached_property
    def _precision_recall(self) -> dict[str, float]:
        both = precision_recall(self.theirs["features"], self.ours["features"], NEIGHBOURS)
        return dict(zip(("precision", "recall"), both, strict=True))

    def kid(self, metric: str) -> tuple[Figure, list[str]]:
        """KID of 100 subsets, or of one where there are too few pictures."""
        ours, theirs = self.ours["features"], self.theirs["features"]
        size = min(SUBSET, len(ours), len(theirs))
        subsets = SUBSETS if size == SUBSET else 1
        mean, deviation = kernel_distance(ours, theirs, subsets, size)
        figure = {"value": mean, "std": deviation, "subsets": subsets, "subset": size}
        return {**figure, "n_reference": len(theirs)}, []

    def _about_pictures(self, compared: list[tuple[ImageSet, np.ndarray]]) -> list[str]:
        """What is wrong with the pictures that a figure is of, whose sizes are given, too."""
        found = [
            f"{pictures.passed_over:,} other files in {pictures.name} were passed over, as their "
            "names do not end as pictures' do"
            for pictures, _ in compared
            if pictures.passed_over
        ]
        sizes = np.unique(np.concatenate([sizes for _, sizes in compared]), axis=0)
        named = " and ".join(f"{width} x {height}" for height, width in sizes[:2])
        if len(sizes) > 1:
            found.append(
                f"pictures of {len(sizes):,} sizes, such as {named}, were each brought to the "
                "network's: the figure is of that, too; bring all to one size, as --size does"
            )
        elif sizes[0, 0] != sizes[0, 1] and not self.extractor.one_size:
            found.append(
                f"pictures of {named} were squeezed or cut to the network's square; give --size"
            )
        return found


class Metric(NamedTuple):
    """How a metric is measured.

    Attributes:
        measure: a method of `Measurement`.
        needs: which of an extractor's arrays it is of.
        least: pictures that it needs.
        sensible: pictures below which it carries the warning `few`.
    """

    measure: Callable[[Measurement, str], tuple[Figure, list[str]]]
    needs: str
    least: int
    sensible: int
    few: str


LARGE = "the distance comes out too large; compare it at the same N alone"
_RECALL = Metric(
    Measurement.precision_or_recall, "features", NEIGHBOURS + 1, 1000, "it says little"
)
METRICS = {
    "fid": Metric(Measurement.frechet, "features", 2, 10_000, LARGE),
    "sfid": Metric(Measurement.frechet, "spatial", 2, 10_000, LARGE),
    "is": Metric(Measurement.inception_score, "logits", 2, SPLIT, "the score is too low"),
    "precision": _RECALL,
    "recall": _RECALL,
    "kid": Metric(Measurement.kid, "features", 2, SUBSET, "it is of one subset, not of many"),
}
DIMENSIONS = {"fid": 2048, "sfid": 2023}
"""Of the metrics for which a reference file's moments of Inception serve as well as pictures."""


def key_of(metric: str, extractor: Extractor) -> str:
    """The name of a figure: `fid`, but `fd_dinov2` or `kid_dinov2` with another extractor."""
    if extractor.kind == "inception":
        return metric
    return f"{'fd' if metric == 'fid' else metric}_{extractor.kind}"


def impossible(made: ImageSet, reference: ImageSet | None, extractor: Extractor) -> dict[str, str]:
    """Metrics that these inputs do not allow, with the reason."""
    reasons = {metric: _obstacle(metric, made, reference, extractor) for metric in METRICS}
    return {metric: why for metric, why in reasons.items() if why}


def _obstacle(metric: str, made: ImageSet, reference: ImageSet | None, extractor: Extractor) -> str:
    rule, compared = METRICS[metric], [made]
    if metric != "is" and reference is None:
        return "needs a reference to compare with; name one"
    if rule.needs not in extractor.gives:
        lacking = "classes" if metric == "is" else "spatial ones"
        return f"features {extractor.kind} have no {lacking}; take `inception`"
    if metric != "is" and reference is not None:
        moments = _moments(metric, reference, extractor)
        if moments and len(moments[0]) != DIMENSIONS[metric]:
            return (
                f"{reference.name} has moments of {len(moments[0])} dimensions, and Inception's "
                f"features have {DIMENSIONS[metric]}; they are of another network"
            )
        if not moments and not len(reference):
            own = (
                f" and no moments of {extractor.kind}, {rule.needs}" if metric in DIMENSIONS else ""
            )
            return f"{reference.name} holds no pictures (`arr_0`){own}; take one that does"
        compared += [] if moments else [reference]
    for pictures in compared:
        if len(pictures) < rule.least:
            return f"{pictures.name} has {len(pictures)} pictures; it needs {rule.least} or more"
    return ""


def _moments(metric: str, reference: ImageSet | None, extractor: Extractor) -> Moments | None:
    """The reference's own mean and covariance, which are of Inception's features."""
    if reference is None or extractor.kind != "inception" or metric not in DIMENSIONS:
        return None
    return reference.moments.get(METRICS[metric].needs)


def measure(
    made: ImageSet,
    reference: ImageSet | None,
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
        raise UserError(f"{sets}: {next(iter(cannot.values()))}")
    if not wanted:
        return {}
    compared = [(made, extractor, made_work or work)]
    if reference is not None:
        if made.size != reference.size:
            raise UserError(f"{made.name}: size {made.size}, and the reference {reference.size}")
        if not all(m == "is" or _moments(m, reference, extractor) for m in wanted):
            compared.append((reference, extractor, work))
    arrays = [extract(*each, hold=rank() == 0) for each in compared]
    if rank() > 0:  # it has helped with the features
        return {}
    ours, *theirs = (each["features"].shape[1] for each in arrays)
    if reference is not None and theirs not in ([], [ours]):
        raise UserError(
            f"features {extractor.name}: {ours} numbers for {made.name}, {theirs[0]} for "
            f"{reference.name}; give both the same size with --size"
        )
    measurement = Measurement(made, reference, extractor, *arrays)
    return {key_of(metric, extractor): measurement.figure(metric) for metric in wanted}
