"""Progress bars: rich on a terminal, a line now and then where output is piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longtake.training.progress_file import Progress

PIPED_INTERVAL_S = 15.0


@contextmanager
def bar(label: str, numbers: str = "") -> Iterator[Callable[..., None]]:
    """A bar as a function `update(done, total, text)`; shows time left."""
    if not sys.stdout.isatty():
        yield _Lines(label)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}")) as rich:
        task = rich.add_task(label, total=None, text=numbers)

        def update(done: int, total: int, text: str = "") -> None:
            rich.update(task, completed=done, total=total, text=text)

        yield update


class _Lines:
    """The same function for a pipe: a line at most every `PIPED_INTERVAL_S`, and one at the end."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = self._last = time.monotonic()
        self._base: tuple[int, float] | None = None

    def __call__(self, done: int, total: int, text: str = "") -> None:
        now = time.monotonic()
        if done and self._base is None:
            self._base = (done, now)  # the speed counts from here: starting up is not work
        if done < total and now - self._last < PIPED_INTERVAL_S:
            return
        self._last = now
        words = [f"{self._label}: {done}/{total}", f"{now - self._began:.0f} s"]
        if self._base is not None and self._base[0] < done < total:
            first, since = self._base
            words.append(f"{(now - since) / (done - first) * (total - done):.0f} s left")
        print(", ".join([*words, text] if text else words), flush=True)


@contextmanager
def training_bar(label: str, steps: int, quiet: bool = False) -> Iterator[Callable[[Progress], None] | None]:
    """A bar for a training run, fed with what rank 0 tells."""
    if quiet:
        yield None
        return
    with bar(f"train {label}", "starting the workers") as update:

        def show(progress: Progress) -> None:
            numbers = progress.numbers
            words = (
                [f"loss {numbers['loss']:.4f}", f"{numbers['frames_per_s']:.0f} frames/s"] if "loss" in numbers else []
            )
            if "data_wait" in numbers:
                words.append(f"waits for data {numbers['data_wait']:.0%}")
            if "state_drift" in numbers:
                words.append(f"state spreads {numbers['state_drift']:+.0%} by a clip's end")
            if progress.restarts:
                words.append(f"workers replaced {progress.restarts}x")
            update(progress.step, steps, "  ".join(words))

        yield show


@contextmanager
def grid_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a grid of cells."""
    with bar(label) as update:
        yield lambda done, total: update(done, total)
