"""The tables and their columns: what a row's key is, what each column means, its type and its unit.

A writer may add columns of its own (a trial has one per axis of its sweep); those listed here have their type in
every part, whatever the values at hand look like. docs/tables.md is this file for people.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from longtake.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LAYOUT = 3
"""The version of files, names and columns; written into every part. Rises when older code would misread newer files."""

KEYS: dict[str, tuple[str, ...]] = {
    "runs": ("run",),
    "steps": ("run", "step"),
    "scores": ("run", "checkpoint", "task", "system", "protocol", "episode", "seed", "frame", "metric"),
    "bench": ("run", "name", "case", "metric"),
    "trials": ("sweep", "trial"),
    "notes": ("run",),
}
"""The tables, and what makes a row of each the same row."""

EVENT_TIME = "event_time"
"""When a row was appended, UTC."""

NO_RUN = "none"
"""The run of scores that no run made: floors and oracle."""

Kind = Literal["text", "whole", "number", "time"]


@dataclass(frozen=True)
class Column:
    """One column: its kind, its unit ("" without one) and what it says."""

    kind: Kind
    unit: str
    meaning: str


COLUMNS: dict[str, dict[str, Column]] = {
    "runs": {
        "run": Column("text", "", "id, sortable by time"),
        "kind": Column("text", "", "train, autoencoder (a training of one), sweep, ..."),
        "name": Column("text", "", "name of the config"),
        "status": Column(
            "text",
            "",
            "running, done, failed, stopped, preempted (by SIGTERM); read as lost after 60 s of silence, or as removed",
        ),
        "reason": Column("text", "", "why it failed, stopped or was preempted"),
        "started": Column("time", "UTC", "first start"),
        "ended": Column("time", "UTC", "last end; missing while it runs"),
        "sessions": Column("whole", "", "how often it was started"),
        "seed": Column("whole", "", "seed of the config"),
        "dataset": Column("text", "", "fingerprint of the data"),
        "frames": Column("whole", "frames", "trained on, all sessions"),
        "worker_s": Column(
            "number", "s", "of all workers together (each has one accelerator, or a share), all sessions"
        ),
        "bytes_read": Column("whole", "bytes", "asked of the storage for the clips of its steps, all sessions"),
        "forked_from": Column("text", "", "RUN@STEP of the checkpoint that it went on from; empty without one"),
        "dataset_name": Column("text", "", "name of the dataset in the store"),
        "config_hash": Column("text", "", "over every field of the config"),
        "config": Column("text", "YAML", "the whole config"),
        "pid": Column("whole", "", "process of the driver"),
        "host": Column("text", "", "machine of the driver"),
        "hardware": Column("text", "", "processors, memory, cards"),
        "code_version": Column("text", "", "release and commit"),
        "versions": Column("text", "JSON", "package to version"),
        "tags": Column("text", "", "of `longtake tag`, with spaces between; read from the table notes"),
        "note": Column("text", "", "of `longtake note`; read from the table notes"),
    },
    "steps": {
        "run": Column("text", "", "id of the run"),
        "step": Column("whole", "", "optimizer step, from 0"),
        "frames": Column("whole", "frames", "frames trained on in this step, all ranks"),
        "clip_frames": Column("whole", "frames", "of each clip in this step: the stage of the curriculum"),
        "loss": Column("number", "", "training loss, mean over ranks"),
        "val_loss": Column(
            "number",
            "",
            "on held-out clips as long as the last stage's, at fixed noise; missing between validations. With a "
            "curriculum also val_loss.N: on clips of N frames, for each of the earlier lengths",
        ),
        "state_drift": Column(
            "number", "share", "growth of the carried state's spread in the second half of the held-out clips"
        ),
        "val_psnr": Column("number", "dB", "of held-out frames, there and back through an autoencoder in training"),
        "step_s": Column("number", "s", "time of the step"),
        "worker_s": Column("number", "s", "step_s times the number of workers"),
        "frames_per_s": Column("number", "frames/s", "frames / step_s"),
        "data_wait": Column("number", "share", "of step_s spent waiting for data"),
        "bytes_read": Column("whole", "bytes", "asked of the storage for the clips of the step, all ranks"),
        "replaced": Column("number", "share", "of the clips, taken in place of unreadable ones"),
    },
    "scores": {
        "run": Column("text", "", "id of the run; none for floors and oracle, foreign-HASH for models of others"),
        "checkpoint": Column("whole", "steps", "step of the checkpoint"),
        "task": Column("text", "", "what was asked"),
        "system": Column(
            "text",
            "",
            "model, model/wiped, model/stranger, model/reconstruction (the tokenizer: a ceiling), floor or oracle",
        ),
        "protocol": Column("text", "", "hash of the eval's definition, kept in protocols/HASH.json"),
        "dataset": Column("text", "", "name of the dataset"),
        "split": Column("text", "", "val or test"),
        "episode": Column("whole", "", "index of the episode in its dataset; -1 for a value of many clips"),
        "seed": Column("whole", "", "seed of the protocol"),
        "frame": Column("whole", "frames", "index among the generated frames; -1 for a value of whole clips"),
        "distance": Column(
            "whole",
            "frames",
            "to the context frame that shows the same place; 0 for whole clips; of capacity places, of cost the length",
        ),
        "metric": Column("text", "", "psnr, ssim, ..."),
        "value": Column("number", "of the metric", "psnr in dB; others as their cards say"),
        "better": Column("text", "", "which way of the metric is good: higher, lower, or zero (the nearest to 0)"),
        "clips": Column("whole", "", "clips that a value of many is of, such as fvd; missing for values of one"),
        "stratum": Column(
            "text", "", "kind of frame, where a task tells kinds apart: seen or unseen of reasoning and two_walks"
        ),
        "partial": Column(
            "whole", "episodes", "scored of a protocol that asks for more (--limit); missing for whole ones"
        ),
        "beyond_training": Column(
            "whole", "frames", "that the stream is longer than the clips the model was trained on; missing for floors"
        ),
        "device": Column("text", "", "that the model was scored on: cpu or cuda; missing for floors"),
        "precision": Column("text", "", "of the model's products: fp32 or autocast (bf16); missing for floors"),
        "train_frames": Column("number", "frames", "trained on up to the checkpoint; missing for floors"),
        "train_worker_s": Column("number", "s", "of all workers together, up to the checkpoint"),
        "train_bytes_read": Column("number", "bytes", "asked of the storage for clips, up to the checkpoint"),
    },
    "bench": {
        "run": Column("text", "", "id of the benchmark's run"),
        "name": Column("text", "", "the benchmark"),
        "case": Column("text", "", "what was measured: sizes and contestant"),
        "metric": Column("text", "", "forward, memory, speedup, ..."),
        "value": Column("number", "of the row", "median over the repetitions"),
        "unit": Column("text", "", "of the value: s, MB, times, ..."),
        "repetitions": Column("whole", "", "measured calls, warm-up not counted"),
    },
    "trials": {
        "sweep": Column("text", "", "id of the sweep, which is a run"),
        "trial": Column("whole", "", "number within the sweep, from 0"),
        "run": Column("text", "", "id of the trial's run"),
        "state": Column("text", "", "running, preempted (begun, to be gone on with), done, pruned (early) or failed"),
        "reason": Column("text", "", "why it failed"),
        "attempts": Column("whole", "", "how often it was tried: more than once after --retry-failed"),
        "objective": Column("number", "of the objective", "last value told, at the row's step"),
        "final": Column(
            "number",
            "of the objective",
            "of a done trial: all of these are at one step, and may be ranked; else missing",
        ),
        "better": Column("text", "", "which way of the objective is good: higher or lower"),
        "step": Column("whole", "", "last step told"),
        "frames": Column("whole", "frames", "trained on so far"),
        "seconds": Column("number", "s", "of all sessions"),
        "ms_per_frame": Column("number", "ms", "to generate a frame, where the sweep weighs it"),
        "carried_bytes": Column("number", "bytes", "of memory carried from frame to frame, where the sweep weighs it"),
    },
    "notes": {
        "run": Column("text", "", "id of the run or sweep"),
        "name": Column("text", "", "what `longtake rename` calls it; runs tells this one"),
        "tags": Column("text", "", "of `longtake tag`, with spaces between"),
        "note": Column("text", "", "of `longtake note`"),
        "removed": Column("time", "UTC", "when `longtake rm` removed its files; its rows stay"),
    },
}
"""The columns that have one meaning wherever they stand; each table also has event_time."""


def keys(table: str) -> tuple[str, ...]:
    """The key of a table. Raises UserError for a table that is not there."""
    if table not in KEYS:
        raise UserError(unknown("table", table, KEYS))
    return KEYS[table]


def arrow_type(kind: str) -> Any:
    """How a kind of column is stored."""
    import pyarrow as pa

    kinds = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64(), "time": pa.timestamp("us", tz="UTC")}
    return kinds[kind]


def cast(table: str, name: str, values: pa.Array) -> pa.Array:
    """Values in the type of their column. Raises TypeError for those that are of another kind."""
    import pyarrow as pa

    column = COLUMNS[table].get(name)
    if column is None:
        return values
    try:
        return values.cast(arrow_type(column.kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TypeError(f"column {name!r} of table {table} holds {column.kind}s: {error}") from error


def empty(table: str) -> pa.Schema:
    """The columns of a table without rows: its key and the time of the event."""
    import pyarrow as pa

    fields = [(name, arrow_type(COLUMNS[table][name].kind)) for name in keys(table)]
    return pa.schema([*fields, (EVENT_TIME, pa.timestamp("ns", tz="UTC"))])


def describe() -> str:
    """The columns of every table as Markdown."""
    lines = []
    for table, columns in COLUMNS.items():
        lines += [f"## {table}", "", f"Key: {', '.join(KEYS[table])}.", ""]
        lines += ["| column | type | unit | meaning |", "|---|---|---|---|"]
        lines += [f"| {name} | {column.kind} | {column.unit} | {column.meaning} |" for name, column in columns.items()]
        lines += [""]
    return "\n".join(lines)


def with_columns(table: str, frame: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The rows with those of the table's own columns among `names` that no part has: all missing, of their type."""
    missing = [name for name in dict.fromkeys(names) if name in COLUMNS[table] and name not in frame]
    if not missing:
        return frame
    return frame.assign(**{name: empty_column(COLUMNS[table][name].kind, len(frame)) for name in missing})


def empty_column(kind: Kind, rows: int) -> pd.Series[Any]:
    """So many missing values of a kind, as reading gives them."""
    import pandas as pd

    types = {"text": "str", "whole": "Int64", "number": "float64", "time": "datetime64[ns, UTC]"}
    return pd.Series([None] * rows, dtype=types[kind])
