"""Which run is meant: the one way in which every verb, setting and option takes the name of a run or a sweep.

A name stands for the first of these that there is:
    an id           20261121-041233-k3f9
    latest          the newest run of the kinds that a verb takes
    best            the training with the best mean PSNR, where all tasks that were scored agree on one
    a name          what configs call it: the newest run that is called so
    a beginning     of one id, and of no other
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError, unknown
from longtake.tables import schema, scores
from longtake.tables.run_notes import REMOVED

if TYPE_CHECKING:
    import pandas as pd

    from longtake.storage.store import Store

Row = dict[str, Any]
"""Of the table `runs`."""
LATEST, BEST = "latest", "best"
WORLD_MODELS = ("train",)
AUTOENCODERS = ("autoencoder",)
TRAININGS = (*WORLD_MODELS, *AUTOENCODERS)
"""The kinds of runs that have checkpoints."""
SWEEPS = ("sweep",)


def find_runs(
    store: Store,
    wanted: Iterable[str],
    kinds: Sequence[str] = TRAININGS,
    *,
    what: str = "run",
    others: Sequence[str] = (),
) -> list[Row]:
    """The rows of the runs that are meant, in the order named, each once.

    Args:
        kinds: of runs, among which is searched; none: all.
        what: is looked for, in an error's words.
        others: what else could be said there, for an error to name.

    Raises:
        UserError: no run of these kinds yet, or a line per name that stands for none, or for several.
    """
    # A row that another program wrote may lack what we write.
    table = schema.with_columns("runs", store.table("runs"), ("kind", "name", "status", "reason"))
    if len(table):
        table = table.sort_values("run")
    mine = table[table.kind.isin(kinds) & (table.status != REMOVED)] if kinds and len(table) else table
    if mine.empty and not others:
        raise UserError(f"no {' or '.join(kinds) or what} run in store {store.uri} yet; {_how_to_start(kinds)}")
    rows: dict[str, Row] = {}
    problems: list[str] = []
    for name in wanted:
        try:
            row = _meant(store, name, mine, table, kinds)
        except UserError as error:
            problems += error.lines
            continue
        if row is None:
            problems.append(unknown(what, name, {*others, *_names(mine, kinds)}))
        else:
            rows.setdefault(str(row["run"]), row)
    if problems:
        raise UserError(*problems)
    return list(rows.values())


def find_run(
    store: Store, wanted: str, kinds: Sequence[str] = TRAININGS, *, what: str = "run", others: Sequence[str] = ()
) -> Row:
    """The row of the one run that is meant; see `find_runs`."""
    (row,) = find_runs(store, [wanted], kinds, what=what, others=others)
    return row


def find_ids(store: Store, wanted: str, kinds: Sequence[str] = TRAININGS) -> list[str]:
    """The ids of runs that are named with commas between them; see `find_runs`."""
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    return [str(row["run"]) for row in find_runs(store, names or [wanted], kinds)]


def is_path(named: str) -> bool:
    """Whether a folder is meant, and no run: by the slash in it."""
    return "/" in named


def _meant(store: Store, name: str, mine: pd.DataFrame, table: pd.DataFrame, kinds: Sequence[str]) -> Row | None:
    """The row that a name stands for, or None. Raises UserError where it stands for several, or is of another kind."""
    if mine.empty or not name:
        return None
    ids = mine.run.astype(str)
    if (ids == name).any():
        return _row(mine[ids == name])
    if name == LATEST:
        return _row(mine)
    if name == BEST and _scored(kinds):
        return _row(mine[ids == _best(store, ids.tolist())])
    if (called := mine.name.astype(str) == name).any():
        return _row(mine[called])
    begins = mine[ids.str.startswith(name)]
    if len(begins) > 1:
        raise UserError(f"run {name!r} is the beginning of {len(begins)} ids: {', '.join(begins.run)}; name one")
    if begins.empty and len(other := table[table.run.astype(str) == name]):
        if other.status.iloc[0] == REMOVED:
            raise UserError(f"run {name}: {other.reason.iloc[0]}; its rows are in the tables still")
        raise UserError(f"run {name} is of kind {other.kind.iloc[0]}; what is taken here is {' or '.join(kinds)}")
    return _row(begins) if len(begins) else None


def _row(rows: pd.DataFrame) -> Row:
    """The newest of some rows, which are in the order of their ids."""
    return {str(name): value for name, value in rows.to_dict("records")[-1].items()}


def _scored(kinds: Sequence[str]) -> bool:
    return not kinds or set(WORLD_MODELS) <= set(kinds)


def _best(store: Store, ids: Sequence[str]) -> str:
    """The run with the best mean PSNR. Raises UserError where nothing is scored, or where tasks name unlike runs."""
    try:
        per_task = scores.best(store, where=f"run in {list(ids)!r}")
    except UserError as error:
        raise UserError(*(f"{BEST}: {line}" for line in error.lines)) from error
    if per_task.run.nunique() != 1:
        runs = "; ".join(f"of {row.task} it is {row.run}" for row in per_task.itertuples())
        raise UserError(f"{BEST}: tasks name unlike runs: {runs}: name one of them")
    return str(per_task.run.iloc[0])


def _names(mine: pd.DataFrame, kinds: Sequence[str]) -> set[str]:
    """All that could be said."""
    if mine.empty:
        return set()
    return {LATEST, *((BEST,) if _scored(kinds) else ()), *mine.run.astype(str), *mine.name.astype(str)}


def _how_to_start(kinds: Sequence[str]) -> str:
    return f"start one: longtake {'sweep' if tuple(kinds) == SWEEPS else 'train'} CONFIG"
