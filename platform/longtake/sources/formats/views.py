"""Several cameras as one picture: a format is read once for each of them, and the frames are put side by side.

    --set views.field=camera --set views.values=[observation.images.front, observation.images.wrist]

The views of an episode have to be of one moment: as many frames, and the same actions. Each is cut and shrunk by itself
before they are joined, so they may come in any sizes that end up as high as one another. A model's tokens know which
view they are of by their place codes. An episode that one of the cameras lacks is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from longtake.config import Config
from longtake.datasets.episode import Episode
from longtake.errors import UserError, unknown
from longtake.sources.formats.base import Format, Framing, Item, Listing, Refused, attempt

if TYPE_CHECKING:
    from longtake.storage.store import Store


class Views(Config):
    """Which setting of the format names a camera, and the cameras from left to right."""

    field: str = Field(description="setting of the format that names one, such as camera or frames")
    values: list[str] = Field(min_length=2, max_length=16, description="its values, from left to right")


def listing(format_: Format, source: Any, views: Views, place: Store) -> Listing:
    """The episodes that all views have. Raises UserError for a setting that the format does not have."""
    listings = [format_.listing(each, place) for each in _sources(source, views)]
    by_key = [{item.key: item for item in one.items} for one in listings]
    refused = {key: why for one in listings for key, why in one.refused.items()}
    items = []
    for key in dict.fromkeys(key for one in by_key for key in one):
        lacking = [value for value, one in zip(views.values, by_key, strict=True) if key not in one]
        if lacking:
            refused.setdefault(key, f"no view {', '.join(lacking)}")
        else:
            own = [one[key] for one in by_key]
            items.append(Item(key, sum(item.size for item in own), {"views": own}))
    first = listings[0]
    return Listing(tuple(items), first.action_space, first.pose, first.fps, refused, first.controls, first.pose_kind)


def read(format_: Format, source: Any, views: Views, place: Store, item: Item, framing: Framing, most: int) -> Episode:
    """One episode, its views side by side. Raises Refused."""
    own: Sequence[Item] = item.where["views"]
    seen = [
        attempt(lambda each=each, one=one: format_.read(each, place, one), framing, most)  # type: ignore[misc]
        for each, one in zip(_sources(source, views), own, strict=True)
    ]
    first = seen[0]
    for value, other in zip(views.values[1:], seen[1:], strict=True):
        if len(other) != len(first) or not np.array_equal(other.actions, first.actions):
            raise Refused(f"view {value}: {len(other)} frames or actions that are not those of {views.values[0]}")
        if other.frames.shape[1] != first.frames.shape[1]:
            high, low = other.frames.shape[1], first.frames.shape[1]
            raise Refused(f"view {value}: {high} pixels high, {views.values[0]} is {low}: set framing.resize")
    joined = np.concatenate([one.frames for one in seen], axis=2)
    return Episode(joined, first.actions, first.pose, {**first.meta, "views": views.values}, first.labels)


def _sources(source: Any, views: Views) -> list[Any]:
    """The format's settings for each view."""
    fields = type(source).model_fields
    if views.field not in fields or views.field == "kind":
        raise UserError(f"views.field: {unknown('setting', views.field, [name for name in fields if name != 'kind'])}")
    return [source.model_copy(update={views.field: value}) for value in views.values]
