"""Does this installation give the numbers that it should? Known ones, measured again.

A group of checks has what is expected and how far off it may be, where that is from (a closed form,
a paper, another project's program), and a function that measures. A group whose files are not given
is skipped, with what it would need: skipped is not passed.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.errors import UserError, first_line

from .distances.frechet import frechet_distance
from .distances.inception_score import inception_score
from .distances.kernel import kernel_distance
from .distances.manifold import precision_recall

EXACT = 1e-9
CLOSE = 1e-5  # of embeddings in float32
PRINTED = 5e-4  # half of the last printed digit


@dataclass(frozen=True)
class Group:
    """Checks that are measured together: name -> (expected, how far off it may be)."""

    source: str
    known: Mapping[str, tuple[float, float]]
    measure: Callable[[], Mapping[str, float]]
    needs: str = ""
    """What is missing; such a group is skipped."""


def run(groups: list[Group]) -> Iterator[dict[str, Any]]:
    """Measure; for each check {"name", "source", "expected", "tolerance"} and what came of it.

    That is "skipped" with a reason, or "found" and "passed", and "error" where measuring broke.
    """
    for group in groups:
        error, found = "", {}
        if not group.needs:
            try:
                found = {name: float(value) for name, value in group.measure().items()}
            except Exception as problem:  # whatever is wrong here is a result, not an end
                error = f"{type(problem).__name__}: {first_line(problem)}"
        for name, (expected, tolerance) in group.known.items():
            check = {
                "name": name, "source": group.source,
                "expected": expected, "tolerance": tolerance,
            }  # fmt: skip
            value = found.get(name, np.nan)
            if group.needs:
                check["skipped"] = group.needs
            elif np.isfinite(value):
                passed = bool(abs(value - expected) <= tolerance)
                check |= {"found": value, "passed": passed}
            else:
                check |= {"found": None, "passed": False, "error": error or "no finite number"}
            yield check


def checks(
    coco: Path | None = None,
    adm: Path | None = None,
    inception: Path | None = None,
    work: Path = Path("runs/selftest"),
    device: str | None = None,
) -> list[Group]:
    """All groups.

    Args:
        coco: folder with gts.json and res.json, tokenised captions of the COCO example.
        adm: folder with ADM's reference and sample files of ImageNet 256.
        inception: file of the Inception weights that go with them.
        work: folder for the features of ADM's 60,000 pictures.
        device: where Inception runs (default: a GPU, or the CPU).

    Raises:
        UserError: a file that was named and is not there or is not what it should be.
    """
    return [
        Group("closed form", {
            "Fréchet distance, 3 commuting dimensions": (14, EXACT),
            "Fréchet distance, 2 turned Gaussians": (9 - 2 * (10 + 2 * 12**0.5) ** 0.5, EXACT),
            # (3 - 1)^2 tr A + |2|^2 in 4 dimensions of variance 8/7
            "Fréchet distance, samples times 3 plus 2": (4 * 4 * 8 / 7 + 4 * 4, EXACT),
        }, _frechet),
        Group("closed form", {
            "kernel distance of two points": (7, EXACT),
            "kernel distance of {0, 1} from itself": (-3.5, EXACT),
        }, _kernel),
        Group("closed form", {
            "inception score, uniform": (1, EXACT),
            "inception score, 10 sure classes": (10, EXACT),
            "inception score, .9 and .1": (np.exp(0.9 * np.log(1.8) + 0.1 * np.log(0.2)), EXACT),
        }, _inception_score),
        Group("counted by hand", {
            "precision of points on a line": (5 / 8, 0),
            "recall of points on a line": (8 / 10, 0),
            "precision, shifted by 10,000 in float32": (5 / 8, 0),
            "recall, shifted by 10,000 in float32": (8 / 10, 0),
        }, _manifold),
        Group("real 8x8 digits, 297 against 1,500; torch-fidelity gives the same", {
            "digits: Fréchet distance of real ones": (0.46397, 1e-4),
            "digits: kernel distance of real ones": (-0.0032665, 1e-6),
            "digits: precision of real ones": (257 / 297, EXACT),
            "digits: recall of real ones": (1390 / 1500, EXACT),
            "digits: Fréchet distance of noise": (40.2387, 1e-3),
            "digits: kernel distance of noise": (1.917606, 1e-5),
            "digits: precision of noise": (0, 0),
            "digits: recall of noise": (0, 0),
        }, _digits),
        Group("Papineni et al. 2002, section 2", {
            "BLEU-1 of seven times `the`": (2 / 7, 1e-6),
            "BLEU-1 of candidate 1": (17 / 18, 1e-6),
            "BLEU-2 of candidate 1": ((17 / 18 * 10 / 17) ** 0.5, 1e-6),
        }, _bleu),
        Group("Lin 2004, section 3", {
            "ROUGE-L of `police kill the gunman`": (0.75, EXACT),
            "ROUGE-L of `the gunman kill police`": (0.5, EXACT),
            "ROUGE-L of no words, a reference too": (0, 0),
        }, _rouge),
        Group("closed form of captions without common words", {
            "CIDEr, all captions are references": (10, 1e-6),
            "CIDEr, half of them, half wrong": (5, 1e-6),
        }, _cider),
        Group("captions whose words are known", {
            "PTB words, BLEU-4": (1, 1e-6),
            "PTB words, ROUGE-L": (1, EXACT),
        }, _ptb, _java()),
        Group("closed form of captions that are references", {
            "METEOR, all captions are references": (1, EXACT),
        }, _meteor, _java()),
        Group("Hessel et al. 2021, equations 1 and 2, of given embeddings", {
            "CLIP score of two pairs": (-10, CLOSE),
            "CLIP-S of two pairs": (2.5 * 0.6 / 2, CLOSE),
            "RefCLIP-S of two pairs": (1.5 * 0.96 / (1.5 + 0.96), CLOSE),  # half of 2 ab / (a + b)
        }, _clip),
        *_coco(coco),
        _adm(adm, inception, work, device),
    ]  # fmt: skip


def _frechet() -> dict[str, float]:
    turned = np.array([[2.0, 1.0], [1.0, 2.0]]), np.diag([1.0, 4.0])
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, 8).T
    corners = np.hstack([corners, corners.prod(1, keepdims=True)])  # mean 0, covariance 8/7
    return {
        "Fréchet distance, 3 commuting dimensions": frechet_distance(
            (np.zeros(3), np.diag([1.0, 4.0, 9.0])), (np.array([1.0, 2, 2]), np.diag([4.0, 4, 1]))
        ),
        "Fréchet distance, 2 turned Gaussians": frechet_distance(
            (np.zeros(2), turned[0]), (np.zeros(2), turned[1])
        ),
        "Fréchet distance, samples times 3 plus 2": frechet_distance(corners, corners * 3 + 2),
    }


def _kernel() -> dict[str, float]:
    zeros, ones, both = np.zeros((9, 1)), np.ones((9, 1)), np.array([[0.0], [1.0]])
    return {
        "kernel distance of two points": kernel_distance(zeros, ones, subsets=3)[0],
        "kernel distance of {0, 1} from itself": kernel_distance(both, both, subsets=3)[0],
    }


def _inception_score() -> dict[str, float]:
    mixture = np.log([[0.9, 0.1], [0.1, 0.9]])
    return {
        "inception score, uniform": inception_score(np.zeros((20, 10)))[0],
        "inception score, 10 sure classes": inception_score(np.eye(10) * 1000)[0],
        "inception score, .9 and .1": inception_score(mixture)[0],
    }


def _manifold() -> dict[str, float]:
    # With k = 3 the balls of 0 and 9 have the radius 3, the others 2: 12 is on a surface.
    real = np.arange(10, dtype=np.float32)[:, None]
    made = np.array([0, 1, 2, 3, 12, 13, 14, 15], np.float32)[:, None]
    precision, recall = precision_recall(real, made)
    shift = np.float32(10_000)
    far_precision, far_recall = precision_recall(real + shift, made + shift)
    return {
        "precision of points on a line": precision,
        "recall of points on a line": recall,
        "precision, shifted by 10,000 in float32": far_precision,
        "recall, shifted by 10,000 in float32": far_recall,
    }


def _digits() -> dict[str, float]:
    from mmfusion.data_pipelines.corpora.digits import load_digits, split_digits

    from .digits.judge import features

    pictures, labels = load_digits()
    train, held_out = (features(pictures[part]) for part in split_digits(labels))
    noise = features(np.random.RandomState(0).randint(0, 256, (len(held_out), 8, 8)))
    found = {}
    for name, made in (("real ones", held_out), ("noise", noise)):
        found[f"digits: Fréchet distance of {name}"] = frechet_distance(made, train)
        found[f"digits: kernel distance of {name}"] = kernel_distance(made, train)[0]
        precision, recall = precision_recall(train, made)
        found[f"digits: precision of {name}"] = precision
        found[f"digits: recall of {name}"] = recall
    return found


def _scores(
    references: list[list[str]], captions: list[str], metrics: list[str], tokenizer: Any = "spaces"
) -> dict[str, float]:
    from .captions.scores import score

    found = score(references, captions, metrics, tokenizer).figures
    return {name: figure["value"] for name, figure in found.items()}


def _bleu() -> dict[str, float]:
    cat = ["the cat is on the mat", "there is a cat on the mat"]
    party = [
        "it is a guide to action that ensures that the military will forever heed party commands",
        "it is the guiding principle which guarantees the military forces always being under the "
        "command of the party",
        "it is the practical guide for the army always to heed the directions of the party",
    ]
    candidate = (
        "it is a guide to action which ensures that the military always obeys the commands of the "
        "party"
    )
    guide = _scores([party], [candidate], ["bleu"])
    return {
        "BLEU-1 of seven times `the`": _scores([cat], [" ".join(["the"] * 7)], ["bleu"])["bleu_1"],
        "BLEU-1 of candidate 1": guide["bleu_1"],
        "BLEU-2 of candidate 1": guide["bleu_2"],
    }


def _rouge() -> dict[str, float]:
    def rouge(references: list[str], text: str) -> float:
        return _scores([references], [text], ["rouge_l"])["rouge_l"]

    return {
        f"ROUGE-L of `{text}`": rouge(["police killed the gunman"], text)
        for text in ("police kill the gunman", "the gunman kill police")
    } | {"ROUGE-L of no words, a reference too": rouge(["", "police killed the gunman"], "")}


def _cider() -> dict[str, float]:
    texts = [" ".join(f"{word}{i}" for word in "abcde") for i in range(4)]
    references, half = [[text] for text in texts], [texts[1], texts[0], *texts[2:]]
    return {
        "CIDEr, all captions are references": _scores(references, texts, ["cider"])["cider"],
        "CIDEr, half of them, half wrong": _scores(references, half, ["cider"])["cider"],
    }


def _ptb() -> dict[str, float]:
    # "No." before a line that begins with a number would keep its dot.
    captions = ["The dog's toy, isn't\nit? No.", "3 brown, dogs RUN!"]
    words = [["the dog 's toy is n't it no"], ["3 brown dogs run"]]
    found = _scores(words, captions, ["bleu", "rouge_l"], "ptb")
    return {"PTB words, BLEU-4": found["bleu_4"], "PTB words, ROUGE-L": found["rouge_l"]}


def _meteor() -> dict[str, float]:
    texts = ["a cat sits on a mat", "two dogs ||| run"]
    found = _scores([[text] for text in texts], texts, ["meteor"])
    return {"METEOR, all captions are references": found["meteor"]}


def _clip() -> dict[str, float]:
    from .alignment import clip_score, ref_clip_score
    from .clip.pairs import Pairs

    class Fixed:
        def embed_texts(self, texts: list[str]) -> np.ndarray:
            return np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32)[: len(texts)]

    pictures = np.array([[1, 0], [1, 0]], np.float32)
    texts = np.array([[0.6, 0.8], [-0.8, 0.6]], np.float32)  # cosines .6 and -.8
    pairs = Pairs(pictures, texts, ["a", "b"], {"prefix": ""})
    fixed: Any = Fixed()
    scores = clip_score(pairs) | ref_clip_score(fixed, pairs, [["near", "far"], ["far"]])
    return {
        "CLIP score of two pairs": scores["clip_score"]["value"],
        "CLIP-S of two pairs": scores["clip_s"]["value"],
        "RefCLIP-S of two pairs": scores["ref_clip_s"]["value"],
    }


def _coco(folder: Path | None) -> list[Group]:
    source = "COCO caption evaluation, its 1,000 example captions"
    needs = "" if folder else "needs --coco DIR with gts.json and res.json"
    gts = _captions(folder / "gts.json") if folder else {}
    res = _captions(folder / "res.json") if folder else {}
    if gts.keys() != res.keys():
        raise UserError(f"{folder}: gts.json and res.json are of different pictures")
    scores = {
        "COCO: BLEU-1": (0.579, PRINTED),
        "COCO: BLEU-2": (0.404, PRINTED),
        "COCO: BLEU-3": (0.279, PRINTED),
        "COCO: BLEU-4": (0.191, PRINTED),
        "COCO: ROUGE-L": (0.396, PRINTED),
        "COCO: CIDEr": (0.600, PRINTED),
    }

    def scored(metrics: list[str]) -> dict[str, float]:
        return _scores([gts[name] for name in gts], [res[name][0] for name in gts], metrics)

    def measure() -> dict[str, float]:
        found = scored(["bleu", "rouge_l", "cider"])
        return dict(zip(scores, found.values(), strict=True))

    return [
        Group(source, scores, measure, needs),
        Group(
            source,
            {"COCO: METEOR": (0.195, PRINTED)},
            lambda: {"COCO: METEOR": scored(["meteor"])["meteor"]},
            needs or _java(),
        ),
    ]


def _java() -> str:
    return "" if shutil.which("java") else "needs Java"


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


REFERENCE = "VIRTUAL_imagenet256_labeled.npz"
SAMPLES = "admnet_guided_upsampled_imagenet256.npz"
# metric -> its check. The tolerances are chosen: for precision and recall because the original
# takes its distances in float16, for the others for a port of the network.
PUBLISHED = {
    "is": ("ADM-G, ADM-U: inception score", 215.837, 1.0),
    "fid": ("ADM-G, ADM-U: FID", 3.94256, 0.05),
    "sfid": ("ADM-G, ADM-U: sFID", 6.14043, 0.05),
    "precision": ("ADM-G, ADM-U: precision", 0.8265, 0.005),
    "recall": ("ADM-G, ADM-U: recall", 0.5309, 0.005),
}


def _adm(folder: Path | None, inception: Path | None, work: Path, device: str | None) -> Group:
    source = "evaluations of openai/guided-diffusion, ImageNet 256"
    known = {name: (value, tolerance) for name, value, tolerance in PUBLISHED.values()}
    if folder is None or inception is None:
        if folder or inception:
            raise UserError("--adm DIR and --inception FILE go together; give both")
        needs = f"needs --adm DIR with {REFERENCE} and {SAMPLES}, and --inception FILE"
        return Group(source, known, dict, needs)
    for path in (folder / REFERENCE, folder / SAMPLES, inception):
        if not path.is_file():
            raise UserError(f"{path}: not there; --adm needs {REFERENCE}, {SAMPLES}, --inception")

    def measure() -> dict[str, float]:
        from .distribution import measure as figures
        from .extractors import make_extractor
        from .pictures import open_pictures

        found = figures(
            open_pictures(str(folder / SAMPLES)),
            open_pictures(str(folder / REFERENCE)),
            make_extractor(f"inception:{inception}", device),
            metrics=list(PUBLISHED),
            work=work,
        )
        return {PUBLISHED[metric][0]: figure["value"] for metric, figure in found.items()}

    return Group(source, known, measure)
