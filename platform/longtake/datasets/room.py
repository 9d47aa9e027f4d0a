"""How much memory a file of others may take: asked for before it is taken, for small files can claim anything.

Within `limited(bytes)` readers call `take` with what a header claims, before they allocate that or unpack it. Outside
of such a block nothing is limited: what we have written ourselves is known by its checksums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar


class TooLarge(ValueError):
    """A file claims more memory than it may have; the message says what, and how to allow it."""


_left: ContextVar[tuple[int, int] | None] = ContextVar("left", default=None)
"""Bytes that may still be taken, and how many there were."""


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """What is taken in the block may be `size` bytes in all."""
    token = _left.set((size, size))
    try:
        yield
    finally:
        _left.reset(token)


def take(size: int, what: str) -> None:
    """Take some bytes for `what`. Raises TooLarge."""
    require(size, what)
    if (room := _left.get()) is not None:
        _left.set((room[0] - size, room[1]))


def require(size: int, what: str) -> None:
    """Ask whether there is room for what will be taken bit by bit. Raises TooLarge."""
    room = _left.get()
    if room is None:
        return
    left, most = room
    if size > left:
        raise TooLarge(
            f"{what} would take {size / 1e9:.3g} GB of memory, {left / 1e9:.3g} of {most / 1e9:.3g} GB are left for an "
            "episode (max_episode_gb)"
        )
