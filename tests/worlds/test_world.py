"""A world that one holds: what it makes is what evaluation makes, and any moment of it can be had again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longtake.errors import UserError
from longtake.evals.systems import ModelSystem, generate
from longtake.models.conditions import Conditions
from longtake.models.config import SamplerConfig
from longtake.models.tokenizer import PIXELS
from longtake.motion import relative_pose
from longtake.worlds.world import World
from tests.models.families import CAUSAL
from tests.worlds.played import ABOUT, CONTROLS, exported, seen

SAMPLER = SamplerConfig(steps=2, context_noise=0.1)
MOVES = ["forward", "turn left", "forward", "turn right", "forward", "forward"]


def load(folder: Path, **options: Any) -> World:
    return World.load(str(folder), sampler=SAMPLER, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(exported(tmp_path_factory.mktemp("world") / "tiny"))


@pytest.fixture
def world(folder: Path) -> World:
    world = load(folder)
    frames, pose = seen(6)
    world.observe(frames, pose=pose)
    return world


def walk(world: World, moves: list[str] = MOVES) -> np.ndarray:
    return np.stack([world.step(move) for move in moves])


@pytest.mark.parametrize("family", ["block_ssm", "block_ssm_chunks", "block_delta", "causal_window", "causal_full"])
def test_frames_are_those_of_an_evaluation_bit_for_bit(tmp_path: Path, family: str) -> None:
    """For the same seeds, context, poses and streams side by side."""
    context, horizon = 6, 6
    frames, pose = seen(context + horizon, streams=3)
    world = load(Path(exported(tmp_path / "m", family)), seeds=[4, 5, 6], streams=3)
    told = Conditions(pose=torch.from_numpy(np.stack([relative_pose(clip) for clip in pose])))
    system = ModelSystem(world.source.model, PIXELS, SAMPLER, [4, 5, 6])
    expected = generate(system, torch.from_numpy(frames), told, context, horizon).numpy()
    world.observe(frames[:, :context], pose=pose[:, :context])
    per = world.frames_per_step
    steps = [pose[:, t : t + per] if per > 1 else pose[:, t] for t in range(context, context + horizon, per)]
    made = [world.step(pose=at) for at in steps]
    found = np.concatenate(made, 1) if per > 1 else np.stack(made, 1)
    assert np.array_equal(found, expected)


def test_what_it_knows_is_typed(folder: Path) -> None:
    world = load(folder)
    assert world.action_names == ("forward", "turn left", "turn right")
    assert (world.frame_shape, world.fps, world.trained_frames, world.conditioning) == ((8, 8, 3), 5, 12, "pose")
    assert (world.frames, world.nbytes, world.streams, world.pose) == (0, 0, 1, None)
    world.observe(seen(3)[0], pose=seen(3)[1])
    assert world.frames == 3 and world.nbytes > 0 and world.attention_nbytes == 2 * 4 * 2 * 4 * 16 * 3


def test_other_actions_give_other_frames(world: World) -> None:
    other = world.copy()
    assert not np.array_equal(walk(world), walk(other, ["turn left", "forward", *MOVES[2:]]))


def test_an_action_moves_the_pose(world: World) -> None:
    start = world.pose
    assert start is not None
    world.step("forward")
    assert world.pose is not None and np.allclose(np.linalg.norm(world.pose[:2] - start[:2]), 0.5)
    world.step([0, 0.5])
    assert np.allclose(world.pose[2] - start[2], 0.25)


def test_a_fork_is_what_it_was_forked_from(world: World) -> None:
    three = world.fork(3)
    assert three.streams == 3 and not three._single
    alone = walk(world)
    together = np.stack([three.step(move) for move in MOVES], 1)
    # A batch of another size may round otherwise in the last bit of a float, which pictures nearly never show.
    assert (np.abs(together.astype(int) - alone[None]) <= 1).all()
    assert np.array_equal(together[0], together[1]) and np.array_equal(together[0], together[2])


def test_futures_that_are_led_apart_differ(world: World) -> None:
    left, right = world.fork(2).streams_apart()
    assert np.array_equal(left.copy().step("forward"), right.copy().step("forward"))
    assert not np.array_equal(left.step("turn left"), right.step("turn right"))
    two = world.fork(2)
    made = two.step(["turn left", "turn right"])
    assert not np.array_equal(made[0], made[1])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_rewinding_gives_the_bits_that_were(world: World, k: int) -> None:
    first = walk(world)
    world.rewind(k)
    assert world.frames == 12 - k
    assert np.array_equal(walk(world, MOVES[6 - k :]), first[6 - k :])


@pytest.mark.slow
def test_rewinding_far_and_into_what_was_shown(folder: Path) -> None:
    """Few states are kept of many frames; all else is lived through once more."""
    world = load(folder, states=3)
    frames, pose = seen(6)
    world.observe(frames, pose=pose)
    made = walk(world, MOVES * 8)
    assert len(world._history._kept) == 3
    for back in (5, 17, 40):
        again = world.copy().rewind(back)
        assert np.array_equal(walk(again, (MOVES * 8)[48 - back : 50 - back]), made[48 - back : 50 - back])
    world.rewind(world.frames - 4)
    fresh = load(folder)
    fresh.observe(frames[:4], pose=pose[:4])
    assert np.array_equal(walk(world), walk(fresh))


def test_a_fork_goes_back_beyond_where_it_was_forked(world: World) -> None:
    made = walk(world)
    fork = world.fork(2).streams_apart()[1]
    fork.step("forward")
    world.rewind(6)
    walk(world, MOVES[::-1])
    fork.rewind(4)
    assert np.array_equal(walk(fork, MOVES[3:]), made[3:])


def test_forgetting_keeps_where_one_is(world: World) -> None:
    wiped = world.copy().forget()
    assert wiped.nbytes == 0 and wiped.pose is not None and np.array_equal(wiped.pose, world.pose)
    assert not np.array_equal(wiped.step("forward"), world.step("forward"))
    made = wiped.step("forward")
    wiped.rewind(1)
    assert np.array_equal(wiped.step("forward"), made)


@pytest.mark.slow
def test_a_saved_world_goes_on_in_another_process(world: World, tmp_path: Path) -> None:
    walk(world)
    world.save(tmp_path / "world")
    code = (
        "import sys, numpy as np\n"
        "from longtake.worlds.world import World\n"
        f"world = World.resume({str(tmp_path / 'world')!r})\n"
        f"made = [world.step(move) for move in {MOVES!r}]\n"
        "world.rewind(9)\n"
        "made.append(world.step('forward'))\n"
        f"np.save({str(tmp_path / 'made.npy')!r}, np.stack(made))\n"
        "print(sorted({'ray', 'deepspeed'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    expected = list(walk(world))
    world.rewind(9)
    expected.append(world.step("forward"))
    assert np.array_equal(np.load(tmp_path / "made.npy"), np.stack(expected))


def test_a_world_of_other_weights_is_not_resumed(world: World, tmp_path: Path) -> None:
    world.save(tmp_path / "world")
    other = exported(tmp_path / "other", "causal_window")
    with pytest.raises(UserError, match="saved with other weights"):
        World.resume(tmp_path / "world", name=other)
    (tmp_path / "world").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged, or no saved world"):
        World.resume(tmp_path / "world")


@pytest.mark.parametrize("family", sorted(CAUSAL))
def test_streams_of_unlike_ages_go_side_by_side(family: str) -> None:
    """As they go alone; full attention keeps every frame, so there they cannot."""
    from longtake.models.memory import Memory
    from longtake.models.streams import Streams, StreamState
    from tests.models.families import inputs, make

    model = make(family)
    x, _, told = inputs(12, clips=4)
    chunk = model.config.chunk or 1
    pictures = PIXELS.decode(x)
    ages = [6, 9, 6, 9]
    alone = []
    for stream, age in enumerate(ages):
        streams = Streams(model, PIXELS, SAMPLER, [stream])
        streams.observe(pictures[stream : stream + 1, :age], told.clips(stream, stream + 1).frames(0, age))
        alone.append(streams)
    memories = [streams.memory for streams in alone]
    if "full" in family:
        with pytest.raises(ValueError, match="cannot go side by side"):
            Memory.side_by_side(memories, [1] * 4)  # type: ignore[arg-type]
        return
    joined = Memory.side_by_side(memories, [1] * 4)  # type: ignore[arg-type]
    assert joined.frames == 9 and joined.seen.tolist() == ages  # type: ignore[union-attr]
    noise = tuple(streams.state.noise[0] for streams in alone)
    together = Streams(model, PIXELS, SAMPLER, [0] * 4).with_state(StreamState(joined, noise))
    made = together.step(told.frames(0, chunk))
    for stream, own in enumerate(alone):
        expected = own.step(told.clips(stream, stream + 1).frames(0, chunk))[0]
        assert (expected.int() - made[stream].int()).abs().max() <= 1
    memory = together.memory
    assert memory is not None
    flat = Memory.from_dict(memory.to_dict())
    assert flat.seen.tolist() == [age + chunk for age in ages]  # type: ignore[union-attr]
    last = memory.of_streams([3, 0], 4)
    assert last.seen.tolist() == [9 + chunk, 6 + chunk]  # type: ignore[union-attr]


def test_actions_drive_a_model_that_is_told_actions(tmp_path: Path) -> None:
    """With a stride, a frame is told its action once for every recorded step."""
    about = ABOUT.model_copy(
        update={"stride": 2, "pose": None, "controls": CONTROLS.model_copy(update={"motion": None})}
    )
    world = load(Path(exported(tmp_path / "m", about=about, conditions="actions", action_dim=4)))
    frames, _ = seen(4)
    with pytest.raises(UserError, match="actions: missing"):
        world.observe(frames)
    world.observe(frames, actions=np.tile([1, 0.5], (4, 1)))
    other = world.copy()
    assert world.pose is None
    assert not np.array_equal(world.step("forward"), other.step("turn left"))


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (lambda w: w.step("forwrd"), "unknown action 'forwrd' .did you mean forward"),
        (lambda w: w.step([2, 0]), "action: number 0 is 2, allowed are 0 to 1; by name: forward, turn left"),
        (lambda w: w.step([[1, 0], [1, 0]]), "one for each of 1 streams"),
        (lambda w: w.step(pose=[1, 2]), r"pose: \(2,\), expected finite x, y and yaw"),
        (lambda w: w.observe(np.zeros((2, 9, 8, 3), np.uint8)), r"frames: uint8 \(2, 9, 8, 3\), but this world's are"),
        (lambda w: w.observe(np.zeros((2, 8, 8, 3))), "frames: float64"),
        (lambda w: w.observe(seen(7)[0]), "a context of 13, but the training's clips had 12 in all"),
        (lambda w: w.rewind(7), "rewind: 7 frames; there are 6"),
        (lambda w: w.fork(0), "fork: 0 futures"),
    ],
)
def test_wrong_input_is_one_clear_line(world: World, act: Any, problem: str) -> None:
    before = world.frames
    with pytest.raises(UserError, match=problem) as told:
        act(world)
    assert len(told.value.lines) == 1 and world.frames == before


def test_what_is_no_world_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no train run in store .* yet; start one"):
        World.load("latest", store=str(tmp_path / "store"))
    with pytest.raises(UserError, match="no config.json in it"):
        World.load("./nothing")
    folder = Path(exported(tmp_path / "old"))
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"world"', '"was"'))
    (folder / "SHA256SUMS").unlink()
    from longtake.models.exported import write_sums

    write_sums(folder)
    with pytest.raises(UserError, match="exported by an earlier version"):
        World.load(str(folder))


@pytest.mark.slow
def test_three_thousand_frames_take_no_more_memory(folder: Path) -> None:
    """What is kept is of one size; the bar in time and resident memory is measured by `longtake bench world`."""
    world = load(folder, beyond_training=True)
    frames, pose = seen(6)
    world.observe(frames, pose=pose)
    walk(world, ["forward"] * 40)
    early = world.nbytes
    walk(world, ["forward"] * 200)
    assert world.nbytes == early and len(world._history._kept) == 8
