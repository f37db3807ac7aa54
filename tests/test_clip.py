"""CLIP scores against the bare network, and all ways to load wrong weights.

The models are tiny and random, saved to disk as open_clip saves them.
"""

import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from conftest import Command
from open_clip import factory
from open_clip.model import CLIP
from PIL import Image as PILImage
from safetensors.torch import load_file
from tiny_clip import CONFIG as TINY
from tiny_clip import CONTEXT, SIDE, save_clip

from mmfusion.data_pipelines.converters.digits import png
from mmfusion.data_pipelines.shards import write_shards
from mmfusion.errors import UserError
from mmfusion.eval import alignment
from mmfusion.eval import clip as weights
from mmfusion.eval.alignment import PREFIX, clip_score, embed_pairs, ref_clip_score
from mmfusion.eval.captioned_dataset import open_captioned
from mmfusion.eval.clip import Clip
from mmfusion.eval.formatting import table

pytestmark = pytest.mark.usefixtures("files", "cache")
NAMES = {False: "tiny-clip", True: "tiny-clip-quickgelu"}
SAVED = "open_clip_model.safetensors"
COLOURS = ["red", "green", "blue", "yellow", "black", "white", "grey", "orange"]
TEXTS = [f"{a} over {b}" for a in COLOURS for b in COLOURS]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same weights in every form, not to be changed; open_clip knows both their names."""
    folder, configs = (tmp_path_factory.mktemp(name) for name in ("weights", "configs"))
    for quick, name in NAMES.items():
        save_clip(folder / name)
        config = {**TINY, "quick_gelu": quick}
        (configs / f"{name}.json").write_text(json.dumps(config))
        saved = {"model_cfg": config, "preprocess_cfg": {}}
        (folder / name / weights.CONFIG).write_text(json.dumps(saved))
    shutil.copy(folder / NAMES[False] / SAVED, folder / "bare.safetensors")
    tensors = load_file(folder / "bare.safetensors")
    torch.save(tensors, folder / "bare.pt")
    torch.save({"epoch": 3, "name": "x", "state_dict": tensors}, folder / "training.pt")
    known = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    open_clip.add_model_config(configs)
    yield folder
    factory._MODEL_CONFIG_PATHS[:] = known[0]
    factory._MODEL_CONFIGS.clear()
    factory._MODEL_CONFIGS.update(known[1])


@pytest.fixture(scope="module")
def tensors(files: Path) -> dict[str, torch.Tensor]:
    return load_file(files / "bare.safetensors")


@pytest.fixture(scope="module")
def clip(files: Path) -> Clip:
    return Clip(str(files / "tiny-clip"), "cpu")


@pytest.fixture
def saved(files: Path, tmp_path: Path) -> Callable[..., Path]:
    """Saves the plain model with other settings in its config; with the same name each time."""

    def save(**changes: Any) -> Path:
        folder = tmp_path / "saved"
        shutil.copytree(files / "tiny-clip", folder, dirs_exist_ok=True)
        config = {"model_cfg": TINY, "preprocess_cfg": {}, **changes}
        (folder / weights.CONFIG).write_text(json.dumps(config))
        return folder

    return save


class Noise(list[PILImage.Image]):
    """Pictures with a digest of their contents."""

    def __init__(self, count: int, seed: int = 0, side: int = SIDE) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
        super().__init__(PILImage.fromarray(p) for p in pixels)
        self.digest = f"{count} {seed} {side}"


# Embeddings


def by_hand(
    tensors: dict[str, torch.Tensor], quick: bool, pictures: list, texts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings by the bare network with a certain activation, not normalised."""
    model = CLIP(**TINY, quick_gelu=quick).eval()
    model.load_state_dict(tensors)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = np.stack([(np.asarray(p) / 255 - mean) / std for p in pictures])
    with torch.inference_mode():
        shown = model.encode_image(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
        told = model.encode_text(open_clip.tokenize(texts, CONTEXT))
    return shown.numpy(), told.numpy()


@pytest.mark.parametrize(
    ("spec", "file"),
    [
        ("tiny-clip:{}/bare.pt", "bare.pt"),
        ("tiny-clip:{}/training.pt", "training.pt"),
        ("{}/tiny-clip", f"tiny-clip/{SAVED}"),
        ("local-dir:{}/tiny-clip-quickgelu", f"tiny-clip-quickgelu/{SAVED}"),
    ],
)
def test_embeddings_and_scores_are_those_computed_by_hand(
    files: Path, tensors: dict[str, torch.Tensor], spec: str, file: str
) -> None:
    clip, quick = Clip(spec.format(files), "cpu"), "quick" in spec
    assert str(files) not in clip.name
    pictures, texts = Noise(70), [TEXTS[i % 64] for i in range(70)]  # more than one batch
    shown, told = by_hand(tensors, quick, pictures, texts)
    np.testing.assert_allclose(clip.embed_images(pictures, False), shown, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(clip.embed_texts(texts, False), told, rtol=1e-3, atol=1e-4)
    # Or all that follows would guard against nothing.
    assert np.abs(by_hand(tensors, not quick, pictures, texts)[0] - shown).max() > 1e-2

    shown /= np.linalg.norm(shown, axis=1, keepdims=True)
    told /= np.linalg.norm(told, axis=1, keepdims=True)
    cosines = (shown * told).sum(1)
    assert cosines.min() < 0 < cosines.max()  # or max(0, .) is not tested
    pairs = embed_pairs(clip, pictures, texts)
    np.testing.assert_allclose(pairs.cosines, cosines, atol=1e-5)
    mean = cosines.mean()
    expected = {"cosine": mean, "clip_score": 100 * mean, "clip_s": 2.5 * cosines.clip(0).mean()}
    for name, figure in clip_score(pairs).items():
        warning = figure.pop("warning")
        assert "70 pairs are few" in warning
        assert "unknown origin" in warning
        assert ("QuickGELU" if quick else "plain GELU") in warning
        assert figure == {
            "value": pytest.approx(expected.pop(name), abs=1e-3 if name == "clip_score" else 1e-5),
            "n": 70,
            "model": clip.name,
            "model_sha256": hashlib.sha256((files / file).read_bytes()).hexdigest(),
            "prefix": "",
        }
    assert not expected


def test_pictures_of_every_kind_are_read_alike(clip: Clip) -> None:
    picture = Noise(1, side=40)[0]
    grey = picture.convert("L")
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    given = [picture, np.asarray(picture), grey, grey.convert("RGB")]
    white = PILImage.new("RGB", (40, 40), "white")
    a, b, c, d, e, f = clip.embed_images([*given, clear, white])
    for one, other in ((a, b), (c, d), (e, f)):
        np.testing.assert_array_equal(one, other)
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-6)
    assert np.abs(a - c).max() > 1e-3


def test_texts_that_are_cut_are_counted(clip: Clip) -> None:
    fits, longer = "red " * (CONTEXT - 2), "red " * (CONTEXT - 1)
    np.testing.assert_array_equal(clip.embed_texts([longer]), clip.embed_texts([longer + "red"]))
    figure = clip_score(embed_pairs(clip, Noise(2), [fits, longer]))["cosine"]
    assert "1 texts are longer than the model's context" in figure["warning"]


# A wrong activation


WRONG = "the right model name is {}$"


def in_registry(monkeypatch: pytest.MonkeyPatch, quick: bool, **said: Any) -> None:
    """`mine` is a tag of the tiny model, in the registry as open_clip fills it."""
    tags = {"mine": {"hf_hub": "", "quick_gelu": quick, **said}}
    registry = open_clip.pretrained._PRETRAINED
    monkeypatch.setitem(registry, NAMES[False], tags)
    if quick:
        monkeypatch.setitem(registry, NAMES[True], tags)


@pytest.mark.parametrize("quick", [False, True])
def test_tags_configs_and_folders_under_the_wrong_name_are_refused(
    monkeypatch: pytest.MonkeyPatch, files: Path, quick: bool
) -> None:
    in_registry(monkeypatch, quick, file=str(files / "bare.pt"))
    right, wrong = NAMES[quick], NAMES[not quick]
    clip = Clip(f"{right}:mine")
    assert (clip.unsure, clip.name) == ("", f"{right}:mine")
    for what in ("mine", files / right / SAVED):
        with pytest.raises(UserError, match=WRONG.format(right)):
            Clip(f"{wrong}:{what}")
    monkeypatch.delitem(factory._MODEL_CONFIGS, right)
    with pytest.raises(UserError, match=f"open_clip has no {right}"):
        Clip(f"{wrong}:{files / right / SAVED}")


def test_tags_are_refused_or_let_through_as_the_registry_says_before_a_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_clip, "download_pretrained", None)
    for spec, right in (
        ("ViT-B/32:openai", "ViT-B-32-quickgelu"),
        ("ViT-L-14-336:OpenAI", "ViT-L-14-336-quickgelu"),
        ("ViT-B-32:laion400m-e32", "ViT-B-32-quickgelu"),
        ("ViT-B-16-quickgelu:laion400m_e32", "ViT-B-16"),
    ):
        with pytest.raises(UserError, match=WRONG.format(right)):
            Clip(spec)
    refused = []
    for name, tag in open_clip.list_pretrained():
        said = open_clip.get_model_config(name) or {}, open_clip.get_pretrained_cfg(name, tag)
        agree = len({bool(settings.get("quick_gelu")) for settings in said}) == 1
        with pytest.raises(UserError) as caught:
            Clip(f"{name}:{tag}")
        if "cannot be downloaded" in str(caught.value):
            assert agree or name == "roberta-ViT-B-32"  # has one name only
        else:
            assert not agree
            assert WRONG.format(f"{name}-quickgelu")[:-1] in str(caught.value)
            refused.append(name)
    assert len(refused) > 20


@pytest.mark.parametrize("quick", [False, True])
def test_a_bare_file_is_known_by_its_hash(
    monkeypatch: pytest.MonkeyPatch, files: Path, quick: bool
) -> None:
    digest = hashlib.sha256((files / "bare.pt").read_bytes()).hexdigest()
    right, wrong = NAMES[quick], NAMES[not quick]
    for address in (f"{digest}/x.pt", f"v0.2/x-{digest[:8]}.pt"):
        url = f"https://example.org/{address}"
        in_registry(monkeypatch, quick, url=url, mean=(0.1, 0.2, 0.3))
        clip = Clip(f"{right}:{files / 'bare.pt'}")
        assert not clip.unsure
        assert clip._model.visual.image_mean == (0.1, 0.2, 0.3)
        with pytest.raises(UserError, match=f"{right}:mine.*{WRONG.format(right)}"):
            Clip(f"{wrong}:{files / 'bare.pt'}")
    monkeypatch.setattr(weights, "sha256", lambda path: digest)
    config = files / wrong / weights.CONFIG
    with pytest.raises(UserError, match=f"{right}:mine.*mend.*{config}"):
        Clip(str(config.parent))
    monkeypatch.setattr(weights, "sha256", lambda path: "f" * 64)
    assert Clip(f"{right}:{files / 'bare.pt'}").unsure


def test_the_registry_has_hashes_where_they_are_looked_for() -> None:
    """OpenAI's and open_clip's own addresses; a new open_clip must not make this blind."""
    url = open_clip.get_pretrained_cfg("ViT-B-32-quickgelu", "openai")["url"]
    full = weights.ADDRESS.search(url)
    assert full is not None
    for name, digest, tags in (
        ("x.pt", full["full"], ["openai"]),
        ("x.pt", f"46683a32{'0' * 56}", ["laion400m_e32"]),
        ("b32_400m.pt", "0" * 64, ["metaclip_400m"]),
        ("x.pt", "0" * 64, []),
    ):
        found = weights.identify(Path(name), digest)
        assert list(found) == [f"ViT-B-32-quickgelu:{tag}" for tag in tags]


# What must not run, and what cannot be read


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


class Stumble:
    """Brings about a TypeError with nothing but what may be unpickled."""

    def __reduce__(self) -> tuple:
        return OrderedDict, (1,)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_pickles_and_programs_are_refused(tmp_path: Path, suffix: str) -> None:
    marker, file = tmp_path / "ran", tmp_path / f"evil{suffix}"

    def torchscript() -> None:
        with zipfile.ZipFile(file, "w") as held:
            held.writestr("x/data.pkl", pickle.dumps(Evil(marker), 2))
            held.writestr("x/constants.pkl", b"")

    for save in (
        lambda: torch.save({"state_dict": Evil(marker)}, file),
        lambda: file.write_bytes(pickle.dumps(Evil(marker), 2)),
        torchscript,
    ):
        save()
        with pytest.raises(UserError, match=f"evil{suffix}"):
            Clip(f"tiny-clip:{file}")
    assert not marker.exists()


def test_open_clips_second_try_is_not_reached(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, file = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({"state_dict": {}, "x": Evil(marker), "y": Stumble()}, file)
    folder = tmp_path / "folder"
    shutil.copytree(files / "tiny-clip", folder)
    (folder / SAVED).unlink()
    shutil.copy(file, folder / "open_clip_pytorch_model.bin")
    for spec in (f"tiny-clip:{file}", str(folder)):
        with pytest.raises(UserError, match="never run"):
            Clip(spec)
    assert not marker.exists()


UNREADABLE = [
    ("ViT-B-32", "MODEL:WEIGHTS"),
    (":openai", "MODEL:WEIGHTS"),
    ("ViT-B32:openai", "ViT-B32:openai.*: ViT-B-32,"),
    ("ViT-B-32:laion2b_s34b", "laion2b_s34b .*laion2b_s34b_b79k"),
    ("tiny-clip:no/such.pt", "no/such.pt"),
    ("local-dir:no/folder", "no/folder.*open_clip_config.json"),
    ("{}/weightless", "weightless.*open_clip_model.safetensors"),
    ("{}/odd", "odd/open_clip_config.json"),
    ("{}/saved", "saved/open_clip_config.json.*trust_remote_code"),
    (f"tiny-clip:{{}}/saved/{SAVED}", "saved/open_clip_config.json.*trust_remote_code"),
    ("ViT-B-32:{}/bare.pt", "bare.pt as ViT-B-32 "),
    ("tiny-clip:{}/broken.safetensors", "broken.safetensors"),
    ("tiny-clip:{}/list.pt", "list.pt: holds a list"),
    ("tiny-clip:{}/weights.npz", "weights.npz"),
    ("tiny-clip:{}/nan.pt", "nan.pt.*not finite"),
]


def test_what_cannot_be_loaded_is_one_line(
    files: Path, saved: Callable[..., Path], tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    text = {**TINY["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}
    saved(model_cfg={**TINY, "text_cfg": text})
    shutil.copy(files / "bare.pt", tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing" * 100)
    torch.save([1], tmp_path / "list.pt")
    np.savez(tmp_path / "weights.npz", x=1)
    torch.save({**tensors, "visual.proj": tensors["visual.proj"] * torch.nan}, tmp_path / "nan.pt")
    for name, config in (("weightless", {"model_cfg": TINY}), ("odd", {"model_cfg": 3})):
        (tmp_path / name).mkdir()
        (tmp_path / name / weights.CONFIG).write_text(json.dumps(config))
    shutil.copy(files / "bare.safetensors", tmp_path / "odd" / SAVED)
    for spec, key in UNREADABLE:
        with pytest.raises(UserError, match=key) as caught:
            Clip(spec.format(tmp_path)).embed_images(Noise(1))
        assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_config_and_weights(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the hub itself: its files, from a folder that stands for its cache."""

    def download(repository: str, filename: str | None = None, **_: Any) -> str:
        if repository != "me/tiny":
            raise FileNotFoundError(f"no {repository}")
        return str(files / "tiny-clip-quickgelu" / (filename or SAVED))

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", download)
    monkeypatch.setattr(factory, "download_pretrained_from_hf", download)
    clip = Clip("hf-hub:me/tiny")
    assert clip.name == "hf-hub:me/tiny"
    with pytest.raises(UserError, match=r"hf-hub:me/none.*no me/none"):
        Clip("hf-hub:me/none")


# Scores by hand


def test_ref_clip_score_is_the_published_formula(clip: Clip) -> None:
    captions, pictures = TEXTS[:6], Noise(6)
    references = [[TEXTS[6 + i], TEXTS[12 + i]][: 1 + i % 2] for i in range(6)]
    pairs = embed_pairs(clip, pictures, captions, prefix=PREFIX)
    figures = ref_clip_score(clip, pairs, references)
    shown = clip.embed_images(pictures).astype(float)
    scores, refs = [], []
    for picture, caption, given in zip(shown, captions, references, strict=True):
        text, *others = clip.embed_texts([f"A photo depicts {t}" for t in [caption, *given]])
        score, nearest = 2.5 * max(0, picture @ text), max(0, *(o @ text for o in others), 0)
        scores.append(score)
        refs.append(2 / (1 / score + 1 / nearest) if score and nearest else 0)
    expected = pytest.approx([np.mean(scores), np.mean(refs)], abs=1e-5)
    assert [figures[name]["value"] for name in ("clip_s", "ref_clip_s")] == expected


def test_pairs_are_checked(clip: Clip) -> None:
    for pictures, texts, message in (
        (Noise(2), ["a"], "2 pictures and 1 texts"),
        (Noise(0), [], "0 pictures"),
        (Noise(3), ["a", " ", "\n"], r"text 1 is empty \(2 of 3 are\)"),
    ):
        with pytest.raises(UserError, match=message):
            embed_pairs(clip, pictures, texts)


# Work that processes share


def test_embeddings_are_the_same_in_any_number_of_parts_processes_and_starts(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, texts = Noise(30), [TEXTS[i % 20] for i in range(30)]
    alone, work = embed_pairs(clip, pictures, texts), tmp_path / "work"
    np.testing.assert_array_equal(alone.pictures, clip.embed_images(pictures))
    monkeypatch.setattr(alignment, "PART", 8)
    first = embed_pairs(clip, pictures, texts, work=work)
    made = sorted(work.rglob("*.npz"))
    parts = [f"pictures-{a:08d}.npz" for a in (0, 8, 16, 24)]
    assert [path.name for path in made if "pictures" in path.name] == parts
    kept = {path: path.read_bytes() for path in made}
    made[1].unlink()
    made[0].write_bytes(kept[made[0]][:-9])  # both are made again
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    second = embed_pairs(clip, pictures, texts, work=work)
    assert {path: path.read_bytes() for path in sorted(work.rglob("*.npz"))} == kept
    for pairs in (first, second):
        np.testing.assert_allclose(pairs.pictures, alone.pictures, atol=1e-6)
        np.testing.assert_allclose(pairs.texts, alone.texts, atol=1e-6)
    monkeypatch.setattr(Clip, "embed_images", None)  # all is there
    again = embed_pairs(clip, pictures, texts, work=work)
    np.testing.assert_array_equal(again.pictures, first.pictures)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--work"):
        embed_pairs(clip, pictures, texts, work=tmp_path / "file")


def test_kept_embeddings_are_not_taken_for_those_of_another_config(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    """The same weights under another config: mean, or heads, which no tensor has."""
    vision = {**TINY["vision_cfg"], "head_width": TINY["vision_cfg"]["head_width"] // 2}
    changes: list[dict[str, Any]] = [
        {},
        {"preprocess_cfg": {"mean": [0.5] * 3}},
        {"model_cfg": {**TINY, "vision_cfg": vision}},
    ]
    found = []
    for change in changes:
        folder = str(saved(**change))
        clip = Clip(folder, "cpu")
        pairs = embed_pairs(clip, Noise(3), TEXTS[:3], work=tmp_path / "work")
        np.testing.assert_array_equal(pairs.pictures, clip.embed_images(Noise(3)))
        found.append((clip.sha256, clip.identity, pairs.pictures.tobytes()))
        if "model_cfg" not in change:  # the config beside a file counts, too
            beside = Clip(f"tiny-clip:{folder}/{SAVED}").embed_images(Noise(3))
            np.testing.assert_array_equal(beside, pairs.pictures)
    digests, identities, embedded = zip(*found, strict=True)
    assert [len(set(each)) for each in (digests, identities, embedded)] == [1, 3, 3]
    assert Clip(folder, "cpu").identity == identities[-1]


def test_kept_embeddings_are_not_taken_for_those_of_another_prefix(
    clip: Clip, tmp_path: Path
) -> None:
    for prefix in ("", PREFIX):
        pairs = embed_pairs(clip, Noise(3), TEXTS[:3], prefix, tmp_path / "work")
        expected = clip.embed_texts([prefix + text for text in TEXTS[:3]])
        np.testing.assert_array_equal(pairs.texts, expected)


# Pictures with their texts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures [1]"
    (folder / "sub").mkdir(parents=True)
    for number, picture in enumerate(Noise(4)):
        picture.save(folder / ("sub" if number > 2 else ".") / f"{number}.png")
    return folder


TOLD = {"0.png": "ze\u2028ro", "1": "one\x85", "./2.png": "two", "sub\\..\\sub\\3.png": "three"}
COCO = {
    "images": [{"id": 7 + i, "file_name": name} for i, name in enumerate(TOLD)],
    "annotations": [
        *({"image_id": 7 + i, "caption": text} for i, text in enumerate(TOLD.values())),
        {"image_id": 7, "caption": "another"},
    ],
}


FORMS: dict[str, Any] = {
    "a.json": json.dumps(TOLD, ensure_ascii=False),
    "b.jsonl": "".join(
        json.dumps({"file_name": n, "text": t}, ensure_ascii=False) + "\r\n"
        for n, t in TOLD.items()
    ),
    "c.json": json.dumps([{"file_name": n, "caption": t} for n, t in TOLD.items()]),
    "d.json": json.dumps(COCO),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_texts_of_a_folder(folder: Path, tmp_path: Path, name: str, mark: str) -> None:
    """Texts hold any character, and names are spelled in any way."""
    (tmp_path / name).write_bytes((mark + FORMS[name]).encode())
    shown, texts, unused = open_captioned(str(folder), tmp_path / name)
    assert (texts, unused) == ([*TOLD.values()], 0)
    for found, picture in zip(shown, Noise(4), strict=True):
        np.testing.assert_array_equal(found, np.asarray(picture))


def test_captions_of_shards_are_their_first(tmp_path: Path) -> None:
    pictures = Noise(3)
    samples = (
        (f"{i}", {"json": {"captions": [f"first {i}", "second"]}, "png": png(np.asarray(p))})
        for i, p in enumerate(pictures)
    )
    write_shards(tmp_path / "shards", "x", samples, per_shard=2)
    for pattern in (tmp_path / "shards", tmp_path / "shards" / "x-*.tar"):
        shown, texts, _ = open_captioned(str(pattern), None)
        assert texts == ["first 0", "first 1", "first 2"]
        for i, picture in enumerate(pictures):
            np.testing.assert_array_equal(np.asarray(shown[i]), np.asarray(picture))
    with pytest.raises(UserError, match="--texts"):
        open_captioned(str(tmp_path / "shards"), tmp_path / "x.json")
    write_shards(tmp_path / "bare", "x", [("0", {"png": png(np.asarray(pictures[0]))})])
    with pytest.raises(UserError, match="`captions` must be a list"):
        open_captioned(str(tmp_path / "bare"), None)


def test_texts_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.json"
    for data, key in (
        (None, ""),
        ("[", "JSONDecodeError"),
        ("3", ""),
        ('{"0.png": 3}', "3 is no string"),
        ('[{"image_id": 1, "caption": "a"}]', "file_name"),
        ('{"annotations": [{"image_id": 1, "caption": "a"}]}', "images"),
        ('{"0.png": "a"}', "1.png"),
        ("[]".encode("utf-16"), "is UTF-16"),
    ):
        if data is not None:
            file.write_bytes(data if isinstance(data, bytes) else data.encode())
        with pytest.raises(UserError, match=f"texts.json.*{key}"):
            open_captioned(str(folder), file)


# The command


def test_the_command_prints_figures(
    command: Command, files: Path, folder: Path, tmp_path: Path, cache: Path
) -> None:
    texts, written = tmp_path / "texts.json", tmp_path / "out" / "a.json"
    texts.write_text(json.dumps({**TOLD, "none.png": "no picture"}))
    spec = f"tiny-clip:{files / 'bare.pt'}"
    code, out, err = command(
        "eval", "clip", folder, "--texts", texts, "--model", spec, "-o", written
    )
    assert code == 0, err
    figures = json.loads(written.read_text())
    about = {
        "source": str(folder),
        "source_sha256": open_captioned(str(folder), texts)[0].digest,
        "texts": str(texts),
        "texts_sha256": hashlib.sha256(json.dumps(list(TOLD.values())).encode()).hexdigest(),
    }
    expected = clip_score(embed_pairs(Clip(spec), Noise(4), list(TOLD.values())))
    assert figures == {name: {**figure, **about} for name, figure in expected.items()}
    for told in (table(figures), "n = 4", "warning: 1 texts have no picture"):
        assert told in out
    assert len(list(cache.glob("embeddings/*/pictures-00000000.npz"))) == 2


def test_the_commands_mistakes_are_one_line(
    command: Command, files: Path, folder: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(TOLD))
    spec = f"tiny-clip:{files / 'bare.pt'}"
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "2.png").write_bytes((damaged / "2.png").read_bytes()[:200])
    for arguments, key in (
        ((tmp_path / "nowhere", "--model", spec), "nowhere"),
        ((folder, "--model", spec), "--texts"),
        ((folder, "--model", "ViT-B-32:openai", "--texts", texts), "ViT-B-32-quickgelu"),
        ((tmp_path / "x.tar", "--model", spec), "x.tar"),
        ((damaged, "--model", spec, "--texts", texts), "2.png"),
    ):
        code, _, err = command("eval", "clip", *arguments)
        assert (code, err.count("error: ")) == (2, 1)
        assert key in err
