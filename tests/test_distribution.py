"""Sets of pictures, their features' cache, the ADM figures and `mmfusion eval fid`."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from mmfusion.cli import main
from mmfusion.codecs.image import prepare
from mmfusion.data_pipelines.shards import write_shards
from mmfusion.errors import UserError
from mmfusion.eval import distribution
from mmfusion.eval import features as cache
from mmfusion.eval.distances.frechet import frechet_distance, frechet_from_moments
from mmfusion.eval.distances.inception_score import inception_score
from mmfusion.eval.distances.kernel import kernel_distance
from mmfusion.eval.distances.manifold import precision_recall
from mmfusion.eval.distribution import impossible, measure
from mmfusion.eval.extractors import make_extractor
from mmfusion.eval.extractors.base import Extractor
from mmfusion.eval.features import extract
from mmfusion.eval.pictures import open_pictures, write_npz

POOL, SPATIAL = 64, 50  # dimensions of what stands for Inception


def noise(count: int, seed: int = 0, side: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def save(folder: Path, pictures: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Picture.fromarray(picture).save(folder / f"{number:04d}.png")
    return folder


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Picture.fromarray(picture).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test leaves anything in the user's cache."""
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Picture sets


def test_a_folder_is_read_sorted_and_with_what_lies_below(tmp_path: Path) -> None:
    pictures = noise(6)
    save(tmp_path / "b", pictures[2:4])
    save(tmp_path / "a/deep", pictures[:2])
    Picture.fromarray(pictures[4]).save(tmp_path / "c.BMP")
    save(tmp_path / ".hidden", pictures)
    (tmp_path / "._x.png").write_bytes(b"a resource fork")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "b/loop").symlink_to(tmp_path)
    (tmp_path / "b/linked").symlink_to(save(tmp_path.parent / f"{tmp_path.name}-z", pictures[5:]))
    found = open_pictures(str(tmp_path))
    assert len(found) == 6
    order = [0, 1, 2, 3, 5, 4]
    assert all(np.array_equal(p, pictures[i]) for p, i in zip(found, order, strict=True))
    assert all(map(np.array_equal, found.read([1, 0]), pictures[[1, 0]]))
    assert found.name == str(tmp_path)
    with pytest.raises(IndexError):
        found[6]


def test_a_folders_digest_is_of_its_names_and_contents(tmp_path: Path) -> None:
    first = open_pictures(str(save(tmp_path / "one", noise(3)))).digest
    assert open_pictures(str(save(tmp_path / "two", noise(3)))).digest == first
    (tmp_path / "two/0002.png").rename(tmp_path / "two/0003.png")
    assert open_pictures(str(tmp_path / "two")).digest != first
    (tmp_path / "one/0001.png").write_bytes(png(noise(3)[0]))
    assert open_pictures(str(tmp_path / "one")).digest != first


def test_grey_transparent_and_turned_pictures(tmp_path: Path) -> None:
    grey = noise(1)[0, :, :, 0]
    Picture.fromarray(grey).save(tmp_path / "0.png")
    alpha = np.concatenate([noise(1)[0], np.zeros((4, 4, 1), np.uint8)], 2)
    Picture.fromarray(alpha).save(tmp_path / "1.png")
    exif = Picture.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Picture.fromarray(noise(1)[0, :3]).save(tmp_path / "2.png", exif=exif)
    found = open_pictures(str(tmp_path))
    assert np.array_equal(found[0], np.stack([grey] * 3, -1))
    assert (found[1] == 255).all()  # laid on white
    assert np.array_equal(found[2], np.rot90(noise(1)[0, :3], -1))


def test_size_cuts_as_training_does(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Picture.fromarray(wide).save(tmp_path / "a.png")
    np.savez(tmp_path / "s.npz", arr_0=wide[None])
    expected = prepare(Picture.fromarray(wide), 8, 3)
    for path in (tmp_path, tmp_path / "s.npz"):
        assert np.array_equal(open_pictures(str(path), 8)[0], expected)
        assert open_pictures(str(path))[0].shape == (20, 30, 3)
    with pytest.raises(UserError, match="one pixel or more"):
        open_pictures(str(tmp_path), 0)


def test_shards(tmp_path: Path) -> None:
    pictures = noise(5)
    samples = [(f"{i}", {"png": png(p), "json": {"label": 1}}) for i, p in enumerate(pictures)]
    write_shards(tmp_path, "x", samples, per_shard=3)
    found = open_pictures(str(tmp_path / "x-*.tar"))
    assert all(map(np.array_equal, found, pictures))
    assert len(open_pictures(str(tmp_path / "x-00001.tar"))) == 2
    assert len(found.digest) == 64
    (tmp_path / "x-00001.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"cannot be used.*x-00001.tar.*mmfusion data verify"):
        open_pictures(str(tmp_path / "x-*.tar"))
    write_shards(tmp_path, "text", [("0", {"json": {}})])
    with pytest.raises(UserError, match="no picture in this sample"):
        open_pictures(str(tmp_path / "text-*.tar"))[0]


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
def test_npz_stored_and_compressed(tmp_path: Path, save_npz: Callable[..., None]) -> None:
    pictures = noise(9)
    save_npz(tmp_path / "s.npz", arr_0=pictures, arr_1=np.arange(9))
    found: Any = open_pictures(str(tmp_path / "s.npz"))
    assert (found._npz._mapped is None) == (save_npz is np.savez_compressed)
    assert len(found) == 9
    assert found.moments is None
    for number in (3, 4, 8, 0, 5):  # forwards, and back
        assert np.array_equal(found[number], pictures[number])
    assert all(map(np.array_equal, found.read(range(9)), pictures))


def test_a_large_compressed_npz_is_not_held_in_memory(tmp_path: Path) -> None:
    """Under a limit of the address space that the pictures alone would break."""
    shape = (1500, 256, 256, 3)  # 295 MB
    deflated = zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with deflated as archive, archive.open("arr_0.npy", "w", force_zip64=True) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(15):
            file.write(bytes(100 * 256 * 256 * 3))
    code = (
        "import resource, sys\n"
        "from mmfusion.eval.pictures import open_pictures\n"
        "found = open_pictures(sys.argv[1])\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "limit = used + 150_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "assert found.read([0, 700, 1499])[2].shape == (256, 256, 3)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc on this system")
    command = [sys.executable, "-c", code, str(tmp_path / "s.npz")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def moments(d: int = POOL, d_s: int = SPATIAL, **changes: Any) -> dict[str, Any]:
    """A reference's moments: N(0, 1)."""
    made = {"mu": np.zeros(d), "sigma": np.eye(d), "mu_s": np.zeros(d_s), "sigma_s": np.eye(d_s)}
    return {name: array for name, array in {**made, **changes}.items() if array is not None}


def test_a_reference_file_of_the_adm_suite(tmp_path: Path) -> None:
    small = moments(3, 2, mu=np.array([1, 2, 3], np.float32))
    np.savez(tmp_path / "r.npz", arr_0=noise(2), **small)
    found = open_pictures(str(tmp_path / "r.npz"))
    assert len(found) == 2
    assert found.moments
    assert found.moments.mu.tolist() == [1, 2, 3]
    assert found.moments.sigma.dtype == np.float64
    assert found.moments.mu_s is not None
    np.savez(tmp_path / "m.npz", **moments(3, mu_s=None, sigma_s=None))
    alone = open_pictures(str(tmp_path / "m.npz"))
    assert len(alone) == 0
    assert alone.moments
    assert alone.moments.mu_s is None


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"arr_0": noise(2).astype(np.float32)}, r"arr_0 is float32 of shape \(2, 4, 4, 3\)"),
        ({"arr_0": noise(2).transpose(0, 3, 1, 2)}, r"uint8 of shape \(2, 3, 4, 4\); expected pic"),
        ({"arr_0": noise(2)[0]}, r"of shape \(4, 4, 3\)"),
        ({"arr_0": noise(2)[:0]}, r"of shape \(0, 4, 4, 3\)"),
        ({"arr_0": np.array([{}, {}])}, "arr_0.npy holds pickled objects, which are never read"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "mu.npy holds pickled objects"),
        ({"other": noise(2)}, "neither pictures.*nor moments.*but other.npy"),
        ({}, "but nothing"),
        (moments(3, sigma=None), "has moments but no `sigma`"),
        (moments(3, 3, mu_s=None), "has moments but no `mu_s`"),
        (moments(3, sigma=np.eye(4)), r"shapes \(3,\) and \(4, 4\); expected \(d,\)"),
        (moments(3, mu=np.zeros((3, 3))), r"expected \(d,\) and \(d, d\)"),
        (moments(3, mu=np.zeros(3, int)), "`mu` is int64; expected floats"),
        (moments(3, mu=np.full(3, np.nan)), "`mu` holds numbers that are not finite"),
    ],
)
def test_npz_of_something_else(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=told) as error:
        open_pictures(str(tmp_path / "s.npz"))
    assert str(error.value).startswith(str(tmp_path / "s.npz"))


def declare(path: Path, shape: tuple[int, ...], data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(data)


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"

    def refuse(told: str) -> None:
        with pytest.raises(UserError, match=f"not a readable npz.*{told}"):
            open_pictures(str(path))

    np.savez(path, arr_0=noise(20))
    cut(path, 0.5)
    refuse("not a zip file")
    path.write_bytes(b"")
    refuse("")
    np.save(tmp_path / "plain.npy", noise(2))
    (tmp_path / "plain.npy").rename(path)
    refuse("not a zip file")
    declare(path, (1 << 40, 4, 4, 3), bytes(96))
    refuse("bytes are declared, 96 are there")
    declare(path, (-1, 4, 4, 3), bytes(96))
    refuse("")
    np.savez(path, arr_0=np.asfortranarray(noise(2)))
    refuse("Fortran order")
    with pytest.raises(UserError, match=r"nowhere.npz: no such file"):
        open_pictures(str(tmp_path / "nowhere.npz"))


def test_a_damaged_stream_names_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez_compressed(path, arr_0=noise(200, side=16))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"s.npz, picture \d+: cannot be read"):
        list(open_pictures(str(path)))


def test_paths_that_are_no_sets(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/x.tar").write_bytes(b"")
    (tmp_path / "one.png").write_bytes(png(noise(1)[0]))
    for name, told in [
        ("nowhere", "no such file or folder"),
        ("empty", "no pictures in this folder"),
        ("tars", r"no pictures.*give '.*/tars/\*.tar'"),
        ("one.png", "no set of pictures; give a folder"),
        ("*.tar", "no shards match"),
        ("nowhere.tar", "no shards match"),
    ]:
        with pytest.raises(UserError, match=told):
            open_pictures(str(tmp_path / name))
    save(tmp_path / "bad", noise(3))
    cut(tmp_path / "bad/0001.png", 0.6)
    (tmp_path / "bad/0002.png").write_text("text")
    bad = open_pictures(str(tmp_path / "bad"))
    for number in (1, 2):
        with pytest.raises(UserError, match=f"bad/000{number}.png: not a readable picture.*mend"):
            bad[number]


def test_write_npz_is_what_numpy_reads(tmp_path: Path) -> None:
    pictures, labels = noise(7), np.arange(7)
    path = write_npz(tmp_path / "deep/s.npz", list(pictures), labels)
    with np.load(path, allow_pickle=False) as found:
        assert found.files == ["arr_0", "arr_1"]
        assert np.array_equal(found["arr_0"], pictures)
        assert np.array_equal(found["arr_1"], labels)
    again = write_npz(tmp_path / "t.npz", open_pictures(str(path)), labels)
    assert again.read_bytes() == path.read_bytes()
    assert list(open_pictures(str(again))[3].flat) == list(pictures[3].flat)


def test_write_npz_refuses(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    mixed = [noise(1)[0], noise(1, side=5)[0]]
    with pytest.raises(UserError, match=r"picture 1 is uint8 of shape \(5, 5, 3\)"):
        write_npz(path, mixed)
    with pytest.raises(UserError, match="picture 0 is float64"):
        write_npz(path, [np.zeros((2, 2, 3))])
    with pytest.raises(UserError, match="no pictures to write"):
        write_npz(path, [])
    with pytest.raises(UserError, match=r"2 pictures, and labels of \(3,\)"):
        write_npz(path, list(noise(2)), np.arange(3))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_npz(tmp_path / "file/s.npz", list(noise(2)))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]  # nothing half-made


# Features and their cache


class Counting(Extractor):
    """Mean colours; keeps count of what it was asked for."""

    name, batch = "counting", 2

    def __init__(self, sha256: str = "0") -> None:
        self.sha256, self.seen = sha256, 0

    def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.seen += len(pixels)
        return {"features": pixels.mean((1, 2), dtype=np.float32)}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART", 4)


@pytest.mark.usefixtures("small_parts")
def test_features_are_made_once(tmp_path: Path, home: Path) -> None:
    pictures = open_pictures(str(save(tmp_path / "p", noise(10))))
    extractor = Counting()
    found = extract(pictures, extractor)
    np.testing.assert_allclose(found.features, noise(10).mean((1, 2)), rtol=1e-5)
    assert (found.n, found.spatial, found.logits) == (10, None, None)
    assert (found.extractor, found.source_sha256) == ("counting", pictures.digest)
    assert len(list((home / "features").glob("*/*.npz"))) == 3
    again = extract(pictures, extractor)
    assert np.array_equal(again.features, found.features)
    assert extractor.seen == 10
    extract(pictures, Counting("1"))  # other weights
    assert len(list((home / "features").iterdir())) == 2
    extract(open_pictures(str(tmp_path / "p"), 2), extractor, tmp_path / "work")
    assert extractor.seen == 20
    assert len(list((tmp_path / "work").glob("*/*.npz"))) == 3


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_a_damaged_part_is_made_again(tmp_path: Path, home: Path, damage: str) -> None:
    pictures, extractor = open_pictures(str(save(tmp_path / "p", noise(10)))), Counting()
    found = extract(pictures, extractor)
    part = sorted((home / "features").glob("*/*.npz"))[1]
    if damage == "cut":
        cut(part, 0.5)
    elif damage == "other":
        np.savez(part, features=np.zeros((3, 3), np.float32))
    else:
        data = bytearray(part.read_bytes())
        data[data.index(found.features[4].tobytes())] ^= 1
        part.write_bytes(data)
    assert np.array_equal(extract(pictures, extractor).features, found.features)
    assert extractor.seen == 14


@pytest.mark.usefixtures("small_parts")
def test_a_damaged_picture_stops_it_and_the_rest_is_kept(tmp_path: Path) -> None:
    folder = save(tmp_path / "p", noise(10))
    good = (folder / "0009.png").read_bytes()
    cut(folder / "0009.png", 0.6)
    extractor = Counting()
    with pytest.raises(UserError, match=r"0009.png: not a readable picture"):
        extract(open_pictures(str(folder)), extractor)
    assert extractor.seen == 8
    (folder / "0009.png").write_bytes(good)
    assert extract(open_pictures(str(folder)), extractor).n == 10


def test_features_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    pictures = open_pictures(str(save(tmp_path / "p", noise(3))))
    with pytest.raises(UserError, match=r"00000000\.npz: .*No space left on device.*--work"):
        extract(pictures, Counting(), tmp_path / "work")
    assert not list((tmp_path / "work").glob("*/*"))


def test_a_cache_that_cannot_be_used_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = open_pictures(str(save(tmp_path / "p", noise(3))))
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be kept there .*--work or \$MMFUSION_CACHE"):
        extract(pictures, Counting())


def test_the_cache_knows_config_and_device(tmp_path: Path) -> None:
    """Not the weights alone: other features come of another config, and on a GPU."""
    pictures = open_pictures(str(save(tmp_path / "p", noise(3))))
    for version, device in (("", "cpu"), ("b", "cpu"), ("", "cuda:0"), ("", "cuda:1")):
        extractor = Counting()
        extractor.version, extractor.device = version, device
        extract(pictures, extractor, tmp_path / "work")
        assert extractor.seen == (0 if device == "cuda:1" else 3)


def test_other_ranks_make_features_and_hold_none(
    tmp_path: Path, sets: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distribution, "extract", None)
    assert measure(*sets, make_extractor("pixels"), work=tmp_path / "work") == {}
    assert len(list((tmp_path / "work").glob("*/*.npz"))) == 2


def test_pixels_of_two_sizes_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "p", noise(3))
    Picture.fromarray(noise(1, side=5)[0]).save(folder / "z.png")
    with pytest.raises(UserError, match=r"pictures of 4 x 4 and 5 x 5 pixels.*--size"):
        extract(open_pictures(str(folder)), make_extractor("pixels"))
    assert extract(open_pictures(str(folder), 4), make_extractor("pixels")).n == 4


# Figures


class Simple(Extractor):
    """Stands for Inception, with fewer dimensions: random projections of the pixels."""

    name, sha256, batch = "inception", "aa", 8
    gives = ("features", "spatial", "logits")

    def __init__(self) -> None:
        self.sizes = {"features": POOL, "spatial": SPATIAL, "logits": 20}

    def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        flat = pixels.reshape(len(pixels), -1) / 127.5 - 1.0
        rng = np.random.default_rng(0)
        return {
            name: (flat @ rng.standard_normal((flat.shape[1], size)) / 4).astype(np.float32)
            for name, size in self.sizes.items()
        }


@pytest.fixture(autouse=True)
def few_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (distribution.POOL, distribution.SPATIAL) == (2048, 2023)
    monkeypatch.setattr(distribution, "POOL", POOL)
    monkeypatch.setattr(distribution, "SPATIAL", SPATIAL)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Any, Any]:
    made, real = save(tmp_path / "made", noise(12, 1)), save(tmp_path / "real", noise(10, 2))
    return open_pictures(str(made)), open_pictures(str(real))


def test_precision_is_of_the_made_and_recall_of_the_real(tmp_path: Path) -> None:
    """Half of the real pictures' kinds: each is right, half is missing."""
    dark, light = noise(40, 1) // 8, 255 - noise(40, 2) // 8
    real = open_pictures(str(save(tmp_path / "real", np.concatenate([dark, light]))))
    made = open_pictures(str(save(tmp_path / "made", dark ^ 1)))
    found = measure(made, real, make_extractor("pixels"), ["precision", "recall"], tmp_path / "w")
    assert found["precision_pixels"]["value"] == 1
    assert found["recall_pixels"]["value"] == 0.5


def test_all_figures_of_the_adm_protocol(sets: tuple[Any, Any]) -> None:
    made, real = sets
    a, b = (Simple()(list(s)) for s in sets)
    found = measure(made, real, Simple())
    assert list(found) == ["fid", "sfid", "is", "precision", "recall", "kid"]
    values = {name: figure["value"] for name, figure in found.items()}
    expected = {
        "fid": frechet_distance(a["features"], b["features"]),
        "sfid": frechet_distance(a["spatial"], b["spatial"]),
        "is": inception_score(a["logits"], 5000)[0],
        "kid": kernel_distance(a["features"], b["features"], subsets=1, size=10)[0],
    }
    both = precision_recall(b["features"], a["features"], 3)
    expected |= dict(zip(("precision", "recall"), both, strict=True))
    assert values == pytest.approx(expected, rel=1e-9)
    json.dumps(found, allow_nan=False)
    for name, figure in found.items():
        assert (figure["n"], figure["extractor"], figure["extractor_sha256"]) == (
            12,
            "inception",
            "aa",
        )
        assert (figure["source"], figure["source_sha256"]) == (made.name, made.digest)
        if name != "is":
            assert figure["n_reference"] == 10
            assert (figure["reference"], figure["reference_sha256"]) == (real.name, real.digest)
        assert figure["warning"], name


def test_distances_to_a_references_moments(tmp_path: Path, sets: tuple[Any, Any]) -> None:
    made, _ = sets
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((POOL, 40))
    given = moments(mu=rng.standard_normal(POOL), sigma=spread @ spread.T)
    np.savez(tmp_path / "ref.npz", **given)
    reference = open_pictures(str(tmp_path / "ref.npz"))
    found = measure(made, reference, Simple(), ["fid", "sfid"])
    arrays = Simple()(list(made))
    for name, (key, mean, covariance) in {
        "fid": ("features", "mu", "sigma"),
        "sfid": ("spatial", "mu_s", "sigma_s"),
    }.items():
        x = arrays[key].astype(np.float64)
        expected = frechet_from_moments(
            x.mean(0), np.cov(x, rowvar=False), given[mean], given[covariance]
        )
        assert found[name]["value"] == pytest.approx(expected, rel=1e-9)
        assert found[name]["n_reference"] is None
        assert found[name]["reference_moments"] is True
        assert found[name]["reference_sha256"] == reference.digest


def test_what_a_reference_without_pictures_does_not_allow(
    tmp_path: Path, sets: tuple[Any, Any]
) -> None:
    made, _ = sets
    np.savez(tmp_path / "ref.npz", **moments())
    reference = open_pictures(str(tmp_path / "ref.npz"))
    for metric in ("precision", "recall", "kid"):
        with pytest.raises(UserError, match=rf"{metric}: .*no pictures \(`arr_0`\)"):
            measure(made, reference, Simple(), [metric])
    assert set(impossible(made, reference, Simple())) == {"precision", "recall", "kid"}
    with pytest.raises(UserError, match=r"fd_pixels: .*holds moments of Inception and no pictures"):
        measure(made, reference, make_extractor("pixels"), ["fid"])
    with pytest.raises(UserError, match="holds moments"):  # nothing is left to measure
        measure(made, reference, make_extractor("pixels"))
    with pytest.raises(UserError, match=r"made.*holds moments|has 0 pictures"):
        measure(reference, made, Simple(), ["fid"])
    np.savez(tmp_path / "pool.npz", **moments(mu_s=None, sigma_s=None))
    pool = open_pictures(str(tmp_path / "pool.npz"))
    with pytest.raises(UserError, match=r"sfid: .*no spatial moments"):
        measure(made, pool, Simple(), ["sfid"])
    found = measure(made, pool, Simple(), ["fid"])
    assert "not from the ADM suite" in found["fid"]["warning"]
    np.savez(tmp_path / "other.npz", **moments(65))
    other = open_pictures(str(tmp_path / "other.npz"))
    with pytest.raises(UserError, match=r"fid: .*`mu` has 65 dimensions.*another network"):
        measure(made, other, Simple(), ["fid"])


def test_another_extractor_takes_a_references_pictures_and_not_its_moments(
    tmp_path: Path, sets: tuple[Any, Any]
) -> None:
    made, _ = sets
    np.savez(tmp_path / "ref.npz", arr_0=noise(9, 5), **moments())
    reference = open_pictures(str(tmp_path / "ref.npz"))
    figure = measure(made, reference, make_extractor("pixels"), ["fid"])["fd_pixels"]
    flat = [np.stack(list(s)).reshape(len(s), -1) / 127.5 - 1 for s in (made, reference)]
    assert figure["value"] == pytest.approx(frechet_distance(*flat), rel=1e-5)
    assert figure["n_reference"] == 9
    assert "reference_moments" not in figure
    for metric in ("sfid", "is"):
        with pytest.raises(UserError, match=f"{metric}_pixels: features pixels have no"):
            measure(made, reference, make_extractor("pixels"), [metric])


def test_refusals_of_measure(tmp_path: Path, sets: tuple[Any, Any]) -> None:
    made, real = sets
    pixels = make_extractor("pixels")
    with pytest.raises(UserError, match="metric fld: choose from fid, sfid"):
        measure(made, real, pixels, ["fld"])
    one = open_pictures(str(save(tmp_path / "one", noise(1))))
    with pytest.raises(UserError, match=r"fd_pixels: .*one has 1 pictures; it needs 2 or more"):
        measure(made, one, pixels, ["fid"])
    three = open_pictures(str(save(tmp_path / "three", noise(3))))
    with pytest.raises(UserError, match=r"recall_pixels: .*three has 3 pictures; it needs 4"):
        measure(three, real, pixels, ["recall"])
    large = open_pictures(str(save(tmp_path / "large", noise(5, side=6))))
    extract(large, make_extractor("pixels"))
    extract(made, make_extractor("pixels"))  # both in the cache: no batch is looked at
    with pytest.raises(UserError, match=r"48 numbers for .*108 for .*--size"):
        measure(made, large, make_extractor("pixels"), ["fid"])
    with pytest.raises(UserError, match="size None, and the reference 4"):
        measure(made, open_pictures(str(tmp_path / "real"), 4), pixels, ["fid"])


class Fast(Extractor):
    """Two numbers a picture."""

    name, batch = "fast", 256

    def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"features": pixels.reshape(len(pixels), -1)[:, :2].astype(np.float32)}


@pytest.mark.parametrize(
    ("n", "told"), [(2, "covariance is singular"), (99, "below 100 the distance"), (100, None)]
)
def test_a_fid_of_few_pictures_says_so(
    tmp_path: Path, n: int, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distribution.SENSIBLE["fid"] == 10_000
    monkeypatch.setitem(distribution.SENSIBLE, "fid", 100)
    np.savez(tmp_path / "a.npz", arr_0=noise(n, 1))
    np.savez(tmp_path / "b.npz", arr_0=noise(100, 2))
    a, b = (open_pictures(str(tmp_path / f"{name}.npz")) for name in "ab")
    for pair in ((a, b), (b, a)):  # the smaller set counts
        warning = measure(*pair, Fast(), ["fid"])["fd_fast"].get("warning")
        assert (told in warning) if told else (warning is None)


def test_an_inception_score_needs_no_reference(sets: tuple[Any, Any]) -> None:
    made, real = sets
    assert measure(made, None, Simple(), ["is"]) == measure(made, real, Simple(), ["is"])
    assert list(measure(made, None, Simple())) == ["is"]
    assert set(impossible(made, None, Simple())) == {"fid", "sfid", "precision", "recall", "kid"}
    with pytest.raises(UserError, match=r"^fid: needs a reference to compare with"):
        measure(made, None, Simple(), ["fid"])
    with pytest.raises(UserError, match="made: needs a reference to compare with; name one"):
        measure(made, None, make_extractor("pixels"))


def test_no_metrics_give_no_figures(sets: tuple[Any, Any]) -> None:
    assert measure(*sets, Counting(), []) == {}


def test_pictures_of_other_sizes_are_told(tmp_path: Path, sets: tuple[Any, Any]) -> None:
    made, _ = sets

    def warnings(left: Any, right: Any, *metrics: str) -> list[str]:
        return [f.get("warning", "") for f in measure(left, right, Counting(), [*metrics]).values()]

    large = open_pictures(str(save(tmp_path / "large", noise(9, side=8))))
    found = warnings(made, large, "fid", "kid")
    assert len(found) == 2
    for warning in found:
        assert "pictures of 2 sizes, such as 4 x 4 and 8 x 8, were each brought" in warning
    np.savez(tmp_path / "wide.npz", arr_0=np.zeros((9, 4, 6, 3), np.uint8))
    wide = open_pictures(str(tmp_path / "wide.npz"))
    assert "pictures of 6 x 4 were squeezed or cut" in warnings(wide, wide, "fid")[0]
    assert "2 sizes" not in measure(made, large, Simple(), ["is"])["is"]["warning"]
    square = [open_pictures(str(tmp_path / name), 4) for name in ("made", "wide.npz")]
    for warning in warnings(*square, "fid"):
        assert "sizes" not in warning
        assert "squeezed" not in warning


def test_moments_of_pictures_of_another_size_are_told(
    tmp_path: Path, sets: tuple[Any, Any]
) -> None:
    made, _ = sets
    for side, told in ((4, False), (8, True)):
        np.savez(tmp_path / f"{side}.npz", arr_0=noise(9, side=side), **moments())
        reference = open_pictures(str(tmp_path / f"{side}.npz"))
        for figure in measure(made, reference, Simple(), ["fid", "sfid"]).values():
            said = "moments are of pictures of 8 x 8, and these are 4 x 4" in figure["warning"]
            assert said is told
    resized = [open_pictures(str(tmp_path / name), 2) for name in ("made", "4.npz")]
    warning = measure(*resized, Simple(), ["fid"])["fid"]["warning"]
    assert "moments are of pictures of 4 x 4, and these are 2 x 2" in warning


def test_files_that_are_passed_over_are_told(tmp_path: Path, sets: tuple[Any, Any]) -> None:
    made, real = sets
    assert "passed over" not in measure(made, real, Counting(), ["fid"])["fd_counting"]["warning"]
    (tmp_path / "real" / "a.tiff").touch()
    (tmp_path / "real" / "b.txt").touch()
    (tmp_path / "real" / ".hidden").touch()
    found = measure(made, open_pictures(real.name), Simple(), ["fid", "is"])
    assert "2 other files in" in found["fid"]["warning"]
    assert "passed over" not in found["is"]["warning"]
    assert "2 other files" in measure(open_pictures(real.name), None, Simple())["is"]["warning"]


# The command


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            main(["eval", "fid", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_command(tmp_path: Path, sets: tuple[Any, Any], run: Run) -> None:
    made, real = sets
    arguments = (made.name, real.name, "--features", "pixels", "--metrics", "fid")
    code, out, err = run(*arguments, "-o", tmp_path / "deep/f.json", "--work", tmp_path / "work")
    assert code == 0, err
    figures = json.loads((tmp_path / "deep/f.json").read_text())
    assert list(figures) == ["fd_pixels", "left_out"]
    assert f"{figures['fd_pixels']['value']:.4g}" in out
    assert real.digest[:12] in out
    assert "warning: Fréchet distance (pixels): 10 pictures in 48 dimensions" in out
    assert "left out" not in out
    out = run(*arguments[:-2], "--work", tmp_path / "work")[1]
    assert "left out: sFID (pixels): features pixels have no spatial ones" in out
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_the_command_refuses_in_one_line(tmp_path: Path, sets: tuple[Any, Any], run: Run) -> None:
    made, real = (s.name for s in sets)
    np.savez(tmp_path / "floats.npz", arr_0=noise(2) / 255)
    (tmp_path / "empty").mkdir()
    for arguments, told in [
        ((made, tmp_path / "nowhere"), "nowhere: no such file or folder"),
        ((tmp_path / "empty", real), "no pictures in this folder"),
        ((tmp_path / "floats.npz", real), "arr_0 is float64"),
        ((made, real, "--metrics", "fld"), "--metrics fld: choose from"),
        ((made, real, "--features", "vgg"), "no such extractor; choose from"),
        ((made, real, "--features", "inception:nowhere.pth"), "nowhere.pth: no such file"),
        ((made, real, "-o", tmp_path), "is a folder; name a JSON file"),
        ((made, real, "--metrics", "sfid"), "sfid_pixels: features pixels have no spatial"),
    ]:
        given = ["--features", "pixels", *arguments]  # the last one counts
        code, out, err = run(*given)
        assert code == 2, err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, err
        assert told in errors[0]
        assert "Traceback" not in out + err


def test_two_ranks_make_what_one_makes(tmp_path: Path, run: Run) -> None:
    """Bit for bit, and only rank 0 speaks."""
    made, real = save(tmp_path / "made", noise(300, 1)), save(tmp_path / "real", noise(300, 2))
    arguments = [str(made), str(real), "--features", "pixels", "--metrics", "fid"]
    code, _, err = run(*arguments, "--work", tmp_path / "work1", "-o", tmp_path / "1.json")
    assert code == 0, err
    both = []
    for rank in "01":
        environment = {**os.environ, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        command = [sys.executable, "-m", "mmfusion", "eval", "fid", *arguments]
        command += ["--work", str(tmp_path / "work2"), "-o", str(tmp_path / "2.json")]
        both.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "Fréchet distance (pixels)" in said[0]
    assert said[1] == ""
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()
    first, second = (sorted((tmp_path / f"work{world}").glob("*/*.npz")) for world in (1, 2))
    assert len(first) == 4
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_an_inception_score_of_sorted_pictures_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    """Four classes in four splits: each split has one, so the score is 1 where it should be 4."""
    monkeypatch.setattr(distribution, "SPLIT", 300)

    class Sorted(Simple):
        def __call__(self, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
            return super().__call__(pictures) | {
                "logits": np.eye(1008, dtype=np.float32)[[p[0, 0, 0] for p in pictures]] * 50
            }

    four = np.arange(4, dtype=np.uint8)
    for name, order in (("sorted", np.repeat(four, 300)), ("turns", np.tile(four, 300))):
        pixels = np.tile(order[:, None, None, None], (4, 4, 3))
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels)
        made = open_pictures(str(tmp_path / f"{name}.npz"))
        figure = measure(made, None, Sorted(), ["is"], tmp_path / "work" / name)["is"]
        told = "which is the one to compare" in figure.get("warning", "")
        assert told == (name == "sorted")
        assert figure["shuffled"] > 3.9
    assert figure["value"] > 3.9
