"""FlexAttention over frames, for CUDA: the block mask is built by arithmetic, not by evaluating the mask.

At 16 K tokens `create_block_mask` takes seconds and gigabytes; this takes milliseconds at any length. Letters as in
`attention`; a tile is BLOCK tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch._dynamo
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

if TYPE_CHECKING:
    from longtake.models.attention_mask import Reach

BLOCK = 128
SHAPES = 64
"""Shapes that attention is compiled for in one process: of every stage of a curriculum, with and without gradient, of
validation and of pieces of a context. Dynamo's own limit is 8, after which it would compute all scores, densely."""
torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
_compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)  # with fullgraph the limit is an error


def flex_attend(q: Tensor, k: Tensor, v: Tensor, first_frame: int, reach: Reach) -> Tensor:
    """Attention of q (b, t, N, h, d), the last t frames of k and v (b, t + kept, N, h, d).

    Raises:
        RuntimeError: of more shapes than `SHAPES` in one process.
    """
    frames, tokens = q.shape[1], q.shape[2]
    phase = first_frame % reach.past if reach.form == "chunk" else 0  # masks depend on where chunks begin, no more
    unmasked = sees_everything(frames, k.shape[1], phase, reach)
    q, k, v = (rearrange(part, "b t N h d -> b h (t N) d").contiguous() for part in (q, k, v))
    if unmasked:
        y: Tensor = F.scaled_dot_product_attention(q, k, v)
    else:
        y = _masked(q, k, v, frame_mask(frames, k.shape[2] // tokens, tokens, phase, reach, str(q.device)))
    return rearrange(y, "b h (t N) d -> b t N h d", t=frames)


def sees_everything(frames: int, keys: int, phase: int, reach: Reach) -> bool:
    """Whether each of the last `frames` of the `keys` frames attends to all of these: one frame or one chunk does.

    A rollout's frames do, and need no kernel of their own for every length of what is kept.
    """
    last = phase + frames - 1
    return reach.spans(last)[0] <= last - keys + 1 and reach.spans(phase)[1] >= last


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    try:
        y: Tensor = _compiled(q, k, v, block_mask=mask)
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        limit = torch._dynamo.config.recompile_limit
        raise RuntimeError(
            f"attention was compiled for {limit} shapes in this process, and (batch, heads, tokens, width) "
            f"{tuple(q.shape)} on {k.shape[2]} keys is another one: take clips, contexts and batches of fewer lengths, "
            "or raise torch._dynamo.config.recompile_limit"
        ) from error
    return y


@lru_cache(maxsize=64)
def frame_mask(frames: int, keys: int, tokens: int, phase: int, reach: Reach, device: str) -> BlockMask:
    """Which tiles of queries and keys meet: (frames·tokens) x (keys·tokens) tokens.

    The queries are the last `frames` of the `keys` frames; the first query is frame `phase` of its chunk.
    """
    kept = keys - frames
    first_key = phase - kept  # frame number of the first key, counted so that the first query is `phase`
    index = torch.arange(-(-frames * tokens // BLOCK), device=device)
    q_first = index * BLOCK // tokens + phase
    q_last = ((index + 1) * BLOCK - 1).clamp(max=frames * tokens - 1) // tokens + phase
    # Spans grow with the frame, so a tile needs the keys from its first frame's span to its last frame's.
    low = (reach.spans(q_first)[0] - first_key).clamp(min=0)
    high = (reach.spans(q_last)[1] - first_key).clamp(max=keys - 1)
    first_tile, last_tile = low * tokens // BLOCK, ((high + 1) * tokens - 1) // BLOCK
    width = int((last_tile - first_tile).max()) + 1
    tile = first_tile[:, None] + torch.arange(width, device=device)
    used = tile <= last_tile[:, None]
    # A tile is full where its keys lie in the span of every frame of the queries: that of the last one begins latest,
    # that of the first one ends first.
    k_first = tile * BLOCK // tokens + first_key
    k_last = ((tile + 1) * BLOCK - 1) // tokens + first_key
    inside = (k_first >= reach.spans(q_last)[0][:, None]) & (k_last <= reach.spans(q_first)[1][:, None])
    whole = ((tile + 1) * BLOCK <= keys * tokens) & ((index + 1) * BLOCK <= frames * tokens)[:, None]
    full = used & inside & whole
    tiles = -(-keys * tokens // BLOCK)

    def packed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.argsort((~chosen).int(), dim=1, stable=True)
        indices = torch.gather(tile.clamp(max=tiles - 1), 1, order)
        indices = torch.nn.functional.pad(indices, (0, tiles - width)) if width < tiles else indices[:, :tiles]
        return chosen.sum(1).int()[None, None], indices.int()[None, None]

    def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        low, high = reach.spans(query // tokens + phase)
        frame = key // tokens + first_key
        return (frame >= low) & (frame <= high)

    return BlockMask.from_kv_blocks(
        *packed(used & ~full),
        *packed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(frames * tokens, keys * tokens),
    )
