"""Longtake: episodes become shards, shards stream as clips, clips train a model, its memory is scored.

import longtake
store = longtake.open_store("./store")
store.table("scores")                               # a pandas DataFrame
longtake.latest(store)                              # scores of each run's newest checkpoint
longtake.best(store, metric="psnr")                 # the best checkpoint of each task
longtake.compare(store, "block_ssm", "causal_window")
longtake.World.load("latest", store="./store")      # a trained world to observe, step, fork and rewind
longtake.RemoteWorld.connect("http://127.0.0.1:8000")    # one that `longtake serve` holds, with the same face
longtake.record(env, policy, store=store, name="mine", episodes=20, fps=15)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.sources.record import record
    from longtake.storage.store import Store, open_store
    from longtake.tables.scores import best, compare, latest
    from longtake.worlds import planning
    from longtake.worlds.remote import RemoteWorld
    from longtake.worlds.world import World

__version__ = "0.1.0"
__all__ = [
    "RemoteWorld",
    "Store",
    "World",
    "__version__",
    "best",
    "compare",
    "latest",
    "open_store",
    "planning",
    "record",
]


def __dir__() -> list[str]:
    """What there is, for a notebook's completion: nothing of it is loaded by that."""
    return sorted({*__all__, "__doc__", "__file__", "__name__", "__path__"})


def __getattr__(name: str) -> Any:
    """Load a module only when it is asked for: importing longtake costs nothing."""
    if name in ("Store", "open_store"):
        from longtake.storage import store

        return getattr(store, name)
    if name == "record":
        from longtake.sources import record

        return record.record
    if name in ("best", "compare", "latest"):
        from longtake.tables import scores

        return getattr(scores, name)
    if name == "World":
        return importlib.import_module("longtake.worlds.world").World  # the platform imports no room
    if name == "RemoteWorld":
        return importlib.import_module("longtake.worlds.remote").RemoteWorld
    if name == "planning":
        return importlib.import_module("longtake.worlds.planning")
    raise AttributeError(f"module 'longtake' has no attribute {name!r}")
