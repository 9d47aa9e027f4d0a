"""LeRobot sets say much twice: a row's picture is the frame at its time, and what is said twice has to agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtake.datasets.episode import Episode
from longtake.errors import UserError
from tests.longtake.sources.formats import foreign_files as files
from tests.longtake.sources.formats.test_formats import episodes, good

CAMERA = "observation.images.front"
FROM, TO = f"videos/{CAMERA}/from_timestamp", f"videos/{CAMERA}/to_timestamp"
Rows = list[dict[str, Any]]


def edit(root: Path, folder: str, change: Callable[[Rows], Rows | None]) -> None:
    path = root / folder / "chunk-000/file-000.parquet"
    rows: Rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist(change(rows) or rows), path)


def each(**changes: Callable[[dict[str, Any]], Any]) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        for row in rows:
            row.update({name: make(row) for name, make in changes.items()})

    return change


def info(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shown(episode: Episode | str, number: int) -> list[int]:
    return [round((int(grey) - 20 - 5 * number) / 15) for grey in good(episode).frames[:, 0, 0, 0]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files.lerobot(tmp_path / "set")
    return tmp_path / "set"


def test_rows_get_the_frames_at_their_times(root: Path) -> None:
    found = episodes("lerobot", root, camera=CAMERA)
    assert [shown(found[f"episode {number}"], number) for number in range(3)] == [
        list(range(length)) for length in (12, 9, 15)
    ]


def test_an_episode_that_begins_within_its_span_gets_later_frames(root: Path) -> None:
    """Its first frames were left out of the rows, not of the video."""
    edit(root, "data", lambda rows: [row for row in rows if row["episode_index"] != 2 or row["frame_index"] >= 3])
    edit(root, "data", each(frame_index=lambda row: row["frame_index"] - 3 * (row["episode_index"] == 2)))
    edit(root, "meta/episodes", each(length=lambda row: row["length"] - 3 * (row["episode_index"] == 2)))
    edit(root, "meta/episodes", each(dataset_to_index=lambda row: row["dataset_from_index"] + row["length"]))
    assert shown(episodes("lerobot", root, camera=CAMERA)["episode 2"], 2) == list(range(3, 15))


@pytest.mark.parametrize("by", [1e-3, -1e-3, 0.02, -0.02, 0.05, -0.05, 0.1, -0.1, 0.3])
def test_a_begin_that_is_off_is_refused_in_either_direction(root: Path, by: float) -> None:
    edit(root, "meta/episodes", each(**{FROM: lambda row: row[FROM] + by * (row["episode_index"] == 1)}))
    assert "from_timestamp" in str(found := episodes("lerobot", root, camera=CAMERA)["episode 1"]) or "begins" in str(
        found
    )


@pytest.mark.parametrize("by", [0.1, -0.1, 0.3, 0.001])
def test_a_span_that_moved_lies_on_its_neighbour_or_beyond_the_video(root: Path, by: float) -> None:
    def moved(name: str) -> Callable[[dict[str, Any]], float]:
        return lambda row: float(row[name] + by * (row["episode_index"] == (1 if by < 0 else 2)))

    edit(root, "meta/episodes", each(**{FROM: moved(FROM), TO: moved(TO)}))
    assert isinstance(episodes("lerobot", root, camera=CAMERA)[f"episode {1 if by < 0 else 2}"], str)


@pytest.mark.parametrize(
    "time",
    [
        lambda row: row["timestamp"] + 0.3,
        lambda row: row["timestamp"] - 0.1,
        lambda row: row["timestamp"] / 2,
        lambda row: row["timestamp"] * 1.5,
        lambda row: row["timestamp"] + 0.1 * (row["frame_index"] > 4),
        lambda row: row["timestamp"] + 0.002 * (row["frame_index"] == 4),
        lambda row: float("nan") if row["frame_index"] == 2 else row["timestamp"],
        lambda row: None if row["frame_index"] == 2 else row["timestamp"],
    ],
)
def test_times_that_are_not_the_videos_are_refused(root: Path, time: Any) -> None:
    edit(root, "data", each(timestamp=time))
    assert all("timestamp" in str(found) for found in episodes("lerobot", root, camera=CAMERA).values())


@pytest.mark.parametrize("fps", ["10", "fast", 0, -10, float("nan"), float("inf"), None, True])
def test_a_rate_that_is_none_is_refused(root: Path, fps: Any) -> None:
    info(root, fps=fps)
    with pytest.raises(UserError, match="fps"):
        episodes("lerobot", root, camera=CAMERA)


def test_a_camera_of_another_rate_is_refused(root: Path) -> None:
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[CAMERA]["info"] = {"video.fps": 30}
    info(root, features=features)
    with pytest.raises(UserError, match=r"fps is 10.*video\.fps 30"):
        episodes("lerobot", root, camera=CAMERA)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"total_episodes": 50}, "total_episodes is 50, meta/episodes has 3"),
        ({"total_episodes": 2}, "total_episodes is 2"),
        ({"total_frames": 37}, "total_frames is 37, meta/episodes has 36"),
    ],
)
def test_totals_that_differ_are_refused(root: Path, changes: Any, told: str) -> None:
    info(root, total_episodes=3, total_frames=36)
    assert len(episodes("lerobot", root, camera=CAMERA)) == 3
    info(root, **changes)
    with pytest.raises(UserError, match=told):
        episodes("lerobot", root, camera=CAMERA)


def test_tasks_are_counted(root: Path) -> None:
    info(root, total_tasks=2)
    pq.write_table(pa.table({"task": ["walk"], "task_index": [0]}), root / "meta/tasks.parquet")
    with pytest.raises(UserError, match=r"total_tasks is 2, meta/tasks\.parquet has 1"):
        episodes("lerobot", root, camera=CAMERA)


def test_an_episode_that_is_there_twice_is_refused(root: Path) -> None:
    edit(root, "meta/episodes", lambda rows: [*rows, rows[1]])
    with pytest.raises(UserError, match="episode 1 is there 2 times"):
        episodes("lerobot", root, camera=CAMERA)


def test_a_table_of_episodes_that_is_there_twice_is_refused(root: Path) -> None:
    table = root / "meta/episodes/chunk-000/file-000.parquet"
    shutil.copy(table, table.with_name("file-001.parquet"))
    with pytest.raises(UserError, match=r"episode 0 is there 2 times[\s\S]*episode 2 is there 2 times"):
        episodes("lerobot", root, camera=CAMERA)


def test_rows_of_another_length_are_refused(root: Path) -> None:
    edit(root, "meta/episodes", each(dataset_to_index=lambda row: row["dataset_to_index"] + 1))
    with pytest.raises(UserError, match="episode 0: length 12, but rows 0 to 13"):
        episodes("lerobot", root, camera=CAMERA)


def test_pictures_in_files_of_their_own_are_read(root: Path) -> None:
    def outside(rows: Rows) -> None:
        for row in rows:
            path = f"images/{row['index']}.png"
            files.write(root / path, row["observation.images.wrist"]["bytes"])
            row["observation.images.wrist"] = {"bytes": None, "path": path}

    before = episodes("lerobot", root, camera="observation.images.wrist")
    edit(root, "data", outside)
    after = episodes("lerobot", root, camera="observation.images.wrist")
    assert all((good(before[key]).frames == good(after[key]).frames).all() for key in before)
    (root / "images/3.png").unlink()
    found = episodes("lerobot", root, camera="observation.images.wrist")
    assert "images/3.png" in str(found["episode 0"]) and not isinstance(found["episode 1"], str)
