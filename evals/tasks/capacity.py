"""Capacity: of how many places does a memory know what they look like, and how many bits is that per byte of it?

For N = 2, 4, 8, ... up to `horizon` places: shown is the beginning of the context, as much as it takes until every clip
has shown N places at least a cell apart (a turn counts as in reasoning), some of them more. Asked: the frames of N such
places, given their exact poses, in random order, one after another; answers enter the memory, as in any generation. A
clip whose context never shows N places is left out of that N.

`recall`: the share of places whose frame is nearest to the right one of the clip's N true frames. Chance is 1 / N: the
places of a clip are alike to who has not seen it. `bits`: a lower bound of what the answers of a clip tell of which
place is where (evals/recall.py: Fano's inequality, cross-fitted over clips, by doubt), from 0 to N log2 N; a perfect
memory of k of N places that knows what it does not know has k log2 N. It is the sum over places of what each answer
says of its own; no place is two, so of the whole arrangement it tells log2(N^N / N!) less, 1.44 bits a place.
`bits_per_byte`: bits over `memory_bytes`, those carried after the context, where a system tells them. A constant
memory of b bytes has a curve of bits over N that rises and then stays: b bytes hold at least what it stays at. Rows
have N as `distance` and as `frame`; higher is better, but of memory_bytes.

Floors: copy_last and context_mean are chance. Ceiling: the nearest_pose oracle, with all frames at hand. A model with
its memory wiped or with a stranger's context must be at chance, or places can be told apart without memory. Needs a
pose; a world whose places are alike has a low ceiling, so take the torus (texture-torus-micro), where what one place
looks like says nothing of another. Sources: multi-query associative recall against state size (Arora et al., "Zoology",
2023), here of frames. Fewest episodes: 2, since each is judged by the others; about 24 for an interval.
Shown by: longtake results scores --where "task == 'capacity'" --by system,distance
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from longtake.evals.metric import TaskMetric
from longtake.evals.recall import bits, identify
from longtake.evals.task import Build, Clips, EvalClip, Indices, Pose, Rows, Task
from longtake.evals.tasks.cost import MEMORY_BYTES
from longtake.evals.tasks.reasoning import apart

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol
    from longtake.models.conditions import Conditions

METRICS = {
    "recall": TaskMetric(
        "Places recalled", "higher", 2, "The share of places that are told apart by what is made of them, from 0 to 1."
    ),
    "bits": TaskMetric("Bits remembered", "higher", 1, "What answers tell of which place is where at least, per clip."),
    "bits_per_byte": TaskMetric("Bits per byte", "higher", 4, "The bits remembered per byte carried."),
    "memory_bytes": MEMORY_BYTES,
}
CELL = 1.0
"""How far apart places are at least, in cells: windows of the torus do not overlap along an axis."""
TOGETHER = 8  # clips that are shown side by side


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """The context, and as many frames again as there are places at most: which ones, only poses can tell.

    Raises:
        ValueError: more places than frames, a single one, too few clips.
    """
    if not 2 <= protocol.horizon <= protocol.context:
        raise ValueError(f"horizon: {protocol.horizon} places; allowed are 2 to the {protocol.context} of the context")
    if protocol.scored < 2:
        raise ValueError(f"episodes: {protocol.scored}; answers are judged by those of other clips, so two at least")
    context = np.arange(protocol.context)
    return np.concatenate([context, context[: protocol.horizon]]), np.zeros(protocol.horizon, np.int64)


def measure(build: Build, protocol: Protocol, questions: Sequence[EvalClip], conditions: Conditions) -> Rows:
    """Rows of every clip and number of places.

    Raises:
        ValueError: fewer than two clips show two places.
    """
    places_of_clips = [find_places(_poses(protocol, question), protocol) for question in questions]
    rows: Rows = []
    for count in numbers(protocol.horizon):
        clips = [clip for clip, places in enumerate(places_of_clips) if len(places) >= count]
        if len(clips) < 2:
            break
        some = [questions[clip] for clip in clips]
        queries = np.stack([_shuffled(places_of_clips[clip][:count], protocol, questions[clip]) for clip in clips])
        generated, carried = _answers(build, some, _of(conditions, clips), queries)
        rows += _rows(protocol, some, queries, generated, carried)
    if not rows:
        raise ValueError(f"capacity: fewer than two clips show two places within {protocol.context} frames")
    return rows


def numbers(most: int) -> list[int]:
    """Powers of two below `most`, and `most`."""
    return [2**power for power in range(1, most.bit_length()) if 2**power < most] + [most]


def find_places(pose: Pose, protocol: Protocol) -> Indices:
    """Frames, the earliest ones, that show places at least a cell apart from one another."""
    gaps = apart(pose, pose, protocol.wraps)
    place_frames = [0]
    for frame in range(1, len(pose)):
        if (gaps[frame, place_frames] >= CELL).all():
            place_frames.append(frame)
    return np.array(place_frames)


def _poses(protocol: Protocol, question: EvalClip) -> Pose:
    assert question.pose is not None  # the task says that it needs one
    return question.pose[: protocol.context]


def _shuffled(frames: Indices, protocol: Protocol, question: EvalClip) -> Indices:
    """The frames of a clip's places in the order in which they are asked."""
    draw = np.random.default_rng([protocol.seed, question.episode, len(frames)])
    return np.asarray(draw.permutation(frames))


def _of(conditions: Conditions, clips: Sequence[int]) -> Conditions:
    """Those of some clips."""
    import torch

    return conditions.chosen(torch.tensor(clips))


def _answers(
    build: Build, questions: Sequence[EvalClip], conditions: Conditions, queries: Indices
) -> tuple[Clips, float]:
    """What a system makes of the frames asked (c, N) after it was shown all that hold them; and the bytes that it
    carries then, per clip; 0 where it does not tell."""
    import torch

    from longtake.evals.systems import go_on

    generated, carried = [], 0.0
    for first in range(0, len(questions), TOGETHER):
        some = questions[first : first + TOGETHER]
        system = build(some)
        shown = -(-(int(queries.max()) + 1) // system.frames_per_step) * system.frames_per_step
        own = _told(conditions.clips(first, first + len(some)), queries[first : first + len(some)], shown)
        frames = torch.from_numpy(np.stack([question.frames[:shown] for question in some]))
        system.observe(frames, own.frames(0, shown))
        carried = getattr(system, "nbytes", 0) / len(some)
        generated.append(go_on(system, own, shown, own.length).numpy())
    return np.concatenate(generated), carried


def _told(conditions: Conditions, queries: Indices, shown: int) -> Conditions:
    """Conditions of what is shown and then of the frames asked (b, N), to which no action leads."""
    import torch

    order = torch.from_numpy(np.concatenate([np.tile(np.arange(shown), (len(queries), 1)), queries], 1))
    queried = conditions.taken(order)
    if queried.actions is not None:
        queried.actions[:, shown:] = 0
    return queried


def _rows(
    protocol: Protocol, questions: Sequence[EvalClip], queries: Indices, generated: Clips, carried: float
) -> Rows:
    """Rows of what was made (c, N, H, W, 3) of the frames asked (c, N)."""
    count = queries.shape[1]
    read = [identify(generated[clip], question.frames[queries[clip]]) for clip, question in enumerate(questions)]
    right, doubt = np.stack([answer == np.arange(count) for answer, _ in read]), np.stack([part for _, part in read])
    information = bits(right, doubt, count).sum(1)
    values = {"recall": right.mean(1), "bits": information}
    if carried:
        values |= {"bits_per_byte": information / carried, "memory_bytes": np.full(len(information), carried)}
    return [
        {"episode": question.episode, "frame": count, "distance": count}
        | {"metric": name, "value": float(values[name][clip]), "better": METRICS[name].better}
        for clip, question in enumerate(questions)
        for name in protocol.metrics
        if name in values
    ]


TASK = Task(
    frame_order,
    why_pose="what is asked is a place, and it cannot be told by actions alone",
    measure=measure,
    metrics=METRICS,
    frames=False,
    needs_all_clips=True,
)
