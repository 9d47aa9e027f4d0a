"""The tables: a million scores read, filtered and grouped, many writers beside a reader, writers killed.

As parts and compacted: `filtered read` (system, metric and distance; three columns), `run read` (every row of one run),
`whole read`, `group-by` (pandas, six columns, mean and standard error); compacted also `pandas`: `pandas.read_parquet`
of the folder or, through s3fs, the bucket, which must give the same frame. Writers beside a reader that also compacts:
`lost` counts rows that were acknowledged before a look and not in it, `double` rows twice in one, `failed` looks that
raised. Kills are kill -9 at a random moment of a writer that does nothing but append, `midway` those that came between
an append's beginning and its acknowledgement: `lost` counts acknowledged parts that are not whole after it, `half`
others that are visible and not whole, `failed` looks that raised. Wall-clock seconds, medians, in a folder of its own
or below `place`. About four minutes; `kills: 0`, `writers: 0` or `rows: 0` leave a part of it out. Bars on two cores:
filtered read 3 s in 300 parts and 1 s compacted, group-by 2 s, all those counts but `midway` 0.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from longtake.config import Config
from longtake.jobs.bench.table_writer import BEGUN, write
from longtake.jobs.bench.timing import Row
from longtake.provenance import new_run_id
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.compaction import compact

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    import pandas as pd

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
WHERE = "system == 'block_ssm' and metric == 'psnr' and distance > 90"
COLUMNS = ["run", "distance", "value"]
GROUPS = ["run", "checkpoint", "task", "system", "metric", "distance"]
KILL_WITHIN_S = 0.1  # of an acknowledged append: about what the next two or three take


class Settings(Config):
    """How much, and where."""

    place: str = Field("", description="a folder or s3://BUCKET/PREFIX to work below; a temporary folder if empty")
    rows: Count = 1_000_000
    parts: Positive = 300
    rounds: Positive = Field(3, description="measured reads")
    writers: Count = 8
    writer_parts: Positive = 10
    writer_rows: Positive = 1_000
    kills: Count = 50


def run(settings: Settings) -> list[Row]:
    """Measure everything, each in a store of its own."""
    with _place(settings.place) as place:
        rows = _reads(open_store(f"{place}/reads"), settings) if settings.rows else []
        rows += _writers(open_store(f"{place}/writers"), settings) if settings.writers else []
        return rows + (_kills(open_store(f"{place}/kills"), settings) if settings.kills else [])


@contextmanager
def _place(given: str) -> Iterator[str]:
    if given:
        yield f"{given.rstrip('/')}/bench-tables-{new_run_id()}"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def scores(rows: int, parts: int) -> Iterator[pd.DataFrame]:
    """So many rows of `scores` in so many frames, a checkpoint each: two systems, two metrics, 50 frames an episode."""
    import pandas as pd

    draw = np.random.default_rng(0)
    cuts = np.linspace(0, rows, parts + 1).astype(int)
    for part, size in enumerate(np.diff(cuts)):
        i = np.arange(size)
        yield pd.DataFrame(
            {
                "run": f"20260101-{part // 10:06d}-abcd",
                "checkpoint": 1000 * (part % 10),
                "task": "retrieval",
                "system": np.where(i % 2, "block_ssm", "block_ssm/wiped"),
                "protocol": "abcdef012345",
                "dataset": "doom-maze",
                "split": "test",
                "episode": i // 200,
                "seed": 0,
                "frame": i // 4 % 50,
                "distance": 2 * (i // 4 % 50) + 1,
                "metric": np.where(i // 2 % 2, "psnr", "ssim"),
                "value": draw.normal(17, 3, size),
            }
        )


def _reads(store: Store, settings: Settings) -> list[Row]:
    name = f"{_kind(store)}, {settings.rows} rows"
    seconds, _ = _timed(lambda: _append(store, settings), 1)
    rows = [Row(f"{name} into {settings.parts} parts", "append", seconds, "s", 1)]
    rows += _read(store, f"{name} in {settings.parts} parts", settings.rounds)
    seconds, done = _timed(lambda: compact(store, "scores"), 1)
    assert done.rows == settings.rows, f"{done.rows} rows after compaction"
    rows.append(Row(f"{name} from {settings.parts} parts", "compact", seconds, "s", 1))
    rows += _read(store, f"{name} compacted", settings.rounds)
    return [*rows, _read_by_pandas(store, f"{name} compacted", settings.rounds)]


def _kind(store: Store) -> str:
    return "folder" if store.is_folder else "S3"


def _read_by_pandas(store: Store, case: str, rounds: int) -> Row:
    """What pandas alone makes of the files. Raises AssertionError if that is not what `table` gives."""
    import pandas as pd

    seconds, frame = _timed(lambda: pd.read_parquet(f"{store.uri}/tables/scores"), rounds)
    pd.testing.assert_frame_equal(frame, store.table("scores"))
    return Row(case, "pandas", seconds, "s", rounds)


def _append(store: Store, settings: Settings) -> None:
    for number, frame in enumerate(scores(settings.rows, settings.parts)):
        tables.append(store, "scores", frame, f"cell-{number:06d}")


def _read(store: Store, case: str, rounds: int) -> list[Row]:
    whole = store.table("scores")
    run = whole.run.iloc[0]
    measured: dict[str, Callable[[], object]] = {
        "filtered read": lambda: store.table("scores", where=WHERE, columns=COLUMNS),
        "run read": lambda: store.table("scores", where=f"run == {run!r}"),
        "whole read": lambda: store.table("scores"),
        "group-by": lambda: whole.groupby(GROUPS).value.agg(["mean", "sem"]),
    }
    return [Row(case, metric, _timed(work, rounds)[0], "s", rounds) for metric, work in measured.items()]


def _timed(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """The median seconds, and what the last call returned."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def _writers(store: Store, settings: Settings) -> list[Row]:
    """Writers append; the reader looks, and compacts after every third look."""
    rows, count = settings.writer_rows, settings.writers
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "told"
        began = time.perf_counter()
        started = [_start(store, f"w{number}", settings.writer_parts, rows, record) for number in range(count)]
        looks, lost, double, failed = 0, 0, 0, 0
        while any(process.is_alive() for process in started):
            known = _lines(record)
            looks += 1
            try:
                sizes = _sizes(store)
                if looks % 3 == 0:
                    compact(store, "steps")
            except Exception:  # whatever a reader can meet is what is counted
                failed += 1
                continue
            lost += rows * len(known - set(sizes.index)) + int((rows - sizes["nunique"]).sum())
            double += int((sizes["size"] - sizes["nunique"]).sum())
        seconds = time.perf_counter() - began
        for process in started:
            process.join()
            assert process.exitcode == 0, f"a writer ended with {process.exitcode}"
    sizes = _sizes(store)
    lost += count * settings.writer_parts * rows - int(sizes["nunique"].sum())
    double += int((sizes["size"] - sizes["nunique"]).sum())
    case = f"{_kind(store)}, {count} writers of {settings.writer_parts} x {rows} rows"
    counts = {"lost": lost, "double": double, "failed": failed, "looks": looks}
    return [Row(case, "all", seconds, "s", 1), *_counts(case, counts, looks)]


def _kills(store: Store, settings: Settings) -> list[Row]:
    rows, draw = settings.writer_rows, random.Random(0)
    lost = half = midway = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "told"
        for turn in range(settings.kills):
            before = len(_lines(record))
            process = _start(store, f"k{turn}", 10**6, rows, record)
            while len(_lines(record)) == before and process.is_alive():
                time.sleep(0.002)
            time.sleep(draw.uniform(0, KILL_WITHIN_S))
            process.kill()
            process.join()
            known = _lines(record)
            midway += record.read_text().splitlines()[-1].startswith(BEGUN)
            try:
                sizes = _sizes(store)
            except Exception:  # whatever a reader can meet is what is counted
                failed += 1
                continue
            whole = {str(part) for part in sizes.index[(sizes["size"] == rows) & (sizes["nunique"] == rows)]}
            lost += len(known - whole)
            half += len({str(part) for part in sizes.index} - known - whole)
    case = f"{_kind(store)}, {settings.kills} kills of a writer of {rows} rows a part"
    counts = {"lost": lost, "half": half, "failed": failed, "midway": midway, "acknowledged": len(known)}
    return _counts(case, counts, settings.kills)


def _counts(case: str, counts: dict[str, int], repetitions: int) -> list[Row]:
    return [Row(case, name, float(count), "", repetitions) for name, count in counts.items()]


def _start(store: Store, name: str, parts: int, rows: int, record: Path) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(
        target=write, args=(store.uri, name, parts, rows, str(record))
    )
    process.start()
    return process


def _lines(record: Path) -> set[str]:
    """The parts that were acknowledged."""
    lines = record.read_text().split() if record.exists() else []
    return {line for line in lines if not line.startswith(BEGUN)}


def _sizes(store: Store) -> pd.DataFrame:
    """Rows and distinct steps of each part that is visible."""
    return store.table("steps", columns=["run", "step"]).groupby("run").step.agg(["size", "nunique"])
