"""`longtake diagnose RUN...`: how far back models remember beside what that costs, and what to change.

It measures nothing: it reads what is in the tables (scores of retrieval, cost and rollout, profiles, the state's drift
in `steps`), counts bytes from the config, and says what is missing and which command would tell.
"""

from __future__ import annotations

from collections.abc import Sequence

from longtake.storage.store import open_store


def main(runs: Sequence[str], store: str) -> None:
    """The command."""
    from longtake.jobs.diagnose.advice import advise
    from longtake.jobs.diagnose.facts import gather, side_by_side
    from longtake.jobs.display.show import show

    place = open_store(store)
    place.require_exists()
    diagnosed = gather(place, runs)
    show(side_by_side(diagnosed))
    for facts in diagnosed:
        print(f"\n{facts.name} ({facts.run})")
        for line in [*facts.told(), *(advice.line() for advice in advise(facts)), *facts.missing(place.uri)]:
            print(f"  {line}")
