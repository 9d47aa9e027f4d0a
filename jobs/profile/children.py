"""What the processes that measure have loaded before they start: they are forked from one that imported this."""

import torch._dynamo  # noqa: F401  optimizers import it at their first step, whose time is measured

import longtake.models.rollout
import longtake.models.world_model  # noqa: F401
