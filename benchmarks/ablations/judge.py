"""A judge trained on real pictures alone: its features for distances, its verdict for accuracy."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmfusion.eval.metrics import frechet_distance

from .data import Data

FEATURES = 64


class Judge(nn.Module):
    """A small convolutional classifier of grey pictures."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, classes)

    @torch.inference_mode()
    def look(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, 64) and classes (n,) of grey pictures (n, H, H)."""
        device = self.head.weight.device
        features = torch.cat([self.body(part) for part in _scaled(pixels).to(device).split(1000)])
        return features.cpu().double().numpy(), self.head(features).argmax(1).cpu().numpy()


class Scores:
    """Scores pictures against the training set, in the judge's features."""

    def __init__(self, judge: Judge, data: Data, samples: int) -> None:
        """`samples` pictures will be scored; as many real ones say what is within reach."""
        self.judge = judge
        self.reference = judge.look(data.train.pixels)[0]
        features, verdict = judge.look(data.test.pixels)
        self.facts = {
            "judge_accuracy": float((verdict == data.test.labels).mean()),
            "test": len(data.test),
            "reference": len(data.train),
            "frechet_of_test": frechet_distance(features[:samples], self.reference),
            "frechet_of_test_n": min(samples, len(features)),
        }

    def __call__(self, pixels: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Fréchet distance, and the share that the judge sees as what was asked for."""
        features, verdict = self.judge.look(pixels)
        return {
            "frechet": frechet_distance(features, self.reference),
            "accuracy": float((verdict == labels).mean()),
            "n": len(pixels),
        }


def trained(data: Data, path: Path, device: str, steps: int = 600) -> Judge:
    """The judge, trained once and kept in `path`."""
    torch.manual_seed(0)
    judge = Judge(len(data.names)).to(device)
    if path.is_file():
        judge.load_state_dict(load_file(path))
        return judge.eval()
    pixels, labels = _scaled(data.train.pixels), torch.from_numpy(data.train.labels)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(labels), (128,), generator=generator)
        output = judge.head(judge.body(pixels[batch].to(device)))
        loss = nn.functional.cross_entropy(output, labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(judge.state_dict(), path)
    return judge.eval()


def _scaled(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy())[:, None].float() / 127.5 - 1
