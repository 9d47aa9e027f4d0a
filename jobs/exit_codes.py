"""How a command ends: a line on the standard error for each problem, and an exit code.

A UserError becomes one `error:` line per problem and exit code 2; so do a wrong verb or option, and a file system that
refuses (full, forbidden, broken). A SIGTERM becomes a
`preempted:` line and exit code 143, Ctrl-C 130. Any other exception is a bug and keeps its trace (exit code 1).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from longtake.errors import PREEMPTED, Preempted, UserError
from longtake.jobs.display.escapes import printable


def ended(command: Callable[[], Any]) -> Any:
    """Run a command to its end and return the exit code."""
    try:
        return command()
    except Preempted as error:
        return _complain(error.lines, "preempted", PREEMPTED)
    except SystemExit as end:
        if end.code != PREEMPTED:
            raise
        return _complain(
            ["ended by SIGTERM; what is saved stays, and the same command goes on"], "preempted", PREEMPTED
        )
    except UserError as error:
        return _complain(error.lines)
    except OSError as error:
        if not error.errno or not error.filename or isinstance(error, FileNotFoundError | FileExistsError):
            raise
        name = errno.errorcode.get(error.errno, str(error.errno))
        return _complain([f"{error.filename}: {error.strerror} ({name}): mend the storage or its permissions"])
    except typer.TyperException as error:
        return _complain([error.format_message()])
    except typer.Abort:
        return 130  # Ctrl-C, as shells count it


def _complain(lines: Sequence[str], what: str = "error", code: int = 2) -> int:
    print(*(f"{what}: " + printable(" ".join(line.split("\n"))) for line in lines), sep="\n", file=sys.stderr)
    return code
