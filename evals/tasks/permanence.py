"""Permanence: a thing leaves the view for some frames, and one looks again. Is it there, in its place and its colour?

Shown: `context` frames, in the last `gone` of which nothing is to be seen. Asked: the first `horizon` frames of the
second look, given the pose of every frame. It needs episodes of that layout with the labels `object`, which of a few
things is in view, -1 for none, and `place`, where (doom-memory has them). Where things are recorded as `away` for
longer than `gone`, the middle of that stretch is left out, so that one dataset serves every `gone` up to it; `distance`
is the frames for which the thing was gone, so a curve over protocols shows where a model forgets.

Each frame made is read (evals/sprite_matching.py): which of the possible things, at which of the possible places, is it
nearest to over their pixels, or is it nearest to the view without any? `there`: to some thing; `place` and `colour`: to
the right place, to the right thing; all 1 or 0. `object_psnr`: in dB, over the pixels of the true thing alone. Higher
is better. The floor nearest_pose/stranger looks again into another clip: it knows all about such rooms and nothing of
this one, so it is chance for place (a third in doom-memory) and colour (a quarter). The oracle is the first look
itself. A model with its memory wiped or with a stranger's context must not do better than chance. Fewest episodes: 2 of
each thing at each place; about 100 for an interval of a tenth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longtake.evals import task
from longtake.evals.metric import TaskMetric
from longtake.evals.sprite_matching import Sprites, find_sprites
from longtake.evals.task import STRANGER, Build, Clips, EvalClip, Indices, Rows, Task

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol
    from longtake.models.conditions import Conditions

LABELS = ("object", "place")
METRICS = {
    "there": TaskMetric("There again", "higher", 2, "1 for a thing that is there again, else 0."),
    "place": TaskMetric("In its place", "higher", 2, "1 for a thing that is where it was, else 0."),
    "colour": TaskMetric("In its colour", "higher", 2, "1 for a thing that has the colour it had, else 0."),
    "object_psnr": TaskMetric("PSNR of its pixels (dB)", "higher", 2, "PSNR, in dB, of a thing's pixels alone."),
}
TOGETHER = 8  # clips that are shown side by side


class Fields(task.Fields):
    """Of a protocol."""

    gone: Annotated[int, Field(ge=1)] = 16
    """Frames of the context, its last ones, in which nothing is to be seen. [frames]"""
    away: Annotated[int, Field(ge=1)] | None = None
    """Frames for which things are recorded as away, where those are more than `gone`: the surplus is left out.
    [frames]"""


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """The first look, the frames without, the second look.

    Raises:
        ValueError: no frame of a first look, more asked than it has, more gone than away, too few clips.
    """
    gone = Fields.of(protocol).gone
    look, away = protocol.context - gone, Fields.of(protocol).away or gone
    if look < 1:
        raise ValueError(f"gone: {gone} leaves nothing to be seen of the {protocol.context} frames of the context")
    if protocol.horizon > look:
        raise ValueError(f"horizon: {protocol.horizon} is more than the {look} frames of a look (context less gone)")
    if away < gone:
        raise ValueError(f"away: {away} frames are fewer than the {gone} for which things are to be gone")
    if protocol.scored < 2:
        raise ValueError(f"episodes: {protocol.scored}; what is possible is read off the clips, so two at least")
    before = np.arange(look + (gone + 1) // 2)
    after = np.arange(look + away - gone // 2, look + away + protocol.horizon)
    return np.concatenate([before, after]), np.full(protocol.horizon, gone)


def why_unusable(protocol: Protocol, labels: Mapping[str, Indices]) -> str | None:
    """Why labels (t,) are not those of a look, a stretch without, and a look again; None where they are."""
    seen, look = labels["object"] >= 0, protocol.context - Fields.of(protocol).gone
    if not seen[:look].all():
        return f"nothing is to be seen in frame {int((~seen).argmax())} of its first look ({look} frames)"
    if seen[look : protocol.context].any():
        return f"something is to be seen in frame {look + int(seen[look:].argmax())}, where all is to be gone"
    for frame, (thing, place) in enumerate(_told(protocol, labels)):
        if not seen[protocol.context + frame]:
            return f"nothing is to be seen in frame {protocol.context + frame} of the second look"
        if not ((labels["object"][:look] == thing) & (labels["place"][:look] == place)).any():
            return f"what is to be seen in frame {protocol.context + frame} was not shown before"
    return None


def measure(build: Build, protocol: Protocol, questions: Sequence[EvalClip], conditions: Conditions) -> Rows:
    """A row per clip, asked frame and metric.

    Raises:
        ValueError: an episode of another layout.
    """
    for question in questions:
        if why := why_unusable(protocol, question.labels):
            raise ValueError(f"permanence: episode {question.episode} cannot be asked: {why}")
    truth, empty = (np.stack(frames) for frames in zip(*(_views(protocol, q) for q in questions), strict=True))
    answers = np.stack([_told(protocol, question.labels) for question in questions])
    sprites, generated = find_sprites(truth, empty, answers), _made(build, protocol, questions, conditions)
    values = _read(sprites, generated, truth, empty, answers)
    gone = [_gone(protocol, question.labels) for question in questions]
    return [
        {"episode": question.episode, "frame": frame, "distance": int(gone[clip][frame])}
        | {"metric": name, "value": float(values[name][clip, frame]), "better": METRICS[name].better}
        for clip, question in enumerate(questions)
        for frame in range(protocol.horizon)
        for name in protocol.metrics
    ]


def _views(protocol: Protocol, question: EvalClip) -> tuple[Clips, Clips]:
    """The true second look (horizon, H, W, 3), and the last view (H, W, 3) without anything."""
    return question.frames[protocol.context :], question.frames[protocol.context - 1]


def _told(protocol: Protocol, labels: Mapping[str, Indices]) -> Indices:
    """Thing and place (horizon, 2) of the frames asked."""
    return np.stack([labels[name][protocol.context :] for name in LABELS], 1)


def _gone(protocol: Protocol, labels: Mapping[str, Indices]) -> Indices:
    """For how many frames the thing of each asked frame had been gone when one looked at it again."""
    things, shown = labels["object"], labels["object"][: protocol.context]
    queries = things[protocol.context :]
    last = {thing: int(np.flatnonzero(shown == thing)[-1]) for thing in set(queries.tolist())}
    again = {thing: protocol.context + int((queries == thing).argmax()) for thing in last}
    return np.array([again[thing] - last[thing] - 1 for thing in queries.tolist()])


def _made(build: Build, protocol: Protocol, questions: Sequence[EvalClip], conditions: Conditions) -> Clips:
    """What a system makes of the second look (n, horizon, H, W, 3)."""
    import torch

    from longtake.evals.systems import generate

    generated = []
    for first in range(0, len(questions), TOGETHER):
        some = questions[first : first + TOGETHER]
        frames = torch.from_numpy(np.stack([question.frames for question in some]))
        own = conditions.clips(first, first + len(some))
        generated.append(generate(build(some), frames, own, protocol.context, protocol.horizon).numpy())
    return np.concatenate(generated)


def _read(
    sprites: Sprites, generated: Clips, truth: Clips, empty: Clips, answers: Indices
) -> dict[str, NDArray[np.float64]]:
    """Values (n, horizon) of each metric."""
    values = {name: np.zeros(answers.shape[:2]) for name in METRICS}
    for clip, frame in np.ndindex(*answers.shape[:2]):
        thing, place = answers[clip, frame].tolist()
        answer = sprites.read(generated[clip, frame], empty[clip])
        values["there"][clip, frame] = answer is not None
        values["colour"][clip, frame] = answer is not None and answer[0] == thing
        values["place"][clip, frame] = answer is not None and answer[1] == place
        values["object_psnr"][clip, frame] = sprites.psnr((thing, place), truth[clip, frame], generated[clip, frame])
    return values


TASK = Task(
    frame_order,
    why_pose="where one looks again cannot be told by actions alone",
    baselines=("copy_last", "context_mean", "nearest_pose" + STRANGER, "nearest_pose"),
    fields=Fields,
    labels=lambda protocol: LABELS,
    why_unusable=why_unusable,
    measure=measure,
    metrics=METRICS,
    needs_all_clips=True,
)
