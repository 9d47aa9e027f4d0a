"""Frames as text and bytes: for people on a terminal, and for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from longtake.jobs.display.escapes import no_formula, printable
from longtake.tables.run_record import COLOURS

if TYPE_CHECKING:
    import pandas as pd


def _cell(value: Any) -> str:
    """A value for people: four significant digits, seconds, no word for what is missing."""
    import pandas as pd

    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, pd.Timestamp):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return printable(COLOURS.sub("", str(value)).strip().split("\n")[0])


def _cells(frame: pd.DataFrame) -> list[list[str]]:
    return [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]


def _names(frame: pd.DataFrame) -> list[str]:
    return [printable(str(name)) for name in frame.columns]


def _numeric(frame: pd.DataFrame) -> list[bool]:
    from pandas.api.types import is_numeric_dtype

    return [is_numeric_dtype(kind) for kind in frame.dtypes]


def _aligned(frame: pd.DataFrame) -> bytes:
    """Columns under their names, numbers to the right, two spaces between."""
    lines = [_names(frame), *_cells(frame)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = _numeric(frame)
    text = ""
    for line in lines:
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        text += "  ".join(cells).rstrip() + "\n"
    return text.encode()


def _markdown(frame: pd.DataFrame) -> bytes:
    rule = ["---:" if right else "---" for right in _numeric(frame)]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in _cells(frame)]
    lines = [_names(frame), rule, *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).encode()


def _csv(frame: pd.DataFrame) -> bytes:
    kept = frame.rename(columns=no_formula)
    for place, numeric in enumerate(_numeric(frame)):
        if not numeric:
            kept.isetitem(place, [no_formula(cell) for cell in frame.iloc[:, place]])
    return str(kept.to_csv(index=False)).encode()


def _json(frame: pd.DataFrame) -> bytes:
    text = frame.to_json(orient="records", date_format="iso", date_unit="ns", indent=1, double_precision=15)
    return f"{text}\n".encode()


def _parquet(frame: pd.DataFrame) -> bytes:
    return bytes(frame.to_parquet(index=False))


FORMATS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    "table": _aligned,
    "csv": _csv,
    "md": _markdown,
    "json": _json,
    "parquet": _parquet,
}


def size(bytes_: int) -> str:
    """Bytes for people: `4.4 GB`."""
    value, unit = float(bytes_), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


NARROWEST = 10
"""Letters to which a column of text may shrink."""


def print_table(frame: pd.DataFrame) -> None:
    """A table that fits the terminal: numbers are never broken, text between words and, if need be, anywhere.

    What would have to be cut all the same is printed as it is to a pipe: long lines, and nothing missing.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console, rows = Console(markup=False, highlight=False), _cells(frame)
    names, right = _names(frame), _numeric(frame)
    columns = [[name, *(row[number] for row in rows)] for number, name in enumerate(names)]
    for least in (_longest_word, _shrunk):
        needed = [max(map(len, c)) if number else least(c) for c, number in zip(columns, right, strict=True)]
        if sum(needed) + 2 * len(needed) <= console.width:
            break
    else:
        print(_aligned(frame).decode(), end="")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, number, cells, width in zip(names, right, columns, needed, strict=True):
        whole = width == max(map(len, cells))
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _longest_word(cells: Sequence[str]) -> int:
    return max(len(word) for cell in cells for word in cell.split() or [""])


def _shrunk(cells: Sequence[str]) -> int:
    return min(NARROWEST, max(map(len, cells)))
