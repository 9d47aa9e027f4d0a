"""The newest step of a run that was ever sealed: `runs/ID/sealed.json`, by which a loss of checkpoints is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.errors import Damaged
from longtake.storage import seals

if TYPE_CHECKING:
    from longtake.storage.store import Store


def note_sealed(store: Store, run: str, step: int) -> None:
    """Write that a step has its marker."""
    store.write_bytes(_name(run), seals.dumped({"step": step}))


def last_sealed(store: Store, run: str) -> int | None:
    """The newest step that was ever sealed, as the run's record says; None if it says nothing. Raises Damaged."""
    try:
        step = seals.loaded(store.read_bytes(_name(run)), _name(run)).get("step")
    except FileNotFoundError:
        return None
    if type(step) is not int:
        raise Damaged(f"{_name(run)}: damaged, it names no step")
    return step


def last_sealed_or_none(store: Store, run: str) -> int | None:
    """The same; a record that is damaged tells of nothing."""
    try:
        return last_sealed(store, run)
    except Damaged:
        return None


def _name(run: str) -> str:
    return f"runs/{run}/sealed.json"
