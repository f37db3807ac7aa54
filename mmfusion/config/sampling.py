"""How answers are made, and each task's documented default."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmfusion.config.section import Section

OF_PICTURES = (
    "guidance", "guidance_interval", "guidance_schedule", "num_inference_steps", "scheduler",
    "ar_steps", "ar_sizes", "order",
)  # fmt: skip
OF_TEXTS = ("temperature", "top_p", "beams", "length_penalty", "max_new_tokens")
"""Which options of `Sampling` do something for a picture, and which for a text."""
Count = Annotated[int, Field(gt=0, lt=2**63)]


class Sampling(Section):
    """How an answer is made: the noise schedule's options for pictures, sampling's for text."""

    guidance: float = Field(1.0, ge=0)
    """w of uncond + w (cond - uncond); 1 leaves the unconditional pass out."""
    guidance_interval: list[float] = Field([0.0, 1.0], min_length=2, max_length=2)
    """Part of the noise schedule, from (0 clean) up to (1 noise), inside which guidance applies."""
    guidance_schedule: Literal["constant", "linear", "cosine", "tokens"] = "constant"
    """How the scale rises from 1 to `guidance`: not at all, linearly or as a half cosine while
    noise falls, or linearly with the image tokens there after an AR step (as MAR's)."""
    num_inference_steps: Count = 250
    """Denoising steps of an AR step."""
    scheduler: Literal["ddpm", "ddim", "euler", "dpmsolver++", "unipc"] | None = None
    """Default: ddpm, or euler for a flow model."""
    ar_steps: Count = 1
    """AR steps of an image; 1 denoises all tokens at once."""
    ar_sizes: Annotated[list[Count], Field(min_length=1)] | None = None
    """Tokens of each AR step; default: `ar_steps` even ones."""
    order: Literal["random", "raster"] | list[int] = "random"
    """Random, raster, or the grid indices themselves in the order of their generation."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Tokens are drawn from the likeliest that have this share of probability (temperature > 0)."""
    beams: int = Field(1, gt=0, le=1000)
    """Hypotheses that beam search keeps side by side, with the memory of as many rows; 1 is greedy
    decoding or, with a temperature, sampling."""
    length_penalty: float = Field(1.0, ge=0, le=32)
    """Beams and `best_of` rank texts by log p / tokens ** length_penalty, the end symbol counted,
    as transformers does. 0 takes the most probable text, which favours short ones; 1 the highest
    mean over its tokens."""
    max_new_tokens: Count = 32
    """Longest answer."""

    @model_validator(mode="after")
    def _check(self) -> "Sampling":
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError("guidance_interval needs 0 <= low < high <= 1")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(
                f"beams: {self.beams} at temperature {self.temperature}; beam search draws "
                "nothing: give temperature 0, or beams 1"
            )
        return self


class GenerationConfig(Section):
    """The documented default of each task; a call overrides single options."""

    class_to_image: Sampling = Sampling()
    text_to_image: Sampling = Sampling()
    image_to_text: Sampling = Sampling()
    edit: Sampling = Sampling()
    interleaved: Sampling = Sampling()
