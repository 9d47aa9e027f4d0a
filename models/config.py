"""What a model is, as data: plain pydantic, importable without torch (the driver checks configs with it)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LayerConfig(_Frozen):
    """One layer: block-wise SSM, then frame-local attention (both optional), then a feed-forward net."""

    mixer: Literal["ssm", "none"] = "ssm"
    """What carries information over any distance in time."""
    spatial_block: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [1, 1]
    """(b_h, b_w) tokens of the tube that one scan sees. Small: memory lasts longer. Large: frames hang together."""
    local: Literal["attention", "none"] = "attention"
    """What mixes the tokens of a frame and of its last few neighbours."""
    window: Positive | None = None
    """Frames the local attention sees, the current one included; the model's `window` when not given."""


class ModelConfig(_Frozen):
    """A diffusion transformer over video tokens whose layers mix by block-wise scans and local attention.

    Method: "Long-Context State-Space Video World Models" (2025). `layers` is the whole family: presets are YAML.
    """

    height: Positive = 32
    width: Positive = 32
    channels: Positive = 3
    patch: Positive = 8
    """Pixels per token side."""
    dim: Positive = 128
    heads: Positive = 4
    """Heads of the local attention."""
    window: Positive = 6
    d_state: Positive = 64
    headdim: Positive = 32
    expand: Positive = 2
    d_conv: Annotated[int, Field(ge=2)] = 4
    feed_forward: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of the feed-forward net over `dim`."""
    conditions: Literal["pose", "actions", "both"] = "pose"
    action_dim: Positive = 2
    condition_input: Literal["norms", "norms_and_tokens"] = "norms"
    """Where conditions enter: the adaptive norms (the paper), or the tokens too (recall by pose is learned sooner)."""
    prediction: Literal["v", "x0"] = "v"
    """What the net outputs: velocity (the paper's relatives), or the clean frame (learns faster at small budgets)."""
    layers: Annotated[list[LayerConfig], Field(min_length=1)]

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens per frame, (rows, columns)."""
        return self.height // self.patch, self.width // self.patch

    @property
    def d_inner(self) -> int:
        """Width inside the SSM mixer."""
        return self.expand * self.dim

    def layer_window(self, layer: LayerConfig) -> int:
        """Frames that a layer's local attention sees."""
        return layer.window or self.window

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        problems = []
        for side in ("height", "width"):
            if getattr(self, side) % self.patch:
                problems.append(f"patch: {self.patch} does not divide {side} {getattr(self, side)}")
        if self.dim % self.heads:
            problems.append(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.d_inner % self.headdim:
            problems.append(f"headdim: {self.headdim} does not divide expand x dim = {self.d_inner}")
        rows, columns = self.grid
        for number, layer in enumerate(self.layers):
            block_rows, block_columns = layer.spatial_block
            if layer.mixer == "ssm" and (rows % block_rows or columns % block_columns):
                fits = "; ".join(
                    f"{side} {[d for d in range(1, n + 1) if n % d == 0]}"
                    for side, n in (("rows", rows), ("columns", columns))
                )
                problems.append(
                    f"layers.{number}.spatial_block: {layer.spatial_block} does not divide the {rows} x {columns} "
                    f"tokens of a frame; what fits: {fits}"
                )
            if layer.mixer == "none" and layer.local == "none":
                problems.append(f"layers.{number}: mixer and local are both none, so nothing would mix")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class DiffusionConfig(_Frozen):
    """How frames are noised in training (diffusion forcing: one noise level per frame)."""

    clean_prefix: Fraction = 0.5
    """Share of clips whose first part is kept clean, with the loss on the rest only (long-context training)."""
    clean_prefix_range: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.5, 0.9]
    """The clean part of such a clip is drawn from this range, as a share of its length."""
    pure_noise: Fraction = 0.0
    """Share of the noised frames put at the pure-noise end, where only memory and conditions can help."""


class SamplerConfig(_Frozen):
    """How a frame is generated."""

    steps: Positive = 4
    """Denoising calls per frame (DDIM)."""
    context_noise: Fraction = 0.0
    """Noise level at which a finished frame enters the memory; above 0 damps the drift of long rollouts."""
