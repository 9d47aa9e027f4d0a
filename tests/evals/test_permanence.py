"""Permanence: a thing that was gone is found again by who remembers it, and by chance alone by who does not."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from longtake.evals.baselines import ContextMean, CopyLast, NearestPose
from longtake.evals.clip import build_clip
from longtake.evals.controls import SwappedContext
from longtake.evals.metrics.psnr import IDENTICAL_PSNR
from longtake.evals.protocol import Protocol
from longtake.evals.registry import TASKS
from longtake.evals.sprite_matching import find_sprites
from longtake.evals.systems import System
from longtake.evals.task import EvalClip
from longtake.models.conditions import Conditions
from tests.evals.planted import Truth, Window

LOOK, AWAY, CLIPS, SIDE = 3, 12, 120, 24
THINGS, PLACES = 4, 3
COLOURS = np.array([[0, 200, 0], [200, 0, 0], [240, 240, 200], [20, 20, 230]])
PROTOCOL = Protocol(task="permanence", context=LOOK + AWAY, gone=AWAY, horizon=2, episodes=CLIPS)


def room(draw: np.random.Generator, thing: int, place: int) -> tuple[np.ndarray, np.ndarray]:
    """A view of a room of a random tint without anything, and with a thing that looks the same in every room."""
    empty = np.clip(draw.normal(draw.uniform(100, 150, 3), 4, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    seen = empty.copy()
    seen[6 : 14 + thing, 2 + 8 * place : 6 + 8 * place] = COLOURS[thing]
    return empty, seen


def clips(protocol: Protocol, count: int = CLIPS) -> tuple[list[EvalClip], Conditions]:
    """All things at all places, equally often and in random order."""
    draw, made = np.random.default_rng(0), []
    for episode, kind in enumerate(draw.permutation(count)):
        thing, place = int(kind % THINGS), int(kind // THINGS % PLACES)
        empty, seen = room(draw, thing, place)
        visible = np.array([True] * LOOK + [False] * AWAY + [True] * LOOK)
        frames = np.where(visible[:, None, None, None], seen, empty)
        pose = np.zeros((len(frames), 3), np.float32)
        pose[~visible, 2] = np.pi
        labels = {"object": np.where(visible, thing, -1), "place": np.where(visible, place, -1)}
        actions = np.zeros((len(frames), 2), np.float32)
        made.append(build_clip(protocol, episode, frames, pose, actions, labels))
    poses = np.stack([np.stack([q.pose[:, 0] * 0, q.pose[:, 1] * 0, np.cos(q.pose[:, 2]), np.sin(q.pose[:, 2])], 1)
                      for q in made if q.pose is not None])  # fmt: skip
    return made, Conditions(pose=torch.from_numpy(poses.astype(np.float32)))


Make = Callable[[Sequence[EvalClip]], System]


def rows(make: Make, protocol: Protocol = PROTOCOL) -> pd.DataFrame:
    made, conditions = clips(protocol)
    measure = TASKS["permanence"].measure
    assert measure is not None
    return pd.DataFrame(measure(make, protocol, made, conditions))


def means(make: Make, protocol: Protocol = PROTOCOL) -> dict[str, float]:
    found = rows(make, protocol)
    assert len(found) == CLIPS * 2 * 4 and set(found.distance) == {protocol.gone}
    return dict(found.groupby("metric").value.mean())


def strangers(make: Callable[[], System], protocol: Protocol = PROTOCOL) -> Make:
    """Each clip's system is shown the context of the clip after it."""
    every, _ = clips(protocol)

    def build(some: Sequence[EvalClip]) -> System:
        others = [every[(question.episode + 1) % CLIPS].frames[: protocol.context] for question in some]
        return SwappedContext(make(), torch.from_numpy(np.stack(others)))

    return build


class Guesses:
    """Knows all about such rooms and nothing of this one: it always makes the same thing in the middle."""

    frames_per_step = 1

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        self.clips = len(frames)

    def step(self, conditions: Conditions) -> Tensor:
        _, seen = room(np.random.default_rng(1), 1, 1)
        return torch.from_numpy(seen)[None, None].expand(self.clips, -1, -1, -1, -1)


def test_the_truth_is_the_ceiling_and_the_last_frame_the_floor() -> None:
    ceiling = {"colour": 1.0, "object_psnr": IDENTICAL_PSNR, "place": 1.0, "there": 1.0}
    assert means(lambda some: Truth(some, PROTOCOL.context)) == ceiling
    assert means(lambda some: NearestPose()) == ceiling, "the first look is the truth"
    for floor in (CopyLast, ContextMean):
        found = means(lambda some, floor=floor: floor())
        assert (found["there"], found["place"], found["colour"]) == (0, 0, 0)
        assert found["object_psnr"] < 20


def test_without_memory_place_and_colour_are_chance() -> None:
    """One answer for all is exactly chance; a stranger's view is chance within what so many clips tell."""
    guesses = means(lambda some: Guesses())
    assert guesses["place"] == pytest.approx(1 / PLACES) and guesses["colour"] == pytest.approx(1 / THINGS)
    other = means(strangers(NearestPose))
    for metric, chance in (("place", 1 / PLACES), ("colour", 1 / THINGS)):
        assert abs(other[metric] - chance) < 3 * np.sqrt(chance * (1 - chance) / CLIPS)
    assert guesses["there"] > 0.9 and other["there"] > 0.9, "that there is something is known of all such rooms"


@pytest.mark.parametrize("gone", [1, 4, 7, AWAY])
def test_a_window_of_k_frames_finds_what_was_gone_for_less(gone: int) -> None:
    protocol = PROTOCOL.model_copy(update={"context": LOOK + gone, "gone": gone, "away": AWAY})
    for known in (gone, gone + 1, gone + 5):
        found = means(lambda some, known=known: Window(known), protocol)
        remembered = float(known > gone)  # the last frame of the look is gone + 1 frames back
        assert (found["there"], found["place"], found["colour"]) == (remembered,) * 3


def test_the_middle_of_a_longer_absence_is_left_out() -> None:
    protocol = PROTOCOL.model_copy(update={"context": LOOK + 5, "gone": 5, "away": AWAY})
    order, distance = TASKS["permanence"].frame_order(protocol)
    assert order.tolist() == [0, 1, 2, 3, 4, 5, 13, 14, 15, 16] and distance.tolist() == [5, 5]
    assert PROTOCOL.hash != protocol.hash and protocol.frames == LOOK + AWAY + 2
    assert TASKS["permanence"].frame_order(PROTOCOL)[0].tolist() == list(range(LOOK + AWAY + 2))


def test_what_a_thing_looks_like_is_read_off_the_clips() -> None:
    draw = np.random.default_rng(0)
    views = [room(draw, thing, place) for thing in (0, 2) for place in (0, 2) for _ in range(3)]
    told = np.array([[(thing, place)] for thing in (0, 2) for place in (0, 2) for _ in range(3)])
    empty, seen = (np.stack(frames) for frames in zip(*views, strict=True))
    sprites = find_sprites(seen[:, None], empty, told)
    assert list(sprites.masks) == [(0, 0), (0, 2), (2, 0), (2, 2)]
    rows, columns = np.nonzero(sprites.masks[(2, 2)])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 15, 18, 21)
    other_empty, other = room(draw, 2, 2)
    assert sprites.read(other, other_empty) == (2, 2) and sprites.read(other_empty, other_empty) is None
    for grey in (0, 90, 128, 255):
        assert sprites.read(np.full_like(other, grey), other_empty) is None, "nothing stands out of it"
    faint = (0.4 * other + 0.6 * other_empty).astype(np.uint8)
    assert sprites.read(faint, other_empty) is None, "more gone than there"
    with pytest.raises(ValueError, match="thing 0 at place 0: its view is the view without it"):
        find_sprites(empty[:, None], empty, told)


def test_several_things_are_gone_for_as_long_as_each_was() -> None:
    protocol = Protocol(task="permanence", context=8, gone=4, horizon=4, episodes=2, metrics=["there"])
    draw, made = np.random.default_rng(0), []
    for episode in range(2):
        (empty, one), (_, two) = room(draw, 0, 0), room(draw, 1, 2)
        frames = np.stack([one, one, two, two, *[empty] * 4, one, one, two, two])
        labels = {"object": np.array([0, 0, 1, 1, *[-1] * 4, 0, 0, 1, 1]), "place": np.array([0, 0, 2, 2] * 3)}
        pose, actions = np.zeros((12, 3), np.float32), np.zeros((12, 2), np.float32)
        made.append(build_clip(protocol, episode, frames, pose, actions, labels))
    measure = TASKS["permanence"].measure
    assert measure is not None
    conditions = Conditions(pose=torch.zeros(2, 12, 4))
    found = pd.DataFrame(measure(lambda some: Truth(some, 8), protocol, made, conditions))
    assert found[found.episode == 0].distance.tolist() == [6, 6, 6, 6] and found.value.min() == 1


def test_an_episode_of_another_layout_is_named() -> None:
    late = PROTOCOL.model_copy(update={"context": LOOK + AWAY - 2, "gone": AWAY - 2})
    with pytest.raises(ValueError, match="episode 0 cannot be asked: nothing is to be seen in frame 13 of the second"):
        rows(lambda some: CopyLast(), late)
    early = PROTOCOL.model_copy(update={"gone": AWAY + 1})
    with pytest.raises(ValueError, match="something is to be seen in frame 2, where all is to be gone"):
        rows(lambda some: CopyLast(), early)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gone": LOOK + AWAY}, "gone: 15 leaves nothing to be seen of the 15 frames"),
        ({"horizon": LOOK + 1}, "horizon: 4 is more than the 3 frames of a look"),
        ({"away": AWAY - 1}, "away: 11 frames are fewer than the 12"),
        ({"episodes": 1}, "episodes: 1; what is possible is read off the clips, so two at least"),
    ],
)
def test_protocols_that_make_no_sense_are_told(change: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        assert PROTOCOL.model_copy(update=change).frames
    with pytest.raises(ValueError, match="gone: retrieval has no such field; it is of permanence"):
        Protocol(task="retrieval", gone=3)
