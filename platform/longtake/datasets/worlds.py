"""Which episodes are walks in one world: what their metadata say of it, and how a split keeps them together.

An episode of a dataset with several walks per world has `world` and `walk` in its metadata: whatever names its world,
and its number there, from 0. `wraps` says after how many cells, both ways, the places of a world repeat. None of it is
needed, and an index without it reads as before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from longtake.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from longtake.datasets.dataset import Dataset

WORLD, WALK, WRAPS = "world", "walk", "wraps"


def world_of(meta: Mapping[str, Any]) -> str | None:
    """The name of an episode's world; None where it is not said to be one of several walks."""
    several = WORLD in meta and isinstance(meta.get(WALK), int)
    return json.dumps(meta[WORLD], sort_keys=True) if several else None


def in_one_split(digests: Sequence[str], metas: Sequence[str]) -> list[list[int]]:
    """The episodes that must share a split, by their places: the walks of a world, and copies of one another.

    metas: as JSON. Returns the groups in the order of the smallest digest of each.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = [world_of(json.loads(text)) for text in metas]
    _, alike = np.unique(digests, return_inverse=True)
    _, worlds = np.unique(
        [f"episode {n}" if name is None else name for n, name in enumerate(names)], return_inverse=True
    )
    links = coo_array((np.ones(len(digests)), (alike, len(digests) + worlds)), shape=(2 * len(digests),) * 2)
    _, parts = connected_components(links, directed=False)
    groups: dict[int, list[int]] = {}
    for place, part in enumerate(parts[alike]):
        groups.setdefault(int(part), []).append(place)
    return sorted(groups.values(), key=lambda places: min(digests[place] for place in places))


def walks(dataset: Dataset, split: str, count: int) -> pd.DataFrame:
    """Worlds of a split with at least `count` walks, in the order of the index: a row for each.

    Returns episode (the last of its first `count` walks), length (the least of theirs) and walks (their episodes, in
    order).
    """
    import pandas as pd

    index = dataset.index
    index = index[index.split == split]
    worlds: dict[str, list[tuple[int, int, int]]] = {}
    for episode, length, text in zip(index.episode, index.length, index.meta, strict=True):
        meta = json.loads(text)
        if (world := world_of(meta)) is not None:
            worlds.setdefault(world, []).append((int(meta[WALK]), int(episode), int(length)))
    first = [sorted(own)[:count] for own in worlds.values() if len(own) >= count]
    rows = [(own[-1][1], min(length for *_, length in own), [episode for _, episode, _ in own]) for own in first]
    return pd.DataFrame(rows, columns=["episode", "length", "walks"])


def wraps(dataset: Dataset) -> float | None:
    """After how many cells the places of a dataset's worlds repeat; None where they do not. Raises UserError for
    worlds of different sizes."""
    values = (json.loads(text).get(WRAPS) for text in dataset.index.meta)
    # In other people's metadata the word may mean anything.
    distinct = {float(size) if isinstance(size, int | float) and size > 0 else None for size in values}
    if len(distinct) > 1:
        sizes = ", ".join(sorted(map(str, distinct)))
        raise UserError(f"dataset {dataset.name}: its worlds repeat after different numbers of cells: {sizes}")
    return distinct.pop()
