"""TECO's layout: SPLIT/PART/NAME.npz with `video` and `actions`, or NAME.mp4 with a NAME.npz that holds `actions`.

    video (T, H, W, 3) uint8; actions (T,) int32

Actions: its model predicts frame t from frame t-1 and action t, so action t led into frame t, as here; the first one
becomes null (-1). TECO's own splits are folders: choose one with `split`, or take all and let this dataset split them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from longtake.datasets.episode import Episode
from longtake.errors import UserError, unknown
from longtake.sources.formats.base import Columns, Format, Item, Listing, Npz, need, sizes
from longtake.sources.formats.folder import pairs, read_pair

if TYPE_CHECKING:
    from longtake.storage.store import Store


class TecoConfig(Columns):
    """TECO's npz or mp4 files."""

    kind: Literal["teco"] = "teco"
    """TECO's npz files and tars."""
    split: str | None = Field(default=None, description="only this folder of the path, such as train")


def listing(config: TecoConfig, place: Store) -> Listing:
    """Every npz, or every mp4 with its npz. Raises UserError if there is none, or no such split."""
    files = {name: size for name, size in sizes(place).items() if name.endswith((".npz", ".mp4"))}
    splits = {name.partition("/")[0] for name in files if "/" in name}
    if not files:
        raise UserError(f"{place.uri}: no .npz or .mp4 file below it; expected SPLIT/PART/NAME.npz")
    if config.split is not None and config.split not in splits:
        raise UserError(f"source.split: {unknown('split', config.split, splits)}")
    chosen = {n: size for n, size in files.items() if config.split is None or n.startswith(f"{config.split}/")}
    paired, alone = pairs(chosen)
    items = [*paired, *(Item(name, chosen[name]) for name in alone if name.endswith(".npz"))]
    refused = {name: why for name, why in alone.items() if name.endswith(".mp4")}
    items.sort(key=lambda item: item.key)
    return Listing(
        tuple(items),
        {config.actions: "a class, one-hot"},
        config.pose_names,
        refused=refused,
        pose_kind=config.pose_kind,
    )


def read(config: TecoConfig, place: Store, item: Item) -> Episode:
    """One file or pair. Raises Refused and BadVideo."""
    if item.key.endswith(".mp4"):
        return read_pair(config, place, item, "into")
    arrays = Npz(place.read_bytes(item.key))
    return config.episode(need(arrays, "video"), arrays, "into", {"source": item.key})


FORMAT = Format(TecoConfig, listing, read)
