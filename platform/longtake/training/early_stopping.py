"""A train loop that is measured at its checkpoints and ends where a judge says so.

`EarlyStoppingContext` goes around any context. After each checkpoint rank 0 measures and asks; a no raises `Stopped`
in every rank. The judge may live in another process: `StoreChannel` carries question and answer through the store.
A run that was interrupted between a checkpoint and its verdict is measured again when it resumes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import Damaged, UserError
from longtake.storage import seals
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.storage.store import Store
    from longtake.training.context import Context, Write

Numbers = dict[str, float]
Measure = Callable[[int, Numbers], Numbers]
"""(step, numbers that the loop told last) → what the judge is to know. Runs in rank 0."""
Judge = Callable[[int, Numbers], bool]
"""(step, numbers) → whether to go on."""

POLL_S = 0.1
ANSWER_WITHIN_S = 600.0
ASK_AGAIN_S = 30.0


class Stopped(Exception):
    """The judge ended the run at a checkpoint."""


class EarlyStoppingContext:
    """A context that is judged at each checkpoint, also at the one it resumes from."""

    def __init__(self, inner: Context, measure: Measure, judge: Judge) -> None:
        self._inner, self._measure, self._judge = inner, measure, judge
        self._told: Numbers = {}
        self.rank, self.world, self.device = inner.rank, inner.world, inner.device
        self.run_id, self.store = inner.run_id, inner.store

    @property
    def is_ending(self) -> bool:
        """Never: it is judged at the steps that it was planned with, and goes on from the last of them."""
        return False

    @contextlib.contextmanager
    def resume(self) -> Iterator[Path | None]:
        """The newest checkpoint, judged before it is gone on from."""
        with self._inner.resume() as folder:
            if folder is not None:
                self._ask(checkpoints.step_in(folder))
            yield folder

    def save(self, step: int, write: Write, metrics: Numbers | None = None) -> None:
        """Checkpoint, then the verdict on it."""
        self._inner.save(step, write, metrics)
        self.finish()  # a judge reads it
        self._ask(step)

    def finish(self) -> None:
        """As the inner context's."""
        self._inner.finish()

    def progress(self, step: int, of: int, **numbers: float) -> None:
        """Told as ever, and kept for the measurement."""
        self._told = numbers
        self._inner.progress(step, of, **numbers)

    def mean(self, **numbers: float) -> Numbers:
        """Each number averaged over ranks."""
        return self._inner.mean(**numbers)

    def require_lease(self) -> None:
        """As the inner context's."""
        self._inner.require_lease()

    def _ask(self, step: int) -> None:
        stop = 0.0
        if self.rank == 0:
            stop = float(not self._judge(step, self._measure(step, self._told)))
        if self._inner.mean(stop=stop)["stop"] > 0:
            raise Stopped(f"stopped at step {step}")


@dataclass(frozen=True)
class StoreChannel:
    """Two small files in a run's folder: the question of rank 0, and the answer of whoever started the run."""

    store: Store
    run: str
    session: str

    def ask(self, step: int, numbers: Numbers) -> bool:
        """Ask, and wait for the answer; a question, or an answer, that rots on its way is written again."""
        began, times = time.monotonic(), 0
        while (waited := time.monotonic() - began) < ANSWER_WITHIN_S:
            if waited >= times * ASK_AGAIN_S:
                times += 1
                self._put("question", {"session": self.session, "step": step, "numbers": numbers, "times": times})
            answer = self._get("answer")
            if answer is not None and answer["step"] == step:
                return bool(answer["go_on"])
            time.sleep(POLL_S)
        raise RuntimeError(f"run {self.run}: no verdict on step {step} within {ANSWER_WITHIN_S:.0f} s")

    @contextlib.contextmanager
    def answered_by(self, judge: Judge) -> Iterator[None]:
        """Answer questions while the block runs, from a thread."""
        over = threading.Event()
        thread = threading.Thread(target=self._serve, args=(judge, over), name="mailbox", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            for name in ("question", "answer"):
                with contextlib.suppress(FileNotFoundError):
                    self.store.fs.rm_file(self.store.path(self._name(name)))

    def _serve(self, judge: Judge, over: threading.Event) -> None:
        answered: dict[str, Any] | None = None
        verdicts: dict[int, bool] = {}
        while not over.wait(POLL_S):
            # A store that is away for a moment is asked again.
            with contextlib.suppress(OSError, UserError):
                request = self._get("question")
                if request is not None and request != answered:
                    step = request["step"]
                    verdicts[step] = verdicts[step] if step in verdicts else judge(step, request["numbers"])
                    self._put("answer", {"session": self.session, "step": step, "go_on": verdicts[step]})
                    answered = request

    def _name(self, name: str) -> str:
        return f"runs/{self.run}/{name}.json"

    def _put(self, name: str, content: dict[str, Any]) -> None:
        self.store.write_bytes(self._name(name), seals.dumped(content))

    def _get(self, name: str) -> dict[str, Any] | None:
        """What lies there, if it is of this session; what is damaged is as good as none."""
        try:
            message = seals.loaded(self.store.read_bytes(self._name(name)), self._name(name))
        except (FileNotFoundError, Damaged):
            return None
        return message if message.get("session") == self.session else None
