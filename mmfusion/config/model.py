"""What a model is: its codecs, its decoder, its diffusion; all that goes with exported weights."""

from typing import Literal

from pydantic import Field, model_validator

from mmfusion.config.sampling import GenerationConfig, Sampling
from mmfusion.config.section import PathName, Positive, Section


class ImageConfig(Section):
    """Pictures and their latents: `size` pixels square, `patch` latent cells a token side."""

    codec: Literal["pixel", "linear", "vae"] = "pixel"
    """How pictures become latents: their pixels, principal components of patches (linear), or an
    autoencoder's latents (vae)."""
    size: int = Positive
    """Pixels a side; other pictures are resized and cut to their centre square."""
    channels: Literal[1, 3] = 3
    """1 is grey, 3 is RGB."""
    patch: int = Field(1, gt=0)
    """Cells a side that make one token: pixels, or latents of the autoencoder."""
    vae: PathName | None = None
    """Folder or hub id of a diffusers AutoencoderKL (codec vae)."""
    linear: PathName | None = None
    """File of principal components, of `mmfusion data linear-codec` (codec linear)."""
    latent_channels: int = Field(16, gt=0)
    """Of the autoencoder (codec vae); numbers that are kept of a patch (codec linear)."""
    downsampling: int = Field(16, gt=0)
    """Pixels a side of one of the autoencoder's latents (codec vae)."""
    latent_scale: float | None = None
    """Factor from raw to normalised latents; default: the autoencoder's own scaling_factor."""

    @model_validator(mode="after")
    def _check(self) -> "ImageConfig":
        cell = self.patch * (self.downsampling if self.codec == "vae" else 1)
        if self.size % cell:
            raise ValueError(f"size {self.size} is not a multiple of {cell}, a token's side")
        if self.codec == "vae" and not self.vae:
            raise ValueError("codec vae needs `vae`, a folder or hub id")
        if self.codec == "linear" and not self.linear:
            raise ValueError("codec linear needs `linear`, a file of `mmfusion data linear-codec`")
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
        if self.codec == "linear":
            return self.latent_channels
        channels = self.latent_channels if self.codec == "vae" else self.channels
        return channels * self.patch**2


class TextConfig(Section):
    """The tokenizer; without it the model reads and writes no text."""

    tokenizer: PathName
    """A sentencepiece `.model` or a `tokenizer.json`, with this project's control symbols."""


class DecoderConfig(Section):
    """The transformer. The defaults are the paper's block (section 4)."""

    width: int = Positive
    """Numbers of a token between the layers."""
    depth: int = Positive
    """Layers."""
    heads: int = Positive
    """Of attention."""
    kv_heads: int | None = None
    """Heads of keys and values, fewer for grouped queries; default: as many as `heads`."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """GELU, or SwiGLU with its gate."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Inner width of the MLP, as a multiple of `width`."""
    position: Literal["learned", "sincos", "rotary"] = "learned"
    """Image positions: a table learned from or fixed at 2-D sin-cos, or 3-axis rotary."""
    time_term: bool = True
    """Add a sinusoid of `time` to every token (not with rotary): it gives text its positions and
    tells pictures apart. Off for models without text that draw one picture."""
    label_tokens: int = Field(64, gt=0)
    """Learned tokens of a class label."""

    @model_validator(mode="after")
    def _check(self) -> "DecoderConfig":
        width, heads = self.width, self.heads
        if width % heads or width % 4:  # 4: of 2-D sin-cos positions
            raise ValueError(f"width {width} is not a multiple of heads {heads} and of 4")
        if self.kv_heads and heads % self.kv_heads:
            raise ValueError(f"heads {heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.position == "rotary" and (width // heads < 6 or width // heads % 2):
            raise ValueError("rotary positions need an even head dimension of 6 or more")
        return self


class DiffusionConfig(Section):
    """Causal diffusion (sections 3 and 4; the values are the paper's)."""

    path: Literal["ddpm", "flow"] = "ddpm"
    """How noise is mixed in: along the betas of DDPM, or on a straight line (flow matching)."""
    timesteps: int = Field(1000, gt=1)
    """Of the noise schedule."""
    beta_start: float = Field(1e-4, gt=0, lt=1)
    """First beta of the linear schedule (path ddpm)."""
    beta_end: float = Field(2e-2, gt=0, lt=1)
    """Its last beta."""
    prediction: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """Noise, clean latents (the paper's † model) or the velocity of the path."""
    velocity_loss: bool = False
    """Measure an error of clean latents as one of the velocity: weight 1/max(s_t, 0.05)²
    (Li & He 2025, arXiv 2511.13720)."""
    timestep_law: Literal["uniform", "logit_normal"] = "uniform"
    """How training draws timesteps; logit-normal ones are mostly in the middle (SD3)."""
    logit_mean: float = 0.0
    """Of logit-normal timesteps: the higher, the more noise."""
    logit_std: float = Field(1.0, gt=0)
    """Of logit-normal timesteps."""
    timestep_per: Literal["image", "step"] = "image"
    """One timestep for all AR steps of an image, or one for each of them."""
    noisy_copies: int = Field(1, gt=0)
    """Noisy copies of a target image in one document, each with timesteps of its own."""
    ar_decay: float = Field(0.9, gt=0, le=1)
    """Factor by which each AR step more is less likely; 1 draws their number uniformly."""
    ar_steps: int | None = Field(None, gt=0)
    """Train at this fixed number of AR steps instead of a random one."""
    order: Literal["random", "raster"] = "random"
    """In which an image's tokens are generated."""
    weight_start: float = Field(2.0, ge=1)
    """Loss weight of an AR step at an image's first token; it falls towards 1."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of documents whose label and text are replaced by their null form (guidance)."""

    @model_validator(mode="after")
    def _check(self) -> "DiffusionConfig":
        if self.path == "flow" and self.prediction == "epsilon":
            raise ValueError(
                "path flow starts from noise alone, of which a prediction of the noise says "
                "nothing about the picture; set prediction to v_prediction or sample"
            )
        if self.velocity_loss and (self.path, self.prediction) != ("flow", "sample"):
            raise ValueError("velocity_loss is for path flow with prediction sample")
        return self

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Schedulers that sample this path, the default one first."""
        first = ("ddpm", "ddim") if self.path == "ddpm" else ("euler",)
        return *first, "dpmsolver++", "unipc"


class ModelConfig(Section):
    """All that an exported model needs: saved as its config.json."""

    row_length: int = Positive
    """Tokens of a row: the longest document, in training and when it is prompted."""
    image: ImageConfig
    text: TextConfig | None = None
    classes: list[str] = Field([])
    """Class names in the order of their numbers; empty: no class conditioning."""
    decoder: DecoderConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    generation: GenerationConfig = GenerationConfig()

    @model_validator(mode="after")
    def _check_positions(self) -> "ModelConfig":
        c = self.decoder
        if self.text and c.position != "rotary" and not c.time_term:
            raise ValueError(
                f"decoder.time_term: without it, position {c.position} gives text no positions; "
                "set decoder.time_term=true or decoder.position=rotary, or leave `text` out"
            )
        return self

    @model_validator(mode="after")
    def _check_defaults(self) -> "ModelConfig":
        # A default that cannot be sampled would stop the run at its first sample sheet.
        for task in self.generation.model_fields_set - {"image_to_text"}:
            sampling: Sampling = getattr(self.generation, task)
            if why := self.refusal(sampling):
                raise ValueError(f"generation.{task}.{why}")
            tokens, sizes = self.image.tokens, sampling.ar_sizes
            fits = sampling.ar_steps <= tokens and (sizes is None or sum(sizes) == tokens)
            if not fits and task != "edit":  # of which the mask says how many tokens are generated
                key = "ar_steps" if sizes is None else "ar_sizes"
                raise ValueError(f"generation.{task}.{key}: an image has {tokens} tokens")
        return self

    def refusal(self, sampling: "Sampling") -> str | None:
        """Why this model cannot draw with these options, or None."""
        fitting = self.diffusion.schedulers
        scheduler = sampling.scheduler or fitting[0]
        if scheduler not in fitting:
            return (
                f"scheduler: {scheduler} does not sample a model of path {self.diffusion.path}; "
                f"choose {', '.join(fitting)}"
            )
        # One step of DDPM or DDIM at linspace spacing is the cleanest timestep: noise comes out.
        least = 2 if scheduler in ("ddpm", "ddim") else 1
        # At more, two of UniPC's whole timesteps are the same, and it fails.
        most = self.diffusion.timesteps - (2 if scheduler == "unipc" else 0)
        if not least <= sampling.num_inference_steps <= most:
            return (
                f"num_inference_steps: {sampling.num_inference_steps} with {scheduler}; "
                f"choose {least} to {most}"
            )
        if sampling.guidance != 1 and self.diffusion.dropout == 0:
            return (
                f"guidance {sampling.guidance}: this model was trained without dropout of its "
                "condition (diffusion.dropout: 0); give guidance 1"
            )
        return None
