"""`longtake profile CONFIG`: where a model stops remembering, and what its rivals of the same size would cost.

CONFIG is a size or a training. Every family is matched to it in parameters; operations and bytes carried are counted
at each length, time and peak memory measured on this machine, and how long a clip fits is worked out from that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.config import load, shipped
from longtake.errors import UserError, unknown
from longtake.jobs.presets import SIZES, SizeConfig, families, in_family
from longtake.jobs.profile.config import Limits, ProfileConfig
from longtake.jobs.train.command import CONFIGS
from longtake.jobs.train.config import TrainConfig, WorldModelTraining
from longtake.models.config import ModelConfig
from longtake.storage.store import open_store

if TYPE_CHECKING:
    from longtake.jobs.profile.costs import Findings
    from longtake.storage.store import Store


def main(
    config: str,
    overrides: list[str],
    store: str,
    dry_run: bool,
    frames: str,
    families: str | None,
    limits: Limits,
    out: str | None,
) -> None:
    """The command: count, measure, answer; with `dry_run` count only, and keep nothing."""
    settings = ProfileConfig(
        name=Path(config).stem,
        model=read_model(config, overrides),
        families=_families(families),
        frames=_lengths(frames),
        limits=limits,
    )
    where = open_store(store)
    if not dry_run:
        where.require_writable()
    findings = profile(settings, measured=not dry_run)
    _print(findings)
    if not dry_run and (note := busy()):
        print(f"note: {note}")
    if not dry_run:
        _keep(where, settings, findings, out)


def busy() -> str:
    """What to say where others use this machine, by the processes that wanted to run in the last minute."""
    from longtake.cluster.launch import machine_cpus

    load, cpus = os.getloadavg()[0], machine_cpus()
    if load <= cpus + 1:  # what measures is one of them
        return ""
    return (
        f"this machine was busy ({load:.1f} processes wanted its {cpus} CPUs): times are longer than on a quiet one; "
        "profile again then, memory and shares stay"
    )


def read_model(config: str, overrides: Sequence[str]) -> ModelConfig:
    """The model of a size, or of a training config.

    Raises:
        UserError: nothing of that name; an autoencoder; a model that carries no memory.
    """
    if config in shipped(SIZES):
        model = load(SizeConfig, config, overrides, search=SIZES).model
    else:
        if "/" not in config and not config.endswith((".yaml", ".yml")) and config not in shipped(CONFIGS):
            raise UserError(unknown("config", config, {*shipped(SIZES), *shipped(CONFIGS)}))
        training = load(TrainConfig, config, overrides, search=CONFIGS)
        if not isinstance(training, WorldModelTraining):
            raise UserError(f"{config}: model.kind: {training.model.kind}; only world models are profiled")
        model = training.model
    if not model.causal:
        raise UserError(f"{config}: model.causal: false; such a model carries no memory whose cost could be told")
    return model


def subjects(config: ProfileConfig) -> tuple[str, dict[str, ModelConfig], list[str]]:
    """The name of the model itself, all models by name (itself first), and why a family is left out."""
    own, models, left_out = config.name, {}, []
    for family in config.families:
        try:
            models[family] = _matched(config.model, family)
        except ValueError as error:
            left_out.append(f"{family} is left out: {error}")
    for family, model in models.items():
        if model.stack == config.model.stack and model.feed_forward == config.model.feed_forward:
            own = family
    return own, {own: config.model} | {name: model for name, model in models.items() if name != own}, left_out


def _matched(model: ModelConfig, family: str) -> ModelConfig:
    from longtake.models.analysis.parameter_matching import match_parameters

    return match_parameters(in_family(model, family), model)


def profile(config: ProfileConfig, *, measured: bool) -> Findings:
    """Count, and measure if asked to."""
    from longtake.jobs.display.progress_bar import bar
    from longtake.jobs.profile.costs import Findings
    from longtake.models.analysis.cost import Costs
    from longtake.models.analysis.reach import fresh_horizon

    with bar(f"profile {config.name}", "counting") as update:
        own, models, left_out = subjects(config)
        cells = len(models) * (len(config.frames) + 2 * config.limits.ceiling) if measured else 0
        total = len(models) + cells
        costs = {}
        for number, (name, model) in enumerate(models.items()):
            update(number, total, f"counting {name}")
            costs[name] = Costs(model)
            costs[name].training_flops(1)
        findings = Findings(own, config, costs, fresh_horizon(config.model), left_out)
        if measured:
            for number, text in enumerate(_measure(findings), len(models)):
                update(number, total, text)
        update(total, total)
    return findings


def _measure(findings: Findings) -> Iterator[str]:
    """Fill in what is measured, telling what comes next."""
    from longtake.jobs.profile.costs import Key
    from longtake.jobs.profile.meter import Cell, Meter

    config, limits = findings.config, findings.config.limits
    meter = Meter(limits.seconds, int(limits.memory_gib * 2**30) if limits.memory_gib else None)
    findings.memory = meter.memory

    def measure(key: Key, *, memory: bool = True) -> None:
        name, what, frames = key
        cell = Cell(what, findings.costs[name].config, frames)
        findings.measured[key] = findings.foreseen(*key, memory=memory) or meter(cell)

    for name in findings.costs:
        for frames in sorted(config.frames):
            yield f"{name}, {frames} frames"
            measure((name, "train", frames))
            measure((name, "frame", frames))
    for name in findings.costs if limits.ceiling else ():
        for frames in findings.around_ceiling(name):
            yield f"{name}, {frames:,} frames: does it fit?"
            measure((name, "train", frames), memory=False)


def _print(findings: Findings) -> None:
    from longtake.jobs.display.show import show
    from longtake.jobs.profile.answer import answer, lengths_table, models_table

    show(models_table(findings))
    print()
    show(lengths_table(findings))
    print()
    print("\n".join(answer(findings)))


def _keep(store: Store, config: ProfileConfig, findings: Findings, out: str | None) -> None:
    """A run with its rows in `bench`, and the picture."""
    import pandas as pd

    from longtake.jobs.plots.base import save, save_in_store, write_under
    from longtake.jobs.plots.bench import costs_curve
    from longtake.jobs.results.command import plot_command
    from longtake.provenance import new_run_id
    from longtake.tables import table as tables
    from longtake.tables.run_record import RunRecord

    with RunRecord.start(store, new_run_id(), kind="profile", name=config.name, config=config) as record:
        rows = [{"run": record.run, "name": "profile", **row} for row in findings.rows()]
        tables.append(store, "bench", rows, part=record.run)
    figure = costs_curve(pd.DataFrame(rows))
    name = f"profile-{config.name}.png"
    write_under(figure, plot_command("bench", store, f"run == '{record.run}'", out or name))
    print(f"picture: {save(figure, out) if out else save_in_store(figure, store, name)}")
    print(f"kept: longtake results bench --where \"run == '{record.run}'\" --store {store.argument}")


def _families(chosen: str | None) -> list[str]:
    known = families()
    names = known if chosen is None else [name.strip() for name in chosen.split(",")]
    wrong = [f"--families: {unknown('family', name, known)}" for name in names if name not in known]
    if wrong:
        raise UserError(*wrong)
    return list(dict.fromkeys(names))


def _lengths(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not (part.isdigit() and int(part))]
    if wrong:
        raise UserError(f"--frames {text}: {wrong[0]!r} is no number of frames; such as: --frames 16,64,256")
    return sorted({int(part) for part in parts})
