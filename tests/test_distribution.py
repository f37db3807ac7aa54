"""Sets of pictures, their features' cache, the ADM figures and `mmfusion eval fid`."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from PIL import Image as PILImage

from mmfusion.codecs.image import prepare
from mmfusion.data_pipelines.converters.digits import png
from mmfusion.data_pipelines.shards import write_shards
from mmfusion.errors import UserError
from mmfusion.eval import distribution
from mmfusion.eval import features as features_module
from mmfusion.eval import npz as npz_files
from mmfusion.eval.distribution import METRICS, impossible, measure
from mmfusion.eval.extractors import Extractor, PixelExtractor
from mmfusion.eval.features import extract
from mmfusion.eval.image_sets import ImageSet, open_images
from mmfusion.eval.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from mmfusion.eval.npz import write_npz_samples

pytestmark = pytest.mark.usefixtures("cache")
POOL, SPATIAL = 64, 50  # dimensions of what stands for Inception


def noise(count: int, seed: int = 0, side: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def folder(path: Path, pictures: np.ndarray) -> ImageSet:
    path.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        PILImage.fromarray(picture).save(path / f"{number:04d}.png")
    return open_images(str(path))


def npz(path: Path, **arrays: Any) -> ImageSet:
    np.savez(path, **arrays)
    return open_images(str(path))


def moments(**changes: Any) -> dict[str, Any]:
    """A reference's moments: N(0, 1)."""
    made = {
        "mu": np.zeros(POOL), "sigma": np.eye(POOL),
        "mu_s": np.zeros(SPATIAL), "sigma_s": np.eye(SPATIAL),
    }  # fmt: skip
    return {name: array for name, array in {**made, **changes}.items() if array is not None}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module", autouse=True)
def few_dimensions() -> Iterator[None]:
    """Inception's arrays have fewer here."""
    assert [d for _, _, d in npz_files.MOMENTS.values()] == [2048, 2023]
    few = {"features": ("mu", "sigma", POOL), "spatial": ("mu_s", "sigma_s", SPATIAL)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz_files, "MOMENTS", few)
        yield


# Picture sets


def test_a_folder_is_read_sorted_and_with_what_lies_below(tmp_path: Path) -> None:
    pictures = noise(6)
    folder(tmp_path / "b", pictures[2:4])
    folder(tmp_path / "a/deep", pictures[:2])
    PILImage.fromarray(pictures[4]).save(tmp_path / "c.BMP")
    folder(tmp_path / ".hidden", pictures)
    (tmp_path / "._x.png").write_bytes(b"a resource fork")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "b/loop").symlink_to(tmp_path)
    elsewhere = folder(tmp_path.parent / f"{tmp_path.name}-z", pictures[5:])
    (tmp_path / "b/linked").symlink_to(elsewhere.name)
    found = open_images(str(tmp_path))
    assert (len(found), found.name, found.passed_over) == (6, str(tmp_path), 1)
    assert np.array_equal(list(found), pictures[[0, 1, 2, 3, 5, 4]])
    assert np.array_equal(found.read([1, 0]), pictures[[1, 0]])
    with pytest.raises(IndexError):
        found[6]


def test_a_folders_digest_is_of_its_names_and_contents(tmp_path: Path) -> None:
    first = folder(tmp_path / "one", noise(3)).digest
    assert folder(tmp_path / "two", noise(3)).digest == first
    (tmp_path / "two/0002.png").rename(tmp_path / "two/0003.png")
    (tmp_path / "one/0001.png").write_bytes(png(noise(3)[0]))
    for changed in ("one", "two"):
        assert open_images(str(tmp_path / changed)).digest != first


def test_transparent_and_turned_pictures(tmp_path: Path) -> None:
    alpha = np.concatenate([noise(1)[0], np.zeros((4, 4, 1), np.uint8)], 2)
    PILImage.fromarray(alpha).save(tmp_path / "1.png")
    exif = PILImage.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    PILImage.fromarray(noise(1)[0, :3]).save(tmp_path / "2.png", exif=exif)
    white, turned = open_images(str(tmp_path))
    assert (white == 255).all()
    assert np.array_equal(turned, np.rot90(noise(1)[0, :3], -1))


def test_size_cuts_as_training_does(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for found in (folder(tmp_path / "p", wide[None]), npz(tmp_path / "s.npz", arr_0=wide[None])):
        assert found[0].shape == (20, 30, 3)
        cut_to = open_images(found.name, 8)[0]
        assert np.array_equal(cut_to, prepare(PILImage.fromarray(wide), 8, 3))


def test_shards(tmp_path: Path) -> None:
    pictures = noise(5)
    samples = [(f"{i}", {"png": png(p), "json": {"label": 1}}) for i, p in enumerate(pictures)]
    write_shards(tmp_path, "x", samples, per_shard=3)
    found = open_images(str(tmp_path / "x-*.tar"))
    assert np.array_equal(list(found), pictures)
    assert len(open_images(str(tmp_path / "x-00001.tar"))) == 2
    assert len(found.digest) == 64
    (tmp_path / "x-00001.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"x-00001.tar.*mmfusion data verify"):
        open_images(str(tmp_path / "x-*.tar"))
    write_shards(tmp_path, "text", [("0", {"json": {}})])
    with pytest.raises(UserError, match=r"text-.*no picture"):
        open_images(str(tmp_path / "text-*.tar"))[0]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_stored_and_compressed(tmp_path: Path, save: Callable[..., None]) -> None:
    pictures = noise(9)
    save(tmp_path / "s.npz", arr_0=pictures, arr_1=np.arange(9))
    found = open_images(str(tmp_path / "s.npz"))
    assert (len(found), found.moments) == (9, {})
    for number in (3, 4, 8, 0, 5):  # forwards, and back
        assert np.array_equal(found[number], pictures[number])
    assert np.array_equal(found.read(range(9)), pictures)


def test_a_reference_file_of_the_adm_suite(tmp_path: Path) -> None:
    mean, covariance = (
        np.arange(POOL, dtype=np.float32),
        np.random.default_rng(0).random((POOL,) * 2),
    )
    given = moments(mu=mean, sigma=np.asfortranarray(covariance))
    found = npz(tmp_path / "r.npz", arr_0=noise(2), **given)
    assert (len(found), found.side) == (2, (4, 4))
    assert found.moments.keys() == {"features", "spatial"}
    assert found.moments["features"][0].dtype == np.float64
    assert np.array_equal(found.moments["features"][0], mean)
    assert np.array_equal(found.moments["features"][1], covariance)
    alone = npz(tmp_path / "m.npz", **moments(mu_s=None, sigma_s=None))
    assert (len(alone), alone.moments.keys()) == (0, {"features"})


def declared(*shape: int) -> bytes:
    """An npz of 96 bytes that claims another shape."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive, archive.open("arr_0.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(96))
    return held.getvalue()


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"arr_0": noise(2).astype(np.float32)}, r"arr_0 is float32 of shape \(2, 4, 4, 3\)"),
        ({"arr_0": noise(2).transpose(0, 3, 1, 2)}, r"uint8 of shape \(2, 3, 4, 4\)"),
        ({"arr_0": noise(2)[:0]}, r"of shape \(0, 4, 4, 3\)"),
        ({"arr_0": np.asfortranarray(noise(2))}, "arr_0 .*Fortran order"),
        ({"arr_0": np.array([{}, {}])}, "pickled objects"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "allow_pickle=False"),
        ({"other": noise(2)}, "`arr_0`.*`mu`.*but other"),
        (moments(sigma=None), "sigma"),
        (moments(mu_s=None), "mu_s"),
        (moments(sigma=np.eye(4)), r"`sigma` .*\(4, 4\); expected .*\(64, 64\)"),
        (moments(mu=np.zeros(POOL, int)), "`mu` is int64"),
        (moments(mu=np.full(POOL, np.nan)), "`mu` .*finite"),
        (b"", "not an npz"),
        (png(noise(1)[0]), "not an npz"),
        (declared(1 << 40, 4, 4, 3), "bytes are declared, 96 are there"),
        (declared(-1, 4, 4, 3), "not an npz"),
    ],
)
def test_npz_of_something_else(tmp_path: Path, arrays: Any, why: str) -> None:
    path = tmp_path / "s.npz"
    path.write_bytes(arrays) if isinstance(arrays, bytes) else np.savez(path, **arrays)
    with pytest.raises(UserError, match=why) as error:
        open_images(str(path))
    assert str(error.value).startswith(str(path))


def test_a_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez_compressed(path, arr_0=noise(200, side=16))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"s.npz, picture \d+: cannot be read"):
        list(open_images(str(path)))
    cut(path)
    with pytest.raises(UserError, match=r"s.npz: not an npz"):
        open_images(str(path))


def test_paths_that_are_no_sets(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/x.tar").write_bytes(b"")
    (tmp_path / "one.png").write_bytes(png(noise(1)[0]))
    names = ("nowhere", "empty", "one.png", "*.tar", "nowhere.tar", "nowhere.npz")
    for name in (*names, "tars"):
        with pytest.raises(UserError, match=name.replace("*", r"\*")) as error:
            open_images(str(tmp_path / name))
    assert "/tars/*.tar'" in str(error.value)
    bad = folder(tmp_path / "bad", noise(3))
    cut(tmp_path / "bad/0001.png")
    (tmp_path / "bad/0002.png").write_text("text")
    for number in (1, 2):
        with pytest.raises(UserError, match=f"bad/000{number}.png: not a readable picture.*mend"):
            bad[number]


def test_write_npz_is_what_numpy_reads(tmp_path: Path) -> None:
    pictures, labels = noise(7), np.arange(7)
    path = write_npz_samples(tmp_path / "deep/s.npz", list(pictures), labels)
    with np.load(path, allow_pickle=False) as found:
        assert found.files == ["arr_0", "arr_1"]
        assert np.array_equal(found["arr_0"], pictures)
        assert np.array_equal(found["arr_1"], labels)
    again = write_npz_samples(tmp_path / "t.npz", open_images(str(path)), labels)
    assert again.read_bytes() == path.read_bytes()


def test_pictures_of_two_sizes_are_no_npz(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"picture 1 is of shape \(5, 5, 3\)"):
        write_npz_samples(tmp_path / "s.npz", [noise(1)[0], noise(1, side=5)[0]])
    assert not list(tmp_path.iterdir())  # nothing half-made


# Features and their cache


class Counting(Extractor):
    """Mean colours; keeps count of what it was asked for."""

    name, batch, factor = "counting", 2, 1.0

    def __init__(self, sha256: str = "0", version: str = "", device: str = "cpu") -> None:
        self.sha256, self.version, self.device, self.seen = sha256, version, device, 0

    def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.seen += len(pixels)
        return {"features": pixels.mean((1, 2), dtype=np.float32) * self.factor}


@pytest.fixture
def ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """Ten pictures, whose features are kept in three parts."""
    monkeypatch.setattr(features_module, "PART", 4)
    return folder(tmp_path / "p", noise(10))


def test_features_are_made_once(tmp_path: Path, ten: ImageSet, cache: Path) -> None:
    extractor = Counting()
    found = extract(ten, extractor)
    assert found.keys() == {"features", "sizes"}
    np.testing.assert_allclose(found["features"], noise(10).mean((1, 2)), rtol=1e-5)
    assert (found["sizes"] == 4).all()
    assert len(list((cache / "features").glob("*/*.npz"))) == 3
    assert np.array_equal(extract(ten, extractor)["features"], found["features"])
    assert extractor.seen == 10
    extract(open_images(ten.name, 2), extractor, tmp_path / "work")
    assert extractor.seen == 20
    assert len(list((tmp_path / "work").glob("*/*.npz"))) == 3
    # Other features come of other weights, of another config, and on a GPU.
    others = ("1",), ("0", "b"), ("0", "", "cuda:0"), ("0", "", "cuda:1")
    assert [(extract(ten, e), e.seen)[1] for e in (Counting(*o) for o in others)] == [10, 10, 10, 0]


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_a_damaged_part_is_made_again(ten: ImageSet, cache: Path, damage: str) -> None:
    extractor = Counting()
    found = extract(ten, extractor)["features"]
    part = sorted((cache / "features").glob("*/*.npz"))[1]
    if damage == "cut":
        cut(part)
    elif damage == "other":
        np.savez(part, features=np.zeros((3, 3), np.float32))
    else:
        data = bytearray(part.read_bytes())
        data[data.index(found[4].tobytes())] ^= 1
        part.write_bytes(data)
    assert np.array_equal(extract(ten, extractor)["features"], found)
    assert extractor.seen == 14


def test_a_damaged_picture_stops_it_and_the_rest_is_kept(ten: ImageSet) -> None:
    last, extractor = Path(ten.name) / "0009.png", Counting()
    good = last.read_bytes()
    cut(last)
    with pytest.raises(UserError, match=r"0009.png: not a readable picture"):
        extract(open_images(ten.name), extractor)
    assert extractor.seen == 8
    last.write_bytes(good)
    extractor.factor = np.nan
    with pytest.raises(UserError, match=r"features counting: .*not finite"):
        extract(open_images(ten.name), extractor)
    extractor.factor = 1.0
    assert len(extract(open_images(ten.name), extractor)["features"]) == 10


def test_features_that_cannot_be_kept(
    tmp_path: Path, ten: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "file").touch()
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/features.*--work or \$MMFUSION_CACHE"):
        extract(ten, Counting())
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"00000000\.npz: .*No space left on device.*--work"):
        extract(ten, Counting(), tmp_path / "work")
    assert not list((tmp_path / "work").glob("*/*"))


def test_pixels_of_two_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = folder(tmp_path / "p", noise(3))
    PILImage.fromarray(noise(1, side=5)[0]).save(tmp_path / "p/z.png")
    for part, batch in ((4, 4), (4, 3), (3, 3)):  # in one batch, in one part, and apart
        monkeypatch.setattr(features_module, "PART", part)
        monkeypatch.setattr(PixelExtractor, "batch", batch)
        with pytest.raises(UserError, match=r"pixels.* differ in size; .*--size"):
            extract(open_images(mixed.name), PixelExtractor())
    assert len(extract(open_images(mixed.name, 4), PixelExtractor())["features"]) == 4


# Figures


class Simple(Extractor):
    """Stands for Inception, with fewer dimensions: random projections of the pixels."""

    name, sha256, batch, doubt = "inception", "aa", 8, "only a stand-in"
    gives = ("features", "spatial", "logits")

    def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        flat = pixels.reshape(len(pixels), -1) / 127.5 - 1.0
        rng = np.random.default_rng(0)
        return {
            name: (flat @ rng.standard_normal((flat.shape[1], size)) / 4).astype(np.float32)
            for name, size in zip(self.gives, (POOL, SPATIAL, 20), strict=True)
        }


Sets = dict[str, ImageSet]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    root = tmp_path_factory.mktemp("sets")
    arrays = {
        "moments": moments(),
        "pool": moments(mu_s=None, sigma_s=None),
        "both": {"arr_0": noise(9, 5), **moments()},
        "both8": {"arr_0": noise(9, 5, 8), **moments()},
        "one": {"arr_0": noise(1)},
        "three": {"arr_0": noise(3)},
        "large": {"arr_0": noise(9, 6, 8)},
        "wide": {"arr_0": np.zeros((9, 4, 6, 3), np.uint8)},
    }
    for name in ("a.tiff", "b.txt", ".hidden"):
        (root / "more").mkdir(exist_ok=True)
        (root / "more" / name).touch()
    counts = {"made": 12, "more": 12, "real": 10}
    folders = {n: folder(root / n, noise(count, i)) for i, (n, count) in enumerate(counts.items())}
    return folders | {name: npz(root / f"{name}.npz", **each) for name, each in arrays.items()}


def test_precision_is_of_the_made_and_recall_of_the_real(tmp_path: Path) -> None:
    """Half of the real pictures' kinds: each is right, half is missing."""
    dark, light = noise(40, 1) // 8, 255 - noise(40, 2) // 8
    real = npz(tmp_path / "real.npz", arr_0=np.concatenate([dark, light]))
    found = measure(npz(tmp_path / "made.npz", arr_0=dark ^ 1), real, PixelExtractor())
    assert found["precision_pixels"]["value"] == 1
    assert found["recall_pixels"]["value"] == 0.5


def test_all_figures_of_the_adm_protocol(sets: Sets) -> None:
    made, real = sets["made"], sets["real"]
    a, b = (Simple()(list(pictures)) for pictures in (made, real))
    found = measure(made, real, Simple())
    both = precision_recall(b["features"], a["features"], 3)
    expected = {
        "fid": frechet_distance(a["features"], b["features"]),
        "sfid": frechet_distance(a["spatial"], b["spatial"]),
        "is": inception_score(a["logits"], 5000)[0],
        **dict(zip(("precision", "recall"), both, strict=True)),
        "kid": kernel_distance(a["features"], b["features"], subsets=1, size=10)[0],
    }
    assert list(found) == list(expected) == list(METRICS)
    values = {name: figure["value"] for name, figure in found.items()}
    assert values == pytest.approx(expected, rel=1e-9)
    json.dumps(found, allow_nan=False)
    about = {"n": 12, "extractor": "inception", "extractor_sha256": "aa", "size": None,
             "source": made.name, "source_sha256": made.digest}  # fmt: skip
    compared = {"n_reference": 10, "reference": real.name, "reference_sha256": real.digest}
    for name, figure in found.items():
        assert (about | ({} if name == "is" else compared)).items() <= figure.items()
        assert f"below {METRICS[name].sensible:,}" in figure["warning"]
        assert "only a stand-in" in figure["warning"]
    assert [rule.sensible for rule in METRICS.values()] == [10_000, 10_000, 5000, 1000, 1000, 1000]


def test_distances_to_a_references_moments(tmp_path: Path, sets: Sets) -> None:
    rng = np.random.default_rng(0)
    spread, narrow = rng.standard_normal((POOL, 40)), rng.standard_normal((SPATIAL, 40))
    given = moments(mu=spread[:, 0], sigma=spread @ spread.T)
    given |= {"mu_s": narrow[:, 0], "sigma_s": narrow @ narrow.T}
    reference = npz(tmp_path / "ref.npz", **given)
    found, arrays = measure(sets["made"], reference, Simple()), Simple()(list(sets["made"]))
    for key, name, end in (("fid", "features", ""), ("sfid", "spatial", "_s")):
        expected = frechet_distance(arrays[name], (given[f"mu{end}"], given[f"sigma{end}"]))
        assert found[key]["value"] == pytest.approx(expected, rel=1e-9)
        facts = {"n_reference": None, "reference_moments": True}
        assert (facts | {"reference_sha256": reference.digest}).items() <= found[key].items()
    assert list(found) == ["fid", "sfid", "is"]


@pytest.mark.parametrize(
    ("made", "reference", "extractor", "metric", "why"),
    [
        ("made", "moments", Simple, "precision", r"^precision: .*no pictures \(`arr_0`\)"),
        ("made", "moments", Simple, "kid", r"^kid: .*`arr_0`"),
        ("made", "moments", PixelExtractor, "fid", r"^fd_pixels: .*`arr_0`.*of pixels, features"),
        ("made", "pool", Simple, "sfid", r"^sfid: .*pool.npz .*of inception, spatial"),
        ("made", "real", PixelExtractor, "sfid", r"^sfid_pixels: features pixels have no spatial"),
        ("made", "real", PixelExtractor, "is", r"^is_pixels: features pixels have no classes"),
        ("made", "one", PixelExtractor, "fid", r"^fd_pixels: .*one.npz has 1 pictures; it needs 2"),
        ("three", "real", PixelExtractor, "recall", r"^recall_pixels: .*three.npz has 3 .*needs 4"),
        ("moments", "made", Simple, "fid", r"^fid: .*moments.npz has 0 pictures"),
        ("made", "", Simple, "fid", r"^fid: needs a reference"),
        ("made", "", PixelExtractor, "", r"needs a reference"),
        ("made", "large", PixelExtractor, "fid", r"48 and 192 dimensions.*--size"),
    ],
)
def test_what_the_inputs_do_not_allow(
    sets: Sets, made: str, reference: str, extractor: Any, metric: str, why: str
) -> None:
    with pytest.raises(UserError, match=why):
        measure(sets[made], sets.get(reference), extractor(), [metric] if metric else None)


def test_what_is_left_to_measure(sets: Sets) -> None:
    made, real = sets["made"], sets["real"]
    assert measure(made, real, Counting(), []) == {}
    assert set(impossible(made, sets["moments"], Simple())) == {"precision", "recall", "kid"}
    assert set(impossible(made, None, Simple())) == set(METRICS) - {"is"}
    assert measure(made, None, Simple()) == measure(made, real, Simple(), ["is"])
    # Another extractor takes a reference's pictures, and not its moments.
    figure = measure(made, sets["both"], PixelExtractor(), ["fid"])["fd_pixels"]
    assert figure["n_reference"] == 9
    assert "reference_moments" not in figure


def test_an_inception_score_of_sorted_pictures_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    """Four classes in four splits: each split has one, so the score is 1 where it should be 4."""
    monkeypatch.setattr(distribution, "SPLIT", 300)

    class Sorted(Simple):
        def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
            logits = np.eye(1008, dtype=np.float32)[pixels[:, 0, 0, 0]] * 50
            return super().extract(pixels) | {"logits": logits}

    four = np.arange(4, dtype=np.uint8)
    for order in (np.repeat(four, 300), np.tile(four, 300)):
        pictures = npz(tmp_path / "s.npz", arr_0=np.tile(order[:, None, None, None], (4, 4, 3)))
        figure = measure(pictures, None, Sorted(), ["is"])["is"]
        assert ("one to compare" in figure["warning"]) == (order[1] == 0)
        assert figure["shuffled"] > 3.9
    assert figure["value"] > 3.9
    monkeypatch.setattr(distribution, "SPLIT", 4)  # where classes take turns, each split has all
    figure = measure(pictures, None, Sorted(), ["is"])["is"]
    assert figure["shuffled"] < 3.5 < figure["value"]
    assert "one to compare" in figure["warning"]


def test_other_ranks_make_features_and_hold_none(
    tmp_path: Path, sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(features_module, "_read", None)
    assert measure(sets["made"], sets["real"], PixelExtractor(), work=tmp_path / "work") == {}
    assert len(list((tmp_path / "work").glob("*/*.npz"))) == 2


# Warnings


def warning(made: ImageSet, real: ImageSet | None, extractor: Extractor, metric: str) -> str:
    (figure,) = measure(made, real, extractor, [metric]).values()
    return figure.get("warning", "")


@pytest.mark.parametrize(
    ("n", "singular", "few"),
    [(3, True, True), (4, False, True), (99, False, True), (100, False, False)],
)
def test_a_fid_of_few_pictures_says_so(
    tmp_path: Path, n: int, singular: bool, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "fid", METRICS["fid"]._replace(sensible=100))
    a, b = (npz(tmp_path / f"{i}.npz", arr_0=noise(i, i)) for i in (n, 100))
    for pair in ((a, b), (b, a)):  # the smaller set counts
        said = warning(*pair, Counting(), "fid")
        assert ("covariance" in said, "below 100 the distance" in said) == (singular, few)


OF_TWO, SQUEEZED = "pictures of 2 sizes, such as 4 x 4 and 8 x 8", "of 6 x 4 were squeezed"
OF_SMALL = "pictures of 2 sizes, such as 2 x 2 and 4 x 4"
PASSED, NOT_ADM = "2 other files in", "not from the ADM suite"


@pytest.mark.parametrize(
    ("made", "reference", "extractor", "metric", "size", "present", "absent"),
    [
        ("made", "large", Counting, "fid", None, OF_TWO, "squeezed"),
        ("made", "large", Simple, "is", None, "", "sizes"),
        ("wide", "wide", Counting, "fid", None, SQUEEZED, "sizes"),
        ("made", "wide", Counting, "fid", 4, "", "sizes"),
        ("wide", "wide", Counting, "fid", 4, "", "squeezed"),
        ("made", "both8", Simple, "fid", None, OF_TWO, NOT_ADM),
        ("made", "both", Simple, "fid", None, "", "sizes"),
        ("made", "both", Simple, "fid", 2, OF_SMALL, ""),
        ("made", "pool", Simple, "fid", None, NOT_ADM, "sizes"),
        ("made", "more", Simple, "fid", None, PASSED, NOT_ADM),
        ("made", "more", Simple, "is", None, "", "passed over"),
        ("more", "", Simple, "is", None, PASSED, ""),
    ],
)
def test_what_a_figure_has_to_be_read_with_care_for(
    sets: Sets, made: str, reference: str, extractor: Any, metric: str, size: int | None,
    present: str, absent: str,
) -> None:  # fmt: skip
    opened = [open_images(sets[name].name, size) if name else None for name in (made, reference)]
    said = warning(*opened, extractor(), metric)  # type: ignore[arg-type]
    assert present in said
    assert not absent or absent not in said


# The command


def test_the_command(tmp_path: Path, sets: Sets, command: Command) -> None:
    made, real = sets["made"], sets["real"]
    work, output = tmp_path / "work", tmp_path / "deep/f.json"
    arguments = (made.name, real.name, "--features", "pixels", "--work", work)
    code, out, err = command("eval", "fid", *arguments, "--metrics", "fid", "-o", output)
    assert code == 0, err
    figures = json.loads(output.read_text())
    assert list(figures) == ["fd_pixels", "left_out"]
    assert f"{figures['fd_pixels']['value']:.4g}" in out
    assert real.digest[:12] in out
    assert "warning: Fréchet distance (pixels): " in out
    assert "left out" not in out
    out = command("eval", "fid", *arguments)[1]
    assert "left out: sFID (pixels): features pixels have no spatial ones" in out
    assert len(list(work.iterdir())) == 2


def test_the_command_refuses_in_one_line(tmp_path: Path, sets: Sets, command: Command) -> None:
    both = sets["made"].name, sets["real"].name
    for arguments, named in [
        ((both[0], tmp_path / "nowhere"), "nowhere"),
        ((*both, "--metrics", "fld"), "--metrics fld"),
        ((*both, "--features", "vgg"), "vgg"),
        ((*both, "--features", "inception:nowhere.pth"), "nowhere.pth"),
        ((*both, "-o", tmp_path), str(tmp_path)),
        ((*both, "--metrics", "sfid"), "sfid_pixels"),
    ]:
        # Of an option that is given twice the last one counts.
        code, _, err = command("eval", "fid", "--features", "pixels", *arguments)
        assert (code, err.count("error: ")) == (2, 1)
        assert named in err.partition("error: ")[2]
