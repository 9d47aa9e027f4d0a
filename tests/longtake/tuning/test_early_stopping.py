"""A trial is judged at its checkpoints, also from another process."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from longtake.storage.store import open_store
from longtake.training.context import LocalContext
from longtake.training.early_stopping import EarlyStoppingContext, Stopped, StoreChannel


def test_a_context_is_judged_at_checkpoints_and_at_the_one_it_resumes_from(tmp_path: Path) -> None:
    inner = LocalContext(open_store(tmp_path), "r", device="cpu")
    heard: list[tuple[int, float]] = []

    def judge(step: int, numbers: dict[str, float]) -> bool:
        heard.append((step, numbers["loss"]))
        return step < 4

    context = EarlyStoppingContext(inner, lambda step, numbers: {"loss": numbers.get("loss", -1.0)}, judge)
    with context.resume() as folder:
        assert folder is None
    for step in (2, 4):
        context.progress(step, 8, loss=float(step))
        if step == 2:
            context.save(step, lambda folder: (folder / "x").touch() or None)
        else:
            with pytest.raises(Stopped):
                context.save(step, lambda folder: (folder / "x").touch() or None)
    with pytest.raises(Stopped), EarlyStoppingContext(inner, lambda step, _: {"loss": 0.0}, judge).resume():
        pass
    assert heard == [(2, 2.0), (4, 4.0), (4, 0.0)]


def test_a_mailbox_carries_questions_of_its_own_session_only(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    asked: list[int] = []

    def judge(step: int, numbers: dict[str, float]) -> bool:
        asked.append(step)
        return numbers["objective"] > 0

    old = StoreChannel(store, "r", "old")
    old._put("answer", {"session": "old", "step": 2, "go_on": False})
    with StoreChannel(store, "r", "new").answered_by(judge):
        answers = ask_in_thread(StoreChannel(store, "r", "new"), [(2, 1.0), (4, -1.0)])
    assert answers == [True, False]
    assert asked == [2, 4]
    assert store.find("runs/r") == []


def ask_in_thread(mailbox: StoreChannel, questions: list[tuple[int, float]]) -> list[bool]:
    answers: list[bool] = []

    def work() -> None:
        answers.extend(mailbox.ask(step, {"objective": value}) for step, value in questions)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    return answers
