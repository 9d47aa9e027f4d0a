"""Foreign formats: frames, actions and poses of known files come out as they went in, and the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.sources.formats import formats
from longtake.sources.formats.base import Framing, Npz, Refused, attempt, led_into, read_npy
from longtake.storage.store import open_store
from tests.longtake.sources.formats import foreign_files as files


def episodes(kind: str, path: Path, **settings: Any) -> dict[str, Episode | str]:
    """Every episode, or why there is none, by name."""
    format_, place = formats()[kind], open_store(path)
    config = format_.config(**settings)
    listing = format_.listing(config, place)
    found: dict[str, Episode | str] = dict(listing.refused)
    for item in listing.items:
        try:
            found[item.key] = attempt(lambda item=item: format_.read(config, place, item), Framing())  # type: ignore[misc]
        except Refused as refusal:
            found[item.key] = str(refusal)
    return found


def good(found: Episode | str) -> Episode:
    assert isinstance(found, Episode), found
    return found


# --- alignment ----------------------------------------------------------------------------------------------


def test_actions_that_led_into_their_frame_stay_and_the_first_is_null() -> None:
    np.testing.assert_array_equal(led_into(np.array([3, 1, 2]), 3, "into"), [-1, 1, 2])
    vectors = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(led_into(vectors, 3, "into"), [[0, 0], [2, 3], [4, 5]])


def test_actions_taken_after_their_frame_move_one_frame_on() -> None:
    for actions in (np.array([3, 1, 2]), np.array([3, 1])):
        np.testing.assert_array_equal(led_into(actions, 3, "out"), [-1, 3, 1])
    np.testing.assert_array_equal(led_into(np.array([0.5, 1.5]), 2, "out"), [[0], [0.5]])


@pytest.mark.parametrize(
    ("actions", "lead", "told"),
    [
        (np.zeros(2), "into", "2 long, frames are 3"),
        (np.zeros(4), "out", "4 long, frames are 3"),
        (np.zeros((3, 1, 1)), "into", "expected numbers"),
        (np.array(["a"] * 3), "into", "expected numbers"),
    ],
)
def test_actions_that_do_not_fit_are_refused(actions: Any, lead: Any, told: str) -> None:
    with pytest.raises(Refused, match=told):
        led_into(actions, 3, lead)


# --- formats ------------------------------------------------------------------------------------------------


def test_memory_maze(tmp_path: Path) -> None:
    truth = files.memory_maze(3)
    files.write(tmp_path / "a/one.npz", files.npz(**truth))
    episode = good(episodes("memory-maze", tmp_path)["a/one.npz"])
    np.testing.assert_array_equal(episode.frames, truth["image"])
    np.testing.assert_array_equal(episode.actions, truth["action"])
    np.testing.assert_array_equal(episode.labels["reward"], truth["reward"])
    assert episode.actions.dtype == np.float32 and episode.pose is not None
    np.testing.assert_array_equal(episode.pose[:, :2], truth["agent_pos"])
    np.testing.assert_allclose(np.cos(episode.pose[:, 2]), truth["agent_dir"][:, 0], atol=1e-6)
    np.testing.assert_allclose(np.sin(episode.pose[:, 2]), truth["agent_dir"][:, 1], atol=1e-6)


def test_teco_npz_and_mp4(tmp_path: Path) -> None:
    truth = files.teco(1)
    files.write(tmp_path / "train/0/a.npz", files.npz(**truth))
    files.mp4(tmp_path / "train/0/b.mp4", files.calm(2))
    files.write(tmp_path / "train/0/b.npz", files.npz(actions=truth["actions"]))
    files.write(tmp_path / "test/0/c.npz", files.npz(**files.teco(2)))
    found = episodes("teco", tmp_path, split="train")
    assert list(found) == ["train/0/a.npz", "train/0/b.mp4"]
    one, other = map(good, found.values())
    np.testing.assert_array_equal(one.frames, truth["video"])
    for episode in (one, other):
        np.testing.assert_array_equal(episode.actions, [-1, *truth["actions"][1:]])
        assert episode.actions.dtype == np.int64
    assert np.abs(other.frames.astype(int) - files.calm(2)).max() <= 2 and other.meta["fps"] == pytest.approx(10)
    assert len(episodes("teco", tmp_path)) == 3
    with pytest.raises(UserError, match=r"source\.split.*did you mean train"):
        episodes("teco", tmp_path, split="trian")


@pytest.mark.parametrize("lead", ["into", "out"])
def test_folder_of_mp4_and_npz(tmp_path: Path, lead: str) -> None:
    truth = files.states(4)
    files.mp4(tmp_path / "x.mp4", files.calm(4), fps=25)
    files.write(tmp_path / "x.npz", files.npz(**truth))
    files.mp4(tmp_path / "y.mp4", files.calm(4))
    files.write(tmp_path / "z.npz", files.npz(**truth))
    found = episodes("folder", tmp_path, lead=lead, pose="pose", labels=["room"])
    assert found["y.mp4"] == "no y.npz beside it: no actions" and "no frames" in str(found["z.npz"])
    episode = good(found["x.mp4"])
    shift = 1 if lead == "out" else 0
    np.testing.assert_array_equal(episode.actions[0], [0, 0])
    np.testing.assert_array_equal(episode.actions[1:, 0], np.arange(1, files.LENGTH) - shift)
    assert np.abs(episode.frames.astype(int) - files.calm(4)).max() <= 2 and episode.meta["fps"] == pytest.approx(25)
    np.testing.assert_array_equal(episode.labels["room"], truth["room"])
    np.testing.assert_allclose(episode.pose, truth["pose"].astype(np.float32))


def test_webdataset(tmp_path: Path) -> None:
    files.mp4(tmp_path / "film.mp4", files.calm(7))
    film = (tmp_path / "film.mp4").read_bytes()
    samples = {f"d/{n:03d}": files.webdataset_sample(n) for n in range(3)}
    samples["d/003"] = {"video.mp4": film, "state.npz": files.npz(**files.states(7))}
    samples["d/004"] = {"json": b"{}"}
    samples["d/005"] = {"frames.npy": files.npy(files.pictures(0))}
    files.tar(tmp_path / "tars/a.tar", samples)
    found = episodes("webdataset", tmp_path, lead="into")
    for number in range(3):
        episode = good(found[f"tars/a.tar/d/{number:03d}"])
        np.testing.assert_array_equal(episode.frames, files.pictures(number))
        np.testing.assert_array_equal(episode.actions[1:], files.states(number)["actions"][1:])
        assert episode.meta["task"] == f"t{number}"
    assert np.abs(good(found["tars/a.tar/d/003"]).frames.astype(int) - files.calm(7)).max() <= 2
    assert "no pictures" in str(found["tars/a.tar/d/004"]) and "no state.npz" in str(found["tars/a.tar/d/005"])


def test_what_a_sample_tells_twice_has_to_agree(tmp_path: Path) -> None:
    files.mp4(tmp_path / "film.mp4", files.calm(7), fps=10)
    film, state = (tmp_path / "film.mp4").read_bytes(), files.npz(**files.states(7))
    samples = {
        "a": {"mp4": film, "frames.npy": files.npy(files.calm(7)), "state.npz": state},
        "./b": {"mp4": film, "state.npz": state},
        "b": {"state.npz": files.npz(**files.states(8))},
        "c": {"mp4": film, "state.npz": state, "json": b'{"fps": 30}'},
        "d": {"mp4": film, "state.npz": state, "json": b'{"fps": 10.0}'},
    }
    files.tar(tmp_path / "x.tar", samples)
    found = episodes("webdataset", tmp_path, lead="into")
    assert found["x.tar/a"] == "pictures twice, frames.npy and mp4: keep one, or give them other keys"
    assert found["x.tar/b"] == "b.state.npz is in it twice"
    assert str(found["x.tar/c"]) == "json: fps is 30, the video has 10" and good(found["x.tar/d"]).meta["fps"] == 10


def test_a_tar_that_is_cut_off_or_damaged_says_so(tmp_path: Path) -> None:
    files.tar(tmp_path / "a.tar", {f"{n}": files.webdataset_sample(n) for n in range(3)})
    raw = (tmp_path / "a.tar").read_bytes()
    header = raw.index(b"1.frames.npy")
    for damaged in (raw[: header + 700], raw[:header] + b"\xff" + raw[header + 1 :], raw[:header]):
        (tmp_path / "a.tar").write_bytes(damaged)
        found = episodes("webdataset", tmp_path, lead="into")
        np.testing.assert_array_equal(good(found["a.tar/0"]).frames, files.pictures(0))
        assert "not read" in str(found["a.tar"]) and not any(
            isinstance(found.get(f"a.tar/{n}"), Episode) for n in (1, 2)
        )


@pytest.mark.parametrize("camera", ["observation.images.front", "observation.images.wrist"])
def test_lerobot(tmp_path: Path, camera: str) -> None:
    files.lerobot(tmp_path)
    found = episodes("lerobot", tmp_path, camera=camera, pose=[0, 1, 2, 3])
    for number, length in enumerate((12, 9, 15)):
        episode = good(found[f"episode {number}"])
        if camera.endswith("wrist"):
            np.testing.assert_array_equal(episode.frames, files.pictures(number, length))
        else:
            assert np.abs(episode.frames.astype(int) - files.calm(number, length)).max() <= 2
        # Frame t was seen before action t: what led into it is the one before.
        np.testing.assert_array_equal(episode.actions[0], [0, 0])
        np.testing.assert_array_equal(episode.actions[1:, 0], np.arange(length - 1))
        np.testing.assert_array_equal(episode.labels["state"][:, 0], np.arange(length))
        assert episode.pose is not None
        np.testing.assert_allclose(episode.pose[:, 2], np.arange(length) / 5, atol=1e-6)


def test_lerobot_tells_all_that_is_wrong_with_the_whole(tmp_path: Path) -> None:
    files.lerobot(tmp_path)
    with pytest.raises(UserError) as caught:
        episodes("lerobot", tmp_path, camera="observation.images.frnt", action="actoin", state=None, pose=[0, 1, 2])
    told = caught.value.lines
    assert len(told) == 3 and "did you mean observation.images.front" in told[0] and "did you mean action" in told[1]
    with pytest.raises(UserError, match=r"source\.camera: is required, there are 2"):
        episodes("lerobot", tmp_path)
    files.lerobot(tmp_path, codebase_version="v1.6")
    with pytest.raises(UserError, match=r"v1\.6; v3 and v2\.1 can be read"):
        episodes("lerobot", tmp_path)
    files.lerobot(tmp_path, features={"action": {"dtype": "float32", "shape": ["two"]}}, data_path=3)
    with pytest.raises(UserError) as caught:
        episodes("lerobot", tmp_path)
    assert [line.split("damaged: ")[1].split(":")[0] for line in caught.value.lines] == [
        "features.action.shape.0",
        "data_path",
    ]
    (tmp_path / "meta/info.json").write_text("{")
    with pytest.raises(UserError, match=r"info\.json is damaged"):
        episodes("lerobot", tmp_path)


@pytest.mark.parametrize("kind", ["memory-maze", "teco", "webdataset", "folder", "lerobot"])
def test_an_empty_folder_is_one_clear_error(tmp_path: Path, kind: str) -> None:
    settings = {"lead": "into"} if kind in ("webdataset", "folder") else {}
    with pytest.raises(UserError, match="no "):
        episodes(kind, tmp_path, **settings)


# --- bad files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": files.pictures(0).astype(np.float32)}, r"frames: float32 .* expected uint8"),
        ({"image": files.pictures(0)[..., :2]}, "frames: uint8"),
        ({"image": files.pictures(0)[:0], "action": np.zeros((0, 6)), "agent_pos": np.zeros((0, 2))}, "frames: none|0"),
        ({"action": np.zeros((11, 6))}, "actions: 11 long, frames are 12"),
        ({"action": np.zeros(12)}, "expected one-hot"),
        ({"agent_pos": np.full((12, 2), np.nan, np.float32)}, "pose: NaN or infinite at frame 0"),
        ({"agent_dir": np.zeros((12, 2), np.float32)}, "not of length 1"),
        ({"agent_pos": np.zeros((12, 2), int)}, "agent_pos: int64"),
        ({"agent_poss": 0, "agent_pos": None}, "no array 'agent_pos' .did you mean agent_poss"),
        ({"image": None}, "no array 'image'"),
        ({"reward": np.zeros(7)}, "label.reward: 7 long"),
    ],
)
def test_an_episode_that_is_none_is_refused_with_its_reason(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    arrays = {k: v for k, v in {**files.memory_maze(0), **change}.items() if v is not None}
    files.write(tmp_path / "a.npz", files.npz(**arrays))
    with pytest.raises(Refused, match=told):
        raise Refused(str(episodes("memory-maze", tmp_path)["a.npz"]))


def test_a_variable_frame_rate_is_refused(tmp_path: Path) -> None:
    files.mp4(tmp_path / "x.mp4", files.calm(0), ticks=[*range(0, 600, 100), *range(900, 1500, 100)])
    files.write(tmp_path / "x.npz", files.npz(**files.states(0)))
    assert "variable frame rate" in str(episodes("folder", tmp_path, lead="into")["x.mp4"])


def test_a_truncated_mp4_is_refused(tmp_path: Path) -> None:
    files.mp4(tmp_path / "x.mp4", files.pictures(0))
    files.write(tmp_path / "x.npz", files.npz(**files.states(0)))
    raw = (tmp_path / "x.mp4").read_bytes()
    for share in (0.05, 0.5, 0.95):
        (tmp_path / "x.mp4").write_bytes(raw[: int(len(raw) * share)])
        assert "read" in str(episodes("folder", tmp_path, lead="into")["x.mp4"])


def test_lerobot_rows_and_pictures_have_to_be_complete(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    files.lerobot(tmp_path)
    path = tmp_path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 17), path)
    files.mp4(tmp_path / "videos/observation.images.front/chunk-000/file-000.mp4", files.calm(0, 10))
    found = episodes("lerobot", tmp_path, camera="observation.images.front")
    assert "no frame at 1 s" in str(found["episode 0"])
    assert "5 rows, expected frames 0 to 8" in str(found["episode 1"])
    assert "0 rows" in str(found["episode 2"])


def test_numpy_files_are_read_to_the_last_byte(tmp_path: Path) -> None:
    array = np.arange(5)
    np.testing.assert_array_equal(Npz(files.npz(a=array))["a"], array)
    with pytest.raises(ValueError, match="behind the array"):
        read_npy(files.npy(array) + b"x")
    with pytest.raises(ValueError, match="allow_pickle"):
        read_npy(files.npy(np.array([{}], dtype=object)))


def test_a_storage_in_trouble_is_no_reason_to_leave_an_episode_out() -> None:
    import errno

    def broken() -> Episode:
        raise OSError(errno.ECONNRESET, "reset")

    with pytest.raises(OSError, match="reset"):
        attempt(broken, Framing())


# --- crop and resize ----------------------------------------------------------------------------------------


def test_crop_and_resize() -> None:
    frames = np.arange(2 * 6 * 8 * 3, dtype=np.uint8).reshape(2, 6, 8, 3)
    assert Framing().apply(frames) is frames
    np.testing.assert_array_equal(Framing(crop="square").apply(frames), frames[:, :, 1:7])
    np.testing.assert_array_equal(Framing(crop=(1, 2, 4, 6)).apply(frames), frames[:, 1:5, 2:8])
    small = Framing(crop=(0, 0, 4, 4), resize=(2, 2)).apply(frames)
    means = frames[:, :4, :4].reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    assert np.abs(small - means).max() <= 0.5
    with pytest.raises(Refused, match="not inside frames of 6 x 8"):
        Framing(crop=(3, 0, 4, 4)).apply(frames)


# --- numbers that would become others -----------------------------------------------------------------------


@pytest.mark.parametrize("lead", ["into", "out"])
@pytest.mark.parametrize(
    ("actions", "told"),
    [
        (np.arange(12) % 3 - 1, "class -1"),
        (np.arange(12, dtype=np.int8) % 4 - 2, "class -2"),
        (np.full(12, 2**63 + 5, np.uint64), "does not fit"),
        (1.7e9 + np.arange(12)[:, None] * 0.1, "subtract an offset"),
        (np.column_stack([np.arange(12), 2**40 + np.arange(12)]), "column 1"),
    ],
)
def test_actions_that_would_become_others_are_refused(actions: Any, told: str, lead: Any) -> None:
    with pytest.raises(Refused, match=told):
        led_into(actions, 12, lead)


def test_the_first_action_into_a_frame_is_left_whatever_it_is() -> None:
    np.testing.assert_array_equal(led_into(np.array([-1, 1, 2]), 3, "into"), [-1, 1, 2])
    np.testing.assert_array_equal(led_into(np.array([1, 2, -1]), 3, "out"), [-1, 1, 2])


def test_poses_far_from_the_origin_are_refused(tmp_path: Path) -> None:
    pose = files.states(1)["pose"] * 1e-3 + [5e5, 4e6, 0]
    files.mp4(tmp_path / "a.mp4", files.calm(1))
    files.write(tmp_path / "a.npz", files.npz(**{**files.states(1), "pose": pose}))
    assert "pose: column" in str(episodes("folder", tmp_path, lead="into", pose="pose")["a.mp4"])


def test_only_arrays_that_are_asked_for_have_to_be_numbers(tmp_path: Path) -> None:
    objects = np.empty(12, object)
    objects[:] = [{"a": 1}] * 12
    files.write(tmp_path / "a/b.npz", files.npz(**files.teco(1), infos=objects))
    good(episodes("teco", tmp_path)["a/b.npz"])
    files.write(tmp_path / "a/b.npz", files.npz(video=files.pictures(1), actions=objects))
    assert "array 'actions': Python objects" in str(episodes("teco", tmp_path)["a/b.npz"])
