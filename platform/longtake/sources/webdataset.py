"""WebDataset tars: every sample KEY.* is an episode.

    KEY.video.mp4 or KEY.mp4 or KEY.frames.npy      the pictures
    KEY.state.npz                                   what was done, seen from where
    KEY.json                                        a dictionary, kept with the episode

Actions: the files do not say whether action t led into frame t or was taken after it, so `lead` has to; see paired.
A tar keeps checksums of its headers only: damage inside an npy or a json that leaves it readable cannot be seen.
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from longtake import video
from longtake.episodes import Episode
from longtake.errors import UserError
from longtake.sources.foreign import Columns, Item, Lead, Listing, Refused, read_npy, read_npz, sizes
from longtake.sources.paired import PACKED

if TYPE_CHECKING:
    from longtake.store import Store

PICTURES = ("frames.npy", "video.mp4", "mp4")
BLOCK = 512


class WebDatasetConfig(Columns):
    """The .tar files anywhere below the path."""

    kind: Literal["webdataset"] = "webdataset"
    lead: Lead = Field(description="into: action t led into frame t; out: it was taken after frame t")


def listing(config: WebDatasetConfig, place: Store) -> Listing:
    """Every sample of every tar, from their headers. Raises UserError if there is none."""
    items: list[Item] = []
    refused: dict[str, str] = {}
    tars = {name: size for name, size in sizes(place).items() if name.endswith(".tar")}
    for tar, size in tars.items():
        samples, damage = _samples(place, tar, size)
        if damage:
            refused[tar] = damage
        for key, members in samples.items():
            if any(name in members for name in PICTURES):
                items.append(Item(f"{tar}/{key}", _weight(members), {"tar": tar, "members": members}))
            else:
                refused[f"{tar}/{key}"] = f"no pictures: it has {', '.join(members)}, not {' or '.join(PICTURES)}"
    if not items:
        told = [f"{name}: {why}" for name, why in refused.items()]
        raise UserError(f"{place.uri}: no episode in any .tar file below it", *told[:20])
    return Listing(tuple(items), {config.actions: "as recorded"}, config.pose_names, refused=refused)


def _samples(place: Store, tar: str, size: int) -> tuple[dict[str, dict[str, tuple[int, int]]], str]:
    """Offset and size of each member by sample and suffix, and what is wrong with the tar (or nothing)."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    with place.fs.open(place.path(tar), "rb") as file:
        end = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    end = archive.offset
                    if member.isfile():
                        folder, _, base = member.name.rpartition("/")
                        stem, _, suffix = base.partition(".")
                        named = samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})
                        if suffix in named:
                            return samples, f"{member.name} is in it twice; what follows is not read"
                        named[suffix] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            return samples, f"damaged after byte {end}, what follows is not read: {error}"
        # tarfile takes a damaged header for the end: the end is where the zeros are.
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            return samples, f"cut off or damaged at byte {end} of {size}, what follows is not read"
    return samples, ""


def _weight(members: dict[str, tuple[int, int]]) -> int:
    return sum(size * (PACKED if name.endswith("mp4") else 1) for name, (_, size) in members.items())


def read(config: WebDatasetConfig, place: Store, item: Item) -> Episode:
    """One sample. Raises Refused and BadVideo."""
    members: dict[str, Any] = item.where["members"]

    def data(name: str) -> bytes:
        offset, size = members[name]
        found = place.read_range(item.where["tar"], offset, size)
        if len(found) != size:
            raise Refused(f"{name}: the tar is cut off, {len(found)} of {size} bytes are there")
        return found

    if "state.npz" not in members:
        raise Refused(f"no state.npz: no actions; there are: {', '.join(members)}")
    arrays = read_npz(data("state.npz"))
    told = json.loads(data("json")) if "json" in members else {}
    if not isinstance(told, dict):
        raise Refused("json: not a dictionary")
    meta = {**told, "source": item.key}
    pictures = next(name for name in PICTURES if name in members)
    if pictures == "frames.npy":
        return config.episode(read_npy(data(pictures)), arrays, config.lead, meta)
    seen = video.read(io.BytesIO(data(pictures)))
    return config.episode(seen.frames, arrays, config.lead, {**meta, "fps": seen.fps})
