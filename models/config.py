"""What a model is, as data: plain pydantic, importable without torch, which comes with the first layer checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from longtake.models.mixers import NONE, local_mixers, mixers
from longtake.motion import PoseKind
from longtake.registry import known_name

if TYPE_CHECKING:
    from longtake.models.mixers.base import BlockScan, Mixer, Options

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


ConditionKind = Literal["pose", "actions", "state", "task", "time"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class LayerConfig(_Frozen):
    """One layer: a mixer over all of time, a local mixer (both optional), then a feed-forward net."""

    synonyms: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "mixer": {
            **dict.fromkeys(("mamba", "mamba2", "mamba-2", "s4", "ssd"), "ssm"),
            **dict.fromkeys(("deltanet", "gated_delta", "gated_deltanet"), "delta"),
            **dict.fromkeys(("transformer", "full", "softmax"), "attention"),
        },
        "local": {"conv": "convolution", "window": "attention", "attn": "attention"},
    }
    """What others call a mixer: told in an error, never taken."""

    mixer: str = "ssm"
    """What carries information over any distance in time, a file of models/mixers/: block-wise scans that add
    (ssm) or overwrite (delta), attention to every frame so far (attention), none."""
    spatial_block: Annotated[list[Positive], Field(min_length=2, max_length=2)] | Literal["frame"] = [1, 1]
    """(b_h, b_w) tokens of the tube that one scan sees; `frame`: all of them. Small: memory lasts longer. Large: frames
    hang together. [tokens]"""
    local: str = "attention"
    """What mixes the tokens of a frame and of its last few neighbours, a file of models/mixers/: attention, convolution
    (depth-wise 3 x 3, the cheap one), none."""
    window: Positive | None = None
    """Frames the local mixer sees, the current one included; the model's `window` when not given. [frames]"""
    options: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda options: not options)
    """Settings of the mixer's own, which its file lists."""

    @field_validator("mixer")
    @classmethod
    def _known_mixer(cls, name: str) -> str:
        return known_name(name, [*mixers(), NONE])

    @field_validator("local")
    @classmethod
    def _known_local(cls, name: str) -> str:
        return known_name(name, [*local_mixers(), NONE])

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.mixer_class is None and self.options:
            raise ValueError(f"options: {self.options}, but mixer none has none")
        _ = self.mixer_options
        return self

    @property
    def mixer_class(self) -> type[Mixer] | None:
        """The class of its mixer over time."""
        return mixers().get(self.mixer)

    @property
    def local_class(self) -> type[Mixer] | None:
        """The class of its local mixer."""
        return local_mixers().get(self.local)

    @property
    def scan_class(self) -> type[BlockScan] | None:
        """The class of its mixer over time if it carries a state of fixed size from frame to frame."""
        from longtake.models.mixers.base import BlockScan

        kind = self.mixer_class
        return kind if kind is not None and issubclass(kind, BlockScan) else None

    @property
    def keeps_every_frame(self) -> bool:
        """Whether its mixer over time forgets nothing, and costs ever more."""
        return self.mixer_class is not None and self.scan_class is None

    @property
    def mixer_options(self) -> Options | None:
        """Its `options`, checked; None without a mixer.

        Raises:
            ValueError: a setting that the mixer does not have, or a value that it does not take.
        """
        if self.mixer_class is None:
            return None
        try:
            return self.mixer_class.Options.model_validate(self.options)
        except ValidationError as error:
            allowed = ", ".join(self.mixer_class.Options.model_fields) or "none"
            lines = (f"options.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(*(f"{line} (options of mixer {self.mixer}: {allowed})" for line in lines)) from error


class ModelConfig(_Frozen):
    """A diffusion transformer over video tokens whose layers mix by block-wise scans and local attention.

    Method: "Long-Context State-Space Video World Models" (2025). `layers` is the whole family: presets are YAML.
    """

    kind: Literal["world_model"] = "world_model"
    """A world model, or an autoencoder of frames."""
    height: Positive = 32
    """Of the frames, or of their latents [pixels]"""
    width: Positive = 32
    """Of the frames, or of their latents [pixels]"""
    channels: Positive = 3
    """Of the frames (3 of pictures), or of their latents [count]"""
    patch: Positive = 8
    """Pixels per token side. [pixels]"""
    dim: Positive = 128
    """Width of the net: numbers of a token [count]"""
    condition_dim: Positive | None = None
    """Width of the conditioning vector; `dim` when not given. [count]"""
    heads: Positive = 4
    """Heads of the attention, local and full. [count]"""
    window: Positive = 6
    """Frames that the local mixer of a layer sees, the current one included: what lies beyond is memory's alone
    [frames]"""
    window_future: Annotated[int, Field(ge=0)] = 0
    """Later frames that the local mixer sees too; for models that are not causal. [frames]"""
    chunk: Positive | None = None
    """With a number, local attention takes the paper's form: frames see all of their own chunk of so many frames and of
    the chunk before (`window` is not used), and frames are generated a chunk at a time. [frames]"""
    causal: bool = True
    """False: scans run both ways, attention sees later frames; such a model fills in frames and carries no memory."""
    share_local: bool = False
    """One local mixer whose weights serve every layer."""
    d_state: Positive = 64
    """Numbers of a scan's state per channel (of ssm) or the width of its keys (of delta): how much a layer can remember
    [count]"""
    headdim: Positive = 32
    """Channels of a head of the scans [count]"""
    expand: Positive = 2
    """Channels of the scans over `dim` [times]"""
    d_conv: Annotated[int, Field(ge=2)] = 4
    """Tokens that the short convolution of the scans sees [tokens]"""
    scan: Literal["auto", "torch", "mamba", "fla"] = "auto"
    """Who computes the scan; auto: on CUDA the kernels of mamba-ssm (mixer ssm) and flash-linear-attention (mixer
    delta), on a CPU our chunked forms."""
    feed_forward: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of the feed-forward net over `dim`. [times]"""
    conditions: Literal["pose", "actions", "both"] | Annotated[list[ConditionKind], Field(min_length=1)] = "pose"
    """What the model is told of each frame: one kind, both of pose and actions, or a list of kinds: state (a vector),
    task (of the whole episode), time (seconds since the clip's start)."""
    pose: PoseKind = Field("planar", exclude_if=lambda kind: kind == "planar")
    """What a pose is: planar (x, y, yaw), place (x, y and perhaps z, without a direction), se3 (place and rotation in
    space)."""
    state_dim: Positive = Field(1, exclude_if=lambda width: width == 1)
    """Numbers of a state. [numbers]"""
    tasks: Positive = Field(1, exclude_if=lambda count: count == 1)
    """Tasks that are told apart. [count]"""
    actions: Literal["continuous", "discrete"] = "continuous"
    """Numbers as recorded, or one of so many choices, which comes one-hot."""
    action_dim: Positive = 2
    """Numbers of an action: for discrete ones how many there are (they come one-hot). [count]"""
    condition_input: Literal["norms", "norms_and_tokens"] = "norms"
    """Where conditions enter: the adaptive norms (the paper), or the tokens too (recall by pose is learned sooner)."""
    prediction: Literal["v", "x0"] = "v"
    """What the net outputs: velocity (the paper's relatives), or the clean frame (learns faster at small budgets)."""
    rotary: Literal["time", "axial"] = "time"
    """What attention's rotary embedding tells: the frame, or the frame, row and column of a token. Where a token is on
    the grid every family is told by the place codes too."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest magnitude of a clean value, which the sampler keeps to: 1 for pixels; none for latents, of unit variance
    and without bound. [standard units]"""
    depth: Positive | None = None
    """Number of layers, over which the list `layers` is stretched or thinned; as many as it has when not given.
    [count]"""
    layers: Annotated[list[LayerConfig], Field(min_length=1)]
    """The layers from first to last: this list is the whole family of a model."""

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens per frame, (rows, columns)."""
        return self.height // self.patch, self.width // self.patch

    @property
    def condition_kinds(self) -> tuple[ConditionKind, ...]:
        """What it is told, each once."""
        if isinstance(self.conditions, list):
            return tuple(dict.fromkeys(self.conditions))
        return ("pose", "actions") if self.conditions == "both" else (self.conditions,)

    @property
    def d_inner(self) -> int:
        """Width inside the SSM mixer."""
        return self.expand * self.dim

    @property
    def stack(self) -> list[LayerConfig]:
        """The layers from first to last: `layers`, stretched or thinned over `depth`."""
        return [self.layers[number] for number in self._listed]

    @property
    def _listed(self) -> list[int]:
        """For each layer from first to last, its place in the list `layers`."""
        depth = self.depth or len(self.layers)
        return [number * len(self.layers) // depth for number in range(depth)]

    def layer_window(self, layer: LayerConfig) -> int:
        """Frames that a layer's local mixer sees, without future ones."""
        return layer.window or self.window

    def layer_block(self, layer: LayerConfig) -> tuple[int, int]:
        """Tokens (b_h, b_w) of a layer's spatial block."""
        return self.grid if layer.spatial_block == "frame" else (layer.spatial_block[0], layer.spatial_block[1])

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        problems = [*self._width_problems(), *self._mode_problems()]
        for number in dict.fromkeys(self._listed):
            problems += [f"layers.{number}{problem}" for problem in self._layer_problems(self.layers[number])]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _width_problems(self) -> list[str]:
        problems = []
        for side in ("height", "width"):
            if getattr(self, side) % self.patch:
                problems.append(f"patch: {self.patch} does not divide {side} {getattr(self, side)}")
        if self.dim % self.heads:
            problems.append(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.d_inner % self.headdim:
            problems.append(f"headdim: {self.headdim} does not divide expand x dim = {self.d_inner}")
        return problems

    def _mode_problems(self) -> list[str]:
        problems = []
        if self.causal and self.window_future:
            problems.append(f"window_future: {self.window_future} frames of the future need causal: false")
        if self.chunk and not self.causal:
            problems.append(f"chunk: {self.chunk} is a form of causal attention; with causal: false leave it out")
        kinds = {(layer.local, self.layer_window(layer)) for layer in self.stack}
        if self.share_local and len(kinds) > 1:
            problems.append(
                "share_local: one local mixer cannot serve layers that differ in local or window: "
                + ", ".join(f"{local} of {window} frames" for local, window in sorted(kinds))
            )
        return problems

    def _layer_problems(self, layer: LayerConfig) -> list[str]:
        kinds = (layer.mixer_class, layer.local_class)
        problems = [problem for kind in kinds if kind is not None for problem in kind.problems(self, layer)]
        if kinds == (None, None):
            problems.append(": mixer and local are both none, so nothing would mix")
        return problems


class DiffusionConfig(_Frozen):
    """How frames are noised in training (diffusion forcing: one noise level per frame)."""

    clean_prefix: Fraction = 0.5
    """Share of clips whose first part is kept clean, with the loss on the rest only (long-context training). [share]"""
    clean_prefix_range: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.5, 0.9]
    """The clean part of such a clip is drawn from this range, as a share of its length. [share]"""
    pure_noise: Fraction = 0.0
    """Share of the noised frames put at the pure-noise end, where only memory and conditions can help. [share]"""
    null_context: Fraction = 0.0
    """Share of clips that begin where others' clean part ends: a stream with nothing before it, asked all the same. A
    model with 1.0 is never shown a context, in evaluations neither: the twin that memory is measured against.
    [share]"""
    weighting: Literal["uniform", "sigmoid"] = "uniform"
    """Weight of the loss by noise level; sigmoid: of the log signal-to-noise ratio (Kingma and Gao, 2023)."""
    sigmoid_bias: float = -1.0
    """Of weighting sigmoid: where, in log signal-to-noise ratio, the weight has fallen to half [log ratio]"""
    drop_conditions: Fraction = 0.0
    """Share of clips that are told nothing, so that the sampler can use guidance (Ho and Salimans, 2022). [share]"""


class SamplerConfig(_Frozen):
    """How a frame is generated."""

    steps: Positive = 4
    """Denoising calls per frame (DDIM). [calls]"""
    context_noise: Fraction = 0.0
    """Noise level at which a finished frame enters the memory; above 0 damps the drift of long rollouts. [share]"""
    guidance: Annotated[float, Field(ge=1.0)] = 1.0
    """Scale of classifier-free guidance; 1: none. Above 1 a frame costs twice the calls, and the model must have been
    trained with `drop_conditions`. [times]"""


GROUPS = 8
"""Of the group norms of an autoencoder."""


class AutoencoderConfig(_Frozen):
    """A small convolutional autoencoder of single frames: a world model can live on its latents."""

    kind: Literal["autoencoder"] = "autoencoder"
    """A world model, or an autoencoder of frames."""
    height: Positive = 64
    """Of the frames [pixels]"""
    width: Positive = 64
    """Of the frames [pixels]"""
    channels: Positive = 3
    """Of the frames [count]"""
    latent_channels: Positive = 4
    """Of the latents [count]"""
    downsample: Literal[2, 4, 8] = 8
    """Pixels per latent, a side. [pixels]"""
    widths: Annotated[list[Positive], Field(min_length=1)] = [32, 64, 128]
    """Channels after each halving of the sides, from the frame inwards. [count]"""
    blocks: Positive = 1
    """Residual blocks per width, on the way in and on the way out. [count]"""

    @property
    def latent(self) -> tuple[int, int, int]:
        """Height, width and channels of a latent."""
        return self.height // self.downsample, self.width // self.downsample, self.latent_channels

    def latent_shape(self, frame_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Height, width and channels of the latents of such frames (H, W, C).

        Raises:
            ValueError: frames of another shape than it was built for.
        """
        if tuple(frame_shape) != (self.height, self.width, self.channels):
            raise ValueError(
                f"was trained on frames of {self.height} x {self.width} x {self.channels}, these are "
                + " x ".join(map(str, frame_shape))
            )
        return self.latent

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        problems = [
            f"downsample: {self.downsample} does not divide {side} {getattr(self, side)}"
            for side in ("height", "width")
            if getattr(self, side) % self.downsample
        ]
        halvings = self.downsample.bit_length() - 1
        if len(self.widths) != halvings:
            problems.append(
                f"widths: {len(self.widths)} of them, but downsample {self.downsample} has {halvings} halvings"
            )
        problems += [
            f"widths: {w} is not a multiple of {GROUPS}, the groups of its norms" for w in self.widths if w % GROUPS
        ]
        if problems:
            raise ValueError(*problems)
        return self
