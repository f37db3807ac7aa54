"""What is no model of ours: the DiT that is compared with, and the judge of pictures.

The DiT is the baseline that the paper starts from, conditioned by adaptive norms (adaLN-zero;
Peebles & Xie 2023, section 3.2), but with the decoder's attention (QK-norm), MLP and learned
positions, so that what differs is the way of conditioning, with the affine norms it replaces, and
the width: at equal parameters the modulation takes a third of them. The judge is trained on real
pictures alone: its features serve for distances, its verdict for accuracy.

Shapes: B pictures, N tokens, D numbers in a token, W width.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmfusion.attention import attention
from mmfusion.config import ModelConfig
from mmfusion.decoder import FREQUENCIES, Attention, Layer, Mlp, grid_sincos, sinusoid
from mmfusion.eval.metrics import frechet_distance

from .data import Data

FEATURES = 64


class ByPicture:
    """Attention within pictures of N tokens, all of which see each other."""

    asks = None

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, last: bool) -> Tensor:
        q, k, v = (x.unflatten(0, (self.pictures, -1)) for x in (query, key, value))
        return attention(q, k, v, None).flatten(0, 1)


class AdaptiveBlock(nn.Module):
    """Attention and MLP whose norms are shifted, scaled and gated by the condition."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention, self.mlp = Attention(config.decoder), Mlp(config.decoder)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.modulation(condition)[:, None].chunk(6, dim=-1)
        )  # fmt: skip
        y = self.norm(x) * (1 + scale1) + shift1
        at = Layer(0, False, torch.empty(0))
        read = self.attention(y.flatten(0, 1), ByPicture(len(y)), None, at)
        x = x + gate1 * read.view_as(x)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """Predictions (B, N, D) for noised latents (B, N, D), timesteps (B,) and classes (B,)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, dim = config.decoder.width, config.image.latent_dim
        self.classes = len(config.classes)
        self.latent_in = nn.Linear(dim, width)
        self.timestep = nn.Sequential(
            nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.label = nn.Embedding(self.classes + 1, width)
        self.positions = nn.Parameter(grid_sincos(width, *config.image.grid))
        self.blocks = nn.ModuleList(AdaptiveBlock(config) for _ in range(config.decoder.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.latent_out = nn.Linear(width, dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.label.weight, std=0.02)
        for name, weight in self.named_parameters():
            if "modulation" in name:
                nn.init.zeros_(weight)
        nn.init.zeros_(self.latent_out.weight)

    def forward(self, latents: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        x = self.latent_in(latents) + self.positions
        condition = self.timestep(sinusoid(timestep, FREQUENCIES)) + self.label(label)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return self.latent_out(self.norm(x) * (1 + scale) + shift)


def parameters(module: nn.Module) -> int:
    """Trained numbers of a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


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
