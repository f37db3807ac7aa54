"""The configuration: strict, typed, one source of truth for model, data, training and generation.

A YAML file is read into `Config`; unknown keys and wrong types are refused with the key's path.
Any key can be overridden on the command line as `train.lr=3e-4`.
"""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmfusion.classes import read_names
from mmfusion.errors import UserError
from mmfusion.overrides import apply_override, read_yaml, write_yaml

TaskName = Literal["class_to_image", "text_to_image", "image_to_text", "interleaved"]
Positive = Field(gt=0)
Fraction = Field(ge=0, le=1)


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no silent conversions, never changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


class ImageConfig(Section):
    """Pictures and their latents: `size` pixels square, `patch` latent cells a token side."""

    codec: Literal["pixel", "vae"] = "pixel"
    size: int = Positive
    channels: Literal[1, 3] = 3
    patch: int = Field(1, gt=0)
    vae: str | None = None
    """Folder or hub id of a diffusers AutoencoderKL (codec vae)."""
    latent_channels: int = Field(16, gt=0)
    downsampling: int = Field(16, gt=0)
    latent_scale: float | None = None
    """Factor from raw to normalised latents; default: the autoencoder's own scaling_factor."""

    @model_validator(mode="after")
    def _check(self) -> "ImageConfig":
        cell = self.patch * (self.downsampling if self.codec == "vae" else 1)
        if self.size % cell:
            raise ValueError(f"size {self.size} is not a multiple of {cell}, a token's side")
        if self.codec == "vae" and not self.vae:
            raise ValueError("codec vae needs `vae`, a folder or hub id")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        side = self.size // self.patch
        side = side // self.downsampling if self.codec == "vae" else side
        return side, side

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def latent_dim(self) -> int:
        """Numbers in one token."""
        channels = self.latent_channels if self.codec == "vae" else self.channels
        return channels * self.patch**2


class TextConfig(Section):
    """The sentencepiece model; without it the model reads and writes no text."""

    tokenizer: str


class DecoderConfig(Section):
    """The transformer. The defaults are the paper's block (section 4)."""

    width: int = Positive
    depth: int = Positive
    heads: int = Positive
    kv_heads: int | None = None
    norm: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    mlp_ratio: float = Field(4.0, gt=0)
    position: Literal["learned", "sincos", "rotary"] = "learned"
    """Image positions: a table learned from or fixed at 2-D sin-cos, or 3-axis rotary."""
    time_term: bool = True
    """Add a sinusoid of `time` to every token (not with rotary); off for single-image models."""
    label_tokens: int = Field(64, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "DecoderConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4 (2-D sin-cos positions)")
        if self.position == "rotary" and (
            self.width // self.heads < 6 or self.width // self.heads % 2
        ):
            raise ValueError("rotary positions need an even head dimension of 6 or more")
        return self


class DiffusionConfig(Section):
    """Causal diffusion (sections 3 and 4; the values are the paper's)."""

    timesteps: int = Field(1000, gt=1)
    beta_start: float = Field(1e-4, gt=0, lt=1)
    beta_end: float = Field(2e-2, gt=0, lt=1)
    prediction: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    ar_decay: float = Field(0.9, gt=0, le=1)
    ar_steps: int | None = Field(None, gt=0)
    """Train at this fixed number of AR steps instead of a random one."""
    order: Literal["random", "raster"] = "random"
    weight_start: float = Field(2.0, ge=1)
    noisy_copies: int = Field(1, gt=0)
    """Noisy copies of a target image in one document, each with a timestep of its own."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of documents whose label and text are replaced by their null form (guidance)."""


class SourceConfig(Section):
    """One entry of the mixture: shards read as one task, drawn with a relative weight."""

    name: str
    shards: str
    """A glob of tar shards, relative to the working directory."""
    task: TaskName
    weight: float = Field(1.0, gt=0)
    flip: bool = False
    """Mirror half of the pictures."""


class CapacityConfig(Section):
    """Most positions of each kind in a row, so that shapes never change (set it to compile)."""

    text: int = Positive
    label: int = Positive
    image: int = Positive
    noisy: int = Positive
    predict: int = Positive


class DataConfig(Section):
    """Packed rows: `rows` a step over all ranks, `micro_rows` a rank and forward pass."""

    rows: int = Positive
    micro_rows: int = Positive
    workers: int = Field(0, ge=0)
    capacity: CapacityConfig | None = None
    sources: list[SourceConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        names = [source.name for source in self.sources]
        if len({*names, "documents", "refused"}) < len(names) + 2:  # the two the loader counts by
            raise ValueError(f"sources need names of their own, not documents or refused: {names}")
        return self

    def check_ranks(self, world: int) -> None:
        """Raise UserError where the rows cannot be shared out among `world` ranks and workers."""
        if self.rows % (world * self.micro_rows):
            wanted = f"{world} ranks x {self.micro_rows} micro_rows"
            raise UserError(f"data.rows: {self.rows} a step are not a multiple of {wanted}")
        if self.workers and (self.rows // world) % self.workers:
            raise UserError(
                f"data.workers: {self.rows // world} rows a rank and step are not a multiple of "
                f"{self.workers} workers"
            )


class TrainConfig(Section):
    """Optimisation, precision, ZeRO, and what is written while it trains."""

    output: str
    steps: int = Positive
    max_minutes: float | None = Field(None, gt=0)
    """Finish within this time: the learning-rate schedule follows whichever is further on."""
    lr: float = Positive
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    decay: float = Field(0.0, ge=0, le=1)
    """Last share of the run in which the learning rate falls linearly to zero."""
    grad_clip: float = Field(1.0, ge=0)
    ema: float = Field(0.9999, ge=0, lt=1)
    text_weight: float = Field(1.0, ge=0)
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on CUDA, fp32 on the CPU."""
    attention: Literal["auto", "dense", "flex"] = "auto"
    """auto: FlexAttention on CUDA, the dense mask on the CPU."""
    compile: bool = False
    """torch.compile, on CUDA; on the CPU it gains nothing and is left out."""
    checkpoint_activations: bool = False
    log_every: int = Field(10, gt=0)
    save_every: int = Field(1000, gt=0)
    """Steps between checkpoints; each comes with an exported model and a sample sheet."""
    sheet_prompts: list[str] = []
    """What the sample sheets show beside the first classes."""
    keep: int = Field(2, gt=0)
    """Newest checkpoints to keep."""


class Sampling(Section):
    """How an answer is made: the noise schedule's options for pictures, sampling's for text."""

    guidance: float = Field(1.0, ge=0)
    guidance_interval: list[float] = Field([0.0, 1.0], min_length=2, max_length=2)
    """Share of the noise schedule (0 clean, 1 noise) inside which guidance applies."""
    num_inference_steps: int = Field(250, gt=0)
    scheduler: Literal["ddpm", "ddim", "dpmsolver++", "unipc"] = "ddpm"
    ar_steps: int = Field(1, gt=0)
    ar_sizes: list[int] | None = None
    """Tokens of each AR step; default: `ar_steps` even ones."""
    order: Literal["random", "raster"] | list[int] = "random"
    """Random, raster, or the grid indices themselves in the order of their generation."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(32, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "Sampling":
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError("guidance_interval needs 0 <= low < high <= 1")
        if self.ar_sizes is not None and min(self.ar_sizes, default=0) < 1:
            raise ValueError("ar_sizes needs positive sizes")
        return self


class GenerationConfig(Section):
    """The documented default of each task; a call overrides single options."""

    class_to_image: Sampling = Sampling()
    text_to_image: Sampling = Sampling()
    image_to_text: Sampling = Sampling()
    edit: Sampling = Sampling()
    interleaved: Sampling = Sampling()


class ModelConfig(Section):
    """All that an exported model needs: saved as its config.json."""

    row_length: int = Positive
    """Tokens of a row: the longest document, in training and when it is prompted."""
    image: ImageConfig
    text: TextConfig | None = None
    classes: list[str] = []
    """Class names in the order of their numbers; empty: no class conditioning."""
    decoder: DecoderConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    generation: GenerationConfig = GenerationConfig()

    @model_validator(mode="after")
    def _check_defaults(self) -> "ModelConfig":
        # A default that cannot be sampled would stop the run at its first sample sheet.
        for task in self.generation.model_fields_set - {"image_to_text"}:
            sampling: Sampling = getattr(self.generation, task)
            if why := self.refusal(sampling):
                raise ValueError(f"generation.{task}.{why}")
            if task != "edit":  # an edit generates as many tokens as its mask says
                self._check_split(task, sampling)
        return self

    def _check_split(self, task: str, sampling: "Sampling") -> None:
        tokens, sizes = self.image.tokens, sampling.ar_sizes
        if sampling.ar_steps > tokens or (sizes is not None and sum(sizes) != tokens):
            key = "ar_steps" if sizes is None else "ar_sizes"
            raise ValueError(f"generation.{task}.{key}: an image has {tokens} tokens")

    def refusal(self, sampling: "Sampling") -> str | None:
        """Why this model cannot draw with these options, or None."""
        # One step of DDPM or DDIM at linspace spacing is the cleanest timestep: noise comes out.
        least, most = 2 if sampling.scheduler in ("ddpm", "ddim") else 1, self.diffusion.timesteps
        if not least <= sampling.num_inference_steps <= most:
            return (
                f"num_inference_steps: {sampling.num_inference_steps} with {sampling.scheduler}; "
                f"choose {least} to {most}"
            )
        if sampling.guidance != 1 and self.diffusion.dropout == 0:
            return (
                f"guidance {sampling.guidance}: this model is trained without dropout of its "
                "condition (diffusion.dropout: 0), so only guidance 1 is meaningful"
            )
        return None


class EvaluationConfig(Section):
    """What `mmfusion eval` measures."""

    suite: Literal["digits"] = "digits"
    data: str
    """Folder that the suite's data pipeline wrote."""
    pictures: int = Field(1000, gt=0)
    held_out: int | None = Field(None, gt=0)
    """Use only so many held-out pictures; default: all."""
    edits: int = Field(100, gt=0)


class Config(ModelConfig):
    """A whole run."""

    seed: int = 0
    classes_file: str | None = None
    """JSON list of class names, which `load` puts into `classes`."""
    class_count: int | None = Field(None, gt=0)
    """How many names `classes_file` has: known before the file is made, and checked when it is."""
    data: DataConfig
    train: TrainConfig
    evaluation: EvaluationConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.class_count and not self.classes_file:
            raise ValueError("class_count goes with `classes_file`")
        return self

    def model_part(self) -> ModelConfig:
        """The part that goes with the exported weights."""
        names = set(ModelConfig.model_fields)
        return ModelConfig.model_validate(self.model_dump(include=names))


def find(name: str) -> Path:
    """The file of a config: a path, or a bare name (with or without .yaml) looked up in configs/.

    Raises:
        UserError: there is no such file; the message lists the shipped names.
    """
    shipped = Path(__file__).resolve().parent / "configs"
    if not shipped.is_dir():
        shipped = shipped.parent.parent / "configs"
    for path in (Path(name), shipped / name, shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.name for path in shipped.glob("*.yaml")))
    raise UserError(f"config {name}: no such file, and no config of that name (shipped: {names})")


def load(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a config by path or bare name and apply dotted overrides such as `train.lr=3e-4`.

    A number in an override's path picks a list entry: `data.sources.0.shards=...`.

    Raises:
        UserError: a missing file, an unknown key or a wrong value, with the key's path.
    """
    path = find(name)
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable text file ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values")
    for override in overrides:
        apply_override(raw, override)
    return _named(build(Config, raw, str(path)))


def _named(config: Config) -> Config:
    """The config with the names of `classes_file`; one not made yet is left there, with numbers."""
    if config.classes_file is None:
        return config
    names = read_names(Path(config.classes_file), config.class_count)
    if names is None:  # training asks for the file; a dry run needs only how many there are
        numbers = [str(number) for number in range(config.class_count or 0)]
        return config.model_copy(update={"classes": numbers})
    return config.model_copy(update={"classes": names, "classes_file": None, "class_count": None})


def build(kind: type[S], raw: Any, name: str) -> S:
    """Validate plain data as a config section.

    Raises:
        UserError: naming `name`, every wrong key and what is wrong with it.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg']}"
            + (f" (got {e['input']!r})" if isinstance(e["input"], (str, int, float)) else "")
            for e in error.errors()
        ]
        raise UserError(f"{name}:\n" + "\n".join(lines)) from None


def save(config: Section, path: Path) -> None:
    """Write a resolved config as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(write_yaml(config.model_dump()), encoding="utf-8")
