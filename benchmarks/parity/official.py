"""What the official code makes of a case. It is imported from a folder, and nothing of it is here.

Shapes: B rows, N tokens, D numbers in a latent token, W width.
"""

import importlib
import itertools
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch as patched

import torch
from torch import Tensor

from benchmarks.parity.cases import GUIDANCE, STEPS, Case, Given, weights
from benchmarks.parity.noise import NoiseSource
from mmfusion.importers.causalfusion import converted


class Official:
    """The official modules of a folder."""

    def __init__(self, folder: Path) -> None:
        """Import them; exits with a line when the folder has none."""
        self.folder = folder.resolve()
        self.models, self.diffusion, self.train = map(
            self._module, ("models", "diffusion", "train")
        )

    def _module(self, name: str) -> ModuleType:
        sys.path.insert(0, str(self.folder))
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            sys.exit(f"--official {self.folder}: cannot import {name} ({error})")
        finally:
            sys.path.remove(str(self.folder))
        if not Path(str(module.__file__)).is_relative_to(self.folder):
            sys.exit(f"--official {self.folder}: has no module {name}")
        return module

    def model(self, case: Case) -> "OfficialModel":
        """The official model with the case's weights; it accepts these names and shapes alone."""
        made = self.random(case)
        made.net.load_state_dict(weights(case))
        return made

    def random(self, case: Case, device: str = "cpu") -> "OfficialModel":
        """The same as it is initialised, but for its last layer, which is not left zero."""
        with torch.device(device):
            model = self._net(case)
        torch.nn.init.normal_(model.final_layer[1].weight, std=0.02)
        return OfficialModel(self, case, model.eval())

    def _net(self, case: Case) -> Any:
        return self.models.CausalDiffusionModel(
            input_size=case.side * case.patch,
            patch_size=case.patch,
            latent_channels=case.channels,
            hidden_size=case.width,
            num_cond_tokens=case.label_tokens,
            depth=case.depth,
            num_heads=case.heads,
            mlp_ratio=case.mlp_ratio,
            num_classes=case.classes,
            trainable_pos=True,
        )


class OfficialModel:
    """An official model and its diffusion."""

    def __init__(self, official: Official, case: Case, model: Any) -> None:
        self.official, self.case, self.net = official, case, model
        self.training = official.diffusion.create_diffusion("")
        # Dropped classes would be other classes than ours: whatever is given is kept.
        model.y_embedder.dropout_prob = 0.0

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.net.pos_embed.device

    @property
    def parameters(self) -> int:
        """Numbers that are learned."""
        return sum(p.numel() for p in self.net.parameters())

    def gradients(self, given: Given) -> dict[str, Tensor]:
        """The loss's gradient by each parameter, under our names."""
        names, parameters = zip(*self.net.named_parameters(), strict=True)
        found = torch.autograd.grad(self.trained(given)[1], parameters)
        slopes = dict(zip(names, found, strict=True))
        return converted(slopes, self.case.sizes, self.case.classes)

    @torch.no_grad()
    def cached(self, given: Given, kept: int) -> Tensor:
        """Guided noise of the tokens after the first `kept`, which are clean: (B, N - kept, D)."""
        cache = self._prefix(given)
        order = torch.from_numpy(given.order)
        latents, noise = (self._tokens(torch.from_numpy(x)) for x in (given.latents, given.noise))
        position = self.net.pos_embed.expand(len(order), -1, -1)
        latents, noise, position = (
            x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
            for x in (latents, noise, position)
        )
        if kept:
            self._keep(latents[:, :kept], position[:, :kept], cache)
        t = torch.full((len(order),), int(given.timesteps[0]))
        return self.net.forward_inference(
            noise[:, kept:], t, cache, position[:, kept:], cfg_scale=GUIDANCE
        )

    @torch.no_grad()
    def sampled(
        self,
        given: Given,
        noise: NoiseSource | None,
        sizes: list[int],
        interval: tuple[float, float],
        steps: int = STEPS,
    ) -> Tensor:
        """Latents (B, N, D) of pictures drawn in raster order, in AR steps of these sizes.

        Each row draws the whole picture's noise first, then one AR step's at each denoising step.
        Without `noise` it is theirs, drawn where they run.
        """
        diffusion, rows = self.official.diffusion.create_diffusion(str(steps)), len(given.labels)
        draws = noise.streams(rows) if noise else []
        cache = self._prefix(given)
        edges = [round(edge * 1000) for edge in interval]
        predict = partial(self.net.forward_inference, cfg_interval=edges)
        position = self.net.pos_embed.expand(rows, -1, -1)
        tokens, dim = position.shape[1], self.net.x_proj.in_features
        x = (
            torch.stack([draw((tokens, dim)) for draw in draws]).to(self.device)
            if noise
            else torch.randn(rows, tokens, dim, device=self.device)
        )

        calls, plain = itertools.count(1), torch.randn_like

        def noise_like(like: Tensor) -> Tensor:
            if not noise:
                return plain(like)
            if next(calls) % steps == 0:  # drawn at the last step too, and there taken times 0
                return torch.zeros_like(like)
            return torch.cat([draw((1, *like.shape[1:])) for draw in draws]).to(like.device)

        done = []
        with patched.object(torch, "randn_like", noise_like):
            for start, place in zip(x.split(sizes, 1), position.split(sizes, 1), strict=True):
                done.append(diffusion.p_sample_loop(predict, start, cache, place, GUIDANCE))
                self._keep(done[-1], place, cache)
        return torch.cat(done, dim=1)

    def trained(self, given: Given) -> tuple[Tensor, Tensor]:
        """Predicted noise (B, N, D), in the order of generation, and the loss ()."""
        net, train = self.net, self.official.train
        starts = [sum(given.sizes[:step]) for step in range(len(given.sizes) + 1)]
        mask = train.get_attn_mask(starts[-1], net.num_cond_tokens, given.sizes, starts).bool()
        weight = train.get_ar_weights(given.sizes, starts, 2.0, 1.0).reshape(1, -1, 1)
        seen: list[Tensor] = []
        hook = net.final_layer.register_forward_hook(lambda _, __, made: seen.append(made))
        mask, weight = mask.to(self.device), weight.to(self.device)
        latents, noise, labels, t, scores = (
            torch.from_numpy(x).to(self.device)
            for x in (given.latents, given.noise, given.labels, given.timesteps, given.scores)
        )
        with patched.object(torch, "rand", lambda *_, **__: scores):  # what it sorts to shuffle
            terms = self.training.training_losses(
                net, latents, t, labels, mask, given.sizes[-1], noise=noise
            )
        hook.remove()
        return seen[0], (terms["loss"] * weight).mean()

    def _prefix(self, given: Given) -> dict:
        """A cache that holds the labels, and under them the null class."""
        net = self.net
        labels = torch.from_numpy(given.labels).to(self.device)
        cache: dict = {block: {"k": None, "v": None} for block in range(len(net.blocks))}
        both = torch.cat([labels, torch.full_like(labels, net.y_embedder.num_classes)])
        tokens = net.y_embedder(both, train=False).reshape(-1, net.num_cond_tokens, net.hidden_size)
        net.forward_cache_update(tokens + net.cond_pos_embed, cache)
        return cache

    def _keep(self, latents: Tensor, position: Tensor, cache: dict) -> None:
        """Append clean image tokens to the cache."""
        clean = self.net.x_proj(latents) + position
        self.net.forward_cache_update(torch.cat([clean, clean]), cache)

    def _tokens(self, cells: Tensor) -> Tensor:
        """(B, c, h, w) as (B, N, D), each token's numbers in the order (row, column, channel)."""
        patch = self.net.patch_size
        tokens = torch.nn.functional.unfold(cells, patch, stride=patch).mT
        return tokens.unflatten(2, (cells.shape[1], patch**2)).transpose(2, 3).flatten(2)
