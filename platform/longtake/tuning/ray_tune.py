"""What `sweeps.run` hands to Ray Tune: an actor that runs trials, and the driver's side that asks the study.

Tune keeps no state that matters. Its searcher hands out what the study says, its scheduler passes on the
study's verdicts, and its own bookkeeping is thrown away: resume looks at the study only.
"""

from __future__ import annotations

import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from longtake.training.early_stopping import Numbers
from longtake.tuning import outcome, sweep_demand
from longtake.tuning.study import Assignment, Study

log = logging.getLogger(__name__)
JOIN_S = 300.0


def run(
    study: Study,
    trial: Callable[..., None],
    payload: Any,
    trials: int,
    need: sweep_demand.SweepDemand,
    max_failures: int,
    on_event: outcome.OnEvent,
) -> None:
    """See `sweeps.run`."""
    unfinished = study.unfinished()
    left = trials - (len(study) - len(unfinished))
    if left <= 0:
        return
    searcher = _Searcher(study, unfinished, left, need.at_once)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        _fit(study, searcher, trial, payload, need, left, max_failures, on_event)
    finally:
        study.release()


def _fit(
    study: Study,
    searcher: _Searcher,
    trial: Callable[..., None],
    payload: Any,
    need: sweep_demand.SweepDemand,
    left: int,
    max_failures: int,
    on_event: outcome.OnEvent,
) -> None:
    # Tune wants a place to write to; nothing is read from there again.
    with tempfile.TemporaryDirectory(prefix="longtake-tune-") as folder:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(TrialActor, trial=trial, payload=payload), need.trial_resources()),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_Scheduler(study, on_event),
                num_samples=left,
                reuse_actors=not need.nested,
            ),
            run_config=tune.RunConfig(
                name=study.sweep,
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=max_failures),
                callbacks=[_Ends(study, searcher, on_event)],
            ),
        ).fit()


class TrialActor(tune.Trainable):
    """Runs trials, one after the other. A trial has a thread, which waits at each checkpoint for the verdict."""

    def setup(self, config: dict[str, Any], trial: Callable[..., None] = print, payload: Any = None) -> None:
        """Begin the first trial; Tune hands in `trial` and `payload`."""
        self._trial, self._payload = trial, payload
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """Let the trial go on; return its next checkpoint's numbers, or how it ended."""
        return self._talk.next()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End this trial and begin another; False if it does not end, and Tune takes a fresh actor."""
        if not self._talk.stop():
            return False
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """End the trial: it leaves its checkpoint, and its workers have ended when this returns."""
        self._talk.stop()

    def _begin(self, config: dict[str, Any]) -> None:
        given = Assignment(config["number"], config["run"], config["labels"])
        self._talk = ThreadChannel(lambda judge: self._trial(self._payload, given, judge))


class ThreadChannel:
    """A function in a thread that is answered, question by question, from another."""

    def __init__(self, work: Callable[[Callable[[int, Numbers], bool]], None]) -> None:
        self._questions: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._asked = False
        self._stopping = False
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(work,), name="trial", daemon=True)
        self._thread.start()

    def next(self) -> dict[str, Any]:
        """Say yes to the open question, and wait for the next one, or for the end."""
        if self._asked:
            self._answers.put(True)
        question = self._questions.get()
        self._asked = not question["done"]
        return question

    def stop(self) -> bool:
        """Say no to the open question and to all that follow, and wait; whether it has ended."""
        self._stopping = True
        self._answers.put(False)
        self._thread.join(JOIN_S)
        return not self._thread.is_alive()

    def _run(self, work: Callable[[Callable[[int, Numbers], bool]], None]) -> None:
        error: BaseException | None = None
        try:
            work(self._judge)
        except BaseException as raised:
            error = raised
            log.exception("the trial failed")
        self._questions.put(outcome.outcome(error))

    def _judge(self, step: int, numbers: Numbers) -> bool:
        if self._stopping:
            return False
        seconds = time.monotonic() - self._began
        self._questions.put({**numbers, "step": step, "seconds": seconds, "done": False})
        return self._answers.get()


class _NotKept:
    """Tune copies and pickles its parts for a restore that is never made."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _NotKept:
        return self


class _Searcher(_NotKept, Searcher):
    """Hands out the study's trials, `at_once` at a time: first those that have begun, then new ones."""

    def __init__(self, study: Study, begun: list[Assignment], left: int, at_once: int) -> None:
        super().__init__()
        self._study, self._begun, self._left, self._free = study, list(begun), left, at_once

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's config; None while enough of them run."""
        if self._left == 0:
            return Searcher.FINISHED  # type: ignore[return-value]  # a text that Tune knows
        if self._free == 0:
            return None
        self._free -= 1
        self._left -= 1
        given = self._study.take(self._begun.pop(0)) if self._begun else self._study.ask()
        return {"number": given.number, "run": given.run, "labels": given.labels}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Tune's word for the end; `_Ends` takes care of it, for it knows the trial."""

    def ended(self) -> None:
        """One more may run."""
        self._free += 1

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is in the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is in the store."""


class _Scheduler(_NotKept, FIFOScheduler):
    """Passes each report to the study, and the study's verdict to Tune."""

    supports_buffered_results = False

    def __init__(self, study: Study, on_event: outcome.OnEvent) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._study, self._on_event = study, on_event

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        go_on = self._study.report(
            trial.config["number"],
            int(result["step"]),
            float(result["objective"]),
            frames=int(result["frames"]),
            seconds=float(result["seconds"]),
            costs={name: float(result[name]) for name in self._study.against if name in result},
        )
        self._on_event(self._study)
        return FIFOScheduler.CONTINUE if go_on else FIFOScheduler.STOP


class _Ends(_NotKept, tune.Callback):
    """Tells the study how each trial ended."""

    def __init__(self, study: Study, searcher: _Searcher, on_event: outcome.OnEvent) -> None:
        self._study, self._searcher, self._on_event = study, searcher, on_event

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ended by itself, or was stopped by a verdict."""
        last = trial.last_result
        self._end(trial, str(last.get("reason", "")), crashed=bool(last.get("crashed")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process died too often."""
        self._end(trial, "its process died (killed, or out of memory) more often than it may be started again")

    def _end(self, trial: Any, reason: str, crashed: bool = True) -> None:
        self._study.finish(trial.config["number"], reason, crashed=crashed)
        self._searcher.ended()
        self._on_event(self._study)
