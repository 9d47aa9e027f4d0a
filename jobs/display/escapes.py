"""Text that others wrote, for a terminal and for a spreadsheet: seen, and never obeyed."""

from __future__ import annotations

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell begins with that a spreadsheet computes."""


def printable(text: str) -> str:
    r"""The text with what is no printable character as an escape (\x1b), so that a terminal shows it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def no_formula(cell: object) -> object:
    """A cell of a CSV file; a text that a spreadsheet would compute is marked as text by an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
