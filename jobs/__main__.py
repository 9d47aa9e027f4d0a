"""`python -m longtake.jobs VERB ...` is `longtake VERB ...`: how a job on a cluster calls it, without a script on the
PATH."""

from __future__ import annotations

import signal

from longtake.jobs.cli import main


def _stop(number: int, _: object) -> None:
    """`longtake stop` sends SIGTERM, which ends a process at once unless it leaves in order, as after Ctrl-C."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    main()
