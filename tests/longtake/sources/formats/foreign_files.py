"""Small files in other people's layouts, with known content: what the tests of ingest read."""

from __future__ import annotations

import io
import json
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Arrays = dict[str, Any]

LENGTH, SIZE = 12, 16


def pictures(seed: int, length: int = LENGTH, size: int = SIZE) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (length, size, size, 3), dtype=np.uint8)


def calm(seed: int, length: int = LENGTH, size: int = SIZE) -> Any:
    """Plain pictures, each of another grey: what a codec leaves of them still says which frame it is."""
    grey = (np.arange(length) * 15 + seed * 5 + 20).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (length, size, size, 3)).copy()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def mp4(path: Path, frames: Any, fps: int = 10, ticks: list[int] | None = None, crf: str = "0") -> None:
    """Frames at their ticks (of 1/1000 s), or evenly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": crf, "g": "5"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = ticks[number] if ticks else number * 1000 // fps
            picture.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def memory_maze(seed: int, length: int = LENGTH) -> Arrays:
    rng = np.random.default_rng(seed)
    yaw = rng.uniform(-3, 3, length)
    action = np.eye(6)[rng.integers(0, 6, length)].astype(bool)
    action[0] = False
    return {
        "image": pictures(seed, length),
        "action": action,
        "reward": rng.random(length).astype(np.float32),
        "agent_pos": rng.uniform(1, 8, (length, 2)).astype(np.float32),
        "agent_dir": np.column_stack([np.cos(yaw), np.sin(yaw)]).astype(np.float32),
    }


def teco(seed: int, length: int = LENGTH) -> Arrays:
    return {"video": pictures(seed, length), "actions": (np.arange(length) % 4).astype(np.int32)}


def states(seed: int, length: int = LENGTH) -> Arrays:
    """actions (T, 2) that count: row t is (t, seed)."""
    actions = np.column_stack([np.arange(length), np.full(length, seed)]).astype(np.float32)
    pose = np.random.default_rng(seed).normal(size=(length, 3))
    return {"actions": actions, "pose": pose, "room": np.arange(length)}


def tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def webdataset_sample(seed: int) -> dict[str, bytes]:
    members = {"frames.npy": npy(pictures(seed)), "state.npz": npz(**states(seed))}
    return {**members, "json": json.dumps({"task": f"t{seed}"}).encode()}


def png(frame: Any) -> bytes:
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = *frame.shape[:2], "rgb24", Fraction(1, 25)
    packets = encoder.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
    return b"".join(map(bytes, [*packets, *encoder.encode(None)]))


def lerobot(root: Path, lengths: tuple[int, ...] = (12, 9, 15), fps: int = 10, **changes: Any) -> None:
    """LeRobotDataset v3: two cameras, `front` in one mp4 of all episodes and `wrist` as PNG beside the rows.

    Row t of episode e: action (t, e), state (t, 10 e, cos, sin).
    """
    shape = [SIZE, SIZE, 3]
    features = {
        "observation.images.front": {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]},
        "observation.images.wrist": {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
        "observation.state": {"dtype": "float32", "shape": [4], "names": ["x", "y", "dx", "dy"]},
    }
    info = {
        "codebase_version": "v3.0",
        "fps": fps,
        "features": features,
        "chunks_size": 1000,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        **changes,
    }
    write(root / "meta/info.json", json.dumps(info).encode())
    rows, episodes, first = [], [], 0
    for number, length in enumerate(lengths):
        for t in range(length):
            image = {"bytes": png(pictures(number, length)[t]), "path": f"{t}.png"}
            turn = [float(np.cos(t / 5)), float(np.sin(t / 5))]
            rows.append(
                {
                    "action": [float(t), float(number)],
                    "observation.state": [float(t), 10.0 * number, *turn],
                    "observation.images.wrist": image,
                    "frame_index": t,
                    "episode_index": number,
                    "index": first + t,
                    "timestamp": t / fps,
                }
            )
        place = {"chunk_index": 0, "file_index": 0}
        video = {**place, "from_timestamp": first / fps, "to_timestamp": (first + length) / fps}
        episodes.append(
            {
                "episode_index": number,
                "length": length,
                **{f"data/{key}": value for key, value in place.items()},
                "dataset_from_index": first,
                "dataset_to_index": first + length,
                **{f"videos/observation.images.front/{key}": value for key, value in video.items()},
                "stats/action/mean": [0.0, 0.0],
            }
        )
        first += length
    for rel, table in (("data", rows), ("meta/episodes", episodes)):
        path = root / rel / "chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(table), path)
    film = np.concatenate([calm(number, length) for number, length in enumerate(lengths)])
    mp4(root / "videos/observation.images.front/chunk-000/file-000.mp4", film, fps)


def lerobot_v21(root: Path, lengths: tuple[int, ...] = (12, 9, 15), fps: int = 10) -> None:
    """LeRobotDataset v2.1: as `lerobot`, and every episode has files of its own; each has a task."""
    shape = [SIZE, SIZE, 3]
    info = {
        "codebase_version": "v2.1",
        "fps": fps,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 2,
        "chunks_size": 2,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "front": {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]},
            "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
            "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        },
    }
    write(root / "meta/info.json", json.dumps(info).encode())
    told = [{"episode_index": n, "tasks": [f"t{n % 2}"], "length": length} for n, length in enumerate(lengths)]
    write(root / "meta/episodes.jsonl", "".join(json.dumps(row) + "\n" for row in told).encode())
    tasks = [{"task_index": n, "task": f"t{n}"} for n in range(2)]
    write(root / "meta/tasks.jsonl", "".join(json.dumps(row) + "\n" for row in tasks).encode())
    for number, length in enumerate(lengths):
        rows = [
            {"action": [float(t), float(number)], "observation.state": [float(t), 10.0 * number]}
            | {"frame_index": t, "episode_index": number, "timestamp": t / fps}
            for t in range(length)
        ]
        path = root / f"data/chunk-{number // 2:03d}/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        mp4(root / f"videos/chunk-{number // 2:03d}/front/episode_{number:06d}.mp4", calm(number, length), fps)
