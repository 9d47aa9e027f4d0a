"""`longtake collect CONFIG`: record episodes in an environment, in parallel Ray tasks, as a dataset.

One task makes one shard. A shard's episodes follow from the seed and their numbers alone, so any number of
workers makes the same bytes, and a collection that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from longtake.config import Config, config_hash, dump, load
from longtake.datasets import video, worlds
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.shard import Codec
from longtake.datasets.writer import DatasetWriter, split_sizes
from longtake.errors import require_all
from longtake.jobs.datasets.shard_tasks import make_missing, reused
from longtake.registry import one_of
from longtake.sources.environment import Environment, EnvironmentConfig
from longtake.sources.environments import environments
from longtake.sources.environments.doom_maze import DoomMazeConfig
from longtake.storage.store import Store, open_store

CONFIGS = Path(__file__).parents[1] / "configs" / "collect"
SEED_STRIDE = 1_000_003  # apart, so that the episodes of neighbouring seeds are others
EXPECTED_RATIO = 0.9  # of compressed to raw frames, on the safe side
TYPICAL_RATIO: dict[Codec, float] = {"zstd": 0.5, "zlib": 0.45, "video": 0.02}  # of mazes
LEAST_SHARDS = 8  # of a small dataset, so that it is made in parallel, and little is made again after a kill

if TYPE_CHECKING:
    Source = EnvironmentConfig
else:
    Source = one_of((each.config for each in environments().values()), "source")


class CollectConfig(Config):
    """What to record, and under which name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the dataset")
    episodes: int = Field(ge=1)
    """How many are recorded [count]"""
    walks: int = Field(
        default=1, ge=1, le=16, description="episodes that are walks in the same world; divides episodes [count]"
    )
    seed: int = Field(default=0, ge=0)
    """Of the worlds and walks: each episode has one of its own that follows from it [number]"""
    shard_mb: float = Field(default=128, gt=0, description="size of a shard, about; smaller where that leaves few [MB]")
    chunk: int = Field(default=32, ge=1, description="frames per chunk: the least that a clip reads [frames]")
    codec: Codec = Field(default="zstd", description="of the frames: zstd or zlib without loss, video for large ones")
    crf: int = Field(default=video.CRF, ge=0, le=51, description="quality of a video; lower is better [CRF]")
    val: float = Field(default=0.1, gt=0, lt=1, description="share of the episodes; at least one [share]")
    test: float = Field(default=0.1, gt=0, lt=1, description="share of the episodes; at least one [share]")
    source: Source = DoomMazeConfig()
    """The environment that is played, and its settings."""

    @model_validator(mode="after")
    def _whole_worlds(self) -> Self:
        if self.episodes % self.walks:
            near = max(1, round(self.episodes / self.walks)) * self.walks
            raise ValueError(f"episodes: {self.episodes} is no multiple of walks={self.walks}; the nearest is {near}")
        if self.walks > 1 and not self.environment.several_walks:
            several = [name for name, each in environments().items() if each.several_walks]
            raise ValueError(
                f"walks: {self.walks}, but source {self.source.source} makes a world per episode; "
                f"several walks in one have {' and '.join(several)}"
            )
        return self

    @property
    def environment(self) -> Environment:
        """What is played."""
        return environments()[self.source.source]

    @property
    def splits(self) -> dict[str, int]:
        """Episodes per split. Raises UserError if there are too few worlds for that."""
        sizes = split_sizes(
            self.episodes // self.walks, self.val, self.test, "worlds" if self.walks > 1 else "episodes"
        )
        return {split: size * self.walks for split, size in sizes.items()}

    @property
    def shard_episodes(self) -> int:
        """Episodes per shard, and per task; follows from the config alone, so that a killed collection goes on."""
        height, width = self.source.resolution
        expected = self.source.steps * height * width * 3 * TYPICAL_RATIO[self.codec]
        return max(1, min(round(self.shard_mb * 1e6 / expected), self.episodes // LEAST_SHARDS))

    @property
    def shards(self) -> int:
        """How many shards hold all episodes."""
        return -(-self.episodes // self.shard_episodes)


def main(config: str, overrides: list[str], store: str, dry_run: bool = False, brief: bool = False) -> None:
    """The command: check, then record; with `dry_run` print the plan and touch nothing."""
    settings = load(CollectConfig, config, overrides, search=CONFIGS)
    where = open_store(store)
    check(settings, where)
    if dry_run:
        print(dump(settings, brief) + "\n" + describe(settings, where))
        return
    dataset = run(settings, where)
    print(f"dataset {dataset.name} is ready: longtake inspect {dataset.name} --store {where.argument}")


def check(config: CollectConfig, store: Store) -> None:
    """Refuse what cannot work; raises one UserError with every problem."""
    require_all(
        lambda: config.splits,
        lambda: store.require_space(_expected_bytes(config)),
        lambda: config.environment.require(config.source),
    )


def _expected_bytes(config: CollectConfig) -> int:
    height, width = config.source.resolution
    return int(config.episodes * config.source.steps * height * width * 3 * EXPECTED_RATIO)


def describe(config: CollectConfig, store: Store) -> str:
    """The plan in words."""
    splits = ", ".join(f"{n} {split}" for split, n in config.splits.items())
    walks = f", {config.walks} walks in each of {config.episodes // config.walks} worlds" if config.walks > 1 else ""
    return "\n".join(
        [
            f"dataset   {store.path('datasets', config.name)}",
            f"episodes  {config.episodes} of {config.source.steps} frames{walks}: {splits}",
            f"shards    {config.shards} of {config.shard_episodes} episodes, each one Ray task on 1 CPU",
            f"size      at most about {_expected_bytes(config) / 1e6:.0f} MB",
            f"config    {config_hash(config)}",
        ]
    )


def run(config: CollectConfig, store: Store, *, cpus: int | None = None) -> Dataset:
    """Record what is missing of the dataset and return it; a finished one is reused.

    `cpus` is the number of parallel tasks (default: the machine's CPUs).
    Raises UserError if the name belongs to a dataset of another config, or for anything that `check` refuses.
    """
    writer = _writer(config, store)
    if writer.claim():
        return reused(writer)
    check(config, store)
    make_missing("collect", writer, partial(make_shard, config, store.uri), config.shards, cpus)
    return writer.finalize(config.shards)


def _writer(config: CollectConfig, store: Store) -> DatasetWriter:
    return DatasetWriter(
        store,
        config.name,
        recipe=_recipe(config),
        fps=config.source.fps,
        **config.environment.about(config.source),
        val=config.val,
        test=config.test,
        chunk=config.chunk,
        codec=config.codec,
        crf=config.crf,
    )


def _recipe(config: CollectConfig) -> dict[str, Any]:
    """What the bytes follow from. Of one walk a world it is what it was before there could be several."""
    recipe: dict[str, Any] = json.loads(config.model_dump_json()) | {"shard_episodes": config.shard_episodes}
    if config.walks == 1:
        del recipe["walks"]
    return recipe


def record(config: CollectConfig, number: int) -> Episode:
    """An episode by its number: those of a world come one after another."""
    generate, (world, walk) = config.environment.generate, divmod(number, config.walks)
    seed = config.seed * SEED_STRIDE + world
    if config.walks == 1:
        return generate(config.source, seed)
    recording = generate(config.source, seed, walk)
    return replace(recording, meta={**recording.meta, worlds.WORLD: seed, worlds.WALK: walk})


def make_shard(config: CollectConfig, store_uri: str, shard: int) -> int:
    """The Ray task: record the episodes of one shard and write it; returns its frames."""
    first = shard * config.shard_episodes
    numbers = range(first, min(first + config.shard_episodes, config.episodes))
    frames = 0

    def episodes() -> Iterator[Episode]:
        """One by one: a shard of large frames would not fit the memory."""
        nonlocal frames
        for number in numbers:
            episode = record(config, number)
            frames += len(episode)
            yield episode

    _writer(config, open_store(store_uri)).write_shard(shard, episodes())
    return frames
