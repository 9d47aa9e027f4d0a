"""`longtake sweep CONFIG`: many trainings over a space of configs, searched, stopped early, and compared.

What is asked is in `sweep_config.py`; what can be refused is refused before the first trial (`sweep_check.py`); what a
trial runs is in `sweep_trial.py`, and what becomes of the best in `sweep_winners.py`. A sweep lives in the store as

    sweeps/ID/sweep.yaml      what was asked          sweeps/ID/study.journal    its trials (the truth)
    sweeps/ID/train.yaml      what the trials share   sweeps/ID/best.yaml        ready for `longtake train`

beside the table `trials`; each trial is a run like any other.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from longtake.cluster import accelerators
from longtake.config import build, differences, dump, load, load_stored, settings
from longtake.datasets.mixture import open_data
from longtake.errors import UserError
from longtake.jobs.sweep.check import check, describe, notes, short
from longtake.jobs.sweep.config import CONFIGS, Sweep, SweepConfig, file, new
from longtake.jobs.train.config import WorldModelTraining
from longtake.storage import lease
from longtake.storage.store import Store, open_store
from longtake.tables.find import SWEEPS, find_run
from longtake.tables.run_record import RunRecord
from longtake.yaml_text import sealed

if TYPE_CHECKING:
    from longtake.storage.lease import Lease
    from longtake.tuning.study import Assignment, Study

RESUME_MAY_CHANGE = ("trials", "at_once", "winners")
"""Settings that a resume may give other values."""
STATES = ("done", "pruned", "failed")


def main(
    config: str | None,
    overrides: list[str],
    store: str,
    dry_run: bool,
    resume: str | None = None,
    retry_failed: bool = False,
    brief: bool = False,
) -> None:
    """The command: check, then sweep; with `dry_run` print the space and the arithmetic, and touch nothing."""
    where = open_store(store)
    if retry_failed and resume is None:
        raise UserError("--retry-failed is of a sweep that has run: add --resume ID")
    if resume is None:
        sweep = new(load(SweepConfig, config or "blocks", overrides, search=CONFIGS))
    else:
        if config is not None:
            raise UserError(f"--resume {resume} goes on with that sweep's own config: leave out {config}")
        sweep = earlier(where, resume, overrides)
    sweep = check(sweep, where)
    if dry_run:
        print(dump(sweep.config, brief) + "\n" + describe(sweep, where))
        return
    for line in notes(sweep):
        print(f"note: {line}", flush=True)
    run(sweep, where, retry_failed)


def earlier(store: Store, name: str, overrides: list[str]) -> Sweep:
    """A sweep of the store. Raises UserError for settings that may not change."""
    sweep = str(find_run(store, name, SWEEPS)["run"])
    kept = file(store, sweep, "sweep")
    then, now = load_stored(SweepConfig, *kept), build(SweepConfig, settings(*kept), overrides)
    base = load_stored(WorldModelTraining, *file(store, sweep, "train"))
    changed = differences(then.model_dump(mode="json"), now.model_dump(mode="json"))
    fixed = [line for line in changed if line.split(":")[0].split(".")[0] not in RESUME_MAY_CHANGE]
    if fixed:
        may = f"{', '.join(RESUME_MAY_CHANGE[:-1])} and {RESUME_MAY_CHANGE[-1]}"
        raise UserError(*(f"resume: {line}; only {may} may change" for line in fixed))
    return Sweep(sweep, now, base)


def run(sweep: Sweep, store: Store, retry_failed: bool = False) -> str:
    """Run a checked sweep to its end and return its id; one that was interrupted goes on.

    Raises:
        lease.Held: another driver runs it.
    """
    with lease.of_sweep(store, sweep.id) as held:
        study = _search(replace(sweep, token=held.token), store, held, retry_failed)
        finish(sweep, store, study)
    return sweep.id


def _search(sweep: Sweep, store: Store, held: Lease, retry_failed: bool) -> Study:
    """Run the trials that are left."""
    from longtake.cluster.launch import launch
    from longtake.jobs.sweep.trial import run_trial
    from longtake.tuning import sweep as sweeps

    config, base = sweep.config, sweep.base
    # Nested trials: the dashboard's process cleans up after a trial that is killed before it can do so itself.
    with launch(sweep.need, dashboard=sweep.need.nested), _record(sweep, store, held):
        print(f"{config.name}: sweep {sweep.id}", flush=True)
        placed = _with_cards(sweep)
        study = open_study(sweep, store, held)
        _learn(study, sweep, store)
        if retry_failed:
            _retry(study)
        sweeps.run(
            study,
            run_trial,
            (store, placed),
            trials=config.trials,
            need=placed.need,
            max_failures=base.max_failures,
            on_event=_teller(config, study),
        )
    return study


def _with_cards(sweep: Sweep) -> Sweep:
    """The same with its trials' cards as a number, on the Ray that is open; trials of one process may share one."""
    from longtake.cluster.launch import count_gpus

    base, need, cards = sweep.base, sweep.need, count_gpus()
    workers = sweep.config.at_once * need.workers
    each = accelerators.resolve(base.gpus_per_worker, workers, cards, shared=not need.nested)
    for line in accelerators.idle_warnings(each, workers, cards):
        print(f"warning: {line}", flush=True)
    return replace(sweep, base=base.model_copy(update={"gpus_per_worker": each}))


def _learn(study: Study, sweep: Sweep, store: Store) -> None:
    """Let the search begin with the trials of the earlier sweeps that the config names."""
    for name in sweep.config.warm_start:
        rows = store.table("trials", where=f"sweep == {name!r}")
        count = study.observe([{str(k): v for k, v in row.items()} for row in rows.to_dict("records")])
        print(f"warm start: {count} of {len(rows)} trials of sweep {name} are of this space and new", flush=True)


def _retry(study: Study) -> None:
    again = study.retry()
    print(f"tried again: {', '.join(f'trial {number}' for number in again) or 'none, for none crashed'}", flush=True)
    for row in study.rows():
        if row["state"] == "failed":
            print(f"trial {row['trial']} would only fail again: {row['reason']}", flush=True)


def _record(sweep: Sweep, store: Store, held: Lease | None = None) -> RunRecord:
    """The sweep's row in `runs`, after its configs: what the table shows can be resumed."""
    store.write_bytes(f"sweeps/{sweep.id}/sweep.yaml", sealed(dump(sweep.config)).encode())
    store.write_bytes(f"sweeps/{sweep.id}/train.yaml", sealed(dump(sweep.base)).encode())
    dataset = open_data(store, sweep.base.data.dataset, sweep.base.data.unlike)
    return RunRecord.start(
        store,
        sweep.id,
        kind="sweep",
        name=sweep.config.name,
        config=sweep.config,
        dataset=dataset.fingerprint,
        seed=sweep.config.sampling.seed,
        dataset_name=sweep.base.data.first,
        lease=held,
    )


def open_study(sweep: Sweep, store: Store, held: Lease | None = None) -> Study:
    """The study of a sweep; a new one if it has none. `held`: the sweep's lease, asked for before each write."""
    from longtake.tuning.study import Study

    return Study(
        store,
        sweep.id,
        sweep.config.space,
        steps=sweep.base.steps,
        direction=sweep.config.objective.direction,
        sampling=sweep.config.sampling,
        pruning=sweep.config.pruning,
        against=sweep.config.against,
        database=sweep.config.database,
        lease=held,
    )


def _teller(config: SweepConfig, study: Study) -> Callable[[Study], None]:
    """Prints a line as each trial ends, from now on."""
    ended = {row["trial"] for row in study.rows() if row["state"] in STATES}
    if len(study):
        print(f"of {len(study)} trials that have begun, {len(ended)} have ended; the others go on", flush=True)

    def tell(study: Study) -> None:
        for row in study.rows():
            if row["state"] not in STATES or row["trial"] in ended:
                continue
            ended.add(row["trial"])
            point = ", ".join(f"{field}={short(row[field])}" for field in config.space if row[field] is not None)
            print(
                f"trial {row['trial']:>3}  {row['state']:<7} step {row['step']:>6}  {row['objective']:.4f}  "
                f"{row['seconds']:.0f} s  {point}  {row['reason']}".rstrip(),
                flush=True,
            )

    return tell


def finish(sweep: Sweep, store: Store, study: Study) -> None:
    """Write the best config, say where it lies, and see to the winners.

    Raises:
        UserError: no trial was done.
    """
    rows = study.rows()
    counts = {state: sum(row["state"] == state for row in rows) for state in STATES}
    print("trials: " + ", ".join(f"{number} {state}" for state, number in counts.items()), flush=True)
    best = next(iter(study.best()), None)
    if best is None:
        why = f"longtake results trials --where \"sweep == '{sweep.id}'\""
        raise UserError(f"sweep {sweep.id}: no trial was done; see the reasons: {why}")
    value = rows[best.number]["objective"]
    rel = f"sweeps/{sweep.id}/best.yaml"
    store.write_bytes(rel, sealed(best_yaml(sweep, best, value)).encode())
    print(f"best: trial {best.number} (run {best.run}), {sweep.config.objective.name} {value:.4f}")
    hint = f"longtake train {shlex.quote(f'{store.uri}/{rel}')} --store {store.argument}"
    print(hint if store.is_folder else f"its config: {store.uri}/{rel} (copy it here for `longtake train`)")
    if sweep.config.winners is not None:
        from longtake.jobs.sweep.winners import retrain_and_score_winners

        retrain_and_score_winners(sweep, store, study.best(sweep.config.winners.top))


def best_yaml(sweep: Sweep, best: Assignment, value: float) -> str:
    """The winner's training config as a file."""
    config = sweep.trial(best.labels, best.number)
    point = "".join(f"#   {field} = {short(label)}\n" for field, label in best.labels.items())
    reached = f"{sweep.config.objective.name} {value:.4f} at step {config.steps}"
    head = f"# Best of sweep {sweep.id}: trial {best.number}, {reached}\n"
    return head + point + dump(config)
