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
from benchmarks.parity.ours import load, row_of
from mmfusion.attention import ByDocument
from mmfusion.codecs.image import patches
from mmfusion.config import ModelConfig
from mmfusion.decoder import Decoder
from mmfusion.diffusion import Diffusion
from mmfusion.losses import sums, total
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Document, Image, Noise, Row, Text

Loss = Callable[[Given], Tensor]


@dataclass(frozen=True)
class Side:
    """One implementation: what is learned, and the loss of a batch."""

    name: str
    module: nn.Module
    loss: Loss


class Peer(Protocol):
    """Another project's model, and what our side is to it.

    Attributes:
        config, decoder: our model that does the same work.
    """

    config: ModelConfig
    decoder: Decoder

    def batch(self, given: Given) -> Batch:
        """What our decoder is given."""

    def theirs(self) -> Side | None: ...


def sides(peer: Peer) -> list[Side]:
    """Ours, and theirs where there is one."""

    def loss(given: Given) -> Tensor:
        batch = peer.batch(given)
        part = sums(*peer.decoder(batch, ByDocument(batch)), batch)
        return total(part, part.noisy, part.targets, text_weight=1.0)

    theirs = peer.theirs()
    return [Side("mmfusion", peer.decoder, loss), *([theirs] if theirs else [])]


class CausalFusion:
    """The official code: same weights, labels, latents, noise, timesteps, orders and splits."""

    def __init__(self, case: Case, folder: Path | None) -> None:
        """Without a folder there is our side alone."""
        self.case, self.folder = case, folder
        ours = load(case)
        self.config, self.decoder = ours.config, ours.decoder

    def batch(self, given: Given) -> Batch:
        return collate([row_of(self.config, given, row) for row in range(len(given.labels))])

    def theirs(self) -> Side | None:
        if self.folder is None:
            return None
        model = Official(self.folder).model(self.case)
        return Side("causalfusion", model.net, lambda given: model.trained(given)[1])


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

    def theirs(self) -> Side:
        def loss(given: Given) -> Tensor:
            latents = torch.from_numpy(given.latents).movedim(1, -1).contiguous()
            samples = [
                [torch.from_numpy(caption), picture]
                for caption, picture in zip(captions(given), latents, strict=True)
            ]
            return self.model(samples, times=torch.from_numpy(given.timesteps)[:, None] / 1000.0)

        return Side(self.name, self.model, loss)

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

    def batch(self, given: Given) -> Batch:
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
        return collate(rows)


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
