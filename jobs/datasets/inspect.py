"""`longtake inspect DATASET`: what a dataset is, as a table, and a contact sheet of it; moving pictures if wanted."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longtake.datasets import video
from longtake.datasets.statistics import HIGH, LOW
from longtake.jobs.latents import pictures
from longtake.storage.store import open_store

if TYPE_CHECKING:
    from longtake.datasets.controls import Controls
    from longtake.datasets.dataset import Dataset, Latents, Manifest
    from longtake.datasets.shard import ArraySpec
    from longtake.storage.store import Store

EPISODES, COLUMNS = 8, 12  # of the contact sheet
TILE_PX = 64
SAMPLED, COLUMNS_SHOWN, TOLD = 32, 16, 5  # episodes of a histogram, columns of an array, refusals
LEVELS = " ▁▂▃▄▅▆▇█"
MOVING, MOVING_FRAMES, MOVING_PX = 4, 256, 256  # episodes side by side, at most so long, at least so high


def main(dataset: str, store: str, sheet: str | None = None, preview: str | None = None) -> None:
    """Print the manifest and write the contact sheet, into the store unless it is wanted elsewhere."""
    from rich.console import Console

    place = open_store(store)
    data, console = place.dataset(dataset), Console()
    console.print(table(data.manifest))
    if numbers := numbers_table(data):
        console.print(numbers)
    for line in told_refusals(data):
        print(line)
    print(f"contact sheet: {_write_sheet(data, place, sheet)}")
    if preview is not None:
        moving_pictures(data, Path(preview))
        print(f"moving pictures: {preview}")


def _write_sheet(dataset: Dataset, store: Store, path: str | None) -> str:
    """Write the contact sheet to a file, or to the store's reports; where it lies."""
    import matplotlib.image

    data = io.BytesIO()
    matplotlib.image.imsave(data, contact_sheet(dataset), format="png")
    if path is None:
        name = f"reports/{dataset.name}.png"
        store.write_bytes(name, data.getvalue())
        return f"{store.uri}/{name}"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data.getvalue())
    return path


def table(manifest: Manifest) -> Any:
    """The manifest as a rich table."""
    from rich.table import Table

    share = manifest.bytes / (manifest.frames * sum(spec.nbytes(1) for spec in manifest.arrays))
    rows = {
        "episodes": ", ".join(f"{n} {split}" for split, n in manifest.splits.items()) + f" ({manifest.split_rule})",
        "frames": f"{manifest.frames:,} at {manifest.fps:g} per second",
        "size": f"{manifest.bytes / 1e6:.1f} MB in {manifest.shards} shards, {share:.0%} of raw",
        "actions": ", ".join(f"{name}: {meaning}" for name, meaning in manifest.action_space.items()),
        "pose": ", ".join(manifest.pose or ["none"]),
        **(_controls(manifest.controls) if manifest.controls else {}),
        **{f"array {spec.name}": _array(spec, manifest.psnr_db) for spec in manifest.arrays},
        **({"latents": _told(manifest.latents)} if manifest.latents else {}),
        **({"refused": f"{manifest.refused} episodes of the source, see report.json"} if manifest.refused else {}),
        "recipe": ", ".join(f"{name}={value}" for name, value in _flat(manifest.recipe)),
        "fingerprint": manifest.fingerprint,
    }
    shown = Table(title=f"dataset {manifest.name}", show_header=False)
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def _controls(controls: Controls) -> dict[str, str]:
    """Which key does what, and how well it is known where that leads."""
    rows = {"keys": ", ".join(f"{control.name}: {' '.join(control.keys)}" for control in controls.controls)}
    if controls.motion is None:
        return rows
    ahead, left, turn = controls.motion.residual
    how = f"estimated from {controls.motion.steps:,} steps" if controls.motion.steps else "as the source says"
    return rows | {
        "motion": f"{how}; left over {ahead:.3g} ahead, {left:.3g} sideways, {turn:.3g} rad (root mean square)"
    }


def numbers_table(dataset: Dataset) -> Any:
    """Actions and poses column by column: spread over the training split, and how values are shared out over it; None
    where there is nothing to tell."""
    from rich.table import Table

    named, shown = list(_columns(dataset)), Table(title="actions, poses and vectors of the training split")
    for heading in ("", "mean", "deviation", "1 %", "99 %", "least", "largest", "least to largest"):
        shown.add_column(heading)
    for name, values, numbers in named:
        shown.add_row(name, *(f"{number:.4g}" for number in numbers), histogram(values))
    return shown if named else None


def _columns(dataset: Dataset) -> Iterator[tuple[str, NDArray[Any], list[float]]]:
    """Name, sampled values and statistics of every column; of discrete actions their classes."""
    seen = [dataset.read(int(number)) for number in dataset.episodes("train")["episode"].head(SAMPLED)]
    if dataset.manifest.action_classes is not None:
        classes = np.concatenate([episode.actions[1:] for episode in seen])
        spread = [classes.mean(), classes.std(), *np.quantile(classes, [LOW, HIGH]), classes.min(), classes.max()]
        yield "action (class)", classes, [float(number) for number in spread]
    arrays = {
        "actions": [episode.actions[1:] for episode in seen],
        "pose": [e.pose for e in seen if e.pose is not None],
    }
    names = {"pose": dataset.manifest.pose or []}
    for array, known in (dataset.statistics or {}).items():
        values = np.concatenate(arrays[array]) if arrays.get(array) else None
        for column in range(min(len(known.mean), COLUMNS_SHOWN)):
            given = names.get(array, [])
            name = f"{array} {given[column] if column < len(given) else column}"
            spread = [known.mean, known.std, known.low, known.high, known.least, known.largest]
            sample = np.empty(0) if values is None else values[:, column]
            yield name, sample, [float(numbers[column]) for numbers in spread]


def histogram(values: NDArray[Any], bars: int = 16) -> str:
    """How values are shared out between the least and the largest, in characters of growing height."""
    if not len(values):
        return ""
    if values.min() == values.max():
        return "always the same"
    counts, _ = np.histogram(values, bars)
    levels = np.ceil(counts / counts.max() * (len(LEVELS) - 1)).astype(int)
    return "".join(LEVELS[level] for level in levels)


def told_refusals(dataset: Dataset) -> list[str]:
    """What of the source was refused, as its report says: the first ones."""
    try:
        report = json.loads(dataset.store.read_bytes(f"{dataset.root}/report.json"))
    except FileNotFoundError:
        return []
    refused: dict[str, str] = report["refused"]
    rest = [f"refused   {len(refused) - TOLD} more: report.json"] if len(refused) > TOLD else []
    return [f"refused   {key}: {why}" for key, why in list(refused.items())[:TOLD]] + rest


def _array(spec: ArraySpec, psnr_db: float | None) -> str:
    shape = ", ".join(map(str, ("T", *spec.shape)))
    cost = f" crf {spec.crf}, {psnr_db:.1f} dB" if spec.codec == "video" and psnr_db is not None else ""
    return f"{spec.dtype} ({shape}), {spec.codec}{cost}"


def _told(latents: Latents) -> str:
    of = f"{latents.tokenizer}, step {latents.step}" if latents.step is not None else latents.tokenizer
    return f"of {latents.dataset} ({latents.fingerprint}), by tokenizer {of} (SHA-256 {latents.weights[:12]})"


def _flat(value: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, inner in value.items():
        pairs += _flat(inner, f"{path}{key}.") if isinstance(inner, dict) else [(path + key, inner)]
    return pairs


def contact_sheet(dataset: Dataset) -> NDArray[np.uint8]:
    """A row per episode: frames at even distances, and the walk seen from above where there is a pose."""
    chosen = dataset.episodes()["episode"].head(EPISODES)
    return np.concatenate([_row(dataset, int(number)) for number in chosen])


def moving_pictures(dataset: Dataset, path: Path) -> None:
    """An mp4 of the first episodes side by side, pixels enlarged so that small frames can be seen."""
    chosen = dataset.episodes().head(MOVING)
    length = min(MOVING_FRAMES, int(chosen["length"].min()))
    films = [pictures.shown(dataset, dataset.read(int(n), 0, length).frames) for n in chosen["episode"]]
    beside = np.concatenate(films, axis=2)
    zoom = max(1, -(-MOVING_PX // beside.shape[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    video.write(str(path), beside.repeat(zoom, axis=1).repeat(zoom, axis=2), dataset.manifest.fps)


def _row(dataset: Dataset, number: int) -> NDArray[np.uint8]:
    episode = dataset.read(number)
    times = np.linspace(0, len(episode) - 1, COLUMNS).astype(int)
    tiles = [_tile(frame) for frame in pictures.shown(dataset, episode.frames[times])]
    if episode.pose is not None:
        tiles.append(_walk(episode.pose[:, :2], times))
    return np.concatenate(tiles, axis=1)


def _tile(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame (H, W, 3) by nearest neighbour as TILE_PX x TILE_PX, with a thin black edge."""
    height, width = frame.shape[:2]
    rows, columns = np.arange(TILE_PX) * height // TILE_PX, np.arange(TILE_PX) * width // TILE_PX
    tile: NDArray[np.uint8] = frame[rows][:, columns].copy()
    tile[-1] = tile[:, -1] = 0
    return tile


def _walk(position: NDArray[np.float32], times: NDArray[Any]) -> NDArray[np.uint8]:
    """The walk (T, 2) from above, white; red dots where the frames of the row were seen."""
    tile = np.full((TILE_PX, TILE_PX, 3), 40, np.uint8)
    low, span = position.min(0), max(1e-6, float(np.ptp(position, axis=0).max()))
    pixel = ((position - low) / span * (TILE_PX - 7) + 3).astype(int)
    rows, columns = TILE_PX - 1 - pixel[:, 1], pixel[:, 0]
    tile[rows, columns] = 220
    for t in times:
        tile[rows[t] - 1 : rows[t] + 2, columns[t] - 1 : columns[t] + 2] = (230, 60, 40)
    return tile
