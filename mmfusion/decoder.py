"""The decoder: one transformer over text, label and image tokens, clean and noisy.

Options of one block: LayerNorm, GELU and learned positions make the paper's (CausalFusion,
section 4); RMSNorm, SwiGLU and rotary positions make Llama's. Conditioning is in context: there
is no adaptive norm, the timestep is added to noisy tokens.

Shapes: B rows, L tokens, W width, H heads, G key-value heads, d head dimension, C entries of a
kind, D numbers in a latent token, K label tokens.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmfusion.cache import Cache
from mmfusion.config import DecoderConfig, ModelConfig
from mmfusion.mask import Mask, attend
from mmfusion.packing import Batch

FREQUENCIES = 256  # sinusoid features of a timestep or time
ROTARY_BASE_TIME, ROTARY_BASE_GRID = 10_000.0, 100.0  # grids are small: faster frequencies


def sinusoid(values: Tensor, features: int, base: float = 10_000.0) -> Tensor:
    """Cosines, then sines, of (...,) numbers at geometric frequencies: (..., features)."""
    half = features // 2
    rates = torch.exp(torch.arange(half, device=values.device) * (-math.log(base) / half))
    angles = values[..., None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_sincos(width: int, rows: int, columns: int) -> Tensor:
    """2-D sin-cos positions as in MAE and DiT: (rows * columns, width), columns' half first."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    quarter = width // 4
    rates = 1.0 / 10_000.0 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    halves = [axis.reshape(-1, 1).double() * rates for axis in (column, row)]
    return torch.cat([f(h) for h in halves for f in (torch.sin, torch.cos)], dim=1).float()


def rotary(position: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, L, dim/2) of rotary angles along time, row and column.

    A third of the rotated pairs goes to rows, a third to columns, the rest to time.
    """
    pairs = dim // 2
    grid = pairs // 3
    sizes_bases = [(pairs - 2 * grid, ROTARY_BASE_TIME)] + [(grid, ROTARY_BASE_GRID)] * 2
    angles = []
    for axis, (size, base) in enumerate(sizes_bases):
        rates = base ** (-torch.arange(size, device=position.device).float() / size)
        angles.append(position[..., axis, None].float() * rates)
    joined = torch.cat(angles, dim=-1)[:, None]
    return joined.cos(), joined.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (first half, second half) of (B, H, L, d) by the given angles."""
    cos, sin = rope
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).type_as(x)


def make_norm(kind: str, width: int) -> nn.Module:
    """A norm with learned scale, and for LayerNorm bias."""
    return nn.LayerNorm(width) if kind == "layer" else nn.RMSNorm(width, eps=1e-6)


class Attention(nn.Module):
    """Multi-head attention with a norm on each head's queries and keys (QK-norm)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.groups = config.kv_heads or config.heads
        self.dim = config.width // config.heads
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.groups) * self.dim, bias=False)
        self.q_norm = make_norm(config.norm, self.dim)
        self.k_norm = make_norm(config.norm, self.dim)
        self.out = nn.Linear(config.width, config.width, bias=config.mlp == "gelu")

    def forward(
        self,
        x: Tensor,
        mask: Mask | None,
        rope: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
        layer: int,
    ) -> Tensor:
        heads = rearrange(self.qkv(x), "b l (h d) -> b h l d", d=self.dim)
        q, k, v = heads.split([self.heads, self.groups, self.groups], dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            k, v = cache.extended(layer, k, v)
        return self.out(rearrange(attend(q, k, v, mask), "b h l d -> b l (h d)"))


class Mlp(nn.Module):
    """GELU (tanh form, with biases) or SwiGLU (without)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.gated = config.mlp == "swiglu"
        self.up = nn.Linear(config.width, hidden * (1 + self.gated), bias=not self.gated)
        self.down = nn.Linear(hidden, config.width, bias=not self.gated)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            return self.down(F.silu(gate) * x)
        return self.down(F.gelu(x, approximate="tanh"))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config.norm, config.width)
        self.attention = Attention(config)
        self.norm2 = make_norm(config.norm, config.width)
        self.mlp = Mlp(config)

    def forward(
        self,
        x: Tensor,
        mask: Mask | None,
        rope: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        x = x + self.attention(self.norm1(x), mask, rope, cache, layer)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Hidden states of a batch, and from them denoised latents and next-token logits."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """`vocabulary` is the tokenizer's size; 0 makes a model without text."""
        super().__init__()
        c = self.config = config.decoder
        self.grid = config.image.grid
        self.classes, self.vocabulary = len(config.classes), vocabulary
        dim = config.image.latent_dim
        self.latent_in = nn.Linear(dim, c.width)
        self.timestep = nn.Sequential(
            nn.Linear(FREQUENCIES, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
        )
        if self.classes:
            self.label = nn.Embedding((self.classes + 1) * c.label_tokens, c.width)
            self.label_position = nn.Embedding(c.label_tokens, c.width)
        if vocabulary:
            self.text = nn.Embedding(vocabulary, c.width)
        if c.position == "learned":
            self.grid_position = nn.Embedding(config.image.tokens, c.width)
        elif c.position == "sincos":
            self.grid_table: Tensor
            self.register_buffer("grid_table", grid_sincos(c.width, *self.grid), persistent=False)
        if c.time_term and c.position != "rotary":
            self.time = nn.Linear(FREQUENCIES, c.width, bias=False)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = make_norm(c.norm, c.width)
        self.latent_out = nn.Linear(c.width, dim)
        if vocabulary:
            self.text_out = nn.Linear(c.width, vocabulary, bias=False)
        self.checkpoint_activations = False
        self.initialise()

    def initialise(self) -> None:
        """Xavier-uniform linears, N(0, 0.02) tables, sin-cos grid, zero latent head (section 4)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        with torch.no_grad():
            if self.config.position == "learned":
                self.grid_position.weight.copy_(grid_sincos(self.config.width, *self.grid))
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)
        if self.vocabulary:
            nn.init.normal_(self.text_out.weight, std=0.02)

    def embed(self, batch: Batch) -> Tensor:
        """(B, L, W): each token's content, position, and timestep where it is noisy."""
        rows, length = batch.doc.shape
        weight = self.latent_in.weight
        # One place more than the row has: padded list entries are written there and cut off.
        x = torch.zeros(
            rows, length + 1, self.config.width, device=weight.device, dtype=weight.dtype
        )

        def add(at: Tensor, values: Tensor) -> None:
            x.scatter_add_(1, at[..., None].expand(-1, -1, x.shape[2]), values.type_as(x))

        image = self.latent_in(batch.latent.type_as(x))
        if self.config.position != "rotary":
            place = F.pad(batch.position, (0, 0, 0, 1)).gather(
                1, batch.image_at[..., None].expand(-1, -1, 3)
            )
            cell = place[..., 1] * self.grid[1] + place[..., 2]
            learned = self.config.position == "learned"
            image = image + (self.grid_position(cell) if learned else self.grid_table[cell])
        add(batch.image_at, image)
        add(batch.noisy_at, self.timestep(sinusoid(batch.timestep, FREQUENCIES).type_as(x)))
        if self.classes:
            tokens = self.config.label_tokens
            null = batch.label_id < 0  # the null class stands after the last
            label_id = batch.label_id + null * (self.classes + 1) * tokens
            which = batch.label_id % tokens
            add(batch.label_at, self.label(label_id) + self.label_position(which))
        if self.vocabulary:
            add(batch.text_at, self.text(batch.text_id))
        x = x[:, :length]
        if self.config.time_term and self.config.position != "rotary":
            x = x + self.time(sinusoid(batch.position[..., 0], FREQUENCIES).type_as(x))
        return x

    def forward(
        self, batch: Batch, mask: Mask | None, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Predictions at the batch's noisy and text-predicting places.

        Args:
            batch: tokens; with a cache, only those that are not in it yet.
            mask: which keys each query sees: of the row, or of the cache and the row.
            cache: keys and values of clean tokens before; read here, advanced by the caller.

        Returns:
            What the noisy tokens predict, (B, C, D) in fp32, and the next-token logits (B, C, V)
            in fp32, or None for a model without text.
        """
        x = self.embed(batch)
        rope = None
        if self.config.position == "rotary":
            rope = rotary(batch.position, self.config.width // self.config.heads)
        for layer, block in enumerate(self.blocks):
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, mask, rope, use_reentrant=False)
            else:
                x = block(x, mask, rope, cache, layer)
        x = F.pad(self.norm(x), (0, 0, 0, 1))

        def chosen(at: Tensor) -> Tensor:
            return x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))

        latents = self.latent_out(chosen(batch.noisy_at)).float()
        logits = self.text_out(chosen(batch.predict_at)).float() if self.vocabulary else None
        return latents, logits
