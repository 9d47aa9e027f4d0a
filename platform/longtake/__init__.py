"""Longtake: episodes become shards, shards stream as clips, clips train a model, its memory is scored.

import longtake
longtake.open_store("./store").table("scores")      # a pandas DataFrame
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.store import Store, open_store

__version__ = "0.1.0"
__all__ = ["Store", "__version__", "open_store"]


def __getattr__(name: str) -> Any:
    """Load the store's module only when it is asked for: importing longtake costs nothing."""
    if name in ("Store", "open_store"):
        from longtake import store

        return getattr(store, name)
    raise AttributeError(f"module 'longtake' has no attribute {name!r}")
