"""HDF5 as Minari, robomimic and D4RL lay it out: episodes come out as they went in, and the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.errors import UserError
from tests.longtake.sources.formats import foreign_files as files
from tests.longtake.sources.formats.test_formats import episodes, good

h5py = pytest.importorskip("h5py")
T = 9


def write(path: Path, arrays: dict[str, Any], **attributes: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        for group, text in attributes.items():
            file[group].attrs["language_instruction"] = text


def actions(seed: int, length: int = T) -> Any:
    return np.arange(length * 2, dtype=np.float32).reshape(length, 2) + 100 * seed


def test_minari_has_a_frame_more_than_actions(tmp_path: Path) -> None:
    told = {f"episode_{n}/observations": files.pictures(n, T + 1) for n in range(12)}
    told |= {f"episode_{n}/actions": actions(n) for n in range(12)}
    write(tmp_path / "data/main_data.hdf5", told, episode_3="open it")
    found = episodes("hdf5", tmp_path)
    assert [key.rpartition("_")[2] for key in found] == [str(n) for n in range(12)], "9 comes before 10"
    for number in range(12):
        episode = good(found[f"data/main_data.hdf5/episode_{number}"])
        np.testing.assert_array_equal(episode.frames, files.pictures(number, T + 1))
        np.testing.assert_array_equal(episode.actions, [[0, 0], *actions(number)])
    assert good(found["data/main_data.hdf5/episode_3"]).meta["task"] == "open it"


def test_robomimic_names_its_camera(tmp_path: Path) -> None:
    told = {"data/demo_0/obs/agentview_image": files.pictures(0, T), "data/demo_0/actions": actions(0)}
    told |= {"data/demo_0/obs/eef": np.arange(T * 3.0).reshape(T, 3)}
    write(tmp_path / "x.hdf5", told)
    settings: dict[str, Any] = {"frames": "obs/agentview_image", "pose": "obs/eef", "pose_layout": "xyz"}
    episode = good(episodes("hdf5", tmp_path, **settings)["x.hdf5/data/demo_0"])
    np.testing.assert_array_equal(episode.frames, files.pictures(0, T))
    np.testing.assert_array_equal(episode.actions[1:], actions(0)[:-1])
    np.testing.assert_array_equal(episode.pose, told["data/demo_0/obs/eef"])
    with pytest.raises(UserError, match=r"no group with observations and actions; there are: data/demo_0/actions"):
        episodes("hdf5", tmp_path)


def test_long_arrays_are_cut_where_episodes_end(tmp_path: Path) -> None:
    frames, ends, out = files.pictures(0, 20), np.zeros(20, bool), np.zeros(20, bool)
    ends[4], out[11] = True, True
    write(tmp_path / "d.h5", {"observations": frames, "actions": actions(0, 20), "terminals": ends, "timeouts": out})
    found = episodes("hdf5", tmp_path)
    assert list(found) == ["d.h5/0-5", "d.h5/5-12", "d.h5/12-20"]
    for key, (start, stop) in zip(found, ((0, 5), (5, 12), (12, 20)), strict=True):
        episode = good(found[key])
        np.testing.assert_array_equal(episode.frames, frames[start:stop])
        np.testing.assert_array_equal(episode.actions, [[0, 0], *actions(0, 20)[start : stop - 1]])


def test_what_is_damaged_or_says_no_ends_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "open.h5", {"observations": files.pictures(0, T), "actions": actions(0)})
    write(tmp_path / "odd.h5", {"observations": files.pictures(0, T), "actions": actions(0), "terminals": np.zeros(3)})
    write(tmp_path / "cut.h5", {"e/observations": files.pictures(0, T), "e/actions": actions(0)})
    (tmp_path / "cut.h5").write_bytes((tmp_path / "cut.h5").read_bytes()[:700])
    (tmp_path / "text.hdf5").write_bytes(b"no HDF5 at all")
    write(tmp_path / "short.h5", {"e/observations": files.pictures(0, T), "e/actions": actions(0, 3)})
    write(tmp_path / "good.h5", {"e/observations": files.pictures(0, T), "e/actions": actions(0)})
    found = episodes("hdf5", tmp_path)
    assert "none of terminals, timeouts says where episodes end" in str(found["open.h5"])
    assert "terminals: float64 (3,), expected truth values (9,)" in str(found["odd.h5"])
    assert "cannot be read" in str(found["cut.h5"]) and "cannot be read" in str(found["text.hdf5"])
    assert "3 long, frames are 9" in str(found["short.h5/e"])
    good(found["good.h5/e"])


def half(file: Any, root: Path) -> None:
    file.create_dataset("e/observations", (T, 16, 16, 3), "u1", chunks=(3, 16, 16, 3))[:3] = files.pictures(0, 3)


def never(file: Any, root: Path) -> None:
    file.create_dataset("e/observations", (T, 16, 16, 3), "u1")


def virtual(file: Any, root: Path) -> None:
    layout = h5py.VirtualLayout((T, 16, 16, 3), "u1")
    layout[:] = h5py.VirtualSource(str(root / "gone.bin"), "x", (T, 16, 16, 3))
    file.create_virtual_dataset("e/observations", layout)


def outside(file: Any, root: Path) -> None:
    (root / "raw.bin").write_bytes(files.pictures(0, T).tobytes()[:5000])
    file.create_dataset("e/observations", (T, 16, 16, 3), "u1", external=[(str(root / "raw.bin"), 0, T * 768)])


def linked(file: Any, root: Path) -> None:
    with h5py.File(root / "other.bin", "w") as other:
        other["x"] = files.pictures(0, T)
    file["e/observations"] = h5py.ExternalLink(str(root / "other.bin"), "x")


def nested(file: Any, root: Path) -> None:
    file["e/observations/image"] = files.pictures(0, T)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (half, "2 of its 3 chunks were never written and would read as zeros"),
        (never, "1 of its 1 chunks were never written"),
        (virtual, "its bytes lie in other files"),
        (outside, "its bytes lie in other files"),
        (linked, "a link into another file"),
        (nested, "a group, expected a dataset; there are: image"),
    ],
)
def test_what_would_read_as_zeros_is_refused_by_name(tmp_path: Path, make: Any, told: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, tmp_path)
        file["e/actions"] = actions(0)
    refusal = str(episodes("hdf5", tmp_path)["a.h5/e"])
    assert refusal.startswith("observations: ") and told in refusal


@pytest.mark.parametrize("kind", ["text", "bytes of any length"])
def test_files_of_pictures_are_frames(tmp_path: Path, kind: str) -> None:
    pngs = [files.png(frame) for frame in files.pictures(0, T)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if kind == "text":
            file["e/observations"] = np.array(pngs, "S")
        else:
            packed = file.create_dataset("e/observations", (T,), h5py.vlen_dtype(np.uint8))
            for number, png in enumerate(pngs):
                packed[number] = np.frombuffer(png, np.uint8)
        file["e/actions"] = actions(0)
    np.testing.assert_array_equal(good(episodes("hdf5", tmp_path)["a.h5/e"]).frames, files.pictures(0, T))


def test_links_within_a_file_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", {"e/observations": files.pictures(0, T), "e/actions": actions(0)})
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["g/observations"], file["g/actions"] = h5py.SoftLink("/e/observations"), h5py.SoftLink("/e/actions")
    found = episodes("hdf5", tmp_path)
    np.testing.assert_array_equal(good(found["a.h5/g"]).frames, good(found["a.h5/e"]).frames)
