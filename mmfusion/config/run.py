"""What a run adds to its model: data, optimisation, evaluation."""

from typing import Literal

from pydantic import Field, model_validator

from mmfusion.config.evaluation import EvaluationConfig
from mmfusion.config.model import ModelConfig
from mmfusion.config.section import PathName, Positive, Section
from mmfusion.errors import UserError

TaskName = Literal["class_to_image", "text_to_image", "image_to_text", "interleaved"]


class SourceConfig(Section):
    """One entry of the mixture: shards read as one task, drawn with a relative weight."""

    name: str
    """Of your choice; messages and checkpoints call the source so."""
    shards: PathName
    """A glob of tar shards, relative to the working directory."""
    task: TaskName
    """How a sample becomes a document."""
    weight: float = Field(1.0, gt=0)
    """Share of documents, relative to the other sources'."""
    flip: bool = False
    """Mirror half of the pictures."""


class CapacityConfig(Section):
    """Most positions of each kind in a row, so that shapes never change (set it to compile)."""

    text: int = Positive
    """Text tokens."""
    label: int = Positive
    """Label tokens."""
    image: int = Positive
    """Image tokens, clean and noisy."""
    noisy: int = Positive
    """Noisy image tokens."""
    predict: int = Positive
    """Text tokens that are learned."""


class DataConfig(Section):
    """Packed rows: `rows` a step over all ranks, `micro_rows` a rank and forward pass."""

    rows: int = Positive
    """Rows a step; a multiple of ranks × `micro_rows`."""
    micro_rows: int = Positive
    """Rows of a forward pass on a rank."""
    workers: int = Field(0, ge=0)
    """Processes a rank that make micro-batches ahead, on the CPU at most one for each of a step; 0
    makes them in the training process."""
    capacity: CapacityConfig | None = None
    block: int = Field(16, gt=0)
    """Neighbours in a shard that come near each other in time; 1 shuffles fully."""
    most_lost: float = Field(0.01, ge=0, le=1)
    """Share of a row slot's samples that may be unusable before the run stops."""
    pipeline: Literal["digits", "emoji"] | None = None
    """The one `mmfusion data` command that writes all of it; it is named when data are missing."""
    sources: list[SourceConfig] = Field(min_length=1)
    """The mixture."""

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        names = [source.name for source in self.sources]
        if len({*names}) < len(names):
            raise ValueError(f"sources need names of their own: {names}")
        return self

    def check_ranks(self, world: int) -> None:
        """Raise UserError where the rows cannot be shared out among `world` ranks."""
        if self.rows % (world * self.micro_rows):
            wanted = f"{world} ranks x {self.micro_rows} micro_rows"
            raise UserError(f"data.rows: {self.rows} a step are not a multiple of {wanted}")


class TrainConfig(Section):
    """Optimisation, precision, ZeRO, and what is written while it trains."""

    output: PathName
    """Folder of the run; default: `runs/` and the config's name."""
    start_from: PathName | None = None
    """A new run's first weights: a model as `Pipeline.from_pretrained` finds it (its EMA), or a
    run's checkpoint folder (raw weights). A run that goes on does not read it."""
    steps: int = Positive
    """Optimizer steps of the whole run."""
    max_minutes: float | None = Field(None, gt=0)
    """Finish within this time: the learning-rate schedule follows whichever is further on."""
    lr: float = Positive
    """Learning rate after the warm-up."""
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2)
    """Of AdamW."""
    eps: float = Field(1e-8, gt=0)
    """Of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's, on the weights of linear layers; tables, norms and biases do not decay."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    decay: float = Field(0.0, ge=0, le=1)
    """Last share of the run in which the learning rate falls linearly to zero."""
    grad_clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient over all parameters and ranks; 0 clips nothing."""
    ema: float = Field(0.9999, ge=0, lt=1)
    """Decay of the averaged weights, which are what is exported; 0 averages nothing."""
    text_weight: float = Field(1.0, ge=0)
    """Weight of the text loss beside the image loss."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's ZeRO: what ranks share out. 0 nothing, 1 moments, 2 gradients, 3 weights."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on CUDA, fp32 on the CPU."""
    attention: Literal["auto", "dense", "flex"] = "auto"
    """auto: FlexAttention on CUDA, the dense mask on the CPU."""
    compile: bool = False
    """torch.compile, block by block, on CUDA; on the CPU it gains nothing and is left out."""
    checkpoint_activations: bool | float = Field(False, ge=0, le=1)
    """Share of the blocks that keep only their input, and are done again in the backward pass:
    less memory, up to a third more work. true is all of them."""
    log_every: int = Field(10, gt=0)
    """Steps between lines of metrics.jsonl."""
    save_every: int = Field(1000, gt=0)
    """Steps between checkpoints; each comes with an exported model and a sample sheet."""
    sheet_prompts: list[str] = Field([])
    """What the sample sheets show beside the first classes."""
    keep: int = Field(2, gt=0)
    """Newest checkpoints to keep."""


class Config(ModelConfig):
    """A whole run."""

    seed: int = 0
    """Of weights, data order, noise and all else that is drawn."""
    classes_file: PathName | None = None
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
