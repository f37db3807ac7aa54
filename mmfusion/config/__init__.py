"""The configuration: strict, typed, one source of truth for model, data, training and generation.

A YAML file is read into `Config`; unknown keys and wrong types are refused with the key's path.
Any key can be overridden on the command line as `train.lr=3e-4`.
"""

from mmfusion.config.evaluation import EvaluationConfig
from mmfusion.config.files import find, is_run, load, load_evaluation, save
from mmfusion.config.model import (  # fmt: skip
    DecoderConfig,
    DiffusionConfig,
    ImageConfig,
    ModelConfig,
    TextConfig,
)
from mmfusion.config.run import CapacityConfig, Config, DataConfig, SourceConfig, TrainConfig
from mmfusion.config.sampling import GenerationConfig, Sampling
from mmfusion.config.section import Section, build

__all__ = [
    "CapacityConfig", "Config", "DataConfig", "DecoderConfig", "DiffusionConfig",
    "EvaluationConfig", "GenerationConfig", "ImageConfig", "ModelConfig", "Sampling", "Section",
    "SourceConfig", "TextConfig", "TrainConfig", "build", "find", "is_run", "load",
    "load_evaluation", "save",
]  # fmt: skip
