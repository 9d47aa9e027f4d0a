"""Steps that are asked for at the same time go through the model together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

from longtake.worlds.batch import kind, step_together
from longtake.worlds.history import Event
from longtake.worlds.inputs import Frames
from longtake.worlds.world import World


@dataclass(eq=False)
class Request:
    """A step of one session's world, and what waits for its pictures."""

    world: World
    event: Event
    pictures: asyncio.Future[Frames] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """What is asked for while a batch is made is in the next one, which waits a little for those of the last two.

    Of the last two, not the last one: else sessions stay parted in two batches that take turns for good.
    """

    def __init__(self, largest: int, wait_s: float) -> None:
        """`largest`: streams of a batch; `wait_s`: how long one waits for those that are expected."""
        self.largest, self.wait_s = largest, wait_s
        self.sizes: list[int] = []
        self._queue: asyncio.Queue[Request] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._worker: asyncio.Task[None] | None = None

    async def step(self, world: World, event: Event) -> Frames:
        """The pictures that `world.step` would give for an event of `next_event`, with the world led to them."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        request = Request(world, event)
        self._queue.put_nowait(request)
        return await request.pictures

    async def close(self) -> None:
        """Make no more batches."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        last: set[World] = set()
        before = last
        while True:
            batch = await self._gather(len(last | before))
            last, before = {request.world for request in batch}, last
            for part in _parts(batch, self.largest):
                await self._make(part)

    async def _gather(self, expected: int) -> list[Request]:
        batch = [await self._queue.get()]
        deadline = asyncio.get_running_loop().time() + self.wait_s
        while True:
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            left = deadline - asyncio.get_running_loop().time()
            if len(batch) >= min(expected, self.largest) or left <= 0:
                return batch
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), left))
            except TimeoutError:
                return batch

    async def _make(self, part: Sequence[Request]) -> None:
        worlds, events = [request.world for request in part], [request.event for request in part]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, step_together, worlds, events)
        except Exception as error:  # it belongs to those who wait
            for request in part:
                if not request.pictures.done():
                    request.pictures.set_exception(error)
            return
        self.sizes = [*self.sizes[-99:], sum(world.streams for world in worlds)]
        for request, pictures in zip(part, results, strict=True):
            if not request.pictures.done():  # else who waited is gone
                request.pictures.set_result(pictures)


def _parts(batch: Sequence[Request], largest: int) -> Iterator[list[Request]]:
    """Those that can go side by side, in parts of as many streams as a batch may have."""
    kinds = [(str(kind(request.world)), number) for number, request in enumerate(batch)]
    for _, group in groupby(sorted(kinds), key=lambda pair: pair[0]):
        part: list[Request] = []
        for _, number in group:
            if part and sum(request.world.streams for request in [*part, batch[number]]) > largest:
                yield part
                part = []
            part.append(batch[number])
        yield part
