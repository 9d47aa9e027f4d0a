"""Sessions: the same bits alone and among others, after another process read them, and for an order asked twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.errors import UserError
from longtake.jobs.serve import orders, sessions
from longtake.jobs.serve.journal import UnknownSession
from longtake.jobs.serve.orders import Forget, Fork, Observe, Rewind, Step
from longtake.jobs.serve.sessions import Conflict, Limits, Sessions
from longtake.models.config import SamplerConfig
from longtake.storage.store import open_store
from longtake.worlds import wire
from longtake.worlds.batch import exact_batch
from longtake.worlds.world import World
from tests.worlds.played import exported, seen

MOVES = ["forward", "turn left", "forward", "turn right", "forward", "forward"]
LIMITS = Limits(largest=8, wait_s=0.2)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = exported(tmp_path_factory.mktemp("serve") / "tiny", trained=200)
    return World.load(folder, sampler=SamplerConfig(steps=1), states=2)


@pytest.fixture(scope="module")
def least(fresh: World) -> int:
    return exact_batch(fresh, LIMITS.largest)


@pytest.fixture
def served(fresh: World, least: int, tmp_path: Path) -> Callable[[], Sessions]:
    """Makes replicas of one store."""
    return lambda: Sessions(open_store(tmp_path), fresh, LIMITS, least)


def observe(n: int, seed: int, frames: int = 4) -> Observe:
    shown, pose = seen(frames, seed=seed)
    return Observe(n=n, frames=wire.text(wire.npy(shown)), pose=pose.tolist())


async def walk(replica: Sessions, id: str, seed: int, moves: list[str] = MOVES) -> list[np.ndarray]:
    await replica.act(id, observe(0, seed))
    return [await step(replica, id, 1 + n, move) for n, move in enumerate(moves)]


async def step(replica: Sessions, id: str, n: int, move: str = "forward") -> np.ndarray:
    answer = await replica.act(id, Step(n=n, action=move))
    assert answer.frames is not None and answer.facts["n"] == n + 1
    return answer.frames


def run(work: Awaitable[Any]) -> Any:
    async def whole() -> Any:
        return await asyncio.wait_for(work, 280)

    return asyncio.run(whole())


async def begun(replica: Sessions, seed: int) -> str:
    return str((await replica.begin(seed))["session"])


def memory(replica: Sessions, id: str) -> list[np.ndarray]:
    world = replica._held[id].world
    assert world is not None and world.memory is not None
    return [part.numpy() for part in world.memory.tensors]


def test_a_session_makes_the_same_bits_alone_and_among_others(served: Callable[[], Sessions]) -> None:
    """Not the pictures alone: what is remembered too."""

    async def together() -> None:
        crowd, alone = served(), served()
        ids = [await begun(crowd, seed) for seed in range(5)]
        walks = [MOVES[seed % 3 :] for seed in range(5)]
        made = await asyncio.gather(*(walk(crowd, id, s, walks[s]) for s, id in enumerate(ids)))
        assert max(crowd.batcher.sizes) == 5, "nothing was batched"
        for seed, id in enumerate(ids):
            other = await begun(alone, seed)
            assert np.array_equal(await walk(alone, other, seed, walks[seed]), made[seed])
            for one, two in zip(memory(crowd, id), memory(alone, other), strict=True):
                assert np.array_equal(one, two)

    run(together())


def test_more_streams_than_a_batch_holds_and_unlike_kinds(served: Callable[[], Sessions]) -> None:
    async def together() -> None:
        replica = served()
        many = [str((await replica.begin(seed, 5))["session"]) for seed in range(3)]
        empty = await begun(replica, 9)
        one = await begun(replica, 9)
        await replica.act(one, observe(0, 1))
        made = await asyncio.gather(
            *(step(replica, id, 0) for id in many), step(replica, empty, 0), step(replica, one, 1)
        )
        assert [frames.shape for frames in made] == [(5, 8, 8, 3)] * 3 + [(8, 8, 3)] * 2
        with pytest.raises(UserError, match="streams: 9; a session has 1 to 8 here"):
            await replica.begin(0, 9)

    run(together())


@pytest.mark.parametrize("moves", [5, 40])
def test_another_replica_goes_on_with_the_same_bits(served: Callable[[], Sessions], moves: int) -> None:
    """Nothing is handed over but the store: as after a kill. Going back too."""

    async def lost() -> None:
        first, steady = served(), served()
        id, other = await begun(first, 3), await begun(steady, 3)
        await walk(first, id, 1, ["forward"] * moves)
        await walk(steady, other, 1, ["forward"] * moves)
        second = served()
        for n, move in enumerate(MOVES, moves + 1):
            assert np.array_equal(await step(second, id, n, move), await step(steady, other, n, move))
        n = moves + 1 + len(MOVES)
        for replica, session in ((second, id), (steady, other)):
            await replica.act(session, Rewind(n=n, k=5))
        assert np.array_equal(await step(second, id, n + 1), await step(steady, other, n + 1))

    run(lost())


def test_an_order_that_is_asked_twice_is_done_once(served: Callable[[], Sessions]) -> None:
    async def twice() -> None:
        first, second = served(), served()
        id = await begun(first, 3)
        made = await walk(first, id, 1)
        n = len(MOVES)
        assert np.array_equal(await step(first, id, n, MOVES[-1]), made[-1])
        assert np.array_equal(await step(second, id, n, MOVES[-1]), made[-1]), "a replica that has just read it"
        assert (await second.facts(id))["frames"] == 4 + n
        with pytest.raises(Conflict, match=f"n: {n}, but {n + 1} orders were done"):
            await step(first, id, n, "turn left")
        with pytest.raises(Conflict):
            await step(first, id, n + 5)

    run(twice())


def test_a_replica_that_was_left_behind_reads_the_session_anew(served: Callable[[], Sessions]) -> None:
    async def behind() -> None:
        first, second = served(), served()
        id = await begun(first, 3)
        await walk(first, id, 1)
        n = 1 + len(MOVES)
        await step(second, id, n)
        with pytest.raises(Conflict, match="another client led session"):
            await step(first, id, n, "turn left")
        assert np.array_equal(await step(first, id, n), await step(second, id, n))
        assert np.array_equal(await step(first, id, n + 1), await step(second, id, n + 1))

    run(behind())


def test_what_a_full_store_did_not_keep_did_not_happen(
    served: Callable[[], Sessions], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full() -> None:
        first, steady = served(), served()
        id, other = await begun(first, 3), await begun(steady, 3)
        await walk(first, id, 1)
        await walk(steady, other, 1)
        n = 1 + len(MOVES)

        def refuse(*_: object) -> bool:
            raise UserError("store: no space")

        with monkeypatch.context() as patch, pytest.raises(UserError, match="no space"):
            patch.setattr(first.journal, "append", refuse)
            await step(first, id, n)
        assert np.array_equal(await step(first, id, n), await step(steady, other, n))

    run(full())


def test_idle_sessions_leave_memory_and_come_back(
    served: Callable[[], Sessions], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def idle() -> None:
        replica = served()
        id = await begun(replica, 3)
        await walk(replica, id, 1)
        replica._held[id].used -= LIMITS.idle_s + 1
        replica.tidy()
        assert id not in replica._held
        assert (await step(replica, id, 1 + len(MOVES))).shape == (8, 8, 3)
        monkeypatch.setattr(replica, "limits", Limits(held=1))
        await begun(replica, 4)
        assert len(replica._held) == 1

    run(idle())


def test_an_ended_session_is_gone_everywhere(served: Callable[[], Sessions]) -> None:
    async def end() -> None:
        first, second = served(), served()
        id = await begun(first, 3)
        await walk(first, id, 1)
        await second.end(id)
        assert first.journal.count() == 0
        for replica in (first, second):
            with pytest.raises(UnknownSession):
                await replica.facts(id)
        for name in ("..", "f" * 23, "F" * 24):
            with pytest.raises(UnknownSession):
                await first.facts(name)

    run(end())


def test_forks_are_sessions_of_their_own(served: Callable[[], Sessions]) -> None:
    async def fork() -> None:
        replica = served()
        id = await begun(replica, 3)
        await walk(replica, id, 1)
        n = 1 + len(MOVES)
        answer = await replica.act(id, Fork(n=n, streams=[0, 0, 0]))
        assert answer == await replica.act(id, Fork(n=n, streams=[0, 0, 0])), "asked twice, forked once"
        three = await step(replica, answer.facts["fork"], 0)
        one = await step(replica, id, n + 1)
        assert three.shape == (3, 8, 8, 3) and all(np.array_equal(one, other) for other in three)
        with pytest.raises(UserError, match="rewind: 5 frames; what was before frame"):
            await replica.act(answer.facts["fork"], Rewind(n=1, k=5))
        await replica.act(id, Forget(n=n + 2))
        assert (await served().facts(id))["nbytes"] == 0

    run(fork())


def test_what_the_world_refuses_did_not_happen(served: Callable[[], Sessions]) -> None:
    async def refused() -> None:
        replica = served()
        id = await begun(replica, 3)
        await walk(replica, id, 1)
        n = 1 + len(MOVES)
        frames = wire.text(wire.npy(np.zeros((2, 4, 4, 3), np.uint8)))
        long = wire.text(wire.npy(np.zeros((200, 8, 8, 3), np.uint8)))
        for order, line in (
            (Step(n=n, action="forwards"), "did you mean forward"),
            (Step(n=n, action=[7, 0]), "action: "),
            (Step(n=n, action=[[1], [1, 2]]), "action: no array of numbers"),
            (Step(n=n, pose=["a"]), "pose: no array of numbers"),
            (Observe(n=n, frames=frames), "this world's are uint8"),
            (Observe(n=n, frames=long), "a context of 210, but the training's clips had 200"),
            (Observe(n=n, frames="*"), "frames: no base64"),
            (Observe(n=n, frames=wire.text(b"no")), "frames: no npy file"),
            (Rewind(n=n, k=99), "rewind: 99 frames"),
            (Fork(n=n, streams=[1]), "streams: "),
            (Fork(n=n, streams=[]), "streams: 0"),
        ):
            with pytest.raises(UserError, match=line):
                await replica.act(id, order)
        assert (await step(replica, id, n)).shape == (8, 8, 3)

    run(refused())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "an order is JSON"),
        ("[]", "unknown op"),
        ('{"op": "stepp", "n": 0}', "did you mean step"),
        ('{"op": "step"}', "n: field required"),
        ('{"op": "step", "n": -1}', "n: input should be greater"),
        ('{"op": "step", "n": 0, "actoin": "forward"}', "did you mean action"),
        ('{"op": "rewind", "n": 0, "k": "much"}', "k: "),
    ],
)
def test_what_is_no_order_is_told(text: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        orders.read(text)


def test_worlds_are_kept_now_and_then(served: Callable[[], Sessions], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "EVERY", 3)

    async def kept() -> None:
        replica = served()
        id = await begun(replica, 3)
        await walk(replica, id, 1)
        names = [name.rpartition("/")[2] for name in replica.journal.store.list(f"sessions/{id}")]
        assert [name for name in names if name.endswith("world")] == ["00000006.world"]
        assert len([name for name in names if name.endswith("json")]) == 1 + len(MOVES)

    run(kept())
