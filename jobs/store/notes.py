"""`longtake tag|note|rename RUN`: what people say of a run; `longtake runs` and every table of runs tell it.

The files of the run stay as they are, and so do the scores, whose system is what the training's config was called.
"""

from __future__ import annotations

import re
from typing import Any

from longtake.datasets.dataset import dataset_names
from longtake.errors import UserError
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.find import BEST, LATEST, find_run

NAME = re.compile(r"[a-zA-Z0-9_.-]+")


def tag(run: str, tags: list[str], store: str, remove: bool = False) -> None:
    """The command: add tags to a run, or take them away."""
    wrong = [f"tag {one!r}: letters, digits and . _ - only" for one in tags if not NAME.fullmatch(one)]
    if wrong:
        raise UserError(*wrong)
    place, row = _found(store, run)
    before = str(row.get("tags") or "").split() if isinstance(row.get("tags"), str) else []
    missing = [f"run {row['run']} has no tag {one!r}; it has {' '.join(before) or 'none'}" for one in tags]
    if remove and (missing := [line for line, one in zip(missing, tags, strict=True) if one not in before]):
        raise UserError(*missing)
    after = [one for one in before if one not in tags] if remove else list(dict.fromkeys([*before, *tags]))
    annotate(place, row["run"], tags=" ".join(sorted(after)))
    print(f"run {row['run']} ({row['name']}): {' '.join(sorted(after)) or 'no tags'}")


def note(run: str, text: str, store: str) -> None:
    """The command: a sentence about a run, in place of the one before; an empty one takes it away."""
    place, row = _found(store, run)
    annotate(place, row["run"], note=" ".join(text.split()))
    print(f"run {row['run']} ({row['name']}): {text.strip() or 'no note'}")


def rename(run: str, name: str, store: str) -> None:
    """The command: call a run otherwise from now on."""
    if not NAME.fullmatch(name) or name in (LATEST, BEST):
        raise UserError(f"name {name!r}: letters, digits and . _ - only, and neither {LATEST} nor {BEST}")
    place, row = _found(store, run)
    others = place.table("runs", where=f"name == {name!r} and run != {row['run']!r}")
    annotate(place, row["run"], name=name)
    print(f"run {row['run']} is called {name} now, no more {row['name']}")
    if len(others):
        print(f"note: so is {', '.join(others.run)}; the name alone means the newest of them")


def _found(store: str, run: str) -> tuple[Store, dict[str, Any]]:
    place = open_store(store)
    place.require_exists()
    try:
        row = find_run(place, run, kinds=())
    except UserError:
        if run in dataset_names(place):
            raise UserError(
                f"{run} is a dataset: it keeps its name, by which configs and protocols call it; "
                "tags and notes are of runs"
            ) from None
        raise
    place.require_writable()
    return place, row


def annotate(store: Store, run: str, **columns: Any) -> None:
    """Write columns of the run's row in `notes`; the others stay."""
    earlier = tables.read(store, "notes", part=run).to_dict("records")
    row = {str(name): value for name, value in earlier[0].items() if value == value} if earlier else {}
    row.pop("event_time", None)
    if "removed" in row:
        row["removed"] = row["removed"].to_pydatetime()
    tables.append(store, "notes", [row | {"run": run} | columns], part=run)
