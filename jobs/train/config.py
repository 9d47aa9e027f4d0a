"""What a training is, as data: a world model's or an autoencoder's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from longtake.cluster.accelerators import AUTO, Gpus
from longtake.config import Config
from longtake.datasets.mixture import Unlike
from longtake.errors import UserError, unknown
from longtake.models.config import AutoencoderConfig, DiffusionConfig, ModelConfig, SamplerConfig
from longtake.models.description import PIXELS
from longtake.registry import known_name
from longtake.streaming.plan import Clip
from longtake.training.engine_config import EngineConfig

Positive = Annotated[int, Field(ge=1)]
DATASET = "dataset"
"""The tokenizer of a world model whose dataset holds latents already: the one that encoded them."""


def known_logger(name: str) -> str:
    """The name of a logger; their files are looked at only where one is named."""
    from longtake.jobs.train.loggers import loggers

    return known_name(name, loggers())


class Stage(Config):
    """One stage of the curriculum."""

    until: Positive | None = Field(None, description="first step of the next stage; none for the last [step]")
    frames: Positive = Field(64, description="frames per clip [frames]")


Scale = Literal["as_recorded", "standard", "quantiles"]


class ConditionsConfig(Config):
    """In which scale a world model is told what was recorded; the checkpoint keeps it, so numbers in the units of the
    recording go in wherever the model is used."""

    actions: Scale = Field(
        "as_recorded",
        description="continuous actions: as they are, or standard (mean 0, deviation 1 over the training split), or "
        "quantiles (1 % and 99 % at -1 and 1)",
    )
    state: str | None = Field(None, description="label of the dataset that is told as the state")
    state_scale: Scale = Field("standard", description="of the state, likewise")
    cell: Annotated[float, Field(gt=0)] | Literal["data"] = Field(
        1.0,
        description="units of the pose that count as one cell (places are told in waves of 1 to 16 cells); data: an "
        "eighth of how far the episodes go [units of the pose]",
    )


class LocalityConfig(Config):
    """Clips of an epoch come from a few groups of neighbouring episodes at a time: docs/scale.md."""

    episodes: Positive = Field(32, description="of a group, about those of a shard [count]")
    groups: Positive = Field(8, description="that are mixed at a time [count]")


class DataConfig(Config):
    """Which clips the model sees."""

    synonyms = {
        "clip": {
            **dict.fromkeys(("plain", "recorded", "as_recorded", "linear", "none", "normal"), "forward"),
            **dict.fromkeys(("reverse", "backward", "back", "there_and_back"), "palindrome"),
            **dict.fromkeys(("shuffle", "shuffled", "random", "visits"), "revisit"),
        }
    }

    dataset: str | Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        description="a dataset, or several with how often each is drawn from: {mazes: 2, atari: 1} [weight]"
    )
    unlike: list[Unlike] = Field(
        [],
        exclude_if=lambda declared: not declared,
        description="what datasets of a mixture may have otherwise: fps, actions (what their numbers mean), pose (its "
        "units)",
    )
    clip: Clip = Field(
        "palindrome",
        description="as recorded (forward), or half a clip and its way back, or half a clip and visits of its frames "
        "in any order (both need a pose); mixed: a quarter as recorded, a quarter back, half revisits",
    )
    frames_per_step: Positive = Field(
        256, description="frames in a batch, all workers together, at any length [frames]"
    )
    curriculum: Annotated[list[Stage], Field(min_length=1)] = [Stage(until=None, frames=64)]
    """Stages of clip length, from the first step to the last; the last one has no `until`."""
    base_segment: Positive = Field(32, description="source frames of the segments that an epoch permutes [frames]")
    stride: Positive = Field(
        1, description="source frames from one frame of a clip to the next; actions are stacked [frames]"
    )
    random_start: bool = Field(False, description="clips begin elsewhere in every epoch, not always on the same frames")
    conditions: ConditionsConfig = Field(ConditionsConfig(), exclude_if=lambda value: value == ConditionsConfig())
    """In which scale the model is told what was recorded."""
    locality: LocalityConfig | None = Field(
        None,
        exclude_if=lambda locality: locality is None,
        description="an epoch's order keeps together what lies together, for data in a bucket that no disk holds",
    )
    max_replaced: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the clips that may be unreadable, and replaced, before the run fails [share]",
    )

    @property
    def first(self) -> str:
        """The dataset, or the first of several: the one that scores are of."""
        return self.dataset if isinstance(self.dataset, str) else next(iter(self.dataset))


FRAMES_ALONE: list[Unlike] = ["fps", "actions", "pose"]
"""What may differ where frames are all that is looked at."""


class FrameDataConfig(DataConfig):
    """Which frames an autoencoder sees: short clips, whose order is nothing to it."""

    unlike: list[Unlike] = Field(FRAMES_ALONE, exclude_if=lambda declared: declared == FRAMES_ALONE)
    """What datasets of a mixture may have otherwise: all that is nothing to frames."""
    clip: Literal["forward"] = "forward"
    """As recorded: the order of frames is nothing to an autoencoder."""
    curriculum: Annotated[list[Stage], Field(min_length=1, max_length=1)] = [Stage(until=None, frames=4)]
    """One stage: how many frames of an episode lie side by side in a batch."""
    base_segment: Positive = 4
    """Source frames of the segments that an epoch permutes [frames]"""


class HeldOutConfig(Config):
    """What is measured on clips that are not trained on, always the same ones."""

    every: Positive = 50
    """Between one validation and the next [steps]"""
    clips: Positive = 16
    """Held-out clips that are measured, always the same ones [count]"""


class ValidationConfig(HeldOutConfig):
    """Held-out loss at one fixed noise level, with fixed clips and fixed noise."""

    noise_level: float = Field(0.5, gt=0, le=1)
    """How noisy every held-out frame is: 0 clean, 1 noise alone [share]"""


class CoherenceConfig(Config):
    """A loss on what the model predicts after frames of its own, from the memory that it carried through them."""

    weight: float = Field(1.0, gt=0)
    """Of this loss beside the usual one [weight]"""
    every: Positive = 1
    """Between one step with this loss and the next [steps]"""
    free_frames: Positive = Field(
        4, description="frames that the model makes by itself, after half a clip of context [frames]"
    )
    sampler_steps: Positive = Field(1, description="denoising calls for each of them [calls]")


class MemoryConfig(Config):
    """What training does to the carried memory."""

    overlap: int = Field(
        0,
        ge=0,
        description="last frames of a temporal block that the next one reads again, from the memory before them "
        "[frames]",
    )
    carry_width: Positive | None = Field(
        None,
        description="state dimensions handed from block to block, the rest starts from zero; none: exact carry [count]",
    )
    nested: list[Positive] = Field(
        [],
        description="state dimensions, one of which is drawn for each step; the model can later be cut to any "
        "of them [count]",
    )
    regularise: float = Field(
        0.0, ge=0, description="weight of the pull of every layer's state towards N(0, 1) [weight]"
    )
    regularise_gain: float = Field(
        1.0, ge=0, description="how fast that weight grows with the size of the state [power]"
    )
    limit: float = Field(1e6, gt=0, description="largest entry of a state before the run is stopped [number]")
    coherence: CoherenceConfig | None = None
    """A loss on what comes after frames of its own; none: without it."""


class SamplesConfig(Config):
    """Pictures of what the model makes, in the run's folder: true frames above, its own below."""

    every: Positive = 1000
    """Between one picture and the next [steps]"""
    frames: Positive = Field(8, description="that it makes, after the first half of a held-out clip [frames]")
    sampler: SamplerConfig = SamplerConfig()
    """How its frames are generated."""


class InitConfig(Config):
    """Weights to begin with: of `run`, or of `mamba2_lm`."""

    run: str | None = Field(
        None, description="a training by its id or name, or the path of a folder that `longtake export` wrote"
    )
    step: Positive | None = Field(None, description="of that run's checkpoint; none: the newest [step]")
    mamba2_lm: str | None = Field(
        None,
        description="checkpoint of a Mamba-2 language model (a file or a folder that every worker can read): its first "
        "mixers become ours, and are heard from the first step",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.run is None) == (self.mamba2_lm is None):
            raise ValueError("give one of run and mamba2_lm")
        if self.step is not None and (self.run is None or "/" in self.run):
            raise ValueError(f"step: {self.step}, but only a run has steps: set run to its id or name")
        return self


class PerceptualConfig(Config):
    """LPIPS between the frame that is made and the true one, added to the loss."""

    weight: float = Field(0.1, gt=0)
    """Of LPIPS beside the loss [weight]"""
    net: Literal["lpips_alex", "lpips_vgg"] = "lpips_alex"
    """The net whose LPIPS it is: AlexNet's or VGG16's; two different measures."""


class ReconstructionConfig(Config):
    """What an autoencoder's training minimises: the mean absolute error of pixels in [-1, 1], and a little of these."""

    squared: float = Field(0.0, ge=0, description="weight of the mean squared error [weight]")
    kl: float = Field(
        1e-5,
        ge=0,
        description="weight of the KL divergence of the latents from N(0, 1); 0: no noise on latents either [weight]",
    )


class TrainConfig(Config):
    """One training run, whole: what all kinds share. `model.kind` tells the kind, a world model when not given."""

    run_kind: ClassVar[str]
    """Its kind in the table `runs`."""

    name: str = Field("run", pattern=r"^[a-zA-Z0-9_.-]+$", description="how tables and plots call the model")
    steps: Positive
    """Optimizer steps of the whole run [steps]"""
    seed: int = 0
    """Of the weights, the order of clips and the noise; the same seed on the same data gives the same run [number]"""
    workers: Annotated[int, Field(ge=0)] = Field(
        1, description="Ray workers; 0 trains in this process, without Ray [count]"
    )
    min_workers: Positive | None = Field(
        None,
        description="the run starts, and goes on, with as few as these while others are missing; none: never [count]",
    )
    gpus_per_worker: Gpus = AUTO
    """Of each worker, a share of one where it is below 1; auto: one where there is one for each; 0 trains on CPUs
    [GPUs]"""
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3, description="lost workers replaced before the run fails [count]"
    )
    checkpoint_every: Positive = 100
    """Between one checkpoint and the next, which is also how much a kill can cost [steps]"""
    keep: Positive = Field(2, description="checkpoints kept, the newest ones [count]")
    keep_best: Literal["val_loss", "loss"] | None = Field(
        "val_loss", description="the one with the lowest of this is kept too; none: the newest ones only"
    )
    data: DataConfig
    """Which clips are trained on."""
    engine: EngineConfig = EngineConfig()
    """How gradients become a step."""
    validation: HeldOutConfig
    """What is measured on held-out clips."""
    watch: list[Annotated[str, AfterValidator(known_logger)]] = Field(
        [], description="where the numbers of steps are shown too; the tables stay the truth"
    )
    init: InitConfig | None = None
    """Weights to begin with; none: random ones."""
    perceptual: PerceptualConfig | None = None
    """LPIPS in the loss; none: without it."""
    model: ModelConfig | AutoencoderConfig
    """What is trained."""

    @classmethod
    def kind_of(cls, settings: dict[str, Any]) -> type[TrainConfig]:
        """The class of these settings, by `model.kind`.

        Raises:
            UserError: no such kind.
        """
        if cls is not TrainConfig:
            return cls
        model = settings.get("model")
        kind = model.get("kind", "world_model") if isinstance(model, dict) else "world_model"
        if kind not in KINDS:
            raise UserError(unknown("model.kind", str(kind), KINDS))
        return KINDS[kind]


class WorldModelTraining(TrainConfig):
    """A world model's training."""

    run_kind = "train"

    temporal_block: Positive | None = Field(None, description="frames processed at a time, memory carried on [frames]")
    bptt_blocks: Positive | None = Field(
        None,
        description="temporal blocks that gradients flow through; with none, temporal_block changes cost only [count]",
    )
    recompute: bool = Field(False, description="gradient checkpointing: each layer is computed twice, little is kept")
    tokenizer: str = Field(
        PIXELS,
        description="pixels, or the autoencoder on whose latents it lives: a run's id or name, a folder's path, or "
        "dataset for what `longtake encode` made the data with",
    )
    model: ModelConfig
    """The world model."""
    memory: MemoryConfig = MemoryConfig()
    """What training does to the carried memory."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """How frames are noised."""
    validation: ValidationConfig = ValidationConfig()
    """What is measured on held-out clips."""
    samples: SamplesConfig | None = Field(None, description="pictures of rollouts; none: no pictures")


class AutoencoderTraining(TrainConfig):
    """An autoencoder's training."""

    run_kind = "autoencoder"

    data: FrameDataConfig
    """Which frames are trained on."""
    model: AutoencoderConfig
    """The autoencoder."""
    loss: ReconstructionConfig = ReconstructionConfig()
    """What is minimised."""
    validation: HeldOutConfig = HeldOutConfig()
    """What is measured on held-out clips."""


KINDS: dict[str, type[TrainConfig]] = {"world_model": WorldModelTraining, "autoencoder": AutoencoderTraining}
"""The kinds of training by `model.kind`."""
