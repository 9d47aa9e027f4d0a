"""`python -m longtake.jobs VERB ...` is `longtake VERB ...`: how a job on a cluster calls it, without a script on the
PATH."""

from __future__ import annotations

from longtake.jobs.cli import main

if __name__ == "__main__":
    main()
