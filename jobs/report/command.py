"""`longtake report RUN...`: one self-contained page that shows what the scores of some runs say.

gather.py    which runs, and of each task which scores may stand side by side
findings.py  a sentence per claim, and the table
strips.py    truth beside generation, made again from the checkpoints
film.py      the same, moving
svg.py       plots that follow the page's theme
page.html    the page
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.storage.store import Store, open_store
from longtake.tables.schema import NO_RUN

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from longtake.jobs.report.gather import Material, Profile, Run, SweepTrials, TaskScores

WIDTHS = {
    "wide": 960,
    "medium": 620,
    "narrow": 320,
}  # pixels, for windows down to 1060, down to 720, and below
HIDDEN = {
    "run",
    "name",
    "config",
    "event_time",
    "pid",
    "reason",
}  # of a run's columns: shown elsewhere, or of no use
CALLED = {"worker_s": "seconds of all workers", "frames": "frames trained on", "dataset": "dataset's fingerprint"}
"""Columns of a run whose names do not say what they are."""
FILM_LETTERS = 2_000_000
"""Of a film in the page: with all its plots and strips a page stays below 15 MB."""


def main(runs: list[str], store: str, out: str | None) -> None:
    """The command: write the page and say where it is."""
    where = open_store(store)
    where.require_exists()
    began = time.monotonic()
    name, text = page(where, runs)
    place = write(where, name, text, Path(out) if out else None)
    print(f"report: {place} ({len(text.encode()) / 1e6:.1f} MB, {time.monotonic() - began:.0f} s)")


def build(store: Store, runs: Sequence[str], out: Path | None = None) -> str:
    """Write the page of these runs; returns where (default: STORE/reports/RUNS.html).

    Raises:
        UserError: an unknown run, scores that cannot be compared, or a place that cannot be written.
    """
    return write(store, *page(store, runs), out)


def page(store: Store, runs: Sequence[str]) -> tuple[str, str]:
    """What the page of these runs is called in a store, and its text."""
    from longtake.jobs.report.gather import gather

    material = gather(store, runs)
    ids = [sweep.id for sweep in material.sweeps] or [run.id for run in material.runs]
    return "_".join(ids[:3]) + (f"_{len(ids)}" if ids[3:] else ""), render(material)


def write(store: Store, name: str, text: str, out: Path | None) -> str:
    """Write a page into the store, or to a file; returns where it is."""
    if out is None:
        store.write_bytes(f"reports/{name}.html", text.encode())
        return f"{store.uri}/reports/{name}.html"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error.strerror}") from error
    return str(out.resolve())


def render(material: Material) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    from longtake.jobs.report.claims import number

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.filters["breakable"] = lambda name: escape(name).replace("_", Markup("_<wbr>"))
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    tasks = [_task(material, task) for task in material.tasks]
    return template.render(
        title=", ".join([f"sweep {s.name}" for s in material.sweeps] or [run.name for run in material.runs]),
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        window=material.window,
        tasks=tasks,
        sweeps=[_sweep(material, sweep) for sweep in material.sweeps],
        profiles=[_profile(material, profile) for profile in material.profiles],
        training=_training(material),
        drift=_drift(material),
        provenance=[_provenance(run) for run in material.runs],
        datasets=_datasets(material),
        commands=_commands(material),
        store=material.store.uri,
        notes=material.notes,  # last: drawing adds to them
    )


def _task(material: Material, task: TaskScores) -> dict[str, Any]:
    """Everything that the page says about one task."""
    from longtake.jobs.plots.base import looks, psnr_curve
    from longtake.jobs.report.claims import SEEN, claims, of_memory, reach, strata, summary, verdict
    from longtake.jobs.report.film import make_film
    from longtake.jobs.report.gather import report_place
    from longtake.jobs.report.strips import make_strips, show
    from longtake.jobs.results.command import plot_command

    has_psnr = (task.scores.metric == "psnr").any()
    about = of_memory(task.scores)
    has_curve = has_psnr and about.distance[about.metric == "psnr"].nunique() > 1

    def draw(width: int, labels: bool) -> Figure:
        height = 300 + width // 8
        return psnr_curve(about, "psnr", material.window, width=width, height=height, labels=labels)

    place = report_place(task.task)
    shown = show(material, task) if place.film and has_psnr else None
    film = make_film(shown, FILM_LETTERS) if shown else None
    if film and film.left_out:
        material.notes.append(f"{task.task}: the film shows less, to keep this page small: without {film.left_out}.")
    rows = f"protocol == '{task.protocol}' and run in {[*(run.id for run in material.runs), NO_RUN]}"
    rows += " and partial.isna()" if "partial" in task.scores else ""
    kept = f"{rows} and stratum == '{SEEN}'" if SEEN in strata(task.scores) else rows
    comparisons = claims(about, material.window)
    beyond = reach(about, material.window)
    return {
        "name": task.task,
        "place": place,
        "protocol": task.protocol,
        "definition": json.dumps(task.definition.model_dump(mode="json"), indent=1) if task.definition else None,
        "context": task.definition.context if task.definition else None,
        "horizon": task.definition.horizon if task.definition else int(task.scores.frame.max()) + 1,
        "claims": comparisons,
        "verdict": verdict(comparisons, task.task, beyond) if comparisons else None,
        "beyond": beyond,
        "strata": len(about) < len(task.scores),
        "horizons": _horizons(material, task),
        "summary": summary(task.scores, material.window),
        "looks": list(looks(task.scores).values()),
        "curve": _sizes(draw, f"{task.task}-curve", f"{task.task}: PSNR against distance") if has_curve else None,
        "command": plot_command("scores", material.store, kept, f"{task.task}.png"),
        "horizon_command": plot_command("scores", material.store, rows, "horizon.png", horizon=True),
        "strips": make_strips(shown) if shown and place.strips else [],
        "film": film,
    }


def _horizons(material: Material, task: TaskScores) -> list[tuple[str, str]]:
    """How far back each model remembers, as a sentence; what keeps it from being known is told in the notes."""
    from longtake.evals.memory_horizon import TASK
    from longtake.jobs.results.memory_horizons import horizons, sentence

    if task.task != TASK:
        return []
    try:
        return [(horizon.system, sentence(horizon)) for horizon in horizons(task.scores)]
    except ValueError as error:
        material.notes.append(f"{task.task}: no memory horizon, since {error}.")
        return []


def _sizes(draw: Callable[[int, bool], Figure], name: str, title: str) -> dict[str, Markup]:
    """A figure per width, so that its text is never scaled down; on a phone the page shows a key."""
    from longtake.jobs.report.svg import inline

    return {size: inline(draw(width, size != "narrow"), f"{name}-{size}", title) for size, width in WIDTHS.items()}


def _sweep(material: Material, sweep: SweepTrials) -> dict[str, Any]:
    """The plots of a sweep and its best trials; a plot that its trials do not suffice for is told in the notes."""
    from longtake.jobs.plots import trials as sweep_plots
    from longtake.jobs.results.command import plot_command

    kinds: dict[str, tuple[Callable[..., Figure], str]] = {
        "history": (sweep_plots.history_curve, "Objective of every trial"),
        "space": (sweep_plots.space_curve, "Settings of every trial"),
        "importances": (sweep_plots.importance_bars, "What decided whether a trial was good"),
        "price": (sweep_plots.price_curve, "Objective against its price"),
    }
    plots = []
    for kind, (draw, title) in kinds.items():
        try:
            curve = _sizes(partial(_trials_figure, draw, sweep.trials), f"{sweep.id}-{kind}", title)
        except ValueError as error:
            material.notes.append(f"sweep {sweep.name}: no plot of its {kind}: {error}.")
            continue
        command = plot_command("trials", material.store, f"sweep == '{sweep.id}'", f"{kind}.png", kind)
        plots.append({"kind": kind, "curve": curve, "command": command})
    states = sweep.trials.state.value_counts().to_dict() if len(sweep.trials) else {}
    counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "no trial yet"
    return {"id": sweep.id, "name": sweep.name, "told": counts, "shown": sweep.shown, "plots": plots}


def _trials_figure(draw: Callable[..., Figure], trials: pd.DataFrame, width: int, labels: bool) -> Figure:
    """A plot of trials at a width: none of them needs a key."""
    return draw(trials, width=width)


def _profile(material: Material, profile: Profile) -> dict[str, Any]:
    """Cost against frames, from a profile."""
    from longtake.jobs.plots.base import INKS, model_colors
    from longtake.jobs.plots.bench import costs_curve, profiled
    from longtake.jobs.results.command import plot_command

    def draw(width: int, labels: bool) -> Figure:
        return costs_curve(profile.bench, width=width, height=240, labels=labels)

    colors = model_colors(profiled(profile.bench))
    return {
        "runs": profile.runs,
        "curve": _sizes(draw, profile.id, "Cost against frames"),
        "key": [{"name": name, "ink": INKS[color]} for name, color in colors.items()],
        "command": plot_command("bench", material.store, f"run == '{profile.id}'", "costs.png"),
    }


def _drift(material: Material) -> dict[str, Any] | None:
    """The state of each layer during training, where runs noted it."""
    from longtake.jobs.plots.base import INKS
    from longtake.jobs.plots.steps import drift_curve, layer_looks, state_layers
    from longtake.jobs.results.command import plot_command

    steps = material.steps
    names = {run.id: run.name for run in material.runs if state_layers(steps[steps.run == run.id])}
    if not names:
        return None

    def draw(width: int, labels: bool) -> Figure:
        return drift_curve(steps, names, width=width, height=230, labels=labels)

    layers = {look.name: look for run in names for look in layer_looks(state_layers(steps[steps.run == run])).values()}
    return {
        "curve": _sizes(draw, "drift", "State of each layer against step"),
        "key": [{"name": name, "ink": INKS[look.color]} for name, look in layers.items()],
        "command": plot_command("steps", material.store, f"run in {list(names)}", "state.png", "state"),
    }


def _training(material: Material) -> dict[str, Any] | None:
    """The curves, and a line of numbers per run."""
    from longtake.jobs.plots.base import INKS, model_colors
    from longtake.jobs.plots.steps import training_curve
    from longtake.jobs.results.command import plot_command

    steps = material.steps
    names = {run.id: run.name for run in material.runs if (steps.run == run.id).any()}
    if not names:
        return None
    colors = model_colors(list(names.values()))

    def draw(width: int, labels: bool) -> Figure:
        return training_curve(steps, names, width=width, height=280 if width > 600 else 230, labels=labels)

    lines = []
    for run, name in names.items():
        rows = steps[steps.run == run].sort_values("step")
        held = rows.val_loss.dropna() if "val_loss" in rows else rows.loss[:0]
        lines.append(
            {
                "name": name,
                "ink": INKS[colors[name]],
                "steps": int(rows.step.max()) + 1,
                "loss": float(rows.loss.tail(max(1, len(rows) // 20)).mean()),
                "first": float(held.iloc[0]) if len(held) else None,
                "last": float(held.iloc[-1]) if len(held) else None,
                "speed": float(rows.frames_per_s.median()) if "frames_per_s" in rows else None,
                "wait": float(rows.data_wait.median()) if "data_wait" in rows else None,
            }
        )
    return {
        "curve": _sizes(draw, "training", "Training and held-out loss against step"),
        "lines": lines,
        "stages": "clip_frames" in steps and bool((steps.groupby("run").clip_frames.nunique() > 1).any()),
        "command": plot_command("steps", material.store, f"run in {list(names)}", "training.png"),
    }


def _provenance(run: Run) -> dict[str, Any]:
    """The facts of a run's row, and its config as YAML."""
    import pandas as pd
    import yaml

    facts = {}
    for key, value in run.row.items():
        if key in HIDDEN or value is None or value is pd.NaT or value == "" or value != value:
            continue
        facts[CALLED.get(key, key.replace("_", " "))] = _plain(value)
    return {
        "id": run.id,
        "name": run.name,
        "facts": facts,
        "config": yaml.safe_dump(run.config, sort_keys=False),
    }


def _plain(value: Any) -> str:
    """A value of a table as a reader wants it: times to the second, JSON objects as a list."""
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S UTC")
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
    if isinstance(value, str) and value.startswith("{"):
        return ", ".join(f"{name} {number}" for name, number in json.loads(value).items())
    return str(value)


def _datasets(material: Material) -> list[dict[str, str]]:
    """The datasets that were scored: name, fingerprint, recipe."""
    cards = []
    for name in sorted({str(name) for task in material.tasks for name in task.scores.dataset.unique()}):
        if material.store.exists(f"datasets/{name}/manifest.json"):
            manifest = material.store.dataset(name).manifest
            recipe = json.dumps(manifest.recipe, indent=1)
            size = f"{manifest.episodes} episodes, {manifest.frames:,} frames"
            cards.append({"name": name, "fingerprint": manifest.fingerprint, "size": size, "recipe": recipe})
    return cards


def _commands(material: Material) -> list[tuple[str, str]]:
    """What would do the same again: (what for, command)."""
    store = f" --store {material.store.uri}"
    ids = [run.id for run in material.runs]
    commands = []
    profiled = {name for profile in material.profiles for name in profile.runs}
    for run in material.runs:
        file = f"{run.row['name']}.yaml"
        why = f"train {run.name} again, with its config (below) saved as {file}"
        commands.append((why, f"longtake train {file}{store}"))
        if run.name not in profiled and run.row["kind"] == "train":
            commands.append(
                (f"show on this page what {run.name} costs against frames", f"longtake profile {file}{store}")
            )
    for config in dict.fromkeys(task.config for task in material.tasks):
        tasks = ",".join(task.task for task in material.tasks if task.config == config)
        command = f"longtake evaluate {config or 'CONFIG'} --runs {','.join(ids)} --tasks {tasks}{store}"
        commands.append((f"score {tasks.replace(',', ' and ')} again", command))
    return [*commands, ("write this page again", f"longtake report {' '.join(material.named)}{store}")]
