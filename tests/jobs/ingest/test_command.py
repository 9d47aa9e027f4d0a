"""`longtake ingest`: what is read, what is refused and why, and that a killed one goes on to the same bytes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.config import build
from longtake.datasets.dataset import Dataset
from longtake.errors import UserError
from longtake.jobs.datasets import shard_tasks
from longtake.jobs.ingest import command as ingest
from longtake.jobs.ingest.command import IngestConfig, Job, make_shard, prepare
from longtake.storage.store import Store, open_store
from tests.longtake.sources.formats import foreign_files as files

Sets = list[str]


def config(path: Path, kind: str = "memory-maze", *sets: str) -> IngestConfig:
    return build(IngestConfig, {"name": "toy", "path": str(path), "source": {"kind": kind}}, sets)


@pytest.fixture
def mazes(tmp_path: Path) -> Path:
    for seed in range(7):
        files.write(tmp_path / f"source/{seed}.npz", files.npz(**files.memory_maze(seed)))
    return tmp_path / "source"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Shards are made in this process, without Ray; the list says which."""
    made: list[int] = []

    def make_shards(label: str, make: Any, shards: list[int], of: int, cpus: int | None) -> None:
        for shard in shards:
            make(shard)
            made.append(shard)

    monkeypatch.setattr(shard_tasks, "make_shards", make_shards)
    return made


def spoil(mazes: Path) -> None:
    (mazes / "1.npz").write_bytes((mazes / "1.npz").read_bytes()[:200])
    files.write(mazes / "3.npz", files.npz(**{**files.memory_maze(3), "image": files.pictures(3, size=8)}))
    files.write(mazes / "5.npz", files.npz(**{**files.memory_maze(5), "action": np.zeros((4, 6))}))


def test_good_episodes_are_read_and_bad_ones_reported(mazes: Path, store: Store, here: list[int], capsys: Any) -> None:
    spoil(mazes)
    data = ingest.run(prepare(config(mazes)), store)
    assert [data.read(n).meta["source"] for n in range(4)] == ["0.npz", "2.npz", "4.npz", "6.npz"]
    for number, seed in enumerate((0, 2, 4, 6)):
        np.testing.assert_array_equal(data.read(number).frames, files.memory_maze(seed)["image"])
    report = json.loads(store.read_bytes("datasets/toy/report.json"))
    assert report["read"] == 4 and data.manifest.refused == 3
    assert "cannot be read" in report["refused"]["1.npz"]
    assert "others have |u1 (16, 16, 3)" in report["refused"]["3.npz"]
    assert report["refused"]["5.npz"] == "actions: 4 long, frames are 12"
    told = capsys.readouterr().out
    assert "4 episodes read, 3 refused" in told and "refused   5.npz: actions: 4 long" in told


def test_a_killed_ingest_goes_on_to_the_same_dataset(
    mazes: Path, store: Store, here: list[int], tmp_path: Path
) -> None:
    spoil(mazes)
    sets = ("shard_mb=0.02",)
    whole = ingest.run(prepare(config(mazes, "memory-maze", *sets)), open_store(tmp_path / "other"))
    shards = here.copy()
    assert len(shards) > 2
    here.clear()
    job = prepare(config(mazes, "memory-maze", *sets))
    ingest._writer(job, store).claim()
    make_shard(job, store.uri, 1)
    data = ingest.run(prepare(config(mazes, "memory-maze", *sets)), store)
    assert here == [shard for shard in shards if shard != 1]
    assert data.fingerprint == whole.fingerprint and data.manifest.refused == whole.manifest.refused == 3
    here.clear()
    assert ingest.run(job, store).fingerprint == whole.fingerprint and here == []


def test_a_shard_of_refused_episodes_only(mazes: Path, store: Store, here: list[int]) -> None:
    spoil(mazes)
    data = ingest.run(prepare(config(mazes, "memory-maze", "shard_mb=0.001")), store)
    assert data.manifest.shards == 7 and len(data.index) == 4
    from longtake.datasets.verify import damage

    assert list(damage(data)) == []


def test_a_source_that_changed_is_another_dataset(mazes: Path, store: Store, here: list[int]) -> None:
    ingest.run(prepare(config(mazes)), store)
    files.write(mazes / "9.npz", files.npz(**files.memory_maze(9)))
    with pytest.raises(UserError, match="found: "):
        ingest.run(prepare(config(mazes)), store)


def test_cut_shrunk_and_as_video_and_all_of_it_in_the_manifest(mazes: Path, store: Store, here: list[int]) -> None:
    sets = ["framing.crop=[0, 2, 16, 12]", "framing.resize=[8, 6]", "codec=video", "crf=10"]
    data = ingest.run(prepare(config(mazes, "memory-maze", *sets)), store)
    assert data.frame_shape == (8, 6, 3) and data.manifest.psnr_db is not None
    recipe = data.manifest.recipe["ingest"]
    assert recipe["framing"] == {"crop": [0, 2, 16, 12], "resize": [8, 6]} and recipe["codec"] == "video"


def test_discrete_actions_of_teco(tmp_path: Path, store: Store, here: list[int]) -> None:
    for seed in range(4):
        files.write(tmp_path / f"source/train/0/{seed}.npz", files.npz(**files.teco(seed)))
    data = ingest.run(prepare(config(tmp_path / "source", "teco", "fps=10", "action_classes=6")), store)
    assert data.action_dim == 6 and data.read(0).actions.tolist() == [-1, 1, 2, 3] + [0, 1, 2, 3] * 2
    with pytest.raises(UserError, match="fps: the files do not say"):
        prepare(config(tmp_path / "source", "teco"))


def test_lerobot_becomes_a_dataset(tmp_path: Path, store: Store, here: list[int]) -> None:
    files.lerobot(tmp_path / "source", (12, 9, 15, 11))
    job = prepare(config(tmp_path / "source", "lerobot", "source.camera=observation.images.wrist"))
    data = ingest.run(job, store)
    assert data.manifest.fps == 10 and data.manifest.action_space == {"a": "as recorded", "b": "as recorded"}
    np.testing.assert_array_equal(data.read(1, labels=True).labels["state"][:, 1], np.full(9, 10))


def test_another_speed_is_refused(tmp_path: Path, store: Store, here: list[int]) -> None:
    for number, fps in enumerate((10, 10, 20, 10)):
        files.mp4(tmp_path / f"source/{number}.mp4", files.calm(number), fps=fps)
        files.write(tmp_path / f"source/{number}.npz", files.npz(**files.states(number)))
    data = ingest.run(prepare(config(tmp_path / "source", "folder", "source.lead=into")), store)
    report = json.loads(store.read_bytes("datasets/toy/report.json"))
    assert len(data.index) == 3 and "20 frames/s, others have 10" in report["refused"]["2.mp4"]


@pytest.mark.parametrize("odd", [0, 1, 4])
def test_one_odd_file_decides_nothing(mazes: Path, store: Store, here: list[int], odd: int) -> None:
    arrays = {**files.memory_maze(odd), "image": files.pictures(odd, size=8)}
    files.write(mazes / f"{odd}.npz", files.npz(**arrays))
    data = ingest.run(prepare(config(mazes)), store)
    refused = json.loads(store.read_bytes("datasets/toy/report.json"))["refused"]
    assert len(data.index) == 6
    assert refused == {f"{odd}.npz": "frames: |u1 (8, 8, 3), others have |u1 (16, 16, 3)"}


@pytest.mark.parametrize("fps", [0, -5, "30", "ntsc", [30], True, float("nan"), float("inf")])
def test_a_rate_that_is_none_refuses_its_episode(tmp_path: Path, store: Store, here: list[int], fps: Any) -> None:
    samples = {str(number): files.webdataset_sample(number) for number in range(5)}
    for number, told in ((0, fps), (1, 10), (2, 10), (3, fps), (4, 10)):
        samples[str(number)]["json"] = json.dumps({"fps": told}).encode()
    files.tar(tmp_path / "source/a.tar", samples)
    wanted = config(tmp_path / "source", "webdataset", "source.lead=into")
    data = ingest.run(prepare(wanted), store)
    refused = json.loads(store.read_bytes("datasets/toy/report.json"))["refused"]
    assert (len(data.index), data.manifest.fps, list(refused)) == (3, 10.0, ["a.tar/0", "a.tar/3"])
    assert "expected a number above 0" in refused["a.tar/0"]
    assert prepare(wanted.model_copy(update={"fps": 7.0})).fps == 7.0, "whoever says it need not mend the files"


def test_nothing_readable_and_too_few_are_one_error_with_the_reasons(
    mazes: Path, store: Store, here: list[int]
) -> None:
    for path in mazes.iterdir():
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="none of the first 7 episodes can be read") as caught:
        prepare(config(mazes))
    assert len(caught.value.lines) == 8
    for seed in (0, 6):
        files.write(mazes / f"{seed}.npz", files.npz(**files.memory_maze(seed)))
    with pytest.raises(UserError, match="too few") as caught:
        ingest.run(prepare(config(mazes)), store)
    assert len(caught.value.lines) == 6


@pytest.mark.parametrize(
    ("kind", "name", "sets", "told"),
    [
        ("lerobt", "n", [], "unknown format 'lerobt' (did you mean lerobot?)"),
        ("folder", "n", [], "source.lead: is required"),
        ("memory-maze", "n", ["source.lables=[x]"], "did you mean labels?"),
        ("memory-maze", "n", ["source.lead=into"], "source.lead: unknown key; valid here: kind, labels"),
        ("images", "n", ["source.leda=into"], "did you mean lead?); valid here: actions, pose, pose_layout, "),
        ("lerobot", "n", ["source.tool=x"], "unknown key; valid here: kind, camera, action, state, pose"),
        ("memory-maze", "n", ["codec=zsdt"], "did you mean zstd?"),
        ("memory-maze", "n/x", [], "name: "),
    ],
)
def test_a_wrong_line(mazes: Path, tmp_path: Path, kind: str, name: str, sets: Sets, told: str) -> None:
    with pytest.raises(UserError) as caught:
        ingest.main(kind, str(mazes), name, sets, str(tmp_path / "store"))
    assert told in str(caught.value)


def test_a_path_that_is_none(mazes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean source"):
        ingest.main("memory-maze", str(tmp_path / "sorce"), "n", [], str(tmp_path / "store"))
    with pytest.raises(UserError, match="is a file"):
        ingest.main("memory-maze", str(mazes / "0.npz"), "n", [], str(tmp_path / "store"))


def test_the_dry_run_touches_nothing(mazes: Path, tmp_path: Path, capsys: Any) -> None:
    ingest.main("memory-maze", str(mazes), "n", ["shard_mb=0.02"], str(tmp_path / "store"), dry_run=True)
    told = capsys.readouterr().out
    assert "7 to read" in told and "frames |u1 (T, 16, 16, 3)" in told and "shard_mb: 0.02" in told
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_from_a_bucket_into_a_bucket(bucket: str, tmp_path: Path, here: list[int]) -> None:
    source = open_store(f"{bucket}/source")
    files.tar(tmp_path / "a.tar", {str(n): files.webdataset_sample(n) for n in range(4)})
    source.upload_dir(tmp_path, "tars")
    files.lerobot(tmp_path / "robot")
    open_store(f"{bucket}/robot").upload_dir(tmp_path / "robot", "")
    sets = {"webdataset": ["source.lead=into", "fps=4"], "lerobot": ["source.camera=observation.images.front"]}
    for kind, path in (("webdataset", f"{bucket}/source"), ("lerobot", f"{bucket}/robot")):
        ingest.main(kind, path, kind, sets[kind], f"{bucket}/store")
    store = open_store(f"{bucket}/store")
    for number in range(4):
        np.testing.assert_array_equal(store.dataset("webdataset").read(number).frames, files.pictures(number))
    assert [len(store.dataset("lerobot").read(n)) for n in range(3)] == [12, 9, 15]
    with pytest.raises(UserError, match="no .npz file below it"):
        ingest.main("memory-maze", f"{bucket}/nowhere", "n", [], store.uri)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_through_ray(mazes: Path, store: Store, tmp_path: Path, here: list[int]) -> None:
    spoil(mazes)
    alone = ingest.run(prepare(config(mazes, "memory-maze", "shard_mb=0.02")), open_store(tmp_path / "alone"))
    from longtake.jobs.datasets.shard_tasks import make_shards

    job: Job = prepare(config(mazes, "memory-maze", "shard_mb=0.02"))
    ingest._writer(job, store).claim()
    make_shards("ingest", partial(make_shard, job, store.uri), range(len(job.shards)), len(job.shards), cpus=2)
    here.clear()
    data: Dataset = ingest.run(job, store)
    assert here == [] and data.fingerprint == alone.fingerprint
