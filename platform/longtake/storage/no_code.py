"""A checkpoint runs no code: in here `torch.load` builds tensors and plain values, whoever calls it.

DeepSpeed reads its files with `weights_only=False`, by which whoever can write to a store would run what he likes on
whoever resumes. PyTorch's own switch forbids that for a whole block; DeepSpeed's few classes of values are allowed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from longtake.errors import UserError

FORCE, NEVER = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def only_values(folder: Path, allowed: list[Any]) -> Iterator[None]:
    """Let `torch.load` build tensors, plain values and the classes in `allowed`.

    Raises:
        UserError: a file of the folder asks for more.
    """
    before = {name: os.environ.pop(name, None) for name in (FORCE, NEVER)}
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    except (pickle.UnpicklingError, RuntimeError) as error:
        if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in str(error):
            raise
        raise UserError(
            f"{folder}: a file of this checkpoint holds more than tensors and plain values; it could run code and was "
            f"not read ({_reason(error)}): take a checkpoint that you trust"
        ) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _reason(error: Exception) -> str:
    """What PyTorch names, without its advice to switch the check off."""
    reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), "")
    return reason.strip().split(" was not")[0] or type(error).__name__
