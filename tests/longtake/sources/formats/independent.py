"""Readers of foreign formats that know nothing of ours: each format through its own library, as plainly as it goes.

A reader takes a folder and an episode's name → its frames (T, H, W, 3), and the actions that led into frames 1 to T-1.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
from PIL import Image

Oracle = Callable[[Path, str], tuple[Any, Any]]


def film(path: Path) -> tuple[list[Any], list[float]]:
    """Every picture of a video, and when it is shown."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        shown = [
            (frame.to_ndarray(format="rgb24"), float(frame.pts * frame.time_base)) for frame in container.decode(stream)
        ]  # type: ignore[operator]
    return [picture for picture, _ in shown], [time for _, time in shown]


def picture(data: bytes) -> Any:
    """The pixels of a picture's file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def folder(root: Path, key: str) -> tuple[Any, Any]:
    """NAME.mp4 and NAME.npz, actions that led into their frames."""
    with np.load((root / key).with_suffix(".npz")) as arrays:
        return np.stack(film(root / key)[0]), arrays["actions"][1:]


def images(root: Path, key: str) -> tuple[Any, Any]:
    """Numbered pictures, actions that led into their frames."""
    numbered = sorted((root / key).iterdir(), key=lambda path: int(path.stem))
    with np.load(root / f"{key}.npz") as arrays:
        return np.stack([picture(path.read_bytes()) for path in numbered]), arrays["actions"][1:]


def hdf5(root: Path, key: str) -> tuple[Any, Any]:
    """A group of HDF5, actions that led out of their frames."""
    import h5py

    name, _, group = key.partition("/")
    with h5py.File(root / name) as file:
        frames = np.asarray(file[group]["observations"])
        return frames, np.asarray(file[group]["actions"], np.float32)[: len(frames) - 1]


def webdataset(root: Path, key: str) -> tuple[Any, Any]:
    """A sample of a tar, actions that led out of their frames."""
    name, _, sample = key.partition(".tar/")
    with tarfile.open(root / f"{name}.tar") as tar:
        data = {suffix: tar.extractfile(f"{sample}.{suffix}").read() for suffix in ("frames.npy", "state.npz")}  # type: ignore[union-attr]
    with np.load(io.BytesIO(data["state.npz"])) as arrays:
        frames = np.load(io.BytesIO(data["frames.npy"]))
        return frames, arrays["actions"][: len(frames) - 1].astype(np.float32)


def webdataset_film(root: Path, key: str) -> tuple[Any, Any]:
    """A sample of a tar with a video, actions that led into their frames."""
    name, _, sample = key.partition(".tar/")
    with tarfile.open(root / f"{name}.tar") as tar, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "film.mp4")
        path.write_bytes(tar.extractfile(f"{sample}.mp4").read())  # type: ignore[union-attr]
        with np.load(io.BytesIO(tar.extractfile(f"{sample}.state.npz").read())) as arrays:  # type: ignore[union-attr]
            return np.stack(film(path)[0]), arrays["actions"][1:].astype(np.float32)


def _rows(path: Path, number: int) -> Any:
    table = pd.read_parquet(path)
    return table[table["episode_index"] == number].sort_values("frame_index")


def _actions(rows: Any) -> Any:
    return np.stack(rows["action"].to_list())[:-1].astype(np.float32)


def _at(path: Path, times: Any) -> Any:
    """The pictures shown nearest to these times."""
    pictures, shown = film(path)
    return np.stack([pictures[int(np.abs(np.array(shown) - time).argmin())] for time in times])


def lerobot_video(camera: str) -> Oracle:
    """Version 3, pictures in a video of all episodes."""

    def read(root: Path, key: str) -> tuple[Any, Any]:
        number = int(key.split()[1])
        episodes = pd.read_parquet(root / "meta/episodes/chunk-000/file-000.parquet").set_index("episode_index")
        rows = _rows(root / "data/chunk-000/file-000.parquet", number)
        begin = float(episodes.loc[number, f"videos/{camera}/from_timestamp"])
        times = begin + rows["timestamp"].to_numpy()
        return _at(root / f"videos/{camera}/chunk-000/file-000.mp4", times), _actions(rows)

    return read


def lerobot_pictures(camera: str) -> Oracle:
    """Version 3, pictures beside the rows."""

    def read(root: Path, key: str) -> tuple[Any, Any]:
        rows = _rows(root / "data/chunk-000/file-000.parquet", int(key.split()[1]))
        return np.stack([picture(cell["bytes"]) for cell in rows[camera]]), _actions(rows)

    return read


def lerobot_v21(root: Path, key: str) -> tuple[Any, Any]:
    """Version 2.1, files of its own for every episode."""
    number, info = int(key.split()[1]), json.loads((root / "meta/info.json").read_text())
    named = {"episode_chunk": number // info["chunks_size"], "episode_index": number, "video_key": "front"}
    rows = _rows(root / info["data_path"].format(**named), number)
    return _at(root / info["video_path"].format(**named), rows["timestamp"].to_numpy()), _actions(rows)
