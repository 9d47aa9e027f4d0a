"""Columns of rows that are settings of their runs' configs: `config.model.window`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from longtake.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from longtake.storage.store import Store

PREFIX = "config."


def with_settings(store: Store, rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows with a column for each of the names that begins with `config.`; missing for rows of no run.

    Raises:
        UserError: no run has such a setting.
    """
    wanted = [name for name in dict.fromkeys(names) if name.startswith(PREFIX)]
    if not wanted or rows.empty:
        return rows
    table = rows if "config" in rows else store.table("runs", columns=["run", "config"])
    texts = dict(zip(table.run, table.config, strict=True))
    needed = set(rows.run) & texts.keys()
    settings = {run: dict(_flat(yaml.safe_load(str(texts[run])) or {})) for run in needed}
    known = {name for flat in settings.values() for name in flat}
    problems = [unknown("setting", name, known) for name in wanted if name not in known]
    if problems:
        raise UserError(*problems)
    extended = rows.copy()
    for name in wanted:
        extended[name] = [settings.get(run, {}).get(name) for run in rows.run]
    return extended


def _flat(settings: Any, path: str = "config") -> list[tuple[str, Any]]:
    """Dotted name and value of every setting; lists by number, and whole as text."""
    if isinstance(settings, dict):
        return [pair for key, value in settings.items() for pair in _flat(value, f"{path}.{key}")]
    if isinstance(settings, list):
        inner = [pair for number, value in enumerate(settings) for pair in _flat(value, f"{path}.{number}")]
        return [(path, str(settings)), *inner]
    return [(path, settings)]
