"""Makes the files beside it with the packages whose formats they are, and notes what those packages' own readers give.

    pip install lerobot==0.4.4                 python tests/longtake/real/make.py lerobot
    pip install webdataset==1.0.2              python tests/longtake/real/make.py webdataset
    pip install 'longtake[maze]'               python tests/longtake/real/make.py memory-maze

`truth.json` holds, per source and episode, the SHA-256 of the arrays as the own reader returned them.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SIZE = 48
LENGTHS = (9, 12, 7)


def digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def film(seed: int, length: int) -> Any:
    """Colours that drift, another way in every episode."""
    t, (y, x) = np.arange(length)[:, None, None], np.mgrid[:SIZE, :SIZE]
    red, green = x * 4 + 9 * t + 40 * seed, y * 4 + 5 * t + 0 * x
    return (np.stack([red + 0 * y, green, (x + y) * 2 + 3 * t + 90 * seed], -1) % 256).astype(np.uint8)


def note(kind: str, truth: dict[str, Any]) -> None:
    path = HERE / "truth.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(told | {kind: truth}, indent=1, sort_keys=True) + "\n")


def lerobot() -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = HERE / "lerobot"
    shutil.rmtree(root, ignore_errors=True)
    picture = {"shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.images.front": {"dtype": "video", **picture},
        "observation.images.wrist": {"dtype": "image", **picture},
        "action": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "yaw"]},
    }
    made = LeRobotDataset.create(repo_id="local/x", fps=10, root=root, features=features, vcodec="h264")
    for number, length in enumerate(LENGTHS):
        front, wrist = film(number, length), film(number + 5, length)
        rng = np.random.default_rng(number)
        for t in range(length):
            made.add_frame(
                {
                    "observation.images.front": front[t],
                    "observation.images.wrist": wrist[t],
                    "action": rng.normal(size=3).astype(np.float32),
                    "observation.state": np.array([t, 10 * number, t / 5], np.float32),
                    "task": "walk",
                }
            )
        made.save_episode()
    made.finalize()
    rows = [dict(row) for row in LeRobotDataset("local/x", root=root, video_backend="torchcodec")]
    truth: dict[str, Any] = {}
    for number in range(len(LENGTHS)):
        own = [row for row in rows if int(row["episode_index"]) == number]
        truth[f"episode {number}"] = {
            "front": digest([_pixels(row["observation.images.front"]) for row in own]),
            "wrist": digest([_pixels(row["observation.images.wrist"]) for row in own]),
            "action": digest([row["action"].numpy() for row in own]),
            "state": digest([row["observation.state"].numpy() for row in own]),
        }
    note("lerobot", truth)


def _pixels(picture: Any) -> Any:
    """(C, H, W) in [0, 1] → uint8 (H, W, C)."""
    return np.rint(picture.numpy().transpose(1, 2, 0) * 255).astype(np.uint8)


def webdataset() -> None:
    import webdataset as wds

    path = HERE / "webdataset"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    with wds.TarWriter(str(path / "a-000000.tar")) as tar:
        for number, length in enumerate(LENGTHS):
            buffer = io.BytesIO()
            np.savez(buffer, actions=np.arange(length) % 4, pose=np.random.default_rng(number).normal(size=(length, 3)))
            sample = {
                "frames.npy": film(number, length),
                "state.npz": buffer.getvalue(),
                "json": {"task": f"t{number}"},
            }
            tar.write({"__key__": f"walk/{number:03d}", **sample})
    truth = {}
    for sample in wds.WebDataset(str(path / "a-000000.tar"), shardshuffle=False).decode():
        state = sample["state.npz"]
        arrays = {"frames": sample["frames.npy"], "actions": state["actions"], "pose": state["pose"]}
        truth[f"a-000000.tar/{sample['__key__']}"] = {name: digest(array) for name, array in arrays.items()}
    note("webdataset", truth)


def memory_maze() -> None:
    """As Memory Maze's own recorder writes them: row t is what was seen after action t."""
    from longtake.sources.environments.memory_maze import MemoryMazeEnvConfig, make

    path = HERE / "memory_maze"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    truth = {}
    for seed in range(3):
        env = make(MemoryMazeEnvConfig(), seed)
        step, rng = env.reset(), np.random.default_rng(seed)
        rows = [{**step.observation, "action": np.zeros(6, bool), "reward": 0.0}]
        for _ in range(15):
            action = int(rng.choice([1, 1, 1, 2, 4]))
            step = env.step(action)
            rows.append(
                {**step.observation, "action": np.eye(6, dtype=bool)[action], "reward": float(step.reward or 0)}
            )
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        env.close()
        small = {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in arrays.items()}
        np.savez_compressed(path / f"9x9_{seed}.npz", **small)
        with np.load(path / f"9x9_{seed}.npz") as back:
            names = ("image", "action", "reward", "agent_pos", "agent_dir", "target_pos")
            truth[f"9x9_{seed}.npz"] = {name: digest(back[name]) for name in names}
    note("memory-maze", truth)


if __name__ == "__main__":
    {"lerobot": lerobot, "webdataset": webdataset, "memory-maze": memory_maze}[sys.argv[1]]()
