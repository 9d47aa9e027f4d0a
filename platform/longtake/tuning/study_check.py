"""Whether a study still knows what its table tells: a journal that lost its end is a journal like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage, JournalStorage

from longtake.errors import UserError
from longtake.tables import table as tables

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from longtake.storage.store import Store
    from longtake.tuning.optuna_journal import StoreJournalBackend

WAY_OUT = "put back a copy of it, or begin a new sweep that learns from the table `trials`: --set warm_start=[ID]"
ENDED = ("done", "pruned", "failed")


def replayed(journal: StoreJournalBackend) -> BaseStorage:
    """What a journal says, in Optuna's terms.

    Raises:
        UserError: Optuna can make nothing of a line that was changed before lines had sums.
    """
    try:
        storage = JournalStorage(journal)
        for study in storage.get_all_studies():
            storage.get_all_trials(study._study_id)
    except Exception as error:  # a changed line can make Optuna fail in any way
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{journal.where}: a line of it was changed ({why}); the file is left as it is: {WAY_OUT}"
        ) from error
    return storage


def require_all_known(store: Store | None, sweep: str, trials: Sequence[FrozenTrial], torn: bool) -> None:
    """The table `trials` is written after the study: where it tells of more, the study has lost something.

    Raises:
        UserError: it has lost more than `torn` explains, the last write of a journal, which is of one trial.
    """
    if store is None:
        return
    known = [
        (trial.user_attrs.get("attempt", 1), trial.state.is_finished(), trial.user_attrs.get("step", 0))
        for trial in trials
    ]
    rows = [{str(k): v for k, v in row.items()} for row in tables.read(store, "trials", part=sweep).to_dict("records")]
    runs = [trial.user_attrs.get("run") for trial in trials]
    lost = [
        row
        for row in rows
        if row["trial"] >= len(known) or known[row["trial"]] < _told(row) or runs[row["trial"]] != row["run"]
    ]
    if len(lost) > torn:
        raise UserError(
            f"sweep {sweep}: its study has lost {len(lost)} trials that the table `trials` knows, the first of them "
            f"trial {lost[0]['trial']} ({lost[0]['state']} at step {lost[0]['step']}); nothing was changed: put back a "
            f"copy of {store.uri}/sweeps/{sweep} (or of its database), or begin a new sweep that learns from the "
            f"table: --set warm_start=[{sweep}]"
        )


def _told(row: dict[str, Any]) -> tuple[int, bool, int]:
    """Attempt, whether it has ended, step: what of a trial only grows."""
    return int(row.get("attempts", 1)), row["state"] in ENDED, int(row["step"])
