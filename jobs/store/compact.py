"""`longtake compact`: the many parts of a table become one file; at any time, beside whatever writes and reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from longtake.errors import UserError, unknown
from longtake.jobs.display.show import show
from longtake.storage.store import open_store
from longtake.tables import schema
from longtake.tables.compaction import compact


def main(tables: Sequence[str], store: str) -> None:
    """The command: the named tables, or all that have parts; prints files, parts and rows of each."""
    import pandas as pd

    wrong = [unknown("table", table, schema.KEYS) for table in tables if table not in schema.KEYS]
    if wrong:
        raise UserError(*wrong)
    place = open_store(store)
    place.require_exists()
    done = [compact(place, table) for table in tables or schema.KEYS]
    lines = [asdict(one) for one in done if tables or one.parts]
    show(pd.DataFrame(lines, columns=["table", "files_before", "files", "parts", "rows"]))
