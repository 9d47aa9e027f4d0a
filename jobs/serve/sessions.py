"""Sessions of one model: each a world of its own, stepped in one batch with the others, kept order by order.

A session lies in the store and, while it is used, in memory too. What was answered is in the store: a replica that is
killed loses nothing, and another one reads the session and makes the same bits. Nothing here knows of Ray or HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake.errors import UserError
from longtake.jobs.serve import orders
from longtake.jobs.serve.batcher import Batcher
from longtake.jobs.serve.journal import ID, Journal, Kept, UnknownSession
from longtake.jobs.serve.metrics import Meter, Sample
from longtake.jobs.serve.orders import Forget, Fork, Observe, Order, Rewind, Step
from longtake.storage.store import Store
from longtake.worlds import saved, wire
from longtake.worlds.inputs import Action, Frames
from longtake.worlds.world import World, conditions_device

EVERY = 32
"""Orders from one kept world to the next: as many at most are done again for a session that is read."""


class Conflict(UserError):
    """What is asked does not follow from where the session is."""


@dataclass(frozen=True)
class Limits:
    """largest: streams of a batch, and of a session. wait_s: see Batcher. held: sessions in memory, which leave it
    after `idle_s` seconds without an order."""

    largest: int = 32
    wait_s: float = 0.005
    held: int = 128
    idle_s: float = 300.0


@dataclass(frozen=True)
class Answer:
    """What an order led to: pictures, or None; and the facts of the session then."""

    facts: dict[str, Any]
    frames: Frames | None = None


@dataclass(eq=False)
class Session:
    """A session that a replica knows; `world` is None while it lies in the store alone. `order`: the last one done."""

    id: str
    world: World | None = None
    n: int = 0
    kept: int = 0
    order: bytes = b""
    answer: Answer | None = None
    used: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sessions:
    """All sessions that a replica holds."""

    def __init__(self, store: Store, fresh: World, limits: Limits, least: int) -> None:
        """`fresh`: a world in which nothing was seen, whose model, sampler and settings all have. `least`: streams of a
        forward pass, see `longtake.worlds.batch.exact_batch`."""
        self.fresh, self.limits, self.least = World.of_saved(fresh.as_saved, least), limits, least
        self.journal, self.meter, self.batcher = Journal(store), Meter(), Batcher(limits.largest, limits.wait_s)
        self._held: dict[str, Session] = {}

    async def begin(self, seed: int | None = None, streams: int | None = None) -> dict[str, Any]:
        """Begin a session; its facts. Stream i has the noise of `seed` + i, or a random one. Raises UserError."""
        count = 1 if streams is None else streams
        self._require_few(count)
        first = secrets.randbelow(2**31) if seed is None else seed
        if not 0 <= first <= 2**62:
            raise UserError(f"seed: {seed}; a whole number from 0 to {2**62}")
        world = self.fresh.fresh(range(first, first + count))
        session = secrets.token_hex(12)
        return await self._keep_new(session, world if streams is not None else world.streams_apart()[0])

    async def take(self, data: bytes) -> dict[str, Any]:
        """Begin a session with a world that `World.save` wrote; its facts. Raises UserError."""
        world = await asyncio.to_thread(self._unpacked, data, "world")
        self._require_few(world.streams)
        return await self._keep_new(secrets.token_hex(12), world)

    async def act(self, id: str, order: Order) -> Answer:
        """Do what is asked, once; the same order again has the same answer.

        Raises:
            UnknownSession: there is none, or it was ended.
            Conflict: the session is elsewhere; the line says where.
            UserError: the world refuses it; nothing has happened.
        """
        began = time.monotonic()
        session = self._session(id)
        async with session.lock:
            if session.world is None or session.n not in (order.n, order.n + 1):
                await self._load(session)
            key = order.model_dump_json().encode()
            if session.n == order.n + 1 and session.order == key and session.answer is not None:
                return session.answer
            if session.n != order.n:
                raise Conflict(f"n: {order.n}, but {session.n} orders were done in session {id}")
            answer = await self._do(session, order, key)
        if answer.frames is not None:
            self.meter.add(time.monotonic() - began, answer.facts["streams"] * self.fresh.frames_per_step)
        return answer

    async def facts(self, id: str) -> dict[str, Any]:
        """Where a session is. Raises UnknownSession."""
        session = self._session(id)
        async with session.lock:
            await self._load(session)  # another replica may have led it on
            return _facts(session)

    async def packed(self, id: str) -> bytes:
        """A session as `World.save` writes a world. Raises UnknownSession."""
        session = self._session(id)
        async with session.lock:
            await self._load(session)
            return await asyncio.to_thread(saved.packed, _world(session).as_saved)

    async def end(self, id: str) -> None:
        """Remove a session. Raises UnknownSession."""
        session = self._session(id)
        async with session.lock:
            await asyncio.to_thread(self.journal.read, id)
            self._held.pop(id, None)
            await asyncio.to_thread(self.journal.end, id)

    def tidy(self) -> None:
        """Let sessions leave memory that were not used for long, and the longest unused where there are too many."""
        now, idle = time.monotonic(), [one for one in self._held.values() if not one.lock.locked()]
        idle.sort(key=lambda session: session.used)
        spare = len(self._held) - self.limits.held
        for number, session in enumerate(idle):
            if number < spare or now - session.used > self.limits.idle_s:
                del self._held[session.id]

    def sample(self) -> Sample:
        """How this replica does."""
        return self.meter.sample(len(self._held), self.least, self.batcher.sizes)

    async def close(self) -> None:
        """Make no more batches."""
        await self.batcher.close()

    # --- how -----------------------------------------------------------------------------------------------

    def _session(self, id: str) -> Session:
        if not ID.fullmatch(id):
            raise UnknownSession(f"session {id!r}: there is none; POST /sessions begins one")
        session = self._held.setdefault(id, Session(id))
        session.used = time.monotonic()
        return session

    def _require_few(self, streams: int) -> None:
        if not 1 <= streams <= self.limits.largest:
            raise UserError(f"streams: {streams}; a session has 1 to {self.limits.largest} here")

    async def _keep_new(self, id: str, world: World) -> dict[str, Any]:
        data = await asyncio.to_thread(saved.packed, world.as_saved)
        await asyncio.to_thread(self.journal.begin, id, data)
        session = self._held[id] = Session(id, await asyncio.to_thread(self._unpacked, data, id))
        self.tidy()
        return _facts(session)

    async def _load(self, session: Session) -> None:
        """Bring a session to what the store says of it."""
        session.world = None
        try:
            kept = await asyncio.to_thread(self.journal.read, session.id)
        except UnknownSession:
            self._held.pop(session.id, None)
            raise
        await asyncio.to_thread(self._replay, session, kept)

    def _replay(self, session: Session, kept: Kept) -> None:
        world = self._unpacked(kept.world, f"session {session.id}")
        session.n = session.kept = kept.n
        session.order, session.answer = b"", None
        for order in kept.orders:
            session.world, frames = world, _done(world, orders.read(order))
            session.n += 1
            session.order, session.answer = order, Answer(self._facts_after(session, orders.read(order)), frames)
        session.world = world

    def _unpacked(self, data: bytes, place: str) -> World:
        facts = saved.unpacked(data, place, lambda _: self.fresh.source, str(conditions_device(self.fresh)))
        return World.of_saved(facts, self.least)

    async def _do(self, session: Session, order: Order, key: bytes) -> Answer:
        world = _world(session)
        if session.n - session.kept >= EVERY:
            data = await asyncio.to_thread(saved.packed, world.as_saved)
            await asyncio.to_thread(self.journal.begin, session.id, data, session.n)
            session.kept = session.n
        try:
            frames = await self._happened(session, world, order)
        except UserError:
            raise  # nothing has happened
        except BaseException:
            session.world = None
            raise
        try:
            mine = await asyncio.to_thread(self.journal.append, session.id, session.n + 1, key)
            if not mine:
                raise Conflict(f"n: {order.n}, but another client led session {session.id} on from there")
        except BaseException:  # what is in memory may be ahead of the store, which is what counts
            session.world = None
            raise
        session.n, session.order = session.n + 1, key
        session.answer = Answer(self._facts_after(session, order), frames)
        return session.answer

    async def _happened(self, session: Session, world: World, order: Order) -> Frames | None:
        if isinstance(order, Step):
            return await self.batcher.step(world, world.next_event(_action(order), _array(order.pose, "pose")))
        if isinstance(order, Fork):
            self._require_few(len(order.streams))
            part = world.of_streams(order.streams) if not order.single else _single(world, order.streams)
            data = await asyncio.to_thread(saved.packed, part.as_saved)
            await asyncio.to_thread(self.journal.begin, fork_id(session.id, order.n), data)
            return None
        return await asyncio.to_thread(_done, world, order)

    def _facts_after(self, session: Session, order: Order) -> dict[str, Any]:
        fork = {"fork": fork_id(session.id, order.n)} if isinstance(order, Fork) else {}
        return _facts(session) | fork


def _world(session: Session) -> World:
    assert session.world is not None
    return session.world


def fork_id(session: str, n: int) -> str:
    """The id of the session that a fork makes: the same however often it is asked."""
    return hashlib.sha256(f"{session}/{n}".encode()).hexdigest()[:24]


def _single(world: World, streams: Sequence[int]) -> World:
    if len(streams) != 1:
        raise UserError(f"single: {len(streams)} streams; of one alone arrays have no axis of streams")
    return world.of_streams(streams).streams_apart()[0]


def _done(world: World, order: Order) -> Frames | None:
    """Do an order in a world by itself; the pictures of a step. A fork changes nothing in it."""
    if isinstance(order, Step):
        return world.step(_action(order), pose=_array(order.pose, "pose"))
    if isinstance(order, Observe):
        frames = wire.array(wire.data(order.frames, "frames"), "frames")
        world.observe(frames, actions=_array(order.actions, "actions"), pose=_array(order.pose, "pose"))
    elif isinstance(order, Rewind):
        world.rewind(order.k)
    elif isinstance(order, Forget):
        world.forget()
    return None


def _action(order: Step) -> Action | None:
    """A name, names, or numbers."""
    names = order.action
    named = isinstance(names, str) or (isinstance(names, list) and names and all(isinstance(n, str) for n in names))
    return names if named else _array(names, "action")


def _array(values: Any, what: str) -> NDArray[np.float64] | None:
    try:
        return None if values is None else np.asarray(values, np.float64)
    except (ValueError, TypeError):
        raise UserError(f"{what}: no array of numbers, its rows of one length") from None


def _facts(session: Session) -> dict[str, Any]:
    """What a client is told of its session."""
    world = _world(session)
    return {
        "session": session.id,
        "n": session.n,
        "frames": world.frames,
        "streams": world.streams,
        "single": world.as_saved.single,
        "nbytes": world.nbytes,
        "attention_nbytes": world.attention_nbytes,
        "pose": None if world.pose is None else world.pose.tolist(),
    }
