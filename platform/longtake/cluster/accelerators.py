"""NVIDIA cards: how many there are, how many `auto` comes to, and which of them would stay idle."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from longtake.cluster.address import given

Gpus = Annotated[float, Field(ge=0)] | Literal["auto"]
"""A setting: so many for each, or `auto`, one for each where there are as many."""
AUTO: Literal["auto"] = "auto"
UNKNOWN = sys.maxsize
"""More cards than there are."""
DRIVER = 580
"""What the wheels of PyTorch for CUDA 13.0 need of NVIDIA's driver."""


def local_count() -> int:
    """Cards that this process's PyTorch can use."""
    import torch

    return torch.cuda.device_count()


def resolve(setting: Gpus, processes: int, cards: float, *, shared: bool = False) -> float:
    """Cards of each of some processes: as many as the setting says; with `auto` one, where there are enough, else none.

    `shared`: processes that do not talk to each other may have the same card, a part of it each. Ranks may not: NCCL
    wants a card for each.
    """
    if setting != AUTO:
        return setting
    if cards >= processes:
        return 1.0
    return 1 / math.ceil(processes / cards) if shared and cards >= 1 else 0.0


def least(setting: Gpus) -> float:
    """What is asked for certain: of `auto` nothing, before the machines are known."""
    return 0.0 if setting == AUTO else setting


def describe(setting: Gpus, processes: int) -> str:
    """What is asked, in a plan; nothing if that is none."""
    if setting == AUTO:
        return ", a GPU where there is one for each"
    return f", {processes * setting:g} GPUs" if setting else ""


def idle_warnings(each: float, processes: int, cards: int) -> list[str]:
    """A line if cards would stay idle while a training runs, and what to do; none on a cluster whose others use them.

    Args:
        each: cards of each process.
        processes: the training's.
        cards: all there are.
    """
    unused = cards - math.ceil(each * processes)
    if cards == UNKNOWN:
        return ["nobody tells how many GPUs this cluster may have: it waits for them, or set gpus_per_worker=0"] * (
            each > 0
        )
    if given() is not None and each:
        return []
    if unused > 0:
        line = f"{unused} of {cards} GPUs stay idle: {processes} worker{'s' * (processes != 1)} x {each:g} GPU"
        more = f"set workers={cards}" if not 0 < cards < processes else f"set workers={cards}: ranks share no card"
        return [f"{line}; {more} and gpus_per_worker=1 (or auto) to use all of them"]
    return _unusable() if not cards and given() is None else []


def _unusable() -> list[str]:
    """A line if this machine has cards that PyTorch cannot use."""
    import torch

    number = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if not number or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    why = f"NVIDIA's driver is too old for it (CUDA {torch.version.cuda} needs {DRIVER} or newer)"
    if torch.version.cuda is None:
        why = "it is a build without CUDA: pip install torch from PyPI (docs/gpu.md)"
    return [
        f"{number} NVIDIA GPU{'s' * (number > 1)} of this machine cannot be used by PyTorch {torch.__version__}: {why}"
    ]
