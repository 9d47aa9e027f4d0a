"""`longtake verify DATASET`: read every byte of a dataset and list what is damaged."""

from __future__ import annotations

from longtake.errors import Damaged
from longtake.jobs.display.progress_bar import bar
from longtake.storage.store import open_store


def main(dataset: str, store: str) -> int:
    """Print a line for all that is damaged; 1 if anything is, else 0."""
    from longtake.datasets.verify import damage

    try:
        data = open_store(store).dataset(dataset)
    except Damaged as error:  # without its index nothing says where anything lies
        print(error)
        return 1
    with bar(f"verify {dataset}") as update:
        problems = list(damage(data, lambda done, total: update(done, total, "shards")))
    for line in problems:
        print(line)
    size = f"{data.manifest.episodes} episodes, {data.manifest.frames:,} frames in {data.manifest.shards} shards"
    print(f"dataset {dataset}: {len(problems)} damaged" if problems else f"dataset {dataset}: {size}, all as written")
    return 1 if problems else 0
