"""`longtake verify DATASET`: read every byte of a dataset and list what is damaged, or compare it with its source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from longtake.errors import Damaged, UserError
from longtake.jobs.display.progress_bar import bar
from longtake.storage.store import open_store

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset

OnDone = Callable[[int, int], None]


def main(dataset: str, store: str, against: str | None = None) -> int:
    """Print a line for all that is damaged, or that is another in the source; 1 if anything is, else 0."""
    from longtake.datasets.verify import damage

    try:
        data = open_store(store).dataset(dataset)
    except Damaged as error:  # without its index nothing says where anything lies
        print(error)
        return 1
    with bar(f"verify {dataset}") as update:
        problems = list(damage(data, lambda done, total: update(done, total, "shards")))
        if against is not None:
            problems += differences(data, against, lambda done, total: update(done, total, "episodes of the source"))
    for line in problems:
        print(line)
    size = f"{data.manifest.episodes} episodes, {data.manifest.frames:,} frames in {data.manifest.shards} shards"
    whole = "all as written" if against is None else f"all as written, and as {against} has them"
    print(f"dataset {dataset}: {len(problems)} damaged" if problems else f"dataset {dataset}: {size}, {whole}")
    return 1 if problems else 0


def differences(data: Dataset, path: str, on_done: OnDone = lambda done, total: None) -> Iterator[str]:
    """A line for every episode that the source at `path` has otherwise, or that only one of the two has.

    The source is read as it was when the dataset was made from it. Raises UserError for one that was not.
    """
    from longtake.datasets.writer import digest
    from longtake.jobs.ingest.command import locate, read_source

    items = read_source(_recipe(data) | {"path": locate(path).uri})
    refused, kept = _refused(data), _digests(data)
    total, seen = next(items), set()
    for done, (key, episode) in enumerate(items, start=1):
        seen.add(key)
        if isinstance(episode, str):
            if key in kept:
                yield f"{path}/{key}: refused now ({episode}), and read when the dataset was made"
        elif key not in kept:
            why = f", where it was refused ({refused[key]})" if key in refused else ""
            yield f"{path}/{key}: not in the dataset{why}"
        elif digest(episode.arrays()) != kept[key]:
            yield f"{path}/{key}: other frames, actions or labels than in the dataset"
        on_done(done, total)
    yield from (f"{path}/{key}: gone, and in the dataset" for key in kept if key not in seen)


def _recipe(data: Dataset) -> dict[str, Any]:
    recipe = data.manifest.recipe.get("ingest")
    if not isinstance(recipe, dict):
        raise UserError(
            f"--against: dataset {data.name} was not made by `longtake ingest`: it has no source to compare"
        )
    return recipe


def _digests(data: Dataset) -> dict[str, str]:
    """The digest of what was read of each episode of the source, by its name there."""
    index = data.index
    return {
        json.loads(meta)["source"]: str(digest) for meta, digest in zip(index["meta"], index["digest"], strict=True)
    }


def _refused(data: Dataset) -> dict[str, str]:
    report: dict[str, str] = json.loads(data.store.read_bytes(f"{data.root}/report.json"))["refused"]
    return report
