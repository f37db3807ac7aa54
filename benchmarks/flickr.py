"""Captions of real photos: a small model beside a unigram model, on held-out photos.

    python -m benchmarks.flickr --shards flickr8k_1k.tar

The shards are Flickr8k's: `jpg`, and `json` with `captions` and `split` (train, dev). Photos of the
training split become shards, a tokenizer is trained on their captions alone, and a model learns
photo -> caption through `mmfusion train`, at 32 x 32 pixels. Then the cross-entropy of the dev
split's captions is measured, in nats a token (the end counts as one): of the model with the right
photo, of the same with another photo, and of a unigram model of the training captions, smoothed by
one count a token. The last two say what the words alone are worth.
"""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import options
from mmfusion import Pipeline, jsonl
from mmfusion.codecs.text import Tokenizer
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.data_pipelines.tokenizer import corpus, train_tokenizer

SIDE, VOCABULARY, SHOWN = 32, 2000, 6


def prepare(shards: str, folder: Path) -> None:
    """Shards of the two splits, and the tokenizer of one."""
    for split in ("train", "dev"):

        def samples(split: str = split) -> Iterator[tuple[str, dict]]:
            for sample in Shards(shards):
                if sample.json().get("split") == split:
                    yield sample.where.rpartition(":")[2], dict(sample)

        if not (folder / f"{split}-00000.tar").exists():
            write_shards(folder, split, samples())
    if not (folder / "tokenizer.model").exists():
        lines = corpus([f"{folder}/train-*.tar"], [])
        train_tokenizer(lines, folder / "tokenizer.model", VOCABULARY)


def config(folder: Path, steps: int) -> Path:
    """The run's config file."""
    text = f"""
base: tiny
image: {{size: {SIDE}, channels: 3, patch: 4}}
text: {{tokenizer: {folder}/tokenizer.model}}
classes: []
row_length: 256
decoder:
  {{width: 192, depth: 4, heads: 4, norm: rms, mlp: swiglu, mlp_ratio: 2.67, position: rotary}}
data:
  rows: 16
  micro_rows: 16
  sources: [{{name: caption, task: image_to_text, shards: {folder}/train-*.tar, flip: true}}]
train: {{output: {folder}/run, steps: {steps}, lr: 1e-3, warmup: 50, decay: 0.5, ema: 0.99,
  weight_decay: 0.1, log_every: 20, save_every: 10000, zero_stage: 1}}
generation:
  image_to_text: {{max_new_tokens: 30}}
"""
    path = folder / "flickr.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def unigram(train: list[str], dev: list[str], tokenizer: Tokenizer) -> float:
    """Cross-entropy of the dev captions under the training captions' token frequencies."""
    counts = np.ones(len(tokenizer))
    for caption in train:
        np.add.at(counts, tokenizer.answer(caption).ids[1:], 1)
    logs = np.log(counts / counts.sum())
    tokens = [i for caption in dev for i in tokenizer.answer(caption).ids[1:]]
    return float(-logs[tokens].mean())


def cross_entropy(pipeline: Pipeline, dev: Shards, shift: int) -> float:
    """The model's, each caption with the photo of `shift` samples further on."""
    photos = [sample.picture() for sample in dev]
    texts = [sample.captions() for sample in dev]
    shown = [photos[(n + shift) % len(dev)] for n, each in enumerate(texts) for _ in each]
    found = pipeline.log_likelihood(shown, [text for each in texts for text in each])
    return -sum(text.log_probability for text in found) / sum(text.tokens for text in found)


def main() -> None:
    """Prepare, train, measure."""
    parser = options("flickr", __doc__)
    parser.add_argument("--shards", required=True, help="Flickr8k's, with splits")
    parser.add_argument("--output", type=Path, default=Path("runs/flickr"))
    parser.add_argument("--steps", type=int, default=600)
    given = parser.parse_args()
    folder = given.output.resolve()
    prepare(given.shards, folder)
    command = [sys.executable, "-m", "mmfusion", "train", "--config", config(folder, given.steps)]
    subprocess.run([str(part) for part in command], check=True)
    pipeline = Pipeline.from_pretrained(folder / "run")
    assert pipeline.tokenizer is not None
    train, dev = (Shards(f"{folder}/{split}-*.tar") for split in ("train", "dev"))
    texts = {
        name: [text for sample in shards for text in sample.captions()]
        for name, shards in (("train", train), ("dev", dev))
    }
    figures = {
        "photos": {"train": len(train), "dev": len(dev)},
        "captions": {name: len(found) for name, found in texts.items()},
        "vocabulary": len(pipeline.tokenizer),
        "uniform": math.log(len(pipeline.tokenizer)),
        "unigram": unigram(texts["train"], texts["dev"], pipeline.tokenizer),
        "model": cross_entropy(pipeline, dev, 0),
        "model, another photo": cross_entropy(pipeline, dev, len(dev) // 2),
    }
    for n in range(SHOWN):
        said = pipeline.image_to_text(dev[n].picture())
        print(f"{dev[n].where.rpartition(':')[2]}: {said}   [{dev[n].captions()[0]}]")
    print(jsonl.dumps(figures, indent=1))
    (folder / "figures.json").write_text(jsonl.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
