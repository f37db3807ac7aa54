"""Two sides that do the same training work: our decoder, and another project's model.

A peer says which model of ours does what theirs does, and gives both the same inputs. It is run
from where it lies; nothing of it is here.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.parity.cases import Case, Given
from benchmarks.parity.official import Official
from benchmarks.parity.ours import Ours, load
from mmfusion.attention import ByDocument
from mmfusion.codecs.image import patches
from mmfusion.config import ModelConfig
from mmfusion.decoder import FREQUENCIES, Decoder
from mmfusion.diffusion import Diffusion
from mmfusion.losses import sums, total
from mmfusion.packing import collate
from mmfusion.sequence import Document, Image, Noise, Row, Text

Loss = Callable[[Given], Tensor]


@dataclass(frozen=True)
class Side:
    """One implementation: what is learned, and the loss of a batch."""

    name: str
    module: nn.Module
    loss: Loss


class Peer(Protocol):
    """Both sides of a comparison.

    Attributes:
        needed: FLOPs of a batch in our model's linear layers, forward once and backward twice.
    """

    def sides(self) -> list[Side]:
        """Ours, theirs."""

    def needed(self, given: Given) -> int: ...


def block_products(config: ModelConfig, tokens: int, queries: int) -> int:
    """Multiplications in a decoder's blocks: `queries` of the tokens pass the last one whole."""
    c = config.decoder
    head, groups = c.width // c.heads, c.kv_heads or c.heads
    key_value = 2 * groups * head * c.width
    hidden = int(c.width * c.mlp_ratio)
    rest = 2 * c.width**2 + (2 + (c.mlp == "swiglu")) * hidden * c.width
    return c.depth * tokens * key_value + ((c.depth - 1) * tokens + queries) * rest


def step_flops(blocks: int, into: int, out: int, times: int, width: int) -> int:
    """FLOPs of a step in linear layers: forward, and backward by weights and by what goes in.

    What goes into the first layers (latents, features of `times` timesteps) has no gradient.
    """
    return 6 * (blocks + out + times * width**2) + 4 * (into + times * FREQUENCIES * width)


class CausalFusion:
    """The official code: same weights, labels, latents, noise, timesteps, orders and splits."""

    def __init__(self, case: Case, folder: Path | None) -> None:
        """Without a folder there is our side alone."""
        self.case, self.folder = case, folder
        self.ours: Ours = load(case)

    def sides(self) -> list[Side]:
        found = [Side("mmfusion", self.ours.decoder, lambda given: self.ours._trained(given)[1])]
        if self.folder:
            theirs = Official(self.folder).model(self.case)
            found.append(Side("causalfusion", theirs.net, lambda given: theirs._trained(given)[1]))
        return found

    def needed(self, given: Given) -> int:
        """Labels, clean tokens of all AR steps but the last, and noisy ones, which predict."""
        c, rows = self.case, len(given.labels)
        noisy = rows * c.tokens
        clean = noisy - rows * given.sizes[-1]
        blocks = block_products(self.ours.config, rows * c.label_tokens + clean + noisy, noisy)
        ends = (clean + noisy) * c.width * c.token_dim, noisy * c.width * c.token_dim
        return step_flops(blocks, *ends, rows, c.width)


CHARACTERS, SHORTEST, LONGEST = 128, 4, 24  # vocabulary and length of captions
CONTROL = 7  # their symbols around a picture: begin, meta, three of its shape, start, end


class Transfusion:
    """pip transfusion-pytorch: same latents, captions, timesteps, and as many positions.

    Equal: what is predicted (each picture's velocity, each caption's next tokens), heads, and the
    number of parameters. Theirs has 7 control symbols around a caption and its picture; our text
    is longer by so many. Ours draws the picture in one AR step, without a clean copy, since theirs
    has none. What cannot be equal: noise is each side's own, and two thirds of their parameters
    are what each token's timestep does to each layer, so that theirs is narrower at our depth, or
    has fewer layers (`depth`).
    """

    def __init__(self, case: Case, depth: int) -> None:
        """`depth` is theirs; its width is that which comes nearest to our parameters."""
        if case.patch != 1:
            raise ValueError("patches are latent cells here")
        self.case = case
        self.config = ModelConfig.model_validate(
            {
                "row_length": CONTROL + LONGEST + case.tokens,
                "image": {"codec": "vae", "vae": "unused", "size": case.side, "downsampling": 1}
                | {"latent_channels": case.channels},
                "text": {"tokenizer": "unused"},
                "decoder": {"width": case.width, "depth": case.depth, "heads": case.heads}
                | {"norm": "rms", "mlp": "swiglu", "mlp_ratio": 8 / 3, "position": "rotary"},
                "diffusion": {"path": "flow", "prediction": "v_prediction", "weight_start": 1.0},
            }
        )
        self.decoder = Decoder(self.config, CHARACTERS)
        size = count(self.decoder)
        share, step = size / count(self._theirs(case.width, depth)), 2 * case.heads
        width = round(case.width * share**0.5 / step) * step
        self.model = self._theirs(width, depth)
        self.name = f"transfusion {width} x {depth}"

    def sides(self) -> list[Side]:
        return [
            Side("mmfusion", self.decoder, self._our_loss),
            Side(self.name, self.model, self._their_loss),
        ]

    def needed(self, given: Given) -> int:
        """Captions and noisy tokens; the last of a caption predicts no text."""
        rows, c = len(given.labels), self.case
        noisy = rows * c.tokens
        text = sum(len(caption) + CONTROL for caption in captions(given))
        queries = noisy + text - rows
        blocks = block_products(self.config, text + noisy, queries)
        into = noisy * c.token_dim * c.width
        out = into + (text - rows) * c.width * CHARACTERS
        return step_flops(blocks, into, out, len(np.unique(given.timesteps)), c.width)

    def _theirs(self, width: int, depth: int) -> nn.Module:
        try:
            from transfusion_pytorch import Transfusion as Model
        except ImportError as error:
            sys.exit(f"--against transfusion: pip install transfusion-pytorch ({error})")
        heads = self.case.heads
        return Model(
            num_text_tokens=CHARACTERS,
            dim_latent=self.case.token_dim,
            modality_default_shape=(self.case.side, self.case.side),
            transformer={"dim": width, "depth": depth, "heads": heads, "dim_head": width // heads},
            prob_uncond=0.0,
        )

    def _our_loss(self, given: Given) -> Tensor:
        diffusion, rows = Diffusion(self.config.diffusion), []
        for row, caption in enumerate(captions(given)):
            latents, noise = (patches(x[row], 1)[None] for x in (given.latents, given.noise))
            timesteps = np.full(latents.shape[:2], float(given.timesteps[row]))
            noised = Noise(
                latents=diffusion.noised(latents, timesteps, noise),
                target=diffusion.target(latents, timesteps, noise),
                timesteps=timesteps.astype(np.float32),
                weight=np.ones(timesteps.shape),
                start_weight=1.0,
            )
            split = [np.arange(self.case.tokens)]
            document: Document = [
                Text([*[0] * CONTROL, *caption.tolist()], loss=True),
                Image(latents[0], self.case.side, split, noised),
            ]
            written = Row.of(self.config, self.config.row_length)
            written.document(document)
            rows.append(written)
        batch = collate(rows)
        part = sums(*self.decoder(batch, ByDocument(batch)), batch)
        return total(part, part.noisy, part.targets, text_weight=1.0)

    def _their_loss(self, given: Given) -> Tensor:
        latents = torch.from_numpy(given.latents).movedim(1, -1).contiguous()
        samples = [
            [torch.from_numpy(caption), picture]
            for caption, picture in zip(captions(given), latents, strict=True)
        ]
        return self.model(samples, times=torch.from_numpy(given.timesteps)[:, None] / 1000.0)


def captions(given: Given) -> list[np.ndarray]:
    """A caption for each picture, of 4 to 24 symbols."""
    lengths = SHORTEST + given.timesteps % (LONGEST - SHORTEST + 1)
    ids = (given.scores * CHARACTERS).astype(np.int64)
    return [row[:length] for row, length in zip(ids, lengths, strict=True)]


def count(module: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(p.numel() for p in module.parameters())


def peer_of(args: argparse.Namespace, case: Case) -> Peer:
    """What `--against` names."""
    name, _, folder = (args.against or "").partition("=")
    made: dict[str, Callable[[], Peer]] = {
        "": partial(CausalFusion, case, None),
        "causalfusion": partial(CausalFusion, case, Path(folder)),
        "transfusion": partial(Transfusion, case, args.peer_depth or case.depth),
    }
    if name not in made:
        sys.exit(f"--against {name}: known are causalfusion=DIR and transfusion")
    return made[name]()
