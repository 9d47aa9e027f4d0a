"""The face of a mixer: what a layer calls, and all that costs, checks, profiles and advice know of it.

`Mixer` is the face, for attention and convolutions too; `BlockScan` is a mixer that carries a state of fixed size for
every spatial block, and does the cutting into blocks.

Letters: b clips, t frames, N = H·W tokens per frame, D width, E width of the conditioning vector, k blocks per frame,
m tokens per block and frame, r rows of blocks that share a state width, l = t·m tokens of a row, n state width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from einops import rearrange
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from longtake.models.memory import SSMState

if TYPE_CHECKING:
    from longtake.models.config import LayerConfig, ModelConfig


class Options(BaseModel):
    """Settings of one mixer, a layer's `options`; a mixer that has some names a class of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Mixer(nn.Module, ABC):
    """The face of a mixer: what it does, and what others must know of it, from the config alone."""

    Options: ClassVar[type[Options]] = Options
    """What a layer's `options` may hold."""
    settings: ClassVar[frozenset[str]] = frozenset()
    """Fields of the model's config that it reads besides its shape; in a model without it they change nothing."""
    sees_both_ways: ClassVar[bool] = True
    """Whether it looks at later frames by itself with `causal: false`; else a second one runs from the end."""

    @classmethod
    @abstractmethod
    def build(cls, config: ModelConfig, layer: LayerConfig) -> Self:
        """A fresh one for a layer."""

    @classmethod
    def problems(cls, config: ModelConfig, layer: LayerConfig) -> Iterable[str]:
        """Why it cannot serve in such a layer, as `.field: value and what fits`."""
        return ()

    @classmethod
    @abstractmethod
    def words(cls, config: ModelConfig, layer: LayerConfig) -> str:
        """What it is, in two or three words: `ssm 2x2`, `attention 6`."""

    @classmethod
    def period(cls, config: ModelConfig, layer: LayerConfig) -> int:
        """Frames of which any whole number costs that many times as much."""
        return 1

    @abstractmethod
    def forward(self, x: Tensor, kept: Any, first_frame: int | Tensor, embedded: Tensor) -> tuple[Tensor, Any]:
        """Mix tokens of a clip, after what was kept of the frames before.

        Args:
            x: tokens (b, t, N, D).
            kept: what it returned for the frames before, an empty tuple at a stream's start: the states of a
                `BlockScan`, else a tuple of tensors (b, frames, N, ...).
            first_frame: the clip's place in its stream; (b), on the CPU, where that differs.
            embedded: conditions of each frame, embedded (b, t, E); nothing of its noise.

        Returns:
            The mixed tokens, and what is to be kept. Any cut of a clip gives what one call gives.
        """


class BlockScan(Mixer):
    """A mixer that scans each (b_h, b_w) block of the token grid alone, over all frames, and carries a state for it.

    A token's predecessor in time is b_h·b_w steps back instead of H·W, so small blocks remember longer and large
    ones see more of the frame. Inside a block tokens are ordered frame by frame, so a scan is causal in frames.
    """

    sees_both_ways = False
    nests: ClassVar[bool] = False
    """Whether the first dimensions of its state can be used alone (nested state):
    `longtake.models.memory.SSMState.narrow`."""
    reads_conditions: bool = False
    """Whether `scan_rows` gets the conditions of every token's frame; no memory is spent on them otherwise."""
    state_settings: ClassVar[dict[str, str]] = {"spatial_block": "larger"}
    """The settings that make its state smaller, and which way."""

    def __init__(self, grid: tuple[int, int], block: tuple[int, int], d_state: int = 1) -> None:
        super().__init__()
        self.grid, self.block, self.d_state = grid, block, d_state
        self.blocks = (grid[0] // block[0]) * (grid[1] // block[1])
        self.tokens_per_frame = block[0] * block[1]

    @classmethod
    def problems(cls, config: ModelConfig, layer: LayerConfig) -> Iterable[str]:
        """Blocks that do not divide the grid."""
        (rows, columns), (block_rows, block_columns) = config.grid, config.layer_block(layer)
        if rows % block_rows or columns % block_columns:
            fits = "; ".join(
                f"{side} {[d for d in range(1, n + 1) if n % d == 0]}"
                for side, n in (("rows", rows), ("columns", columns))
            )
            return [
                f".spatial_block: {layer.spatial_block} does not divide the {rows} x {columns} tokens of a frame; "
                f"what fits: {fits}"
            ]
        return []

    @classmethod
    def words(cls, config: ModelConfig, layer: LayerConfig) -> str:
        """Its name and its block."""
        rows, columns = config.layer_block(layer)
        return f"{layer.mixer} {rows}x{columns}"

    @classmethod
    def full_rank(cls, config: ModelConfig) -> int | None:
        """The largest rank that its state can have, which `d_state` widens; None where the state is no matrix."""
        return None

    @abstractmethod
    def half_lives(self) -> Tensor:
        """Frames in which each part of its state halves, at rest: any shape, inf for what never fades."""

    @abstractmethod
    def draw_time_scales(self) -> None:
        """Draw afresh the parameters that `half_lives` reads, and no others."""

    @abstractmethod
    def empty_state(self, rows: int, width: int, like: Tensor, at: Tensor | None = None) -> SSMState:
        """Nothing remembered, in `width` state dimensions, for `rows` blocks: those `at`, or all."""

    @abstractmethod
    def scan_rows(self, u: Tensor, state: SSMState, embedded: Tensor | None) -> tuple[Tensor, SSMState]:
        """Tokens of some blocks u (r, l, D), and the conditions of their frames (r, l, E) → y like u, and the state."""

    def forward(
        self, x: Tensor, kept: tuple[SSMState, ...], first_frame: int | Tensor, embedded: Tensor
    ) -> tuple[Tensor, tuple[SSMState, ...]]:
        """As the face says. The states given decide how many state dimensions are used, block by block."""
        rows, columns = self.grid
        i, j = self.block
        frames = x.shape[1]
        blocks = {"h": rows // i, "w": columns // j, "i": i, "j": j}
        tokens = rearrange(x, "b t (h i w j) D -> (b h w) (t i j) D", **blocks)
        about = None
        if self.reads_conditions:
            about = embedded.repeat_interleave(self.blocks, 0).repeat_interleave(self.tokens_per_frame, 1)
        y, after = self._in_widths(tokens, kept or (self.empty_state(len(tokens), self.d_state, like=x),), about)
        return rearrange(y, "(b h w) (t i j) D -> b t (h i w j) D", t=frames, **blocks), after

    def _in_widths(
        self, tokens: Tensor, states: tuple[SSMState, ...], embedded: Tensor | None
    ) -> tuple[Tensor, tuple[SSMState, ...]]:
        """One pass per state width, each over its own rows; the results go back where they belong."""
        if len(states) == 1 and states[0].rows is None:
            y, state = self.scan_rows(tokens, states[0], embedded)
            return y, (state,)
        passes = [
            self.scan_rows(tokens[state.rows], state, None if embedded is None else embedded[state.rows])
            for state in states
        ]
        order = torch.cat([state.rows for state in states if state.rows is not None])
        y = torch.cat([y for y, _ in passes])
        return y[order.argsort()], tuple(state for _, state in passes)
