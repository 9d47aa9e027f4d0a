"""A train loop small enough to watch: a recurrent cell, truncated BPTT, a checkpoint every 4 of 12 steps."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from longtake.storage.store import open_store
from longtake.training import fit as training
from longtake.training.context import Context
from longtake.training.engine import Engine
from longtake.training.engine_config import EngineConfig

STEPS = 12
SAVE_EVERY = 4


class Carried(nn.Module):
    """A recurrent cell over (B, T, 8) whose state (B, 8) comes in and goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(8, 8)
        self.across = nn.Linear(8, 8, bias=False)
        self.outside = nn.Linear(8, 8)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        out = []
        for t in range(x.shape[1]):
            state = torch.tanh(self.inside(x[:, t]) + self.across(state))
            out.append(self.outside(state))
        return torch.stack(out, 1), state


@dataclass(frozen=True)
class Toy:
    """What to do, and on which rank and step to die (once: the flag file says that it has happened)."""

    engine: EngineConfig
    kill_step: int = -1
    kill_rank: int = 1
    flag: str = ""
    fail_step: int = -1
    pause_s: float = 0.0


def clip(step: int, rank: int, frames: int = 12) -> Tensor:
    """(4, frames, 8), a pure function of step and rank."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(4, frames, 8, generator=generator)


def segments(step: int) -> int:
    """Segments of a clip; changes from step to step."""
    return 2 + step % 2


def backward_all(engine: Engine, x: Tensor, parts: int, noise: float = 0.1) -> float:
    """Truncated BPTT over `parts` segments of a clip; returns the loss."""
    state, total = torch.zeros(x.shape[0], 8), 0.0
    for part in x.chunk(parts, dim=1):
        # Noise from the global generator: a resume that forgot its state would show.
        prediction, state = engine(part + noise * torch.randn_like(part), state.detach())
        loss = (prediction - part).square().mean() / parts
        engine.backward(loss)
        total += loss.item()
    return total


def loop(context: Context, toy: Toy) -> None:
    """Train; leaves the final weights in the last checkpoint."""
    torch.manual_seed(context.rank)
    engine = Engine(Carried(), toy.engine, steps=STEPS, device=context.device)
    with context.resume() as folder:
        if folder is not None:
            assert engine.load(folder) == {"step": engine.done}
    for step in range(engine.done, STEPS):
        _trouble(toy, step, context.rank)
        loss = backward_all(engine, clip(step, context.rank), segments(step))
        engine.step()
        numbers = context.mean(loss=loss)
        context.progress(step + 1, STEPS, **numbers)
        if (step + 1) % SAVE_EVERY == 0:
            context.save(step + 1, engine.snapshot({"step": engine.done}), numbers)
    context.finish()


def _trouble(toy: Toy, step: int, rank: int) -> None:
    if toy.fail_step == step:
        raise ValueError(f"toy failure at step {step}")
    time.sleep(toy.pause_s)
    if toy.kill_step == step and toy.kill_rank == rank and not Path(toy.flag).exists():
        Path(toy.flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def drive(uri: str, run: str) -> None:
    """The undisturbed toy run, slow enough to be killed half-way; for a driver process of its own."""
    store = open_store(uri)
    toy = Toy(EngineConfig(zero=1), pause_s=0.5)
    training.fit(loop, toy, store=store, run_id=run, workers=2)
