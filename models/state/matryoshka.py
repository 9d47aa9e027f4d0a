"""Nested state: the first n of N state dimensions are trained to be usable alone, so n can be chosen at run time.

After "Matryoshka Representation Learning" (Kusupati et al., 2022), carried over to the state of a scan: blocks of the
frame where little happens get fewer dimensions, and their scan, their cache and their memory are really smaller.
Letters: b streams, t frames, N tokens per frame, k blocks of a layer.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor

from longtake.models.config import ModelConfig


def complexity(frames: Tensor, config: ModelConfig) -> Tensor:
    """How much happens at each token: standard deviation over time of its pixels, frames (b, t, C, H, W) → (b, N)."""
    spread = frames.float().std(1, correction=0)
    return reduce(spread, "b C (h p) (w q) -> b (h w)", "mean", p=config.patch, q=config.patch)


def choose_widths(scores: Tensor, config: ModelConfig, widths: list[int], budget: float) -> list[Tensor]:
    """State dimensions of every block of every layer, for `WorldModel.empty_memory`.

    Blocks are ranked by complexity within their stream. The busiest get the largest of `widths`, the calmest the
    smallest, as many as the budget allows; one block in between may get what is left over.

    Args:
        scores: complexity of each token, (b, N).
        widths: dimensions that the model was trained to be cut to, any order.
        budget: mean dimensions per block, at least the smallest of `widths`.

    Returns:
        Per layer a tensor (b·k) of widths.

    Raises:
        ValueError: a budget below the smallest width.
    """
    widths = sorted(widths)
    if budget < widths[0]:
        raise ValueError(f"budget: {budget:g} dimensions a block, but the smallest width is {widths[0]}")
    chosen = []
    for layer in config.stack:
        (rows, columns), (i, j) = config.grid, config.layer_block(layer)
        blocks = {"h": rows // i, "w": columns // j, "i": i, "j": j}
        busy = reduce(scores, "b (h i w j) -> b (h w)", "mean", **blocks)
        given = _spend(busy.shape[1], widths, budget).to(scores.device)
        rank = busy.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen.append(rearrange(given[rank], "b k -> (b k)"))
    return chosen


def _spend(blocks: int, widths: list[int], budget: float) -> Tensor:
    """Widths for blocks ordered from busy to calm: largest first, within budget times blocks dimensions."""
    left = int(budget * blocks)
    given = []
    for remaining in range(blocks, 0, -1):
        affordable = [width for width in widths if width + (remaining - 1) * widths[0] <= left]
        given.append(affordable[-1])
        left -= affordable[-1]
    return torch.tensor(given)
