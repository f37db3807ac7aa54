"""Answers made by several processes, kept, resumed: the same as a pipeline gives at once."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import model_config, picture, random_decoder

from mmfusion import ImageSlot, Pipeline, TextSlot
from mmfusion.codecs.text import Tokenizer
from mmfusion.data_pipelines.shards import Shards
from mmfusion.errors import UserError
from mmfusion.eval import sample_store as module
from mmfusion.eval import work
from mmfusion.eval.sample_store import SampleStore

fork = multiprocessing.get_context("fork")
STEPS = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def pipeline(tokenizer: Tokenizer) -> Pipeline:
    config = model_config()
    return Pipeline(config, random_decoder(config, len(tokenizer)), tokenizer)


def kept_by(pipeline: Pipeline, folder: Path, **changes: Any) -> SampleStore:
    return SampleStore(pipeline, folder, **{"model": "abc", "seed": 5, "batch": 3, **changes})


def same(made: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return all(same(a, b) for a, b in zip(made, expected, strict=True))
    if isinstance(expected, str):
        return made == expected
    return np.array_equal(np.asarray(made), np.asarray(expected))


def test_kept_answers_are_the_pipelines_own(pipeline: Pipeline, tmp_path: Path) -> None:
    answers, shown = kept_by(pipeline, tmp_path), [picture(i) for i in range(5)]
    told = ["one", "two", "", "four", "a five"]
    prompt = [[shown[i], "then comes", TextSlot(), ImageSlot(**STEPS)] for i in range(4)]
    for task, given, options in (
        ("class_to_image", [[3, 1, 4, 1, 5, 9, 2]], STEPS),
        ("text_to_image", [["a seven", "two, drawn by hand", "nine", "the digit 3"]], STEPS),
        ("image_to_text", [shown], {}),
        ("edit", [shown, "top"], {"label": [1, 2, 3, 4, 5], **STEPS}),
        ("generate", [prompt], {}),
        ("generate", [[[shown[0], TextSlot()]]], {}),
    ):
        found = getattr(answers, task)(*given, **options)
        expected = getattr(pipeline, task)(*given, seed=5, **options)
        assert len(found) == len(expected)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    pairs = zip(
        answers.log_likelihood(shown, told), pipeline.log_likelihood(shown, told), strict=True
    )
    for found, expected in pairs:  # batches of other shapes round otherwise
        assert found.tokens == expected.tokens
        assert found.log_probability == pytest.approx(expected.log_probability, rel=1e-5)


def test_answers_are_shards_that_say_what_was_asked(pipeline: Pipeline, tmp_path: Path) -> None:
    answers = kept_by(pipeline, tmp_path)
    classes = Shards(str(answers.class_to_image([7, 8, 9, 0], **STEPS).folder / "*.tar"))
    assert classes.sizes.tolist() == [3, 1]
    assert [sample.json() for sample in classes] == [{"label": i} for i in (7, 8, 9, 0)]
    shutil.copy(classes.paths[0], Path(classes.paths[0]).with_name("00000000 (copy).tar"))
    assert len(answers.class_to_image([7, 8, 9, 0], **STEPS).pictures(8)) == 4
    drawn = answers.text_to_image(["a seven"], **STEPS)
    sample = Shards(str(drawn.folder / "*.tar"))[0]
    assert (sample.key, sample.json()["captions"]) == ("00000000", ["a seven"])
    asked = json.loads((drawn.folder / "question.json").read_text("utf-8"))
    assert (asked["seed"], asked["batch"], asked["options"]) == (5, 3, STEPS)


def test_what_is_there_is_not_made_again(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept_by(pipeline, tmp_path).class_to_image(range(7), **STEPS)
    paths = sorted(first.folder.glob("*.tar"))
    before = {path: path.read_bytes() for path in paths}
    paths[1].unlink()
    asked: list[list[int]] = []
    draw = pipeline.class_to_image

    def counted(labels: Any, **options: Any) -> Any:
        asked.append(list(labels))
        return draw(labels, **options)

    monkeypatch.setattr(pipeline, "class_to_image", counted)
    again = kept_by(pipeline, tmp_path).class_to_image(range(7), **STEPS)
    assert asked == [[3, 4, 5]]
    assert again.digest == first.digest
    assert {path: path.read_bytes() for path in paths} == before


def test_another_question_has_another_folder(pipeline: Pipeline, tmp_path: Path) -> None:
    def folder(changed: dict, options: dict, labels: list[int]) -> Path:
        made = kept_by(pipeline, tmp_path, **changed).class_to_image(labels, **{**STEPS, **options})
        return made.folder

    other: list[tuple[dict, dict, list[int]]] = [
        ({}, {}, [1, 2]), ({}, {}, [2, 1]), ({"model": "other"}, {}, [1, 2]),
        ({"seed": 6}, {}, [1, 2]), ({"batch": 2}, {}, [1, 2]),
        ({}, {"num_inference_steps": 4}, [1, 2]), ({}, {"guidance": 1.5}, [1, 2]),
    ]  # fmt: skip
    folders = {folder(*each) for each in other}
    assert len(folders) == len(other)
    assert folder(*other[0]) in folders
    pipeline.decoder.double()
    try:
        assert folder(*other[0]) not in folders
    finally:
        pipeline.decoder.float()


def test_what_a_row_holds_is_known_before_it_is_asked(pipeline: Pipeline, tmp_path: Path) -> None:
    answers = kept_by(pipeline, tmp_path)
    assert answers.fits("a seven")
    assert not answers.fits("seven " * 200)
    answers.check("class_to_image", STEPS)
    answers.check("image_to_text", {"beams": 2})
    with pytest.raises(UserError, match="num_inference_steps"):
        answers.check("class_to_image", {"num_inference_steps": 10_000})
    with pytest.raises(UserError, match=r"image_to_text takes .* lower max_new_tokens"):
        answers.check("image_to_text", {"max_new_tokens": 500})


def test_other_pictures_are_another_question() -> None:
    a, b = picture(0), picture(1)
    digests = {
        module._digest(value)
        for value in (a, b, [a], [a, b], [b, a], ["1"], [1], [["a"], "b"], ["a", ["b"]],
                      {"x": 1}, {"x": "1"}, None, np.zeros(2), np.zeros((1, 2)), [True], [1.0])
    }  # fmt: skip
    assert len(digests) == 16
    assert module._digest({"a": 1, "b": 2}) == module._digest({"b": 2, "a": 1})
    assert module._digest(a.convert("RGB")) != module._digest(a)


def test_a_damaged_answer_is_one_line(pipeline: Pipeline, tmp_path: Path) -> None:
    made = kept_by(pipeline, tmp_path).class_to_image([1, 2], **STEPS)
    path = made.folder / "00000000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"\x89PNG") + 40] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"00000000\.tar:00000000\.png: differs"):
        list(kept_by(pipeline, tmp_path).class_to_image([1, 2], **STEPS))


def test_seconds_are_of_the_last_time_a_file_was_made(tmp_path: Path) -> None:
    made = (("0", 5.0), ("1", 2.0), ("0", 1))
    lines = [json.dumps({"file": file, "seconds": seconds}) for file, seconds in made]
    text = "\n".join([*lines, '{"file": "1", "sec'])
    (tmp_path / "seconds.jsonl").write_text(text, "utf-8")
    assert module._seconds(tmp_path / "seconds.jsonl") == 3.0


# Work that processes share


def number_file(folder: Path, number: int, path: Path) -> None:
    time.sleep(0.01)
    with (folder / "made.txt").open("a") as log:
        log.write(f"{number} {os.environ.get('RANK')}\n")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(str(number * number))
    os.replace(part, path)


def numbers(folder: Path, rank: int, world: int, begin: Any = None, count: int = 20) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    if begin:
        begin.wait()
    parts = {
        folder / f"{n:02d}": (lambda path, n=n: number_file(folder, n, path)) for n in range(count)
    }
    work.share(parts, "numbers", "number", count, 1)  # type: ignore[arg-type]
    assert all(path.exists() for path in parts)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shared_work_is_done_once_by_all(tmp_path: Path, world: int) -> None:
    begin = fork.Barrier(world)
    processes = [
        fork.Process(target=numbers, args=(tmp_path, r, world, begin)) for r in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * world
    lines = [line.split() for line in (tmp_path / "made.txt").read_text().splitlines()]
    assert sorted(int(n) for n, _ in lines) == list(range(20))
    assert len({rank for _, rank in lines}) == world


def test_work_of_a_killed_process_is_done_by_another(tmp_path: Path) -> None:
    """Its lock goes with it; the other one waits, and then makes the file."""
    holding, killed = fork.Event(), tmp_path / "05"

    def hold() -> None:
        with work.claim(killed) as mine:
            assert mine
            holding.set()
            time.sleep(60)

    holder = fork.Process(target=hold)
    holder.start()
    assert holding.wait(20)
    other = fork.Process(target=numbers, args=(tmp_path, 1, 2))
    other.start()
    while len(list(tmp_path.glob("[0-9][0-9]"))) < 19:
        time.sleep(0.01)
    other.join(0.2)
    assert other.is_alive()
    assert not killed.exists()
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    other.join(20)
    assert other.exitcode == 0
    assert killed.read_text() == "25"
