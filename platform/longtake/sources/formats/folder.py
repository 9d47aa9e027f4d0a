"""Folders of mp4 + npz: NAME.mp4 holds the pictures and NAME.npz beside it what was done, seen from where.

Actions: such files do not say whether action t led into frame t or was taken after it, so `lead` has to: with `out`
the actions move one frame on and the first one becomes null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from longtake.datasets import video
from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.sources.formats.base import Columns, Format, Item, Lead, Listing, Npz, sizes

if TYPE_CHECKING:
    from longtake.storage.store import Store

PACKED = 30  # how much larger pictures are than their mp4, roughly


class FolderConfig(Columns):
    """Pairs of mp4 and npz, anywhere below the path."""

    kind: Literal["folder"] = "folder"
    """Folders of mp4 with an npz beside each."""
    lead: Lead = Field(description="into: action t led into frame t; out: it was taken after frame t")


def listing(config: FolderConfig, place: Store) -> Listing:
    """Every mp4 with its npz; either without the other is refused. Raises UserError if there is no pair."""
    items, refused = pairs(sizes(place))
    if not items:
        raise UserError(f"{place.uri}: no NAME.mp4 with a NAME.npz beside it below it")
    return Listing(
        tuple(items), {config.actions: "as recorded"}, config.pose_names, refused=refused, pose_kind=config.pose_kind
    )


def pairs(files: dict[str, int]) -> tuple[list[Item], dict[str, str]]:
    """Pairs of mp4 and npz, and why what has no partner is none."""
    items: list[Item] = []
    refused: dict[str, str] = {}
    for name, size in files.items():
        stem, _, suffix = name.rpartition(".")
        if suffix == "mp4" and f"{stem}.npz" in files:
            items.append(Item(name, size * PACKED))
        elif suffix == "mp4":
            refused[name] = f"no {stem.rpartition('/')[2]}.npz beside it: no actions"
        elif suffix == "npz" and f"{stem}.mp4" not in files:
            refused[name] = f"no {stem.rpartition('/')[2]}.mp4 beside it: no frames"
    return items, refused


def read(config: FolderConfig, place: Store, item: Item) -> Episode:
    """One pair. Raises Refused and BadVideo."""
    return read_pair(config, place, item, config.lead)


def read_pair(columns: Columns, place: Store, item: Item, lead: Lead) -> Episode:
    """The episode of NAME.mp4 and NAME.npz."""
    arrays = Npz(place.read_bytes(item.key.removesuffix("mp4") + "npz"))
    with place.fs.open(place.path(item.key), "rb") as file:
        seen = video.read(file)
    return columns.episode(seen.frames, arrays, lead, {"source": item.key, "fps": seen.fps})


FORMAT = Format(FolderConfig, listing, read)
