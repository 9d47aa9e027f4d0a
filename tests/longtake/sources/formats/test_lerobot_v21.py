"""LeRobotDataset v2.1: an episode has files of its own, and what is told twice has to agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtake.errors import UserError
from tests.longtake.sources.formats import foreign_files as files
from tests.longtake.sources.formats.test_formats import episodes, good


def test_episodes_are_read_with_their_tasks(tmp_path: Path) -> None:
    files.lerobot_v21(tmp_path)
    found = episodes("lerobot", tmp_path, pose=[0, 1])
    for number, length in enumerate((12, 9, 15)):
        episode = good(found[f"episode {number}"])
        assert np.abs(episode.frames.astype(int) - files.calm(number, length)).max() <= 2
        np.testing.assert_array_equal(episode.actions[0], [0, 0])
        np.testing.assert_array_equal(episode.actions[1:, 0], np.arange(length - 1))
        assert episode.pose is not None and episode.meta["task"] == f"t{number % 2}"
        np.testing.assert_array_equal(episode.pose, np.stack([np.arange(length), np.full(length, 10 * number)], 1))


@pytest.mark.parametrize("length", [10, 13])
def test_a_video_of_another_length_than_its_rows_is_refused(tmp_path: Path, length: int) -> None:
    files.lerobot_v21(tmp_path)
    files.mp4(tmp_path / "videos/chunk-000/front/episode_000000.mp4", files.calm(0, length), 10)
    found = episodes("lerobot", tmp_path)
    told = "no frame at 1 s" if length == 10 else "a frame at 1.2 s, the rows are of 0 to 1.1 s"
    assert told in str(found["episode 0"])
    good(found["episode 1"])


@pytest.mark.parametrize("first", [1, 3, 8])
def test_rows_that_begin_later_get_the_frames_at_their_times(tmp_path: Path, first: int) -> None:
    """Rows that were left out at the begin: the others keep their times, and the video all of its frames."""
    files.lerobot_v21(tmp_path)
    path = tmp_path / "data/chunk-000/episode_000000.parquet"
    rows = pq.read_table(path).to_pylist()[first:]
    pq.write_table(pa.Table.from_pylist([row | {"frame_index": t} for t, row in enumerate(rows)]), path)
    lines = (tmp_path / "meta/episodes.jsonl").read_text().replace('"length": 12', f'"length": {12 - first}')
    (tmp_path / "meta/episodes.jsonl").write_text(lines)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    (tmp_path / "meta/info.json").write_text(json.dumps(info | {"total_frames": info["total_frames"] - first}))
    episode = good(episodes("lerobot", tmp_path)["episode 0"])
    assert np.abs(episode.frames.astype(int) - files.calm(0, 12)[first:]).max() <= 2
    np.testing.assert_array_equal(episode.labels["state"][:, 0], np.arange(first, 12))


def test_metadata_that_contradicts_itself_is_told(tmp_path: Path) -> None:
    files.lerobot_v21(tmp_path)
    path = tmp_path / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(UserError, match="episode 1 is there 2 times"):
        episodes("lerobot", tmp_path)
    path.write_text("\n".join(lines[:2]))
    with pytest.raises(UserError, match="total_episodes is 3, meta/episodes has 2"):
        episodes("lerobot", tmp_path)
    path.write_text("{\n")
    with pytest.raises(UserError, match="meta/episodes.jsonl is damaged"):
        episodes("lerobot", tmp_path)
    path.write_text("\n".join(lines))
    (tmp_path / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "t0"}))
    with pytest.raises(UserError, match=r"total_tasks is 2, meta/tasks\.jsonl has 1"):
        episodes("lerobot", tmp_path)
