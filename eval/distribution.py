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
from .metrics import Moments, frechet_distance, inception_score, kernel_distance, precision_recall
from .work import rank

Figure = dict[str, Any]
Found = tuple[Figure, list[str]]
"""A figure's value and what belongs to it, and why to read it with care."""

NEIGHBOURS = 3
SPLIT = 5000  # samples of an Inception score
MOST_OF_ORDER = 0.02  # by which another order may change an Inception score
SUBSETS, SUBSET = 100, 1000  # of a KID


@dataclass
class Sets:
    """Made pictures, what they are compared with, and the features of both."""

    made: ImageSet
    reference: ImageSet | None
    extractor: Extractor
    ours: Arrays = field(default_factory=dict)
    theirs: Arrays = field(default_factory=dict)

    def moments(self, metric: str) -> Moments | None:
        """The reference's own mean and covariance, which are of Inception's features."""
        rule = METRICS[metric]
        if self.reference is None or self.extractor.kind != "inception" or rule.measure != _frechet:
            return None
        return self.reference.moments.get(rule.needs)

    def compared(self, metric: str) -> list[ImageSet]:
        """The sets whose pictures a metric is of."""
        alone = metric == "is" or self.reference is None or self.moments(metric)
        return [self.made] if alone else [self.made, self.reference]  # type: ignore[list-item]

    @cached_property
    def precision_recall(self) -> tuple[float, float]:
        """Both at once."""
        return precision_recall(self.theirs["features"], self.ours["features"], NEIGHBOURS)


def _frechet(sets: Sets, metric: str) -> Found:
    """FID or sFID: to the reference's moments, or else to its pictures' features."""
    ours, moments, warnings = sets.ours[METRICS[metric].needs], sets.moments(metric), []
    theirs = moments or sets.theirs[METRICS[metric].needs]
    figure: Figure = {"value": frechet_distance(ours, theirs), "n_reference": len(theirs)}
    if moments:
        figure |= {"n_reference": None, "reference_moments": True}
        if not sets.moments("sfid"):
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


def _inception_score(sets: Sets, metric: str) -> Found:
    """The score in the pictures' order, and in a random one."""
    logits = sets.ours["logits"]
    mean, deviation = inception_score(logits, SPLIT)
    # ADM's evaluator takes samples as they come, whose labels it drew at random.
    order = np.random.default_rng(0).permutation(len(logits))
    shuffled, _ = inception_score(logits[order], SPLIT)
    ordered = (
        f"in random order it is {shuffled:.4g}, which is the one to compare: splits score too low "
        "where classes come one after another, and too high where they take turns"
    )
    whole, last = divmod(len(logits), SPLIT)
    return {"value": mean, "std": deviation, "split": SPLIT, "shuffled": shuffled}, [
        ordered if abs(shuffled / mean - 1) > MOST_OF_ORDER else "",
        f"the last split has {last:,} pictures, not {SPLIT:,}" if whole and last else "",
    ]


def _precision_or_recall(sets: Sets, metric: str) -> Found:
    value = sets.precision_recall[metric == "recall"]
    return {"value": value, "n_reference": len(sets.theirs["sizes"]), "k": NEIGHBOURS}, []


def _kid(sets: Sets, metric: str) -> Found:
    """KID of 100 subsets, or of one where there are too few pictures."""
    ours, theirs = sets.ours["features"], sets.theirs["features"]
    size = min(SUBSET, len(ours), len(theirs))
    subsets = SUBSETS if size == SUBSET else 1
    mean, deviation = kernel_distance(ours, theirs, subsets, size)
    figure = {"value": mean, "std": deviation, "subsets": subsets, "subset": size}
    return {**figure, "n_reference": len(theirs)}, []


class Metric(NamedTuple):
    """How a metric is measured."""

    measure: Callable[[Sets, str], Found]
    needs: str  # which of an extractor's arrays it is of
    least: int  # pictures that it needs
    sensible: int  # pictures below which it carries the warning `few`
    few: str


LARGE = "the distance comes out too large; compare it at the same N alone"
_RECALL = Metric(_precision_or_recall, "features", NEIGHBOURS + 1, 1000, "it says little")
METRICS = {
    "fid": Metric(_frechet, "features", 2, 10_000, LARGE),
    "sfid": Metric(_frechet, "spatial", 2, 10_000, LARGE),
    "is": Metric(_inception_score, "logits", 2, SPLIT, "the score is too low"),
    "precision": _RECALL,
    "recall": _RECALL,
    "kid": Metric(_kid, "features", 2, SUBSET, "it is of one subset, not of many"),
}


def _figure(sets: Sets, metric: str) -> Figure:
    """A metric's value with all that it depends on, and a warning where that is too little."""
    rule, n = METRICS[metric], len(sets.ours["sizes"])
    values, warnings = rule.measure(sets, metric)
    figure = {
        "value": values.pop("value"),
        "n": n,
        **values,
        "extractor": sets.extractor.name,
        "extractor_sha256": sets.extractor.sha256,
        "source": sets.made.name,
        "source_sha256": sets.made.digest,
        "size": sets.made.size,
    }
    if metric != "is" and sets.reference is not None:
        figure["reference"] = sets.reference.name
        figure["reference_sha256"] = sets.reference.digest
    fewest = min(n, values.get("n_reference") or n)
    if fewest < rule.sensible:
        warnings.append(f"{fewest:,} pictures: below {rule.sensible:,} {rule.few}")
    warnings += [sets.extractor.doubt, *_about_pictures(sets, metric)]
    warning = "; ".join(filter(None, warnings))
    return {**figure, "warning": warning} if warning else figure


def _about_pictures(sets: Sets, metric: str) -> list[str]:
    """What is wrong with the pictures that a figure is of."""
    compared = sets.compared(metric)
    found = [
        f"{pictures.passed_over:,} other files in {pictures.name} were passed over, as their names "
        "do not end as pictures' do"
        for pictures in compared
        if pictures.passed_over
    ]
    seen = [arrays["sizes"] for _, arrays in zip(compared, (sets.ours, sets.theirs), strict=False)]
    if sets.moments(metric) and sets.reference and sets.reference.side:
        seen.append(np.array([sets.reference.side]))  # of the pictures that the moments are of
    sizes = np.unique(np.concatenate(seen), axis=0)
    named = " and ".join(f"{width} x {height}" for height, width in sizes[:2])
    if len(sizes) > 1:
        found.append(
            f"pictures of {len(sizes):,} sizes, such as {named}, were each brought to the "
            "network's: the figure is of that, too; bring all to one size, as --size does"
        )
    elif sizes[0, 0] != sizes[0, 1] and not sets.extractor.one_size:
        found.append(
            f"pictures of {named} were squeezed or cut to the network's square; give --size"
        )
    return found


def key_of(metric: str, extractor: Extractor) -> str:
    """The name of a figure: `fid`, but `fd_dinov2` or `kid_dinov2` with another extractor."""
    if extractor.kind == "inception":
        return metric
    return f"{'fd' if metric == 'fid' else metric}_{extractor.kind}"


def impossible(made: ImageSet, reference: ImageSet | None, extractor: Extractor) -> dict[str, str]:
    """Metrics that these inputs do not allow, with the reason."""
    sets = Sets(made, reference, extractor)
    reasons = {metric: _obstacle(sets, metric) for metric in METRICS}
    return {metric: why for metric, why in reasons.items() if why}


def _obstacle(sets: Sets, metric: str) -> str:
    rule, kind = METRICS[metric], sets.extractor.kind
    if metric != "is" and sets.reference is None:
        return "needs a reference to compare with; name one"
    if rule.needs not in sets.extractor.gives:
        lacking = "classes" if metric == "is" else "spatial ones"
        return f"features {kind} have no {lacking}; take `inception`"
    for pictures in sets.compared(metric):
        if pictures is sets.reference and not len(pictures):
            own = f" and no moments of {kind}, {rule.needs}" if rule.measure == _frechet else ""
            return f"{pictures.name} holds no pictures (`arr_0`){own}; take one that does"
        if len(pictures) < rule.least:
            return f"{pictures.name} has {len(pictures)} pictures; it needs {rule.least} or more"
    return ""


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
        metrics: some of `METRICS`; None takes those that the inputs allow.
        work: where features are kept (default: the user's cache).
        made_work: where those of `made` are kept (default: there, too).
    """
    sets, cannot = Sets(made, reference, extractor), impossible(made, reference, extractor)
    if metrics is None:
        wanted = [metric for metric in METRICS if metric not in cannot] or list(METRICS)
    else:
        wanted = [metric for metric in METRICS if metric in metrics]
    for metric in wanted:
        if metric in cannot:
            raise UserError(f"{key_of(metric, extractor)}: {cannot[metric]}")
    first = rank() == 0  # the others help with the features
    if wanted:
        sets.ours = extract(made, extractor, made_work or work, hold=first)
    if reference is not None and any(len(sets.compared(metric)) > 1 for metric in wanted):
        sets.theirs = extract(reference, extractor, work, hold=first)
    return {key_of(metric, extractor): _figure(sets, metric) for metric in wanted if first}
