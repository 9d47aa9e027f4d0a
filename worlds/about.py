"""What a world knows of itself beside its weights: the part `world` of an exported folder's config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from longtake.datasets import controls as controls_of
from longtake.datasets.controls import Controls
from longtake.datasets.worlds import wraps

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset


class About(BaseModel):
    """What a model is told of its worlds and how fast they go.

    frame_shape: (H, W, channels) of a picture. fps: pictures per second of world time. stride: recorded steps from one
    picture to the next, which all have the same action here. pose: names and units of its numbers, None where there is
    none. wraps: cells after which places repeat.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dataset: str
    frame_shape: tuple[int, int, int]
    fps: float
    stride: int = 1
    controls: Controls
    pose: list[str] | None = None
    wraps: float | None = None

    @staticmethod
    def of(dataset: Dataset, name: str, stride: int) -> About:
        """Of a run of that name on a dataset."""
        facts = dataset.manifest
        height, width, channels = facts.latents.frame_shape if facts.latents is not None else dataset.frame_shape
        return About(
            name=name,
            dataset=dataset.name,
            frame_shape=(height, width, channels),
            fps=facts.fps / stride,
            stride=stride,
            controls=controls_of.of_dataset(dataset),
            pose=facts.pose if dataset.pose_dim == controls_of.POSE else None,
            wraps=wraps(dataset),
        )


def as_json(about: About) -> dict[str, Any]:
    """What an exported folder's config says."""
    return about.model_dump(mode="json")
