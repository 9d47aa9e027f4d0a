"""`longtake report RUN...`: one self-contained page that shows what the scores of some runs say.

gather.py    which runs, and of each task which scores may stand side by side
findings.py  a sentence per claim, and the table
strips.py    truth beside generation, made again from the checkpoints
svg.py       plots that follow the page's theme
page.html    the page
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.schema import NO_RUN
from longtake.store import Store, open_store

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from jobs.report.gather import Material, Run, TaskScores

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
PICTURED = "retrieval"


def main(runs: list[str], store: str, out: str | None) -> None:
    """The command: write the page and say where it is."""
    where = open_store(store)
    where.require_exists()
    began = time.monotonic()
    page = build(where, runs, Path(out) if out else None)
    print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB, {time.monotonic() - began:.0f} s)")


def build(store: Store, runs: Sequence[str], out: Path | None = None) -> Path:
    """Write the page of these runs; returns where (default: STORE/reports/RUNS.html, ./report.html for S3).

    Raises:
        UserError: an unknown run, scores that cannot be compared, or a place that cannot be written.
    """
    from jobs.report.gather import gather

    material = gather(store, runs)
    text = render(material)
    if out is None:
        name = "_".join(run.id for run in material.runs[:3]) + (f"_{len(material.runs)}" if material.runs[3:] else "")
        out = Path(store.path("reports", f"{name}.html")) if store.is_folder else Path("report.html")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error.strerror}") from error
    return out.resolve()


def render(material: Material) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    from jobs.report.findings import number

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.filters["breakable"] = lambda name: escape(name).replace("_", Markup("_<wbr>"))
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    tasks = [_task(material, task) for task in material.tasks]
    return template.render(
        title=", ".join(run.name for run in material.runs),
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        window=material.window,
        tasks=tasks,
        training=_training(material),
        provenance=[_provenance(run) for run in material.runs],
        datasets=_datasets(material),
        commands=_commands(material),
        store=material.store.uri,
        runs=[*(run.id for run in material.runs), NO_RUN],
        notes=material.notes,  # last: drawing adds to them
    )


def _task(material: Material, task: TaskScores) -> dict[str, Any]:
    """Everything that the page says about one task."""
    from jobs.plots import looks, psnr_curve
    from jobs.report.findings import claims, of_memory, reach, summary, verdict
    from jobs.report.strips import make_strips

    has_psnr = (task.scores.metric == "psnr").any()
    about = of_memory(task.scores)
    has_curve = has_psnr and about.distance[about.metric == "psnr"].nunique() > 1

    def draw(width: int, labels: bool) -> Figure:
        height = 300 + width // 8
        return psnr_curve(about, "psnr", material.window, width=width, height=height, labels=labels)

    found = claims(about, material.window)
    beyond = reach(about, material.window)
    return {
        "name": task.task,
        "protocol": task.protocol,
        "definition": json.dumps(task.definition.model_dump(mode="json"), indent=1) if task.definition else None,
        "context": task.definition.context if task.definition else None,
        "horizon": task.definition.horizon if task.definition else int(task.scores.frame.max()) + 1,
        "claims": found,
        "verdict": verdict(found, task.task, beyond) if found else None,
        "beyond": beyond,
        "strata": len(about) < len(task.scores),
        "horizons": _horizons(material, task),
        "summary": summary(task.scores, material.window),
        "looks": list(looks(task.scores).values()),
        "curve": _sizes(draw, f"{task.task}-curve", f"{task.task}: PSNR against distance") if has_curve else None,
        "strips": make_strips(material, task) if task.task == PICTURED and has_psnr else [],
    }


def _horizons(material: Material, task: TaskScores) -> list[tuple[str, str]]:
    """How far back each model remembers, as a sentence; what keeps it from being known is told in the notes."""
    from evals.horizon import TASK
    from jobs.horizons import horizons, sentence

    if task.task != TASK:
        return []
    try:
        return [(found.system, sentence(found)) for found in horizons(task.scores)]
    except ValueError as error:
        material.notes.append(f"{task.task}: no memory horizon, since {error}.")
        return []


def _sizes(draw: Callable[[int, bool], Figure], name: str, title: str) -> dict[str, Markup]:
    """A figure per width, so that its text is never scaled down; on a phone the page shows a key."""
    from jobs.report.svg import inline

    return {size: inline(draw(width, size != "narrow"), f"{name}-{size}", title) for size, width in WIDTHS.items()}


def _training(material: Material) -> dict[str, Any] | None:
    """The curves, and a line of numbers per run."""
    from jobs.plots import INKS, model_colors, training_curve

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
    return {"curve": _sizes(draw, "training", "Training and held-out loss against step"), "lines": lines}


def _provenance(run: Run) -> dict[str, Any]:
    """The facts of a run's row, and its config as YAML."""
    import pandas as pd
    import yaml

    facts = {}
    for key, value in run.row.items():
        if key in HIDDEN or value is None or value is pd.NaT or value == "" or value != value:
            continue
        facts[key.replace("_", " ")] = _plain(value)
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
    if isinstance(value, str) and value.startswith("{"):
        return ", ".join(f"{name} {told}" for name, told in json.loads(value).items())
    return str(value)


def _datasets(material: Material) -> list[dict[str, str]]:
    """The datasets that were scored: name, fingerprint, recipe."""
    found = []
    for name in sorted({str(name) for task in material.tasks for name in task.scores.dataset.unique()}):
        if material.store.exists(f"datasets/{name}/manifest.json"):
            manifest = material.store.dataset(name).manifest
            recipe = json.dumps(manifest.recipe, indent=1)
            told = f"{manifest.episodes} episodes, {manifest.frames:,} frames"
            found.append({"name": name, "fingerprint": manifest.fingerprint, "size": told, "recipe": recipe})
    return found


def _commands(material: Material) -> list[tuple[str, str]]:
    """What would do the same again: (what for, command)."""
    store = f" --store {material.store.uri}"
    ids = [run.id for run in material.runs]
    found = []
    for run in material.runs:
        file = f"{run.row['name']}.yaml"
        found.append(
            (
                f"train {run.name} again, with its config (below) saved as {file}",
                f"longtake train {file}{store}",
            )
        )
    for config in dict.fromkeys(task.config for task in material.tasks):
        tasks = ",".join(task.task for task in material.tasks if task.config == config)
        command = f"longtake evaluate {config or 'CONFIG'} --runs {','.join(ids)} --tasks {tasks}{store}"
        found.append((f"score {tasks.replace(',', ' and ')} again", command))
    return [*found, ("write this page again", f"longtake report {' '.join(ids)}{store}")]
