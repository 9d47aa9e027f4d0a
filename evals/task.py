"""What a task is: where its clip lies in an episode, what is judged of it, and at which distance.

A task is one file of `evals/tasks/` that holds a `TASK`; docs/adding-a-task.md shows how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from longtake.evals.metric import Metric
    from longtake.evals.protocol import Protocol
    from longtake.evals.systems import System
    from longtake.models.conditions import Conditions

Indices = NDArray[np.int64]
Pose = NDArray[np.float32]
"""As recorded: (t, 3) x and y in cells, heading in radians; or in space (t, 7), x, y, z and a unit quaternion."""
Clips = NDArray[np.uint8]
"""Frames of clips side by side (b, t, H, W, 3)."""
Rows = list[dict[str, Any]]


STRANGER = "/stranger"
"""The end of the name of a system that is shown another clip's context."""


@dataclass(frozen=True)
class EvalClip:
    """One clip of a task: frames uint8 (t, H, W, 3), pose fp32 (t, P) as recorded, actions fp32 (t, A); `led` (t,) is
    false where no action leads to a frame; `goal`: what the episode is told to do, where it says so.

    The first `context` frames are shown; the rest are asked, and the last of them, as many as `distance` (m,) int64
    has, are judged. `distance` counts the frames between an asked frame and the one that the task compares it with.
    `stratum` (m,) names what kind of frame each is, where a task tells kinds apart. `labels` (t,) are those of the
    dataset that the task asks for, by name.
    """

    frames: NDArray[np.uint8]
    pose: Pose | None
    actions: NDArray[np.float32]
    distance: Indices
    episode: int
    stratum: tuple[str, ...] | None = None
    labels: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    led: NDArray[np.bool_] | None = None
    goal: str | None = None


def against_truth(truth: Clips, generated: Clips) -> tuple[Clips, Clips]:
    """What is compared with what, where a task does not say otherwise: all that was made with the truth."""
    return truth, generated


Build = Callable[[Sequence[EvalClip]], "System"]


class Fields(BaseModel):
    """Fields of a protocol that only some tasks have; a task that has some names a class of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @classmethod
    def of(cls, protocol: Protocol) -> Self:
        """Those of a protocol, which is made of the fields of all tasks."""
        assert isinstance(protocol, cls)
        return protocol


@dataclass(frozen=True)
class ReportPlace:
    """What a report shows of a task, beside its table and its curve."""

    rank: int = 9
    """The lower, the earlier; of equals by name."""
    film: bool = False
    """Whether a few of its episodes are shown moving."""
    strips: bool = False
    """Whether they are shown as strips of frames too."""
    distance: str = "Distance counts the frames since the last one shown."
    since: str = "the frame of the context that showed the same place"
    """What distance is to, in the sentence below films and strips."""


def no_labels(protocol: Protocol) -> tuple[str, ...]:
    """What a task needs of a dataset's labels, where it does not say otherwise: none."""
    return ()


@dataclass(frozen=True)
class Task:
    """What a task asks."""

    frame_order: Callable[[Protocol], tuple[Indices, Indices]]
    """Source frames in the order shown and asked, counted from the clip's start, and the distance of each judged one;
    ValueError for a protocol that makes no sense."""
    order: Callable[[Protocol, int], tuple[Indices, Indices]] | None = None
    """The path of one episode, where each has its own; `frame_order` is then one of them."""
    why_pose: str | None = None
    """Why it cannot do without a recorded pose, where it cannot."""
    walks: Callable[[Protocol], tuple[int, ...]] | None = None
    """Frames of each walk, where a clip is made of several in one world, one behind the other, and `frame_order` counts
    through them; None: it lies in one episode."""
    fields: type[Fields] = Fields
    """Fields of a protocol that mean something to this task, and not to all."""
    places: Callable[[Protocol, Pose], tuple[Indices, tuple[str, ...]]] | None = None
    """Distance and stratum of each judged frame, from the pose of all frames shown and asked."""
    compared_frames: Callable[[Clips, Clips], tuple[Clips, Clips]] = against_truth
    """What is compared with what: from the truth and what was made, (b, horizon, H, W, 3) each, to two of one shape."""
    compared_with: Literal["controls", "baselines", "nothing"] = "controls"
    """What is scored beside a model: floors and the model with its memory taken away, floors alone, or nothing."""
    baselines: tuple[str, ...] = ("copy_last", "context_mean", "nearest_pose")
    """Systems that need no training, of evals/systems.py, that are scored beside a model."""
    labels: Callable[[Protocol], tuple[str, ...]] = no_labels
    """Names of the dataset's whole-number labels that it needs."""
    label_field: tuple[str, tuple[str, ...]] | None = None
    """The field in which a protocol chooses the label, where it does, and what else may be said there."""
    why_unusable: Callable[[Protocol, Mapping[str, Indices]], str | None] | None = None
    """Why an episode with these labels (t,) of the frames shown and asked cannot be asked; None where it can."""
    measure: Callable[[Build, Protocol, Sequence[EvalClip], Conditions], Rows] | None = None
    """Rows of a task that measures in its own way; it is given what makes a fresh system for some of its clips."""
    metrics: Mapping[str, Metric] | None = None
    """What such a task measures, in the order shown; None: frames, by any metric of evals/metrics/."""
    frames: bool = True
    """Whether frames are asked for: then the ceiling of a model on latents is its tokenizer. Else: what is carried."""
    needs_all_clips: bool = False
    """Whether it needs all clips at once."""
    report: ReportPlace = ReportPlace()
    """Its place in a report."""
