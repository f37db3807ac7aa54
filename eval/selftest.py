"""Does this installation give the numbers that it should? Published ones, measured again.

A check whose files or programs are missing is skipped, with what it would need: skipped is not
passed. Closed forms of the same functions are in the tests.
"""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmfusion.errors import UserError, first_line

Measure = Callable[[], dict[str, float]]
PRINTED = 5e-4  # half of the last printed digit
REFERENCE = "VIRTUAL_imagenet256_labeled.npz"
SAMPLES = "admnet_guided_upsampled_imagenet256.npz"


class Check(NamedTuple):
    """A known figure: how far off it may be, the name under which `measure` gives it."""

    source: str
    figure: str
    expected: float
    tolerance: float
    measure: Measure
    needs: str = ""
    """What is missing; such a check is skipped."""


def run(check: Check) -> dict[str, Any]:
    """Measure: the check's facts, with "skipped" (a reason), or "found", "passed" and "error"."""
    facts = {
        "source": check.source, "name": check.figure,
        "expected": check.expected, "tolerance": check.tolerance,
    }  # fmt: skip
    if check.needs:
        return {**facts, "skipped": check.needs}
    try:
        found = float(check.measure()[check.figure])
    except Exception as error:  # whatever is wrong here is a result, not an end
        return {
            **facts, "found": None, "passed": False,
            "error": f"{type(error).__name__}: {first_line(error)}",
        }  # fmt: skip
    if not np.isfinite(found):
        return {**facts, "found": None, "passed": False, "error": "no finite number"}
    return {**facts, "found": found, "passed": abs(found - check.expected) <= check.tolerance}


def checks(
    coco: Path | None = None,
    adm: Path | None = None,
    inception: Path | None = None,
    work: Path = Path("runs/selftest"),
    device: str | None = None,
) -> list[Check]:
    """All checks.

    Args:
        coco: folder with gts.json and res.json, tokenised captions of the COCO example.
        adm: folder with ADM's reference and sample files of ImageNet 256.
        inception: file of the Inception weights that go with them.
        work: folder for the features of ADM's 60,000 pictures.
        device: where Inception runs (default: a GPU, or the CPU).

    Raises:
        UserError: a file that was named and is not there or is not what it should be.
    """
    java = "" if shutil.which("java") else "needs Java"
    known: list[tuple[str, Measure, str, dict[str, tuple[float, float]]]] = [
        ("real 8x8 digits, 297 against 1,500; torch-fidelity too", _digits("real"), "", {
            "fid": (0.46397, 1e-4), "kid": (-0.0032665, 1e-6),
            "precision": (257 / 297, 1e-9), "recall": (1390 / 1500, 1e-9),
        }),
        ("noise against 1,500 real 8x8 digits; torch-fidelity too", _digits("noise"), "", {
            "fid": (40.2387, 1e-3), "kid": (1.917606, 1e-5), "precision": (0, 0), "recall": (0, 0),
        }),
        ("Papineni et al. 2002, section 2: candidate 1", _scores([GUIDES], [GUIDE], "bleu"), "", {
            "bleu_1": (17 / 18, 1e-6), "bleu_2": ((17 / 18 * 10 / 17) ** 0.5, 1e-6),
        }),
        ("Lin 2004, section 3: `the gunman kill police`",
         _scores([["police killed the gunman"]], ["the gunman kill police"], "rouge_l"), "",
         {"rouge_l": (0.5, 1e-9)}),
        ("captions that are references", _scores(SAME, [text for text, in SAME], "cider"), "",
         {"cider": (10, 1e-6)}),
        ("captions that are references", _scores(SAME, [text for text, in SAME], "meteor"), java,
         {"meteor": (1, 1e-9)}),
        # "No." before a line that begins with a number would keep its dot.
        ("captions whose words are known", _scores(
            [["the dog 's toy is n't it no"], ["3 brown dogs run"]],
            ["The dog's toy, isn't\nit? No.", "3 brown, dogs RUN!"], "bleu", "ptb"), java,
         {"bleu_4": (1, 1e-6)}),
        *_coco(coco, java),
        _adm(adm, inception, work, device),
    ]  # fmt: skip
    return [
        Check(source, figure, *expected, measure, needs)
        for source, measure, needs, figures in known
        for figure, expected in figures.items()
    ]


GUIDES = [
    "it is a guide to action that ensures that the military will forever heed party commands",
    "it is the guiding principle which guarantees the military forces always being under the "
    "command of the party",
    "it is the practical guide for the army always to heed the directions of the party",
]
GUIDE = (
    "it is a guide to action which ensures that the military always obeys the commands of the party"
)
SAME = [[" ".join(f"{word}{i}" for word in "abcde")] for i in range(4)]


def _digits(made: str) -> Measure:
    @functools.cache
    def measure() -> dict[str, float]:
        from mmfusion.data_pipelines.converters.digits import load_digits, split_digits

        from .digits.judge import features
        from .metrics import frechet_distance, kernel_distance
        from .precision_recall import precision_recall

        pictures, labels = load_digits()
        train, held_out = (features(pictures[part]) for part in split_digits(labels))
        noise = features(np.random.RandomState(0).randint(0, 256, (len(held_out), 8, 8)))
        shown = held_out if made == "real" else noise
        precision, recall = precision_recall(train, shown)
        return {
            "fid": frechet_distance(shown, train), "kid": kernel_distance(shown, train)[0],
            "precision": precision, "recall": recall,
        }  # fmt: skip

    return measure


def _scores(
    references: list[list[str]], captions: list[str], metric: str, tokenizer: Any = "spaces"
) -> Measure:
    @functools.cache
    def measure() -> dict[str, float]:
        from .captions.scores import score

        found = score(references, captions, metric.split(), tokenizer).figures
        return {name: figure["value"] for name, figure in found.items()}

    return measure


def _coco(folder: Path | None, java: str) -> list[tuple]:
    source = "COCO caption evaluation, its 1,000 example captions"
    needs = "" if folder else "needs --coco DIR with gts.json and res.json"
    gts = _captions(folder / "gts.json") if folder else {}
    res = _captions(folder / "res.json") if folder else {}
    if gts.keys() != res.keys():
        raise UserError(f"{folder}: gts.json and res.json are of different pictures")
    published = {"bleu_1": 0.579, "bleu_2": 0.404, "bleu_3": 0.279, "bleu_4": 0.191,
                 "rouge_l": 0.396, "cider": 0.600}  # fmt: skip
    given = list(gts.values()), [res[name][0] for name in gts]
    known = {name: (value, PRINTED) for name, value in published.items()}
    return [
        (source, _scores(*given, "bleu rouge_l cider"), needs, known),
        (source, _scores(*given, "meteor"), needs or java, {"meteor": (0.195, PRINTED)}),
    ]


def _captions(path: Path) -> dict[str, list[str]]:
    try:
        captions = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not there; --coco needs gts.json and res.json") from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({first_line(error)})") from None
    if not isinstance(captions, dict) or not all(
        isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
        for texts in captions.values()
    ):
        raise UserError(f"{path}: not an object of picture -> list of tokenised captions")
    return captions


# The tolerances are chosen: for precision and recall because the original takes its distances in
# float16, for the others for a port of the network.
ADM = {"is": (215.837, 1.0), "fid": (3.94256, 0.05), "sfid": (6.14043, 0.05),
       "precision": (0.8265, 0.005), "recall": (0.5309, 0.005)}  # fmt: skip


def _adm(folder: Path | None, inception: Path | None, work: Path, device: str | None) -> tuple:
    source = "evaluations of openai/guided-diffusion, ImageNet 256: ADM-G, ADM-U"
    if folder is None or inception is None:
        if folder or inception:
            raise UserError("--adm DIR and --inception FILE go together; give both")
        needs = f"needs --adm DIR with {REFERENCE} and {SAMPLES}, and --inception FILE"
        return source, dict, needs, ADM
    for path in (folder / REFERENCE, folder / SAMPLES, inception):
        if not path.is_file():
            raise UserError(f"{path}: not there; --adm needs {REFERENCE}, {SAMPLES}, --inception")

    @functools.cache
    def measure() -> dict[str, float]:
        from .distribution import measure as figures
        from .extractors import make_extractor
        from .image_sets import open_images

        made, reference = (open_images(str(folder / name)) for name in (SAMPLES, REFERENCE))
        extractor = make_extractor(f"inception:{inception}", device)
        found = figures(made, reference, extractor, metrics=list(ADM), work=work)
        return {name: figure["value"] for name, figure in found.items()}

    return source, measure, "", ADM
