"""Real data from files to pictures: every corpus at hand, by the commands, into one joint model.

The files are not part of the project; without them this is skipped. What it holds about formats is
held by other tests, too, on files that they make.
"""

import gzip
import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from material import REAL, jsonl, make_vae, run
from PIL import Image as PILImage

from mmfusion import ImageSlot, Pipeline, TextSlot
from mmfusion.data_pipelines.shards import Shards

CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "ankle boot")  # fmt: skip
SIDE, CLOTHING = 32, 200


def fashion(folder: Path) -> None:
    """Fashion-MNIST's first pictures as a folder of class folders."""
    source = REAL / "fashion-mnist"
    pixels = gzip.decompress((source / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((source / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    for n in range(CLOTHING):
        picture = np.frombuffer(pixels, np.uint8, 784, 784 * n).reshape(28, 28)
        path = folder / CLOTHES[labels[n]] / f"{n:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(picture).save(path)


def outfits(folder: Path) -> Path:
    """Documents of two pictures each: a piece of clothing, and the next one."""
    files = sorted(folder.rglob("*.png"), key=lambda path: path.name)
    lines: list[Any] = []
    for first, second in pairwise(files):
        content = [
            {"image": str(first.relative_to(folder))},
            {"text": "and with it"},
            {"answer": second.parent.name},
            {"image": str(second.relative_to(folder)), "target": True},
        ]
        lines.append({"content": content})
    return jsonl(folder / "outfits.jsonl", *lines)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}")
@pytest.mark.timeout(600)
def test_real_data_from_files_to_pictures(tmp_path: Path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    raw.mkdir()
    for name in (
        "imagenet_100/imagenet_100",
        "flickr8k_1k/flickr8k_1k",
        "noto_emoji/noto_emoji_72",
    ):
        shutil.copy(REAL / f"{name}.tar", raw)
    fashion(raw / "clothes")
    index = REAL / "imagenet_100/imagenet_class_index.json"
    given: dict[str, list[Any]] = {
        "imagenet": ["imagenet", raw / "imagenet_100.tar", "--names", index],
        "photos": ["captions", raw / "flickr8k_1k.tar"],
        "emoji": ["captions", raw / "noto_emoji_72.tar", "--caption-key", "name"],
        "clothes": ["imagenet", raw / "clothes"],
        "outfits": ["interleaved", outfits(raw / "clothes")],
    }
    counts = {"imagenet": 100, "photos": 1000, "emoji": 1644, "clothes": 200, "outfits": 199}
    vae = make_vae(tmp_path / "vae")
    image = {"codec": "vae", "vae": vae, "size": SIDE, "patch": 4, "channels": 3}
    image |= {"latent_channels": 4, "downsampling": 2, "latent_scale": 1.0}
    section = [f"image.{key}={value}" for key, value in image.items()]
    for name, command in given.items():
        assert run("data", *command, "--size", SIDE, "-o", data / name) == 0
        assert len(Shards(f"{data}/{name}/*.tar")) == counts[name]
        made = ["-o", data / f"{name}-latents", "--config", "mm_l", "--batch", 128]
        assert run("data", "latents", f"{data}/{name}/*.tar", *made, *section) == 0
    assert run("data", "verify", *(f"{path}/*.tar" for path in data.iterdir())) == 0
    shards = [part for name in given for part in ("--shards", f"{data}/{name}/*.tar")]
    model = data / "tokenizer.model"
    assert run("data", "tokenizer", *shards, "--vocabulary", 2000, "-o", model) == 0

    mixture = (("class_to_image", "imagenet"), ("text_to_image", "photos"),
               ("image_to_text", "photos"), ("text_to_image", "emoji"),
               ("text_to_image", "clothes"), ("interleaved", "outfits"))  # fmt: skip
    sources = ", ".join(
        f"{{name: s{n}, task: {task}, shards: '{data}/{shards}-latents/*.tar'}}"
        for n, (task, shards) in enumerate(mixture)
    )
    small = [
        "decoder.width=32", "decoder.depth=2", "decoder.heads=2", "decoder.label_tokens=2",
        "row_length=256", "data.capacity=null", "data.rows=8", "data.micro_rows=8",
        "data.workers=2", "train.steps=6", "train.warmup=1", "train.log_every=1",
        "train.save_every=6", "train.precision=fp32", "train.compile=false", "train.zero_stage=1",
        "train.sheet_prompts=[]", f"train.output={tmp_path / 'run'}", f"text.tokenizer={model}",
        f"classes_file={data / 'imagenet/classes.json'}", f"data.sources=[{sources}]",
    ]  # fmt: skip
    quick = {"scheduler": "dpmsolver++", "num_inference_steps": 2, "guidance": 1.5}
    for task in ("class_to_image", "text_to_image", "edit", "interleaved"):
        small += [f"generation.{task}.{key}={value}" for key, value in quick.items()]
    command = [sys.executable, "-m", "mmfusion", "train", "--config", "mm_l", *section, *small]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    figures = [json.loads(line) for line in lines]
    assert [f["step"] for f in figures] == list(range(1, 7))
    assert all(f["samples_lost"] == 0 for f in figures)
    assert all(np.isfinite(f["image_loss"]) and np.isfinite(f["text_loss"]) for f in figures)

    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    assert pipeline.config.classes[207] == "golden retriever"
    photo = Shards(f"{data}/photos/*.tar")[0].picture()
    drawn = [pipeline.class_to_image("tench"), pipeline.text_to_image("a dog on the beach")]
    assert all(picture.size == (SIDE, SIDE) for picture in drawn)
    assert isinstance(pipeline.image_to_text(photo, max_new_tokens=5), str)
    parts = pipeline.generate([photo, "and with it", TextSlot(max_new_tokens=5), ImageSlot()])
    assert isinstance(parts[2], str)
    assert parts[3].size == (SIDE, SIDE)
