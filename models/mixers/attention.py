"""Attention between frames: to every frame so far (mixer: `attention`), or to a few (local: `attention`).

Every frame is dense over its tokens. Full attention keeps keys and values of every frame: it forgets nothing, and its
cost per frame grows; the local one, in a sliding window or in chunks, keeps those of its window. On CUDA, FlexAttention
with a block mask built by arithmetic; on a CPU, forms that are linear in the frames (quadratic for full attention).

Letters: b clips, t frames, N tokens per frame, D width, h heads, d head width, f frames of the window, G of a chunk.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from longtake.models.attention_mask import Reach
from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.memory import Frames, last
from longtake.models.mixers.base import Mixer

ROPE_BASE, GRID_BASE = 1000.0, 100.0


class FrameAttention(Mixer):
    """Every token of a frame attends to all tokens of the frames in reach, with no mask inside a frame.

    Queries and keys are normalised per head. Time enters by rotary embedding of the frame index, baked into the keys
    that are kept; with the `columns` of the token grid, so do a token's row and column.
    """

    settings: ClassVar[frozenset[str]] = frozenset({"heads", "rotary"})

    def __init__(self, dim: int, heads: int, reach: Reach, columns: int | None = None) -> None:
        super().__init__()
        self.heads, self.reach, self.columns = heads, reach, columns
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm_q, self.norm_k = nn.RMSNorm(dim // heads, eps=1e-6), nn.RMSNorm(dim // heads, eps=1e-6)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, kept: Frames, first_frame: int | Tensor, embedded: Tensor) -> tuple[Tensor, Frames]:
        """x (b, t, N, D) from the stream's frame `first_frame` on → the same shape, and the keys and values to keep.

        Raises:
            ValueError: in the chunk form, frames that do not begin where a chunk begins.
        """
        ages = [first_frame] if isinstance(first_frame, int) else first_frame.tolist()
        if self.reach.form == "chunk" and any(age % self.reach.past for age in ages):
            raise ValueError(
                f"first frame: {ages} lies inside a chunk of {self.reach.past} frames; "
                "hand the frames over in whole chunks"
            )
        q, k, v = rearrange(self.qkv(x), "b t N (three h d) -> three b t N h d", three=3, h=self.heads)
        rotation = _rotation(q, first_frame, self.columns)
        q, k = _rotate(self.norm_q(q), *rotation), _rotate(self.norm_k(k), *rotation)
        if kept:
            k, v = torch.cat([kept[0], k], 1), torch.cat([kept[1], v], 1)
        # Streams of different ages keep the same number of frames, so what holds for the youngest holds for all.
        y = attend(q, k, v, min(ages), self.reach)
        keep = self._to_keep(min(ages) + x.shape[1], k.shape[1])
        return self.out(rearrange(y, "b t N h d -> b t N (h d)")), (last(k, keep), last(v, keep, view=not kept))

    def _to_keep(self, seen: int, have: int) -> int:
        if self.reach.form == "chunk" and seen % self.reach.past:
            return seen % self.reach.past  # a last chunk that is not whole: nothing can follow it
        return min(have, self.reach.kept(seen))


class FullAttention(FrameAttention):
    """Attention to every frame so far; with `causal: false` to later ones too."""

    @classmethod
    def build(cls, config: ModelConfig, layer: LayerConfig) -> Self:
        """With the heads of the config."""
        return cls(config.dim, config.heads, Reach("full", future=int(not config.causal)), _columns(config))

    @classmethod
    def words(cls, config: ModelConfig, layer: LayerConfig) -> str:
        """What it is."""
        return "full attention"


class LocalAttention(FrameAttention):
    """Attention in a sliding window of frames, or in the paper's chunks."""

    @classmethod
    def build(cls, config: ModelConfig, layer: LayerConfig) -> Self:
        """With the heads of the config, in the layer's window."""
        window = Reach("window", config.layer_window(layer), config.window_future)
        reach = Reach("chunk", config.chunk) if config.chunk else window
        return cls(config.dim, config.heads, reach, _columns(config))

    @classmethod
    def words(cls, config: ModelConfig, layer: LayerConfig) -> str:
        """Its name and how far it reaches."""
        reach = f"chunks of {config.chunk}" if config.chunk else str(config.layer_window(layer))
        return f"attention {reach}"


def attend(q: Tensor, k: Tensor, v: Tensor, first_frame: int, reach: Reach) -> Tensor:
    """Attention of the frames q (b, t, N, h, d), the last t of those in k and v (b, t + kept, N, h, d)."""
    if q.is_cuda:
        from longtake.models.attention_flex import flex_attend

        return flex_attend(q, k, v, first_frame, reach)
    if reach.form == "window":
        return _in_windows(q, k, v, reach)
    if reach.form == "chunk":
        return _in_chunks(q, k, v, reach.past)
    return _to_all_so_far(q, k, v) if not reach.future else _dense(q, k, v)


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All frames of q attend to all frames of k."""
    frames = q.shape[1]
    q, k, v = (rearrange(part, "b t N h d -> b h (t N) d") for part in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h (t N) d -> b t N h d", t=frames)


def _to_all_so_far(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Frame after frame, each against the keys up to it: no mask, and no scores kept."""
    kept, tokens = k.shape[1] - q.shape[1], q.shape[2]
    q, k, v = (rearrange(part, "b t N h d -> b h (t N) d") for part in (q, k, v))
    frames = [
        F.scaled_dot_product_attention(part, k[:, :, :stop], v[:, :, :stop])
        for part, stop in zip(q.split(tokens, 2), range((kept + 1) * tokens, k.shape[2] + 1, tokens), strict=True)
    ]
    return rearrange(torch.cat(frames, 2), "b h (t N) d -> b t N h d", N=tokens)


def _in_chunks(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
    """Chunk after chunk, each against itself and the one before it: dense, no mask."""
    kept = k.shape[1] - q.shape[1]
    before_k, before_v = k[:, :kept], v[:, :kept]
    parts = []
    for q_i, k_i, v_i in zip(q.split(chunk, 1), k[:, kept:].split(chunk, 1), v[:, kept:].split(chunk, 1), strict=True):
        parts.append(_dense(q_i, torch.cat([before_k, k_i], 1), torch.cat([before_v, v_i], 1)))
        before_k, before_v = k_i, v_i
    return torch.cat(parts, 1)


def _in_windows(q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
    """The windows laid out side by side, one attention call for all frames: memory window·t, linear in t."""
    clips, frames = q.shape[:2]
    window = reach.past + reach.future
    missing = max(0, frames + reach.past - 1 - k.shape[1])  # frames before the stream's start
    k, v = k[:, max(0, k.shape[1] - frames - reach.past + 1) :], v[:, max(0, v.shape[1] - frames - reach.past + 1) :]
    k, v = (F.pad(part, (0, 0, 0, 0, 0, 0, missing, reach.future)) for part in (k, v))
    k, v = (rearrange(part.unfold(1, window, 1), "b t N h d w -> b t (w N) h d") for part in (k, v))
    mask = None
    if missing or reach.future:
        frame = torch.arange(frames, device=q.device)[:, None] + torch.arange(window, device=q.device)
        visible = (frame >= missing) & (frame < frames + reach.past - 1)
        mask = visible.repeat_interleave(q.shape[2], 1).repeat(clips, 1)[:, None, None]  # (b t), 1, 1, window·N
    q, k, v = (rearrange(part, "b t N h d -> (b t) h N d") for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(y, "(b t) h N d -> b t N h d", b=clips)


def _rotation(x: Tensor, first_frame: int | Tensor, columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Cosine and sine (t or b t, 1 or N, 1, half) that turn x (b, t, N, h, d).

    Of the frame index; with `columns`, a quarter of d each of row and column beside it.
    """
    half = x.shape[-1] // 2
    first = torch.as_tensor(first_frame, dtype=torch.float32)[..., None]
    time = (first + torch.arange(x.shape[1], dtype=torch.float32)).to(x.device)  # t, or b t
    if columns is None:
        angle = _angles(time, half, ROPE_BASE)[..., None, :]  # t 1 half
    else:
        of_grid = half // 4
        token = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)
        row, column = (_angles(at, of_grid, GRID_BASE) for at in (token // columns, token % columns))
        frame = _angles(time, half - 2 * of_grid, ROPE_BASE)[..., None, :]
        place = torch.cat([row, column], -1).expand(*time.shape, -1, -1)
        angle = torch.cat([frame.expand(*time.shape, len(token), -1), place], -1)  # t N half
    angle = angle[..., None, :]
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on x (b, t, N, h, d) by `_rotation`."""
    half = x.shape[-1] // 2
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, x[..., 2 * half :]], -1)


def _angles(at: Tensor, count: int, base: float) -> Tensor:
    """Rotations at some positions (..., n): (..., n, count), from one radian a step to nearly `base` times slower."""
    return at[..., None] * base ** (-torch.arange(count, device=at.device) / max(1, count))


def _columns(config: ModelConfig) -> int | None:
    """What attention needs to know where a token is on the grid; None: only its frame is told."""
    return config.grid[1] if config.rotary == "axial" else None


MIXER, LOCAL = FullAttention, LocalAttention
