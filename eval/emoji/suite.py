"""The emoji suite: what a model draws, restyles, continues, captions and edits, and who judges it.

Each share is of what the same cells' real pictures score after the model's codec. Beside it stand
cheats, real pictures too: what somebody scores who draws the name and not the style, or vice versa.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from mmfusion import ImageSlot
from mmfusion.config.evaluation import Emoji
from mmfusion.data_pipelines.converters.emoji import RESTYLE, Cell
from mmfusion.errors import UserError

from ..captions.scores import score
from ..digits.suite import Cells, Findings
from ..extractors import Arrays, make_extractor
from ..metrics import frechet_distance
from ..sample_store import SampleStore
from ..tasks import Places
from . import sheets
from .cells import Test, prompt, read_real
from .edits import kept_identical
from .figures import Figures, share
from .judge import Judge, Verdict, nearest

COPY = 0.05
"""A copy is nearer to a training picture than this share of the real kept pictures."""
Part = tuple[Figures, Cells]
"""Figures of a task, and what the page shows of it."""


class Suite:
    """The measurements of one model.

    Attributes:
        inputs: digests of the real pictures and of the judge.
    """

    task = "emoji"

    def __init__(self, answers: SampleStore, settings: Emoji, places: Places) -> None:
        """Read the real pictures, choose the cells of the test, and open the judge's network."""
        if answers.config.text is None:
            raise UserError("emoji: this model has no text; leave the section out")
        answers.check("text_to_image", settings.sampling)
        answers.check("image_to_text", {})
        self.answers, self.settings, self.places = answers, settings, places
        self.real = read_real(Path(settings.data))
        self.test = Test(self.real, settings.set, settings.cells, answers.seed)
        if not {name for name, _ in self.real.pictures} - self.test.names:
            raise UserError(
                f"emoji.cells: {settings.cells} leave no name to fit the judge to; ask for fewer"
            )
        self.extractor = make_extractor(settings.judge)
        if "style" not in self.extractor.gives:
            raise UserError(f"emoji.judge {settings.judge}: tells no style; take efficientnet")
        self.inputs = {"data": self.real.digest, "judge": list(self.extractor.identity)}

    def measure(self) -> Findings:
        """All tasks: figures by group, and what the page shows."""
        codec, kept = self.answers.pipeline.codec, self.settings.set
        self.judge = Judge(self.extractor, self.test, codec, self.places)
        found: dict[str, Part] = {}
        trained, found["trained"] = self._draw("trained", self.test.trained)
        made, found[kept] = self._draw(kept, self.test.kept)
        found["pictures"] = self._real_or_copied(trained, made, found[kept][1])
        found["restyle"] = self._restyle()
        found["analogy"] = self._analogy()
        found["captions, trained"] = self._caption(self.test.trained)
        found[f"captions, {kept}"] = self._caption(self.test.kept)
        found["edit"] = self._edit()
        sheet = sheets.table(self.answers, self.test, self.settings.sampling)
        pages = {"table": sheet, "copies": found["pictures"][1], "edits": found["edit"][1],
                 "restyles": found["restyle"][1], "analogies": found["analogy"][1],
                 "captions": found[f"captions, {kept}"][1]}  # fmt: skip
        figures = {group: numbers for group, (numbers, _) in found.items()}
        return figures, {f"emoji_{name}": cells for name, cells in pages.items()}

    def _scored(
        self, verdict: Verdict, wanted: list[Cell], cheats: dict[str, list[Cell]]
    ) -> Figures:
        """Shares of what real pictures of the wanted cells score, and the shares of the cheats."""
        real = self.judge(self.judge.of(wanted), wanted)
        figures = {"share": share(verdict.both, real.both)}
        for name, cells in cheats.items():
            figures[name] = share(self.judge(self.judge.of(cells), wanted).both, real.both)
        figures["name_right"] = share(verdict.name, real.name)
        figures["style_right"] = share(verdict.style, real.style)
        return figures

    def _draw(self, part: str, wanted: list[Cell]) -> tuple[Arrays, Part]:
        """Pictures of whole captions: what the judge sees of them, and its verdict."""
        made = self.answers.text_to_image([prompt(c) for c in wanted], **self.settings.sampling)
        seen = self.judge.see(f"drawn, {part}", made)
        cheats = {
            "cheat_other_style": [self.test.other_style(cell) for cell in wanted],
            "cheat_other_name": [self.test.other_name(cell) for cell in wanted],
        }
        cells = [{"picture": p, "text": prompt(c)} for p, c in zip(made, wanted, strict=True)]
        return seen, (self._scored(self.judge(seen, wanted), wanted, cheats), cells)

    def _real_or_copied(self, trained: Arrays, kept: Arrays, drawn: Cells) -> Part:
        """How far drawn cells are from their real pictures, and kept ones from trained ones."""
        known, wanted = [*self.real.trained], self.test.trained + self.test.kept
        made = np.concatenate([trained["features"], kept["features"]])
        real, decoded = (self.judge.of(wanted, d)["features"] for d in (False, True))
        training = self.judge.of(known)["features"]
        at, far = nearest(kept["features"], training)
        _, usual = nearest(self.judge.of(self.test.kept)["features"], training)
        limit = float(np.quantile(usual, COPY))
        figures: Figures = {
            "frechet": {
                "value": frechet_distance(made, real),
                "n": len(made),
                "of_real_decoded": frechet_distance(decoded, real),
            },
            "nearest_training": {
                "value": float(np.median(far)),
                "n": len(far),
                "of_real_kept": float(np.median(usual)),
            },
            "copies": {**share(far < limit), "nearer_than": limit, "of_real_kept": COPY},
        }
        cells = [
            {**drawn[n], "distance": float(far[n]), "of": prompt(known[at[n]]),
             "neighbour": self.judge.decoded[known[at[n]]]}
            for n in np.argsort(far)[: sheets.SHOWN]
        ]  # fmt: skip
        return figures, cells

    def _restyle(self) -> Part:
        """A kept cell, from the same name in a trained style and words that name the other."""
        prompts = [
            [self.real.pictures[a.trained], RESTYLE.format(style=a.kept[1]), ImageSlot()]
            for a in self.test.asked
        ]
        return self._continued("restyles", prompts, {"cheat_copy_of_given": self.test.trained})

    def _analogy(self) -> Part:
        """A kept cell, from A in style 1, A in style 2 and B in style 1, without a word."""
        shown = [
            [(a.example, a.trained[1]), (a.example, a.kept[1]), a.trained] for a in self.test.asked
        ]
        prompts = [[*(self.real.pictures[cell] for cell in cells), ImageSlot()] for cells in shown]
        return self._continued("analogies", prompts, {"wordless_rule": self._wordless()})

    def _continued(self, what: str, prompts: list[list[Any]], cheats: dict[str, Any]) -> Part:
        made = [a[-1] for a in self.answers.generate(prompts, **self.settings.sampling)]
        verdict = self.judge(self.judge.see(what, made), self.test.kept)
        return self._scored(verdict, self.test.kept, cheats), sheets.answers(
            prompts, made, self.test, verdict
        )

    def _wordless(self) -> list[Cell]:
        """The training picture of style 2 that is nearest to B: no example is needed for it."""
        found = []
        for each in self.test.asked:
            known = [cell for cell in self.real.trained if cell[1] == each.kept[1]]
            b = self.judge.of([each.trained])["features"]
            at, _ = nearest(b, self.judge.of(known)["features"])
            found.append(known[int(at[0])])
        return found

    def _caption(self, wanted: list[Cell]) -> Part:
        """Captions of real pictures: the exact name and style, the latter beside the judge's."""
        pictures = [self.real.pictures[cell] for cell in wanted]
        written, texts = list(self.answers.image_to_text(pictures)), [prompt(c) for c in wanted]
        said, right = ([text.rpartition(", ") for text in part] for part in (written, texts))
        pairs = list(zip(said, right, strict=True))
        name, style = (np.array([a[i] == b[i] for a, b in pairs]) for i in (0, 2))
        judged = self.judge(self.judge.of(wanted), wanted)
        figures = {
            "exact_name": share(name),
            "exact_style": share(style),
            "both_exact": share(name & style),
            "style_beside_judge": share(style, judged.style),
            **score([[text] for text in texts], written, ["cider"], "plain").figures,
        }
        cells = [
            {"picture": picture, "text": text, "wanted": wanted, "right": text == wanted}
            for picture, text, wanted in zip(pictures, written, texts, strict=True)
        ]
        return figures, cells[: sheets.SHOWN]

    def _edit(self) -> Part:
        """Bottom halves drawn anew under the own caption, and top halves under another name's."""
        wanted = self.test.trained[: self.settings.edits]
        pictures: Sequence[PILImage.Image] = [self.real.pictures[cell] for cell in wanted]
        own, other = (
            [prompt(c) for c in cells] for cells in (wanted, map(self.test.other_name, wanted))
        )
        bottom = self.answers.edit(pictures, "bottom", own)
        top = self.answers.edit(pictures, "top", other)
        codec = self.answers.pipeline.codec
        kept = [
            kept_identical(codec, pictures, bottom, "bottom"),
            kept_identical(codec, pictures, top, "top"),
        ]
        figures = self._scored(self.judge(self.judge.see("edits", bottom), wanted), wanted, {})
        figures["kept_identical"] = {"value": all(kept), "n": 2 * len(wanted)}
        cells = [
            {"original": pictures[n], "bottom": bottom[n], "own": own[n], "top": top[n],
             "other": other[n]}
            for n in range(min(len(wanted), sheets.SHOWN))
        ]  # fmt: skip
        return figures, cells
