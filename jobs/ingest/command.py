"""`longtake ingest KIND PATH`: other people's episodes as a dataset, in parallel Ray tasks.

One task makes one shard from some of the source's episodes. What cannot be read is refused and reported with its
reason, never bent until it fits. A killed ingest goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from longtake.config import Config, build, dump
from longtake.datasets import video
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.likeness import Leak
from longtake.datasets.shard import Codec, ShardBuffer
from longtake.datasets.writer import DatasetWriter, array_specs, copies, split_sizes
from longtake.errors import Damaged, UserError, nearest, require_all, unknown
from longtake.jobs.datasets.shard_tasks import make_missing, reused
from longtake.jobs.lookup import cards
from longtake.registry import one_of
from longtake.sources.formats import base, formats, views
from longtake.sources.formats.base import MOST_BYTES, FormatConfig, Framing, Item, Listing, Refused, attempt
from longtake.sources.formats.views import Views
from longtake.storage import seals
from longtake.storage.store import Store, open_store

PROBES = 8  # episodes tried to learn what those of this source look like, until two of these are alike:
TYPICAL = 3
if TYPE_CHECKING:
    Source = FormatConfig
else:
    Source = one_of((each.config for each in formats().values()), "kind")

TOLD = 20  # refusals that are printed; the report has all


class IngestConfig(Config):
    """What to read, how to cut it, and under which name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the dataset")
    path: str = Field(description="where the files are")
    source: Source
    """The format of the files, and its settings."""
    framing: Framing = Framing()
    """What is kept of the pictures."""
    views: Views | None = Field(
        default=None, exclude_if=lambda views: views is None, description="several cameras, side by side in one picture"
    )
    fps: float | None = Field(
        default=None, gt=0, description="frames per second, where the files do not say [frames/s]"
    )
    action_classes: int | None = Field(default=None, ge=1, description="of discrete actions, if not all occur [count]")
    codec: Codec = Field(default="zstd", description="of the frames: zstd or zlib without loss, video for large ones")
    crf: int = Field(default=video.CRF, ge=0, le=51, description="quality of a video; lower is better [CRF]")
    shard_mb: float = Field(default=128, gt=0, description="size of a shard, about [MB]")
    chunk: int = Field(default=32, ge=1, description="frames per chunk: the least that a clip reads [frames]")
    max_episode_gb: float = Field(
        default=MOST_BYTES / 1e9,
        gt=0,
        description="of memory for an episode's file; one that claims more is refused [GB]",
    )
    val: float = Field(default=0.1, gt=0, lt=1, description="share of the episodes; at least one [share]")
    test: float = Field(default=0.1, gt=0, lt=1, description="share of the episodes; at least one [share]")


@dataclass(frozen=True)
class Job:
    """All that a task needs: the config, what was found at the source, and which items make which shard.

    schema: dtype and shape per frame of every array, by name, as of a typical episode; fps likewise.
    """

    config: IngestConfig
    listing: Listing
    schema: dict[str, tuple[str, tuple[int, ...]]]
    fps: float
    shards: tuple[tuple[Item, ...], ...]


def main(
    kind: str,
    path: str | None,
    name: str | None,
    overrides: list[str],
    store: str,
    dry_run: bool = False,
    explain: bool = False,
) -> None:
    """The command: look, check, then read; `dry_run`: print the plan and touch nothing; `explain`: print the format."""
    if explain:
        print(cards.explain(kind))
        return
    if path is None or name is None:
        raise UserError(
            *(f"{what}: is required" for what, given in (("PATH", path), ("--name", name)) if given is None)
        )
    if kind not in formats():
        raise UserError(unknown("format", kind, formats()))
    settings = {"name": name, "path": locate(path).uri, "source": {"kind": kind}}
    config = build(IngestConfig, settings, overrides)
    where = open_store(store)
    job = prepare(config)
    check(job, where)
    if dry_run:
        print(dump(config) + "\n" + describe(job, where))
        return
    dataset = run(job, where)
    print(f"dataset {dataset.name} is ready: longtake inspect {dataset.name} --store {where.argument}")


def locate(path: str) -> Store:
    """The folder or bucket of a source. Raises UserError, with the nearest name, if there is none."""
    if not path.startswith("s3://"):
        folder = Path(path).expanduser()
        if folder.is_file():
            raise UserError(f"path: {path} is a file; give the folder that it is in")
        if not folder.is_dir():
            beside = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
            raise UserError(f"path: no folder {path}{nearest(folder.name, beside)}")
    place = open_store(path)
    place.require_exists()
    return place


# --- the plan -----------------------------------------------------------------------------------------------


def prepare(config: IngestConfig) -> Job:
    """List the source, read what its episodes look like, and plan the shards. The same source gives the same plan.

    Raises UserError with everything that is wrong with the source as a whole.
    """
    place = open_store(config.path)
    listing = _listing(config, place)
    item, episode = _typical(config, listing, place)
    fps = config.fps or listing.fps or _told_fps(config, episode)
    if fps is None:
        raise UserError("fps: the files do not say how many frames make a second; give --set fps=N")
    schema = _schema(episode)
    stored = _stored_bytes(config, episode) / max(1, item.size)
    shards = tuple(_packed(listing.items, stored, config.shard_mb * 1e6))
    return Job(config, listing, schema, fps, shards)


def _typical(config: IngestConfig, listing: Listing, place: Store) -> tuple[Item, Episode]:
    """The first of two episodes that are alike, or else the first that can be read: one odd file decides nothing."""
    reasons: list[str] = []
    seen: list[tuple[Any, Item, Episode]] = []
    for item in listing.items[:PROBES]:
        try:
            episode = _read(config, place, item)
            fps = _told_fps(config, episode)
        except Refused as refusal:
            reasons.append(f"{item.key}: {refusal}")
            continue
        kind = (_schema(episode), fps and round(fps, 1))
        for other, first, alike in seen:
            if other == kind:
                return first, alike
        seen.append((kind, item, episode))
        if len(seen) == TYPICAL:
            break
    if seen:
        return seen[0][1], seen[0][2]
    raise UserError(f"{config.path}: none of the first {len(reasons)} episodes can be read", *reasons)


def _schema(episode: Episode) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape per frame of every array."""
    return {name: (array.dtype.str, array.shape[1:]) for name, array in episode.arrays().items()}


def _listing(config: IngestConfig, place: Store) -> Listing:
    """What the source holds."""
    format_ = formats()[config.source.kind]
    if config.views is not None:
        return views.listing(format_, config.source, config.views, place)
    return format_.listing(config.source, place)


def _read(config: IngestConfig, place: Store, item: Item) -> Episode:
    format_, most = formats()[config.source.kind], int(config.max_episode_gb * 1e9)
    if config.views is not None:
        return views.read(format_, config.source, config.views, place, item, config.framing, most)
    return attempt(lambda: format_.read(config.source, place, item), config.framing, most)


def read_source(recipe: dict[str, Any]) -> Iterator[Any]:
    """How many episodes the source of a recipe has, then each by its name: as it is read now, or why it is refused."""
    config = IngestConfig.model_validate_json(json.dumps(recipe))
    place = open_store(config.path)
    listing = _listing(config, place)
    yield len(listing.items)
    yield from listing.refused.items()
    for item in listing.items:
        try:
            yield item.key, _read(config, place, item)
        except Refused as refusal:
            yield item.key, str(refusal)


def _stored_bytes(config: IngestConfig, episode: Episode) -> int:
    """What an episode takes in a shard."""
    buffer, specs = ShardBuffer(), array_specs(episode, config.chunk, config.codec, config.crf)
    return sum(chunk.size for spec in specs for chunk in buffer.add(spec, episode.arrays()[spec.name]))


def _packed(items: tuple[Item, ...], stored: float, limit: float) -> Iterator[tuple[Item, ...]]:
    """Items in their order, as many to a shard as make about `limit` bytes."""
    shard: list[Item] = []
    filled = 0.0
    for item in items:
        if shard and filled + item.size * stored > limit:
            yield tuple(shard)
            shard, filled = [], 0.0
        shard.append(item)
        filled += item.size * stored
    yield tuple(shard)


def check(job: Job, store: Store) -> None:
    """Refuse what cannot work; raises one UserError with every problem."""
    config = job.config
    require_all(
        lambda: split_sizes(len(job.listing.items), config.val, config.test),
        lambda: store.require_space(int(len(job.shards) * config.shard_mb * 1e6)),
    )


def describe(job: Job, store: Store) -> str:
    """The plan in words."""
    config, items = job.config, job.listing.items
    arrays = ", ".join(
        f"{name} {dtype} (T, {', '.join(map(str, shape))})" for name, (dtype, shape) in job.schema.items()
    )
    return "\n".join(
        [
            f"dataset   {store.path('datasets', config.name)}",
            f"episodes  {len(items)} to read, {len(job.listing.refused)} refused without reading",
            f"arrays    {arrays}; {job.fps:g} frames/s",
            f"shards    {len(job.shards)} of about {config.shard_mb:g} MB, each one Ray task on 1 CPU",
            *_told(job.listing.refused),
        ]
    )


# --- the work -----------------------------------------------------------------------------------------------


def run(job: Job, store: Store, *, cpus: int | None = None) -> Dataset:
    """Read what is missing of the dataset and return it; a finished one is reused. Prints the report.

    `cpus` is the number of parallel tasks (default: the machine's CPUs).
    Raises UserError if the name belongs to a dataset of another source or config, or too few episodes are left.
    """
    writer = _writer(job, store)
    if writer.claim():
        return reused(writer)
    make_missing("ingest", writer, partial(make_shard, job, store.uri), len(job.shards), cpus)
    return _finish(job, store, writer)


def _finish(job: Job, store: Store, writer: DatasetWriter) -> Dataset:
    refused = dict(job.listing.refused)
    for shard in range(len(job.shards)):
        refused |= _refused(writer, shard)
    try:
        dataset = writer.finalize(len(job.shards), len(refused))
    except UserError as error:
        raise UserError(*error.lines, *_told(refused)) from None
    leaks = writer.leaks(len(job.shards))
    report = {
        "read": len(dataset.index),
        "frames": dataset.manifest.frames,
        "refused": refused,
        "copies": copies(dataset),
        "leaks": [leak._asdict() for leak in leaks],
    }
    store.write_bytes(f"{writer.root}/report.json", json.dumps(report, indent=1).encode())
    print(f"dataset {writer.name}: {len(dataset.index)} episodes read, {len(refused)} refused")
    if same := copies(dataset):
        print(f"copies    {same} episodes are exact copies of others, each in the split of what it is a copy of")
    print("\n".join([*_told(refused), *_warned(leaks)]), end="\n" if refused or leaks else "")
    return dataset


def _warned(leaks: list[Leak]) -> list[str]:
    """A line for the first pairs of episodes that look alike across the splits, and what to do."""
    if not leaks:
        return []
    words = {"copy": "looks like a copy of", "continued": "looks like another part of the recording of"}
    lines = [f"leak      episode {leak.held_out} {words[leak.kind]} episode {leak.other}" for leak in leaks[:TOLD]]
    advice = (
        "in another split: scores of held-out episodes would flatter; leave one of each pair out, or join the parts"
    )
    return [*lines, f"leak      {len(leaks)} such pairs, each {advice}"]


def _told(refused: Mapping[str, str]) -> list[str]:
    """The first refusals, and how often each reason occurs among the rest."""
    lines = [f"refused   {key}: {reason}" for key, reason in list(refused.items())[:TOLD]]
    rest = Counter(list(refused.values())[TOLD:])
    return lines + [f"refused   {count} more: {reason}" for reason, count in rest.most_common(TOLD)]


def _refused(writer: DatasetWriter, shard: int) -> dict[str, str]:
    """What was refused while a shard was made. Raises Damaged for another list than was written, or none."""
    path = _refused_path(writer, shard)
    way = f"remove {writer.root}/index/{shard:05d}.parquet and ingest again, which makes that shard anew"
    try:
        reasons: dict[str, str] = seals.loaded(writer.store.read_bytes(path), path)["refused"]
    except FileNotFoundError:
        raise Damaged(f"{path}: is gone: {way}") from None
    except (Damaged, KeyError) as error:
        raise Damaged(f"{path}: damaged, it is not what was written: {way}") from error
    return reasons


def _refused_path(writer: DatasetWriter, shard: int) -> str:
    return f"{writer.root}/refused/{shard:05d}.json"


def _writer(job: Job, store: Store) -> DatasetWriter:
    config, listing = job.config, job.listing
    listed = json.dumps([[item.key, item.size] for item in listing.items])
    recipe = json.loads(config.model_dump_json(exclude={"max_episode_gb"}))  # what it leaves out is told in `refused`
    return DatasetWriter(
        store,
        config.name,
        recipe={"ingest": recipe, "found": hashlib.sha256(listed.encode()).hexdigest()[:16]},
        fps=job.fps,
        action_space=listing.action_space,
        pose=listing.pose,
        pose_kind=listing.pose_kind,
        val=config.val,
        test=config.test,
        chunk=config.chunk,
        codec=config.codec,
        crf=config.crf,
        action_classes=config.action_classes,
        controls=listing.controls,
    )


def make_shard(job: Job, store_uri: str, shard: int) -> int:
    """The Ray task: read the episodes of one shard and write it; returns its frames."""
    store = open_store(store_uri)
    writer, frames = _writer(job, store), 0
    refused: dict[str, str] = {}

    def good() -> Iterator[Episode]:
        nonlocal frames
        for item in job.shards[shard]:
            try:
                episode = _alike(job, _read(job.config, open_store(job.config.path), item))
            except Refused as refusal:
                refused[item.key] = str(refusal)
            else:
                frames += len(episode)
                yield episode

    # The shard is complete when its index is there, which comes last: so the refusals have to be told before.
    writer.write_shard(
        shard,
        good(),
        before_index=lambda: store.write_bytes(_refused_path(writer, shard), seals.dumped({"refused": refused})),
    )
    return frames


def _told_fps(config: IngestConfig, episode: Episode) -> float | None:
    """Frames per second that an episode's own files tell, unless the config does. Raises Refused for what is none."""
    return None if config.fps is not None else base.frame_rate(episode.meta.get("fps"))


def _alike(job: Job, episode: Episode) -> Episode:
    """The episode, if it is of the same arrays and speed as the typical one. Raises Refused."""
    schema = _schema(episode)
    wrong = [
        f"{name}: {' '.join(map(str, schema[name]))}, others have {' '.join(map(str, expected))}"
        for name, expected in job.schema.items()
        if schema[name] != expected
    ]
    fps = _told_fps(job.config, episode)
    if fps is not None and abs(fps - job.fps) > base.SAME_FPS * job.fps:
        wrong.append(f"{fps:g} frames/s, others have {job.fps:g}")
    if wrong:
        raise Refused("; ".join(wrong))
    return episode
