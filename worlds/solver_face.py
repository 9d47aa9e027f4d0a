"""A learned world for the solvers of stable-worldmodel: what they call a model, `get_cost(info, candidates)`.

Their solvers draw the candidates and hand them over as tensors; the package itself is not needed here. Letters: B
environments, N candidates, H steps, A numbers of an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.worlds.planning import Cost, dream
from longtake.worlds.world import World


class CostableWorld:
    """Worlds of one stream each, one for every environment that is planned for, and what a future in them costs."""

    def __init__(self, worlds: Sequence[World], cost: Cost) -> None:
        """`worlds`: where each environment is now; `cost`: as for `longtake.planning`."""
        self.worlds, self.cost = list(worlds), cost

    def criterion(self, info_dict: dict[str, Any], action_candidates: Tensor) -> Tensor:
        """The same as `get_cost`: nothing is encoded beforehand."""
        return self.get_cost(info_dict, action_candidates)

    def get_cost(self, info_dict: dict[str, Any], action_candidates: Tensor) -> Tensor:
        """Costs (B, N) of candidates (B, N, H, A), each number kept within its bounds. `info_dict` is not read.

        Raises:
            UserError: candidates of another number of environments, or of numbers in an action.
        """
        shape = tuple(action_candidates.shape)
        controls = self.worlds[0].controls
        if len(shape) != 4 or shape[0] != len(self.worlds) or shape[3] != controls.width:
            raise UserError(
                f"candidates: {shape}, expected ({len(self.worlds)}, N, H, {controls.width}): an environment per world"
            )
        actions = action_candidates.detach().cpu().numpy().astype(np.float32)
        if controls.bounds:
            actions = np.clip(actions, *np.array(controls.bounds, np.float32).T)
        costs = [self.cost(dream(world, own), own) for world, own in zip(self.worlds, actions, strict=True)]
        return torch.as_tensor(np.stack(costs), dtype=torch.float32, device=action_candidates.device)
