"""Folders of pictures: each with PNG, JPEG or WebP files in it is an episode, an npz beside or in it its actions.

    walk_1/000.png, walk_1/001.png, ...      the pictures, in the order of the last number in their names
    walk_1.npz or walk_1/state.npz           what was done, seen from where

Numbers have to follow one another, so that a picture that was lost is no jump in time: 9.png comes before 10.png, and
0.png, 1.png, 3.png are refused. Actions: the files do not say whether action t led into frame t or was taken after it,
so `lead` has to; how many frames make a second has to be said too (--set fps=N).
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from longtake.datasets import video
from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.sources.formats.base import Columns, Format, Item, Lead, Listing, Npz, Refused, sizes

if TYPE_CHECKING:
    from longtake.storage.store import Store

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
PACKED = 4  # how much larger pictures are than their files, roughly


class ImagesConfig(Columns):
    """Folders of pictures, anywhere below the path."""

    kind: Literal["images"] = "images"
    """Folders of numbered pictures with an npz beside or in each."""
    lead: Lead = Field(description="into: action t led into frame t; out: it was taken after frame t")


def listing(config: ImagesConfig, place: Store) -> Listing:
    """Every folder that holds pictures. Raises UserError if there is none."""
    files, folders = sizes(place), defaultdict(list)
    for name in files:
        if name.lower().endswith(PICTURES) and "/" in name:
            folders[name.rpartition("/")[0]].append(name)
    if not folders:
        raise UserError(f"{place.uri}: no folder with {', '.join(PICTURES)} files below it")
    items, refused = [], {}
    for folder, names in sorted(folders.items()):
        beside = [name for name in (f"{folder}.npz", f"{folder}/state.npz") if name in files]
        if len(beside) != 1:
            problem = " and ".join(beside) or f"no {folder}.npz beside it and no state.npz in it"
            refused[folder] = f"{problem}: no actions" if not beside else f"both {problem}: keep one"
            continue
        try:
            where = {"pictures": _in_order(names), "npz": beside[0]}
        except Refused as refusal:
            refused[folder] = str(refusal)
            continue
        items.append(Item(folder, PACKED * sum(files[name] for name in names), where))
    space = {config.actions: "as recorded"}
    return Listing(tuple(items), space, config.pose_names, refused=refused, pose_kind=config.pose_kind)


def _in_order(names: list[str]) -> list[str]:
    """Names by the last number in each. Raises Refused for one without, for a gap and for a number that comes twice."""
    numbered: dict[int, str] = {}
    for name in names:
        base = name.rpartition("/")[2].rpartition(".")[0]
        if not (digits := re.findall(r"[0-9]+", base)):
            raise Refused(f"{name}: no number in its name, so its place is not known")
        number = int(digits[-1])
        if number in numbered:
            raise Refused(f"{numbered[number]} and {name} have the same number")
        numbered[number] = name
    first, last = min(numbered), max(numbered)
    if gap := next((number for number in range(first, last) if number not in numbered), None):
        raise Refused(f"picture {gap} is missing between {numbered[first]} and {numbered[last]}")
    return [numbered[number] for number in range(first, last + 1)]


def read(config: ImagesConfig, place: Store, item: Item) -> Episode:
    """One folder. Raises Refused and BadVideo."""
    pictures = [video.read_image(place.read_bytes(name)) for name in item.where["pictures"]]
    if len({picture.shape for picture in pictures}) != 1:
        raise Refused("pictures of different sizes in one folder")
    arrays = Npz(place.read_bytes(item.where["npz"]))
    return config.episode(np.stack(pictures), arrays, config.lead, {"source": item.key})


FORMAT = Format(ImagesConfig, listing, read)
