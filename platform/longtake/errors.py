"""The one kind of error that is a user's to fix, and how a wrong name meets the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

PREEMPTED = 128 + 15
"""Exit code of what a SIGTERM has ended, as shells count it."""


class UserError(Exception):
    """Something the user can fix: one clear line per problem, printed without a stack trace (exit code 2)."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines: tuple[str, ...] = lines

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Damaged(UserError):
    """A dataset whose index or manifest is not what was written: making it again is what a user can do."""


class Preempted(UserError):
    """The machine is taken back (SIGTERM); what was begun is saved and can be gone on with (exit code 143)."""


def require_all(*checks: Callable[[], object]) -> None:
    """Run checks that raise UserError; raises one with the problems of all of them."""
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*problems)


def nearest(name: str, valid: Iterable[str]) -> str:
    """` (did you mean X?)` for the valid name nearest to `name`, or an empty string if none is near."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


LISTED = 1000
"""Letters that the valid names may take in an error: it stays within a screen."""


def unknown(what: str, name: str, valid: Iterable[str]) -> str:
    """One line for a name that does not exist: what was asked for, the nearest name, the valid names."""
    names = sorted(valid)
    shown = names
    while len(", ".join(shown)) > LISTED and len(shown) > 1:
        shown = shown[: len(shown) * 3 // 4]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    listed = ", ".join(shown) + more if names else "none yet"
    return f"unknown {what} {name!r}{nearest(name, names)}; there are: {listed}"
