"""The baseline that the paper starts from: a DiT, conditioned by adaptive norms (adaLN-zero).

Peebles & Xie 2023, section 3.2, but with the decoder's attention (QK-norm), MLP and learned
positions, so that what differs is the way of conditioning, with the affine norms it replaces, and
the width: at equal parameters the modulation takes a third of them.

Shapes: B pictures, N tokens, D numbers in a token, W width.
"""

from torch import Tensor, nn

from mmfusion.config import ModelConfig
from mmfusion.decoder import FREQUENCIES, Attention, Mlp, grid_sincos, sinusoid


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
        x = x + gate1 * self.attention(y, None, None, None, 0)
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
