"""Gated delta rule (`delta`): a block-wise scan that overwrites. What a key held is taken away before it is written.

Carries the same state as `ssm`, (h, p, n) per block of the frame whatever the length; a place that is written again
holds what was seen last, where `ssm` holds a sum. Twice the time of `ssm` on a CPU; on CUDA, the kernels of
flash-linear-attention. Each head has keys of its own, of length 1; `key_groups: 1` shares one key among all, as `ssm`
does. After Yang, Kautz and Hatamizadeh, "Gated Delta Networks" (2024).

Letters: D width, E width of the conditioning vector, m tokens per block and frame, h heads, p head width, g groups of
heads that share keys, n state width, r rows of blocks that share a state width, l tokens of a row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.memory import SSMState, last
from longtake.models.mixers import fading
from longtake.models.scan.delta_chunked import CHUNK
from longtake.models.scan.delta_rule import Backend, delta_rule


class Options(fading.Options):
    """Those of every scan that fades, and how many keys there are."""

    key_groups: Annotated[int, Field(ge=1)] | None = None
    """Groups of heads that share keys and queries; every head has its own when not given. [count]"""


class BlockDelta(fading.FadingScan):
    """The mixer of Gated DeltaNet over each block of the token grid."""

    Options = Options
    chunk = CHUNK

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        options, heads = layer.mixer_options, config.d_inner // config.headdim
        assert isinstance(options, Options)
        super().__init__(config.grid, config.layer_block(layer), config.d_state, heads, options.first_half_lives)
        self.options = options
        self.backend: Backend = "fla" if config.scan == "fla" else "torch" if config.scan == "torch" else "auto"
        self.d_inner, self.headdim = config.d_inner, config.headdim
        self.groups = options.key_groups or self.heads
        keyed = 2 * self.groups * self.d_state
        self.in_proj = nn.Linear(config.dim, 2 * self.d_inner + keyed + 2 * self.heads, bias=False)
        channels = {"all": self.d_inner + keyed, "values": self.d_inner, "none": 0}[options.convolution]
        self.conv1d = nn.Conv1d(channels, channels, config.d_conv, groups=channels, bias=False) if channels else None
        self.pose_keys = None
        if options.pose_keys:
            self.pose_keys = nn.Linear(config.condition_dim or config.dim, keyed // 2, bias=False)
        self.reads_conditions = options.pose_keys
        self.add_time_scales()
        self.norm = nn.RMSNorm(self.headdim, eps=1e-5)
        self.out_proj = nn.Linear(self.d_inner, config.dim, bias=False)
        self.draw_time_scales()

    @classmethod
    def build(cls, config: ModelConfig, layer: LayerConfig) -> Self:
        """In the sizes of the config."""
        return cls(config, layer)

    @classmethod
    def problems(cls, config: ModelConfig, layer: LayerConfig) -> list[str]:
        """Blocks that do not divide the grid, groups that do not divide the heads, another mixer's kernels."""
        options, heads = layer.mixer_options, config.d_inner // config.headdim
        assert isinstance(options, Options)
        lines = list(super().problems(config, layer))
        if heads % (options.key_groups or 1):
            lines.append(f".options.key_groups: {options.key_groups} does not divide the {heads} heads")
        if config.scan == "mamba":
            lines.append(".mixer: delta, but scan: mamba; the kernels of the delta rule are fla, or take auto or torch")
        return lines

    def empty_state(self, rows: int, width: int, like: Tensor, at: Tensor | None = None) -> SSMState:
        """Nothing remembered, in `width` state dimensions, for `rows` blocks: those `at`, or all."""
        keys = 2 * self.groups if self.options.convolution == "all" else 0
        before = 0 if self.conv1d is None else self.conv1d.kernel_size[0] - 1
        channels = 0 if self.conv1d is None else self.d_inner + keys * width
        zeros = like.new_zeros(rows, self.heads, self.headdim, width, dtype=torch.float32)
        return SSMState(zeros, like.new_zeros(rows, before, channels), at, keys)

    def scan_rows(self, u: Tensor, state: SSMState, embedded: Tensor | None) -> tuple[Tensor, SSMState]:
        """Project, convolve, overwrite and read, gate, with the first n state dimensions."""
        n = state.width
        keyed = self.groups * n
        sizes = [self.d_inner, self.d_inner, keyed, keyed, self.heads, self.heads]
        z, v, k, q, decay, beta = F.linear(u, self._in_weight(n)).split(sizes, -1)
        (v, k, q), conv = self._convolve((v, k, q), state)
        k, q = (rearrange(part, "b l (g n) -> b l g n", n=n) for part in (k, q))
        if self.pose_keys is not None and embedded is not None:
            place = F.linear(embedded, self._cut(self.pose_keys.weight, n))
            place = rearrange(place, "b l (g n) -> b l g n", n=n)
            k, q = k + place, q + place
        log_decay = -F.softplus(decay.float() + self.dt_bias) * self.A_log.float().exp()
        y, after = delta_rule(
            rearrange(v, "b l (h p) -> b l h p", p=self.headdim),
            beta.float().sigmoid(),
            log_decay,
            F.normalize(k.float(), dim=-1).to(v.dtype),
            F.normalize(q.float(), dim=-1).to(v.dtype),
            state.state,
            backend=self.backend,
        )
        y = rearrange(self.norm(y), "b l h p -> b l (h p)") * F.silu(z)
        return self.out_proj(y), replace(state, state=after, conv=conv)

    def _convolve(self, parts: tuple[Tensor, Tensor, Tensor], state: SSMState) -> tuple[tuple[Tensor, ...], Tensor]:
        """v, k and q (r, l, ...), of which some see the tokens before; and the last inputs of those."""
        if self.conv1d is None:
            return tuple(F.silu(part) for part in parts), state.conv
        seen = parts if self.options.convolution == "all" else parts[:1]
        mixed = torch.cat([state.conv.to(parts[0].dtype), torch.cat(seen, -1)], 1)
        conv = last(mixed, state.conv.shape[1])
        weight = self.conv1d.weight if len(seen) == 1 else self._conv_weight(state.width)
        mixed = F.conv1d(mixed.transpose(1, 2), weight, groups=mixed.shape[-1]).transpose(1, 2)
        convolved = mixed.split([part.shape[-1] for part in seen], -1)
        return tuple(F.silu(part) for part in (*convolved, *parts[len(seen) :])), conv

    def _cut(self, weight: Tensor, n: int) -> Tensor:
        """Of rows (groups · d_state) those of the first n state dimensions, group by group."""
        return weight.unflatten(0, (-1, self.d_state))[:, :n].flatten(0, 1) if n < self.d_state else weight

    def _in_weight(self, n: int) -> Tensor:
        weight, keyed = self.in_proj.weight, 2 * self.groups * self.d_state
        head, keys, gates = weight.split([2 * self.d_inner, keyed, 2 * self.heads])
        return weight if n == self.d_state else torch.cat([head, self._cut(keys, n), gates])

    def _conv_weight(self, n: int) -> Tensor:
        assert self.conv1d is not None
        values, keys = self.conv1d.weight.split([self.d_inner, 2 * self.groups * self.d_state])
        return self.conv1d.weight if n == self.d_state else torch.cat([values, self._cut(keys, n)])


MIXER = BlockDelta
