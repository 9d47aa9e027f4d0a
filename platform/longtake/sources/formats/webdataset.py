"""WebDataset tars: every sample KEY.* is an episode.

    KEY.video.mp4 or KEY.mp4 or KEY.frames.npy      the pictures
    KEY.state.npz                                   what was done, seen from where
    KEY.json                                        a dictionary, kept with the episode

Actions: the files do not say whether action t led into frame t or was taken after it, so `lead` has to; see paired.
What of a tar is read, and what is refused by name: `longtake.sources.formats.tars`. A tar keeps checksums of its
headers only: damage inside an npy or a json that leaves it readable cannot be seen.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from longtake.datasets import video
from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.sources.formats import tars
from longtake.sources.formats.base import SAME_FPS, Columns, Format, Item, Lead, Listing, Npz, Refused, read_npy, sizes
from longtake.sources.formats.folder import PACKED

if TYPE_CHECKING:
    from longtake.storage.store import Store

PICTURES = ("frames.npy", "video.mp4", "mp4")


class WebDatasetConfig(Columns):
    """The .tar files anywhere below the path."""

    kind: Literal["webdataset"] = "webdataset"
    """WebDataset tars."""
    lead: Lead = Field(description="into: action t led into frame t; out: it was taken after frame t")


def listing(config: WebDatasetConfig, place: Store) -> Listing:
    """Every sample of every tar, from their headers. Raises UserError if there is none."""
    items: list[Item] = []
    refused: dict[str, str] = {}
    for tar, size in sizes(place).items():
        if tar.endswith(tars.COMPRESSED_NAMES):
            refused[tar] = "compressed: unpack it to a .tar first"
        if not tar.endswith(".tar"):
            continue
        contents = tars.contents(place, tar, size)
        samples, wrong = _samples(contents)
        if contents.damage:
            refused[tar] = contents.damage
        refused |= {f"{tar}/{key}": why for key, why in wrong.items()}
        for key, members in samples.items():
            pictures = [name for name in PICTURES if name in members]
            if len(pictures) == 1:
                items.append(Item(f"{tar}/{key}", _weight(members), {"tar": tar, "members": members}))
            elif pictures:
                refused[f"{tar}/{key}"] = f"pictures twice, {' and '.join(pictures)}: keep one, or give them other keys"
            else:
                named = f"it has {', '.join(members)}, not {' or '.join(PICTURES)}"
                refused[f"{tar}/{key}"] = f"no pictures: {named} (a key ends at the first dot)"
    if not items:
        lines = [f"{name}: {why}" for name, why in refused.items()]
        raise UserError(f"{place.uri}: no episode in any .tar file below it", *lines[:20])
    return Listing(
        tuple(items), {config.actions: "as recorded"}, config.pose_names, refused=refused, pose_kind=config.pose_kind
    )


def _samples(contents: tars.Contents) -> tuple[dict[str, dict[str, tars.Member]], dict[str, str]]:
    """The members of each sample by suffix, and why samples are refused: one that lacks a member is not the same."""
    samples: dict[str, dict[str, tars.Member]] = {}
    wrong = {}
    for name, why in contents.refused.items():
        wrong[_sample(name)[0]] = f"{name}: {why}"
    for member in contents.members:
        key, suffix = _sample(member.name)
        named = samples.setdefault(key, {})
        if suffix in named:
            wrong[key] = f"{member.name} is in it twice"
        named[suffix] = member
    return {key: members for key, members in samples.items() if key not in wrong}, wrong


def _sample(name: str) -> tuple[str, str]:
    """The key and the suffix of a name: the suffix begins at the first dot of its last part."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}/{stem}".lstrip("/"), suffix


def _weight(members: dict[str, tars.Member]) -> int:
    return sum(member.size * (PACKED if name.endswith("mp4") else 1) for name, member in members.items())


def read(config: WebDatasetConfig, place: Store, item: Item) -> Episode:
    """One sample. Raises Refused and BadVideo."""
    members: dict[str, tars.Member] = item.where["members"]

    def data(name: str) -> bytes:
        return tars.read(place, item.where["tar"], members[name])

    if "state.npz" not in members:
        raise Refused(f"no state.npz: no actions; there are: {', '.join(members)}")
    arrays = Npz(data("state.npz"))
    record = json.loads(data("json")) if "json" in members else {}
    if not isinstance(record, dict):
        raise Refused("json: not a dictionary")
    meta = {**record, "source": item.key}
    pictures = next(name for name in PICTURES if name in members)
    if pictures == "frames.npy":
        return config.episode(read_npy(data(pictures)), arrays, config.lead, meta)
    seen = video.read(io.BytesIO(data(pictures)))
    rate = record.get("fps")
    if isinstance(rate, int | float) and abs(rate - seen.fps) > SAME_FPS * seen.fps:
        raise Refused(f"json: fps is {rate:g}, the video has {seen.fps:g}")
    return config.episode(seen.frames, arrays, config.lead, {**meta, "fps": seen.fps})


FORMAT = Format(WebDatasetConfig, listing, read)
