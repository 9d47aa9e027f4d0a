"""The foreign formats by name: what `longtake ingest KIND` can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from longtake.config import Config
from longtake.datasets.episode import Episode
from longtake.sources.formats import lerobot, memory_maze, mp4_npz, teco, webdataset
from longtake.sources.formats.base import Item, Listing
from longtake.sources.formats.lerobot import LeRobotConfig
from longtake.sources.formats.memory_maze import MemoryMazeConfig
from longtake.sources.formats.mp4_npz import FolderConfig
from longtake.sources.formats.teco import TecoConfig
from longtake.sources.formats.webdataset import WebDatasetConfig

if TYPE_CHECKING:
    from longtake.storage.store import Store

Source = Annotated[
    LeRobotConfig | MemoryMazeConfig | TecoConfig | WebDatasetConfig | FolderConfig, Field(discriminator="kind")
]


@dataclass(frozen=True)
class Format:
    """How a format is configured, listed and read; see `longtake.sources.formats.base`."""

    config: type[Config]
    listing: Callable[[Any, Store], Listing]
    read: Callable[[Any, Store, Item], Episode]


FORMATS: dict[str, Format] = {
    "lerobot": Format(LeRobotConfig, lerobot.listing, lerobot.read),
    "memory-maze": Format(MemoryMazeConfig, memory_maze.listing, memory_maze.read),
    "teco": Format(TecoConfig, teco.listing, teco.read),
    "webdataset": Format(WebDatasetConfig, webdataset.listing, webdataset.read),
    "folder": Format(FolderConfig, mp4_npz.listing, mp4_npz.read),
}
