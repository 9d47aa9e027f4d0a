"""FVD of an evaluation: cells keep features of their clips in the store; a distance needs those of all cells.

features/PART.npy               of the clips that a cell's system made, context included: fp32 (clips, 400)
features/truth-HASH-SHARE.npy   of the same clips as they really go on: the same for all systems
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longtake.grid import Cell
from longtake.storage.store import Store
from longtake.tables import table as tables

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol
    from longtake.evals.task import Clips, EvalClip
    from longtake.jobs.evaluate.cells import ScoreCell

METRIC = "fvd"


def problems(protocol: Protocol) -> Iterator[str]:
    """Why a protocol cannot have an FVD."""
    from longtake.models.perceptual.i3d import FEWEST_FRAMES

    length = protocol.context + protocol.horizon
    if length < FEWEST_FRAMES:
        yield f"fvd: clips of {length} frames (context {protocol.context}, horizon {protocol.horizon}), at least " + (
            f"{FEWEST_FRAMES} are needed"
        )
    if protocol.scored < 2:
        yield f"fvd: episodes is {protocol.scored}, at least 2 are needed, and hundreds for a useful figure"


def keep_features(store: Store, cell: ScoreCell, questions: Sequence[EvalClip], made: Clips) -> None:
    """Write the features of a cell's clips, and those of the truth where no other system's cell has done so."""
    from longtake.evals.fvd import clip_features

    truth = np.stack([question.frames for question in questions])
    if not store.exists(_truth(cell)):
        _write(store, _truth(cell), clip_features(truth))
    clips = np.concatenate([truth[:, : cell.protocol.context], made], 1)
    _write(store, _made(cell), clip_features(clips))


def append_fvd(store: Store, cells: Sequence[Cell]) -> list[int]:
    """Add the row of every system all of whose cells are done; returns the number of clips of each new row."""
    there = set(tables.parts(store, "scores"))
    systems: dict[str, list[Cell]] = {}
    for cell in cells:
        if METRIC in cell.payload.protocol.metrics:
            systems.setdefault(cell.payload.name(METRIC), []).append(cell)
    counts = []
    for part, own in systems.items():
        if part not in there and there.issuperset(cell.part for cell in own):
            row = _row(store, [cell.payload for cell in own])
            tables.append(store, "scores", [row], part=part)
            counts.append(row["clips"])
    return counts


def rank_told(clips: int) -> str:
    """What is to be known of so few clips."""
    from longtake.models.perceptual.i3d import CLASSES

    return f"; below {CLASSES + 1} the covariances lack full rank" if clips <= CLASSES else ""


def _row(store: Store, cells: Sequence[ScoreCell]) -> dict[str, Any]:
    from longtake.evals.fvd import frechet_distance
    from longtake.evals.metrics import METRICS

    real, made = (np.concatenate([_read(store, where(cell)) for cell in cells]) for where in (_truth, _made))
    place = {"episode": -1, "frame": -1, "distance": 0, "clips": len(made)}
    value = {"metric": METRIC, "value": frechet_distance(real, made), "better": METRICS[METRIC].better}
    return {**cells[0].label, **place, **value}


def _made(cell: ScoreCell) -> str:
    return f"features/{cell.name(cell.share)}.npy"


def _truth(cell: ScoreCell) -> str:
    return f"features/truth-{cell.protocol.hash}-{cell.share}.npy"


def _write(store: Store, name: str, features: NDArray[np.float64]) -> None:
    sink = io.BytesIO()
    np.save(sink, features.astype(np.float32))  # as the net gives them
    store.write_bytes(name, sink.getvalue())


def _read(store: Store, name: str) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.load(io.BytesIO(store.read_bytes(name)), allow_pickle=False)
    return found
