"""Metrics of sets, such as FVD: cells keep features of their clips in the store; a distance needs those of all cells.

FOLDER/PART.npy               of the clips that a cell's system made, context included: fp32 (clips, F)
FOLDER/truth-HASH-SHARE.npy   of the same clips as they really go on: the same for all systems

FOLDER is the metric's own: `features` for FVD.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longtake.errors import Damaged
from longtake.evals.metric import SetMetric
from longtake.evals.registry import METRICS
from longtake.grid import Cell
from longtake.storage import seals
from longtake.storage.store import Store
from longtake.tables import table as tables

if TYPE_CHECKING:
    from longtake.evals.metric import Clips
    from longtake.evals.protocol import Protocol
    from longtake.jobs.evaluate.cells import ScoreCell


def set_metrics(names: Sequence[str]) -> dict[str, SetMetric]:
    """Those of some metrics that compare sets of clips."""
    return {name: metric for name in names if isinstance(metric := METRICS[name], SetMetric)}


def problems(protocol: Protocol) -> Iterator[str]:
    """Why a protocol's clips are too short or too few for a metric of sets."""
    length = protocol.context + protocol.horizon
    for name, metric in set_metrics(protocol.metrics).items():
        if length < metric.fewest_frames:
            clips = f"{name}: clips of {length} frames (context {protocol.context}, horizon {protocol.horizon})"
            yield f"{clips}, at least {metric.fewest_frames} are needed"
        if protocol.scored < metric.fewest_clips:
            few = f"{name}: episodes is {protocol.scored}, at least {metric.fewest_clips} are needed"
            yield f"{few}, and hundreds for a useful figure"


def keep_features(store: Store, cell: ScoreCell, name: str, truth: Clips, generated: Clips) -> None:
    """Write the features of a cell's clips, and those of the truth where no other system's cell has done so."""
    metric = set_metrics([name])[name]
    if not store.exists(_truth(metric, cell)):
        _write(store, _truth(metric, cell), metric.features(truth))
    _write(store, _made(metric, cell), metric.features(generated))


def append_distances(store: Store, cells: Sequence[Cell]) -> list[str]:
    """Add the row of every metric of sets and every system all of whose cells are done; a line on each new kind of row.

    What it says of the number of clips belongs to the value: unlike numbers are not comparable.
    """
    parts = set(tables.parts(store, "scores"))
    systems: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        for name in set_metrics(cell.payload.protocol.metrics):
            systems.setdefault((name, cell.payload.name(name)), []).append(cell)
    added = set[tuple[str, int]]()
    for (name, part), own in systems.items():
        if part not in parts and parts.issuperset(cell.part for cell in own):
            row = _row(store, name, [cell.payload for cell in own])
            tables.append(store, "scores", [row], part=part)
            added.add((name, row["clips"]))
    return [_caution(name, clips) for name, clips in sorted(added)]


def _caution(name: str, clips: int) -> str:
    """What is to be known of a value of so many clips."""
    fewest = set_metrics([name])[name].full_rank
    few = f"; below {fewest} the covariances lack full rank" if clips < fewest else ""
    return f"{name} of {clips} clips: comparable with others of {clips} clips only{few}"


def _row(store: Store, name: str, cells: Sequence[ScoreCell]) -> dict[str, Any]:
    metric = set_metrics([name])[name]
    real, generated = (
        np.concatenate([_read(store, where(metric, cell)) for cell in cells]) for where in (_truth, _made)
    )
    place = {"episode": -1, "frame": -1, "distance": 0, "clips": len(generated)}
    value = {"metric": name, "value": metric.distance(real, generated), "better": metric.better}
    return {**cells[0].label, **place, **value}


def _made(metric: SetMetric, cell: ScoreCell) -> str:
    return f"{metric.folder}/{cell.name(cell.share)}.npy"


def _truth(metric: SetMetric, cell: ScoreCell) -> str:
    return f"{metric.folder}/truth-{cell.protocol.hash}-{cell.share}.npy"


def _write(store: Store, name: str, features: NDArray[np.float64]) -> None:
    sink = io.BytesIO()
    np.save(sink, features.astype(np.float32))  # as nets give them
    store.write_bytes(name, seals.stamped(sink.getvalue()))


def _read(store: Store, name: str) -> NDArray[np.float64]:
    """Features of a cell's clips. Raises Damaged, with the way out, for others than were written, or none."""
    try:
        data = seals.unstamped(store.read_bytes(name), name)
    except (FileNotFoundError, Damaged) as error:
        what = "is gone" if isinstance(error, FileNotFoundError) else "damaged, or of an earlier version"
        raise Damaged(f"{name}: {what}: bring it back, or leave its metric out") from error
    features: NDArray[np.float64] = np.load(io.BytesIO(data), allow_pickle=False)
    return features
