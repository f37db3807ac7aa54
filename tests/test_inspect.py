"""`mmfusion data inspect`: exact figures, and pictures that show what is there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_config
from material import REAL, encoded, make_vae, pixels, run, save, saved
from PIL import Image as PILImage

from mmfusion.codecs.image import prepare
from mmfusion.codecs.text import Tokenizer
from mmfusion.config.files import load
from mmfusion.data_pipelines.inspection import contact_sheet, plot_rows
from mmfusion.data_pipelines.inspection import inspect as inspecting
from mmfusion.data_pipelines.inspection.inspect import inspect
from mmfusion.data_pipelines.inspection.statistics import some_documents, spread, statistics
from mmfusion.data_pipelines.latents import write_latents
from mmfusion.data_pipelines.samples import Sample
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.errors import UserError
from mmfusion.mask import dense_mask
from mmfusion.overrides import write_yaml
from mmfusion.sequence import Label, Row, Text

# Figures


def test_figures_are_exact(tmp_path: Path, tokenizer: Tokenizer):
    words = [["a", "a handwritten three"], ["the digit 3"], ["the number two"]]
    samples: list[tuple[str, dict[str, Any]]] = [
        (f"s{n}", {"json": {"label": n % 2, "captions": c}, "png": encoded(n)})
        for n, c in enumerate(words)
    ]
    samples += [
        ("bad", {"json": {"label": "x", "captions": ["seven"]}, "jpg": b"no"}),
        ("mixed", {"json": {"content": [{"text": "a"}, {"image": "0.png"}]}, "0.png": encoded(9)}),
    ]
    paths = write_shards(tmp_path, "a", samples, per_shard=2)
    found = statistics(Shards(f"{tmp_path}/*.tar"), 100, 100, 0, tokenizer)
    assert (found["shards"], found["samples"], found["read"]) == (3, 5, 5)
    assert found["bytes"] == sum(path.stat().st_size for path in paths)
    assert found["members"]["png"] == {"count": 3, "bytes": sum(len(encoded(n)) for n in range(3))}
    assert {e: m["count"] for e, m in found["members"].items()} == {
        "json": 5, "png": 3, "jpg": 1, "0.png": 1,
    }  # fmt: skip
    assert found["kinds"] == {"pictures": 5, "label": 3, "captions": 4, "content": 1}
    lengths = [len(text) for group in words for text in group] + [5]
    captions = found["captions"]
    assert captions["per_sample"] == {"mean": 1.25, "median": 1, "p99": 2, "most": 2}
    assert captions["characters"]["mean"] == round(float(np.mean(lengths)), 2)
    assert captions["characters"]["most"] == captions["characters"]["p99"] == 19
    tokens = [len(tokenizer.encode(text)) for group in [*words, ["seven"]] for text in group]
    assert captions["tokens"]["mean"] == round(float(np.mean(tokens)), 2)
    assert found["labels"] == {"classes": 2, "most": [[0, 2], [1, 1]], "least": []}
    assert found["content_parts"]["mean"] == 2
    pictures = found["pictures"]
    assert (pictures["samples"], pictures["decoded"]) == (5, 4)
    assert (pictures["sizes"], pictures["modes"]) == ({"20 x 16": 4}, {"RGB": 4})
    assert found["damage"] == {"label": 1, "picture": 1}


def test_spread_is_that_of_the_sorted_values():
    values = np.random.default_rng(0).integers(0, 300, 1000).tolist()
    found, ordered = spread(values), sorted(values)
    assert found["mean"] == round(float(np.mean(values)), 2)
    ranks = found["median"], found["p99"], found["most"]
    assert ranks == (ordered[499], ordered[989], ordered[-1])
    assert all(isinstance(value, int) for value in ranks)  # as they are printed
    assert spread([]) == {}


def test_a_subset_says_its_size_and_damaged_shards_are_counted(tmp_path: Path):
    samples = [(f"s{n}", {"json": {"label": n}, "png": encoded(n)}) for n in range(20)]
    write_shards(tmp_path, "a", samples)
    save(tmp_path / "b.tar", b"not a tar file")
    shards = Shards(f"{tmp_path}/*.tar")
    found = [statistics(shards, 7, 3, seed) for seed in (0, 0, 1)]
    assert (found[0]["read"], found[0]["pictures"]["samples"]) == (7, 3)
    assert found[0]["labels"]["classes"] == 7
    assert found[0] == found[1] != found[2]
    assert found[0]["damage"] == {"shard": 1}


# The sheet


def test_the_patterns_share_the_cells_of_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sheets: list[dict[str, list]] = []
    monkeypatch.setattr(inspecting, "draw_sheet", lambda s: sheets.append(s))
    monkeypatch.setattr(inspecting, "save", lambda *_: None)
    for name in "ab":
        samples = [(f"s{n}", {"json": {"label": n}, "png": encoded(n)}) for n in range(9)]
        write_shards(tmp_path, name, samples)
    patterns = [f"{tmp_path}/{name}-*.tar" for name in "ab"]
    for count in (8, 1):
        inspect(patterns, tmp_path / "x.png", count=count)
    assert [list(map(len, sheet.values())) for sheet in sheets] == [[4, 4], [1, 1]]


def test_a_sheet_shows_pictures_texts_and_what_is_learned(tmp_path: Path):
    half = "\ud83d"  # of a pair, as broken JSON has it
    content = [{"image": "0.png"}, {"answer": f"$b$ 犬{half}"}, {"image": "1.png", "target": True}]
    members = {"json": json.dumps({"content": content}).encode()}
    strip = Sample({**members, "0.png": encoded(0), "1.png": encoded(1)}, "x:strip", "strip")
    cell = {"png": encoded(2), "json": b'{"label": 1, "captions": ["a \\u2028 dog", "b"]}'}
    parts = contact_sheet.show(strip, [])
    (alone,) = contact_sheet.show(Sample(cell, "x:cell", "cell"), ["cat", "dog"])
    figure = contact_sheet.draw_sheet({f"$some$ {half}": [*parts, alone], "others": [alone] * 9})
    inspecting.save(figure, tmp_path / "sheet.png")  # letters that the font lacks are no warning
    first, second, third, fourth, *rest = figure.subfigs[0].axes
    for axes, n in ((first, 0), (third, 1), (fourth, 2)):
        assert np.array_equal(axes.images[0].get_array(), pixels(n))
    assert second.texts[0].get_text() == "$b$ 犬\\ud83d"
    learned = [axes.spines["left"].get_linewidth() == 2 for axes in (first, second, third, fourth)]
    assert learned == [False, True, True, False]
    assert (first.get_xlabel(), second.get_xlabel()) == ("strip", "")
    assert fourth.get_xlabel() == "cell\n1: dog\na dog (and 1 more)"
    assert not any(axes.axison for axes in rest)
    assert sum(len(axes.images) for axes in figure.subfigs[1].axes) == 9


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"json": b"{", "png": encoded(0)}, "damaged, json: .json: not valid JSON"),
        ({"json": b'{"label": "a"}', "png": encoded(0)}, "damaged, label: .json: `label` is"),
        ({"json": b'{"content": []}', "png": encoded(0)}, "damaged, content: .json: an interl"),
        ({"png": b"no"}, "damaged, picture: .png: not a readable picture"),
        ({"png": b"P5\n2 2\n65535\n" + bytes(8)}, "no known range"),
    ],
)
def test_what_is_damaged_is_said_in_the_sheet(members: dict[str, bytes], said: str):
    (cell,) = contact_sheet.show(Sample(members, "x:k", "k"), [])
    assert said in f"{cell.what} {cell.below}"
    assert isinstance(cell.what, str) == ("json" not in members)


def test_the_sheet_shows_what_training_sees():
    """Of a grey value of 16 bits, and of what is transparent."""
    pictures = [PILImage.fromarray(np.full((9, 9), 25_599, np.uint16))]
    pictures += [PILImage.new("LA", (9, 9), (10, 77)), PILImage.new("RGBA", (9, 9), (1, 2, 3, 99))]
    for picture in pictures:
        ((shown, *_),) = contact_sheet.show(Sample({"png": saved(picture)}, "x:k"), [])
        assert isinstance(shown, PILImage.Image)
        assert np.array_equal(np.asarray(shown.convert("RGB")), prepare(picture, 9, 3))


def test_latents_in_false_colour_or_decoded(tmp_path: Path, tokenizer: Tokenizer):
    vae = make_vae(tmp_path / "vae")
    samples = [(f"s{n}", {"json": {"label": 0}, "png": encoded(n)}) for n in range(2)]
    write_shards(tmp_path / "pictures", "a", samples)
    image = {"codec": "vae", "vae": str(vae), "size": 16, "patch": 2,
             "latent_channels": 4, "downsampling": 2}  # fmt: skip
    text = {"tokenizer": str(tokenizer.path)}
    config = run_config(tmp_path, tmp_path, image=image, text=text, row_length=256)
    write_latents(f"{tmp_path}/pictures/*.tar", tmp_path / "latents", config.image)
    false = contact_sheet.false_colour(np.arange(48, dtype=np.float32).reshape(3, 4, 4))
    assert np.array_equal(np.asarray(false)[..., 0], np.asarray(false)[..., 2])
    assert (np.asarray(false).min(), np.asarray(false).max()) == (0, 255)
    pattern = f"{tmp_path}/latents/*.tar"
    inspect([pattern], tmp_path / "false.png")
    result = inspect([pattern], tmp_path / "true.png", config)
    assert result["patterns"][0]["kinds"] == {"latents": 2, "label": 2}
    (documents,) = result["documents"]
    assert (documents["documents"], documents["damage"]) == (2, {})
    with PILImage.open(tmp_path / "false.png") as a, PILImage.open(tmp_path / "true.png") as b:
        assert a.size == b.size
        assert a.tobytes() != b.tobytes()
    pictures = inspect([f"{tmp_path}/pictures/*.tar"], None, config)
    assert pictures["documents"][0]["damage"] == {"latents": 2}
    assert "mmfusion data latents" in pictures["documents"][0]["first_damage"]


# Rows


@pytest.fixture(scope="module")
def rows(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """A packed row of each task of the digits."""
    config = run_config(digits_data, tmp_path_factory.mktemp("run"), row_length=128)
    tokenizer = Tokenizer(f"{digits_data}/tokenizer.model")
    found = {}
    for source in config.data.sources:
        shards = Shards(source.shards)
        documents, figures = some_documents(config, source, shards, tokenizer, 0)
        assert not figures["damage"]
        ((row, about),) = plot_rows.plotted(config, source, documents, tokenizer)
        assert 2 <= len(about) - 1 <= 4
        assert row.doc.max() == len(about) - 2
        found[source.task] = row
    return found


@pytest.mark.parametrize(
    "task", ["class_to_image", "text_to_image", "image_to_text", "interleaved"]
)
def test_bands_and_mask_are_those_of_the_row(rows: dict[str, Row], task: str):
    row = rows[task]
    bands = plot_rows.bands(row)

    def same(colours: np.ndarray) -> np.ndarray:
        return (colours[:, None] == colours[None]).all(-1)

    real = row.doc >= 0
    grey = plot_rows.rgb([plot_rows.KINDS["padding"]])
    for band in bands.values():
        assert ((band == grey).all(-1) == ~real).all()
    for name in ("doc", "order", "stream"):
        values = getattr(row, name)[real]
        assert (same(bands[name][real]) == (values[:, None] == values[None])).all()
    kinds = {tuple(c) for c in bands["kind"][real & (row.kind == 3)].tolist()}
    assert len(kinds) == (1 if task == "image_to_text" else 2)
    parts = (torch.from_numpy(getattr(row, n)[None]) for n in ("doc", "order", "stream"))
    seen = dense_mask(*parts)[0].numpy()
    shown = plot_rows.mask(row, row.length)
    assert ((shown != 255).any(-1) == seen).all()
    assert (shown[seen] == bands["kind"][np.nonzero(seen)[0]]).all()


def test_learned_text_has_a_colour_of_its_own():
    row = Row(12, 4, 2, 10)
    row.document([Label(None), Text([1, 5, 6]), Text([2, 7, 3], loss=True)])
    kinds = [list(plot_rows.KINDS).index(name) for name in
             ("label", "text, given", "text, learned", "padding")]  # fmt: skip
    colours = plot_rows.rgb(list(plot_rows.KINDS.values()))[kinds]
    assert np.array_equal(plot_rows.bands(row)["kind"], colours.repeat([2, 3, 3, 4], 0))


def test_rows_are_plotted_two_side_by_side_and_none_when_nothing_fits(
    rows: dict[str, Row], digits_data: Path, tmp_path: Path
):
    plotted = [plot_rows.PlottedRow(row, ["$a row", "doc 0"]) for row in rows.values()]
    figure = plot_rows.plot_rows(plotted[:3])
    assert sum(len(axes.images) for axes in figure.axes) == 3 * 5
    config = run_config(digits_data, tmp_path)
    assert not plot_rows.plotted(config, config.data.sources[0], [[Text([0] * 97)]], None)


# The command


@pytest.fixture(scope="module")
def digits_config(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    path = folder / "run.yaml"
    config = run_config(digits_data, folder / "out").model_dump(exclude_none=True)
    path.write_text(write_yaml(config), encoding="utf-8")
    assert load(str(path)).row_length == 96
    return path


def test_the_command_writes_sheet_rows_and_figures(
    digits_data: Path, digits_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "new/x.png"
    assert run("data", "inspect", "--config", digits_config, "row_length=128", "-o", output) == 0
    said = capsys.readouterr().out
    assert "1,500 samples" in said
    assert "10 classes; most common: 3 (153)" in said
    assert "documents of next (interleaved): mean" in said
    result = json.loads(output.with_suffix(".json").read_text())
    assert [facts["samples"] for facts in result["patterns"]] == [1500, 6000]
    assert [d["source"] for d in result["documents"]] == ["class", "draw", "caption", "next"]
    caption = result["documents"][2]
    assert caption["tokens"]["mean"] == pytest.approx(sum(
        caption["mean_of_each_kind"][kind] for kind in ("text", "image")), abs=0.02)  # fmt: skip
    assert caption["per_row"] == round(128 / caption["tokens"]["mean"], 2)
    for name in ("x.png", "x.rows.png"):
        with PILImage.open(output.with_name(name)) as picture:
            assert picture.width == 1600
    first = output.read_bytes()
    again = ["data", "inspect", "--config", digits_config, "row_length=128", "-o", output]
    assert run(*again) == 0
    assert output.read_bytes() == first
    assert run(*again, "--seed", 1) == 0
    assert output.read_bytes() != first


def test_given_shards_serve_the_tasks_that_they_can(digits_data: Path, digits_config: Path):
    pattern = f"{digits_data}/held_out-*.tar"
    config = load(str(digits_config))
    every = inspect([pattern], None, config)["documents"]
    assert [d["task"] for d in every] == ["class_to_image", "text_to_image", "image_to_text"]
    (one,) = inspect([pattern], None, config, "interleaved")["documents"]
    assert (one["documents"], one["damage"]) == (0, {"content": 200})
    assert "documents" not in inspect([pattern])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "give shards, or --config"),
        (("none-*.tar",), "no shards match none-*.tar"),
        (("a.tar", "--task", "class_to_image"), "--task goes with --config"),
        (("a.tar", "--config", "tiny", "--task", "draw"), "is one of class_to_image, "),
        (("a.tar", "-o", "x.jpg"), "give a name that ends in .png"),
    ],
)
def test_mistakes_are_told(
    arguments: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]
):
    assert run("data", "inspect", *arguments) == 2
    assert what in capsys.readouterr().err


def test_a_missing_tokenizer_is_told(digits_data: Path, digits_config: Path):
    config = load(str(digits_config), ["text.tokenizer=nowhere.model"])
    with pytest.raises(UserError, match=r"tokenizer nowhere\.model: no such file"):
        inspect([f"{digits_data}/held_out-*.tar"], None, config)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data are not here")
def test_real_captions(tmp_path: Path):
    path = save(tmp_path / "a.tar", (REAL / "flickr8k_1k/flickr8k_1k.tar").read_bytes())
    (facts,) = inspect([str(path)], tmp_path / "x.png", count=12)["patterns"]
    assert facts["kinds"] == {"pictures": 1000, "captions": 1000}
    assert facts["captions"]["per_sample"]["mean"] == 5
