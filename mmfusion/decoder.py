"""The decoder: one transformer over text, label and image tokens, clean and noisy.

Options of one block: LayerNorm, GELU and learned positions make the paper's (CausalFusion,
section 4); RMSNorm, SwiGLU and rotary positions make Llama's. Conditioning is in context: there
is no adaptive norm, the timestep is added to noisy tokens.

In the last block only the tokens that predict something ask and go through the MLP: nothing reads
what the others would become.

Shapes: T tokens, W width, H heads, G key-value heads, d head dimension, D numbers in a latent
token; M noisy and P text-predicting tokens, Q = M + P.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmfusion.attention import Attend
from mmfusion.config import DecoderConfig, ModelConfig
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
    """Cosines and sines (T, 1, dim/2) of rotary angles along time, row and column of (T, 3).

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
    """Turn the pairs (first half, second half) of (T, H, d) by the given angles."""
    cos, sin = rope
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).type_as(x)


def make_norm(kind: str, width: int) -> nn.Module:
    """A norm with learned scale, and for LayerNorm bias."""
    return nn.LayerNorm(width) if kind == "layer" else nn.RMSNorm(width, eps=1e-6)


class HeadsLinear(nn.Linear):
    """Queries (Q, H, d), keys and values (T, G, d) by one matrix, queries of all tokens or some."""

    def __init__(self, config: DecoderConfig) -> None:
        self.heads, self.groups = config.heads, config.kv_heads or config.heads
        self.dim = config.width // config.heads
        super().__init__(config.width, (self.heads + 2 * self.groups) * self.dim, bias=False)

    def forward(self, x: Tensor, asks: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        sizes = [self.heads, self.groups, self.groups]
        if asks is None:
            q, k, v = F.linear(x, self.weight).unflatten(1, (-1, self.dim)).split(sizes, dim=1)
            return q, k, v
        of_queries, of_others = self.weight.split(
            [self.heads * self.dim, 2 * self.groups * self.dim]
        )
        query = F.linear(x.index_select(0, asks), of_queries)
        k, v = F.linear(x, of_others).unflatten(1, (-1, self.dim)).chunk(2, dim=1)
        return query.unflatten(1, (-1, self.dim)), k, v


class Attention(nn.Module):
    """Multi-head attention with a norm on each head's queries and keys (QK-norm)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.qkv = HeadsLinear(config)
        self.q_norm = make_norm(config.norm, self.qkv.dim)
        self.k_norm = make_norm(config.norm, self.qkv.dim)
        self.out = nn.Linear(config.width, config.width, bias=config.mlp == "gelu")

    def forward(
        self, x: Tensor, attend: Attend, rope: tuple[Tensor, Tensor] | None, at: "Layer"
    ) -> Tensor:
        asks = attend.asks if at.last else None
        q, k, v = self.qkv(x, asks)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            own = rope if asks is None else (rope[0][asks], rope[1][asks])
            q, k = rotate(q, own), rotate(k, rope)
        read = attend(at.number, q, k, v, at.last).flatten(1)
        if at.last and asks is None:
            read = read.index_select(0, at.predicting)
        return self.out(read)


def can_fuse(x: Tensor) -> bool:
    """Whether the product of (T, W) is to end in its activation: where nothing is learned.

    oneDNN lays the weights out anew at each call, which pays where there are tokens enough.
    """
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
    return plain and len(x) >= 2 * x.shape[1] and torch.backends.mkldnn.is_available()


class Mlp(nn.Module):
    """GELU (tanh form, with biases) or SwiGLU (without)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.gated = config.mlp == "swiglu"
        self.up = nn.Linear(config.width, hidden * (1 + self.gated), bias=not self.gated)
        self.down = nn.Linear(hidden, config.width, bias=not self.gated)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated and can_fuse(x):
            product = torch.ops.mkldnn._linear_pointwise  # oneDNN's; it has no gradient
            return self.down(product(x, self.up.weight, self.up.bias, "gelu", [], "tanh"))
        x = self.up(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            return self.down(F.silu(gate) * x)
        return self.down(F.gelu(x, approximate="tanh"))


class Layer(NamedTuple):
    """Which block it is, and where the tokens that predict something are: (Q,)."""

    number: int
    last: bool
    predicting: Tensor


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config.norm, config.width)
        self.attention = Attention(config)
        self.norm2 = make_norm(config.norm, config.width)
        self.mlp = Mlp(config)

    def forward(
        self, x: Tensor, attend: Attend, rope: tuple[Tensor, Tensor] | None, at: Layer
    ) -> Tensor:
        read = self.attention(self.norm1(x), attend, rope, at)
        x = (x.index_select(0, at.predicting) if at.last else x) + read
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
        """(T, W): each token's content, position, and timestep where it is noisy."""
        image = self.latent_in(batch.latent.type_as(self.latent_in.weight))
        if self.config.position == "learned":
            image = image + self.grid_position(batch.cell)
        elif self.config.position == "sincos":
            image = image + self.grid_table[batch.cell]
        level = self.timestep(sinusoid(batch.timestep, FREQUENCIES).type_as(image))
        noisy, clean = image.tensor_split([len(batch.level)])
        noisy = noisy + level.index_select(0, batch.level)
        label = image.new_zeros(len(batch.label_id), self.config.width)
        if self.classes:
            which = batch.label_id % self.config.label_tokens
            label = self.label(batch.label_id) + self.label_position(which)
        text = image.new_zeros(len(batch.text_id), self.config.width)
        if self.vocabulary:
            text = self.text(batch.text_id)
        x = torch.cat([text, label, noisy, clean]).index_select(0, batch.place)
        if self.config.time_term and self.config.position != "rotary":
            x = x + self.time(sinusoid(batch.position[:, 0], FREQUENCIES).type_as(x))
        return x

    def forward(self, batch: Batch, attend: Attend) -> tuple[Tensor, Tensor | None]:
        """Predictions at the batch's noisy and text-predicting places.

        Args:
            batch: tokens; with a cache, only those that are not in it yet.
            attend: how they read each other, and what a cache holds.

        Returns:
            What the noisy tokens predict, (M, D) in fp32, and the next-token logits (P, V) in
            fp32, or None for a model without text.
        """
        x = self.embed(batch)
        rope = None
        if self.config.position == "rotary":
            rope = rotary(batch.position, self.config.width // self.config.heads)
        predicting = torch.cat([batch.noisy_at, batch.predict_at])
        for number, block in enumerate(self.blocks):
            at = Layer(number, number == len(self.blocks) - 1, predicting)
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, attend, rope, at, use_reentrant=False)
            else:
                x = block(x, attend, rope, at)
        latents, texts = self.norm(x).split([len(batch.noisy_at), len(batch.predict_at)])
        logits = self.text_out(texts).float() if self.vocabulary else None
        return self.latent_out(latents).float(), logits
