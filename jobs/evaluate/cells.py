"""A checkpoint to score, and a cell of the grid: a system, a protocol, a few episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from longtake.errors import UserError
from longtake.evals.protocol import Protocol
from longtake.jobs.evaluate.external_models import Maker
from longtake.models import description
from longtake.models.description import CONFIG, AutoencoderDescription
from longtake.storage.store import Store
from longtake.tables.schema import NO_RUN
from longtake.training import checkpoints

Variant = Literal["whole", "wiped", "stranger", "reconstruction"]
"""What is scored of a checkpoint: the model, the same with its memory wiped or filled by a stranger's context, or its
tokenizer alone: a ceiling."""


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """A checkpoint to score."""

    run: str
    name: str
    step: int
    dataset: str
    latents: bool = False
    """Whether it lives on an autoencoder's latents, whose ceiling is scored too."""
    chunk: int = 1
    """Frames that it takes and makes at a time."""
    trained_frames: int | None = None
    """Frames of the longest clips that it was trained on."""
    stride: int = 1
    """Source frames from one frame of those clips to the next."""
    cost: tuple[tuple[str, float], ...] = ()
    """What its training had cost by then: column of `scores` and value."""

    @staticmethod
    def read(store: Store, run: str, name: str, step: int, dataset: str) -> EvaluatedCheckpoint:
        """With what the checkpoint says of itself.

        Raises:
            UserError: its config is missing or damaged.
        """
        where = f"{checkpoints.folder(run, step)}/{CONFIG}"
        try:
            described = description.parse(checkpoints.read(store, run, step, CONFIG))
        except FileNotFoundError:
            raise UserError(f"run {run}: the checkpoint of step {step} has no config ({where} is missing)") from None
        except ValueError as error:
            raise UserError(f"run {run}: {where} is damaged: {error}") from None
        if isinstance(described, AutoencoderDescription):
            raise UserError(f"run {run}: it trained a tokenizer; what is scored here are world models")
        if not described.model.causal:
            raise UserError(f"run {run}: its model is not causal (causal: false): it cannot go on from a context")
        return EvaluatedCheckpoint(
            run,
            name,
            step,
            dataset,
            latents=described.on_latents,
            chunk=described.model.chunk or 1,
            trained_frames=described.trained_frames,
            stride=described.stride,
            cost=_cost(store, run, step),
        )


def _cost(store: Store, run: str, step: int) -> tuple[tuple[str, float], ...]:
    costs = checkpoints.manifest(store, run, step)["metrics"]
    return tuple((f"train_{name}", costs[name]) for name in ("frames", "worker_s", "bytes_read") if name in costs)


@dataclass(frozen=True)
class ScoreCell:
    """Everything that a worker needs to score one system on a few episodes."""

    store: str
    dataset: str
    protocol: Protocol
    system: str
    run: str
    step: int
    variant: Variant
    episodes: tuple[int, ...]
    strangers: tuple[int, ...] = ()
    """Whose context the system is shown in place of each episode's own; empty: its own."""
    make: Maker | None = None
    """What makes the system, where it is not ours."""
    trained_frames: int | None = None
    """Frames of the longest clips that its model was trained on, where known."""
    cost: tuple[tuple[str, float], ...] = ()
    """What that training had cost, where known: column and value."""
    gpus: float = 0.0
    """The part of a card that it is scored on; 0: a CPU."""

    @property
    def device(self) -> str:
        """Where its model computes."""
        return "cuda" if self.gpus else "cpu"

    @property
    def label(self) -> dict[str, Any]:
        """What all rows of the cell say."""
        label: dict[str, Any] = {
            "run": self.run,
            "checkpoint": self.step,
            "task": self.protocol.task,
            "system": self.system,
            "protocol": self.protocol.hash,
            "dataset": self.dataset,
            "split": self.protocol.split,
            "seed": self.protocol.seed,
        }
        if self.protocol.limit:
            label["partial"] = self.protocol.limit
        if self.trained_frames is not None:
            label["beyond_training"] = max(0, self.protocol.stream - self.trained_frames)
        if self.run != NO_RUN and self.make is None:
            label |= {"device": self.device, "precision": self.protocol.precision or "fp32"}
        return label | dict(self.cost)

    @property
    def share(self) -> str:
        """Its episodes, as a word."""
        return f"{self.episodes[0]:06d}x{len(self.episodes)}"

    def name(self, share: str) -> str:
        """The part of the `scores` table that holds a share of the system's rows."""
        system = self.system.replace("/", "-")
        return "-".join((self.run, f"{self.step:06d}", system, self.protocol.task, self.protocol.hash, share))
