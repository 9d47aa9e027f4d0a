"""What is damaged in a dataset: every chunk of every shard against what the index says of it.

Shards are read whole, one request each, and forgotten before the next: memory is a shard however large the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from longtake.datasets.dataset import TOKENIZER, Dataset, chunks_of, tokenizer_digest
from longtake.datasets.episode import LABEL, Episode, faults
from longtake.datasets.shard import MAGIC, Array, ArraySpec, Chunk, CorruptData, decode
from longtake.datasets.writer import digest
from longtake.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

THREADS = 2  # checksums and codecs let go of the interpreter's lock


def damage(dataset: Dataset, on_done: Callable[[int, int], None] = lambda done, total: None) -> Iterator[str]:
    """One line for everything that is not as it was written, in the order of the shards; none for a whole dataset.

    on_done: called with (shards read, shards in all).
    """
    manifest, index = dataset.manifest, dataset.index
    yield from _index_faults(dataset)
    yield from _tokenizer_faults(dataset)
    numbers = sorted(set(range(manifest.shards)) | set(index["shard"]))
    groups = {number: index[index["shard"] == number] for number in numbers}
    with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as pool:
        # `map` would read all shards ahead of who asks for their damage.
        for first in range(0, len(numbers), THREADS):
            some = numbers[first : first + THREADS]
            for lines in pool.map(lambda shard: list(_shard_faults(dataset, shard, groups[shard])), some):
                yield from lines
            on_done(first + len(some), len(numbers))


def _index_faults(dataset: Dataset) -> Iterator[str]:
    """Where index and manifest contradict each other."""
    manifest, index = dataset.manifest, dataset.index
    totals = {"episodes": (manifest.episodes, len(index)), "frames": (manifest.frames, int(index["length"].sum()))}
    for split, count in manifest.splits.items():
        totals[f"episodes of {split}"] = (count, int((index["split"] == split).sum()))
    for what, (one, other) in totals.items():
        if one != other:
            yield f"{dataset.root}: {one} {what} in the manifest, {other} in the index"


def _tokenizer_faults(dataset: Dataset) -> Iterator[str]:
    """Whether what encoded its latents is what it was."""
    latents, folder = dataset.manifest.latents, f"{dataset.root}/{TOKENIZER}"
    if latents is None:
        return
    files = {name.removeprefix(f"{folder}/"): dataset.store.read_bytes(name) for name in dataset.store.find(folder)}
    if not files:
        yield f"{folder}: the tokenizer is gone, these latents cannot be decoded"
    elif tokenizer_digest(files) != latents.weights:
        yield f"{folder}: another tokenizer than encoded these latents, or a damaged one"


def _shard_faults(dataset: Dataset, shard: int, rows: pd.DataFrame) -> Iterator[str]:
    path = f"{dataset.root}/shards/{shard:05d}.shard"
    try:
        data = dataset.store.read_bytes(path)
    except FileNotFoundError:
        yield f"{path}: the file is gone"
        return
    except UserError as error:
        yield str(error)
        return
    if not data.startswith(MAGIC):
        yield f"{path}: does not begin like a shard"
    end = len(MAGIC)
    for row in rows.to_dict("records"):
        arrays: dict[str, Array] = {}
        for spec in dataset.manifest.arrays:
            chunks = chunks_of(row, spec)
            end = max([end, *(chunk.offset + chunk.size for chunk in chunks)])
            where = f"{path}: episode {row['episode']}, {spec.name}"
            try:
                arrays[spec.name] = _read(spec, data, chunks, int(row["length"]), where)
            except CorruptData as error:
                yield str(error)
        if len(arrays) == len(dataset.manifest.arrays):
            yield from _content_faults(arrays, row, f"{path}: episode {row['episode']}")
    if len(data) != end:
        yield f"{path}: {len(data)} bytes, the index knows of {end}"


def _read(spec: ArraySpec, data: bytes, chunks: list[Chunk], length: int, where: str) -> Array:
    spans = spec.spans(length)
    if len(spans) != len(chunks):
        raise CorruptData(f"{where}: {len(chunks)} chunks in the index, {length} frames make {len(spans)}")
    pieces = []
    for number, (chunk, (start, stop)) in enumerate(zip(chunks, spans, strict=True)):
        named = f"{where}, chunk {number}"
        pieces.append(decode(spec, chunk.require(data, 0, named), stop - start, named))
    return np.concatenate(pieces)


def _content_faults(arrays: dict[str, Array], row: dict[Any, Any], where: str) -> Iterator[str]:
    """Arrays that are read, yet are no episode, or not the one that was written."""
    labels = {name.removeprefix(LABEL): array for name, array in arrays.items() if name.startswith(LABEL)}
    episode = Episode(arrays["frames"], arrays["actions"], arrays.get("pose"), {}, labels)
    yield from (f"{where}: {line}" for line in faults(episode))
    if not row["squared_error"] and digest(arrays) != row["digest"]:
        yield f"{where}: other arrays than were written"
