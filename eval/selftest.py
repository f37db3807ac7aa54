"""Does this installation give the numbers that it should? Published ones, measured again.

A check whose files or programs are missing is skipped, with what it would need: skipped is not
passed. Closed forms of the same functions are in the tests.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmfusion.errors import UserError, first_line

from .captions import java

REFERENCE = "VIRTUAL_imagenet256_labeled.npz"
SAMPLES = "admnet_guided_upsampled_imagenet256.npz"
PRINTED = 5e-4  # half of the last printed digit
GUIDES = [
    "it is a guide to action that ensures that the military will forever heed party commands",
    "it is the guiding principle which guarantees the military forces always being under the "
    "command of the party",
    "it is the practical guide for the army always to heed the directions of the party",
]
GUIDE = (
    "it is a guide to action which ensures that the military always obeys the commands of the party"
)
SAME = [" ".join(f"{word}{i}" for word in "abcde") for i in range(4)]
COCO = {"bleu_1": 0.579, "bleu_2": 0.404, "bleu_3": 0.279, "bleu_4": 0.191,
        "rouge_l": 0.396, "cider": 0.600}  # fmt: skip
# The tolerances are chosen: for precision and recall because the original takes its distances in
# float16, for the others for a port of the network.
ADM = {"is": (215.837, 1.0), "fid": (3.94256, 0.05), "sfid": (6.14043, 0.05),
       "precision": (0.8265, 0.005), "recall": (0.5309, 0.005)}  # fmt: skip


class Known(NamedTuple):
    """Known figures of one source: what measures them, and how far off each may be."""

    source: str
    figures: dict[str, tuple[float, float]]
    measure: Callable[[], dict[str, float]]
    needs: str = ""
    """What is missing; such figures are skipped."""


def run(known: Known) -> Iterator[dict[str, Any]]:
    """Each figure's facts, with "skipped" (a reason), or "found" and "passed"; or an "error"."""
    found: dict[str, float] = {}
    error = "not measured"
    try:
        found = {} if known.needs else known.measure()
    except Exception as failure:  # whatever is wrong here is a result, not an end
        error = f"{type(failure).__name__}: {first_line(failure)}"
    for name, (expected, tolerance) in known.figures.items():
        facts = {"source": known.source, "name": name, "expected": expected, "tolerance": tolerance}
        value = found.get(name, np.nan)
        if known.needs:
            yield {**facts, "skipped": known.needs}
        elif np.isfinite(value):
            passed = bool(abs(value - expected) <= tolerance)
            yield {**facts, "found": float(value), "passed": passed}
        else:
            yield {**facts, "found": None, "passed": False, "error": error}


def everything(coco: Path | None, adm: Path | None, inception: Path | None) -> list[Known]:
    """All that is known.

    `coco` is a folder with tokenised captions of the COCO example, `adm` one with ADM's reference
    and sample files of ImageNet 256, `inception` the weights that go with them.
    """
    missing = java.lacking()
    no_java = f"needs {missing}" if missing else ""
    no_coco = "" if coco else "needs --coco DIR with gts.json and res.json"
    no_adm = f"needs --adm DIR with {REFERENCE} and {SAMPLES}, and --inception FILE"
    gts, res = _coco(coco) if coco else ([], [])
    if bool(adm) != bool(inception):
        raise UserError("--adm DIR and --inception FILE go together; give both")
    for path in (adm / REFERENCE, adm / SAMPLES, inception) if adm and inception else ():
        if not path.is_file():
            raise UserError(f"{path}: not there; --adm needs {REFERENCE} and {SAMPLES}")
    return [
        Known("real 8x8 digits, 297 against 1,500; torch-fidelity too", {
            "fid": (0.46397, 1e-4), "kid": (-0.0032665, 1e-6),
            "precision": (257 / 297, 1e-9), "recall": (1390 / 1500, 1e-9),
        }, lambda: _digits(noise=False)),
        Known("noise against 1,500 real 8x8 digits; torch-fidelity too", {
            "fid": (40.2387, 1e-3), "kid": (1.917606, 1e-5), "precision": (0, 0), "recall": (0, 0),
        }, lambda: _digits(noise=True)),
        Known("Papineni et al. 2002, section 2: candidate 1", {
            "bleu_1": (17 / 18, 1e-6), "bleu_2": ((17 / 18 * 10 / 17) ** 0.5, 1e-6),
        }, lambda: _scores([GUIDES], [GUIDE], "bleu")),
        Known("Lin 2004, section 3: `the gunman kill police`", {"rouge_l": (0.5, 1e-9)},
              lambda: _scores([["police killed the gunman"]], ["the gunman kill police"],
                              "rouge_l")),
        Known("captions that are references", {"cider": (10, 1e-6)},
              lambda: _scores([[text] for text in SAME], SAME, "cider")),
        Known("captions that are references", {"meteor": (1, 1e-9)},
              lambda: _scores([[text] for text in SAME], SAME, "meteor"), no_java),
        # "No." before a line that begins with a number would keep its dot.
        Known("captions whose words are known", {"bleu_4": (1, 1e-6)},
              lambda: _scores([["the dog 's toy is n't it no"], ["3 brown dogs run"]],
                              ["The dog's toy, isn't\nit? No.", "3 brown, dogs RUN!"],
                              "bleu", "ptb"), no_java),
        Known("COCO caption evaluation, its 1,000 example captions",
              {name: (value, PRINTED) for name, value in COCO.items()},
              lambda: _scores(gts, res, "bleu rouge_l cider"), no_coco),
        Known("COCO caption evaluation, its 1,000 example captions", {"meteor": (0.195, PRINTED)},
              lambda: _scores(gts, res, "meteor"), no_coco or no_java),
        Known("evaluations of openai/guided-diffusion, ImageNet 256: ADM-G, ADM-U", ADM,
              lambda: _adm(adm, inception), "" if adm else no_adm),
    ]  # fmt: skip


def _digits(noise: bool) -> dict[str, float]:
    from mmfusion.data_pipelines.converters.digits import load_digits, split_digits

    from .digits.judge import features
    from .metrics import frechet_distance, kernel_distance, precision_recall

    pictures, labels = load_digits()
    train, shown = (features(pictures[part]) for part in split_digits(labels))
    if noise:
        shown = features(np.random.RandomState(0).randint(0, 256, (len(shown), 8, 8)))
    precision, recall = precision_recall(train, shown)
    return {
        "fid": frechet_distance(shown, train), "kid": kernel_distance(shown, train)[0],
        "precision": precision, "recall": recall,
    }  # fmt: skip


def _scores(
    references: list[list[str]], captions: list[str], metrics: str, tokenizer: Any = "spaces"
) -> dict[str, float]:
    from .captions.scores import score

    found = score(references, captions, metrics.split(), tokenizer).figures
    return {name: figure["value"] for name, figure in found.items()}


def _coco(folder: Path) -> tuple[list[list[str]], list[str]]:
    """References and captions of the same pictures, tokenised."""
    from .captions.coco import pair, read_references

    given, made = (read_references(folder / name) for name in ("gts.json", "res.json"))
    names, _ = pair({name: texts[0] for name, texts in made.items()}, given)
    return [given[name] for name in names], [made[name][0] for name in names]


def _adm(folder: Path | None, inception: Path | None) -> dict[str, float]:
    from .distribution import measure
    from .extractors import make_extractor
    from .image_sets import open_images

    made, reference = (open_images(f"{folder}/{name}") for name in (SAMPLES, REFERENCE))
    found = measure(made, reference, make_extractor(f"inception:{inception}"), list(ADM))
    return {name: figure["value"] for name, figure in found.items()}
