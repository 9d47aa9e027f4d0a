"""The card of an exported model, made from what the store knows: data, recipe, scores with protocols and floors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longtake.errors import Damaged, UserError
from longtake.tables.schema import NO_RUN
from longtake.tables.scores import summarise

if TYPE_CHECKING:
    import pandas as pd

    from longtake.datasets.dataset import Dataset
    from longtake.storage.store import Store

CARD = "README.md"
DIGITS = 3


def text(store: Store, row: dict[str, Any], step: int, license: str) -> str:
    """Front matter as the hub reads it, and the card."""
    name = str(row["name"])
    parts = [
        _front(license, name),
        f"# {name}\n\nA world model trained by Longtake: "
        f"run `{row['run']}`, step {step}, code version `{row['code_version']}`.",
        _use(row),
        _data(store, row),
        _scores(store, row, step),
        f"## Recipe\n\n```yaml\n{str(row['config']).strip()}\n```",
        f"## Licence\n\nThe weights: {license}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(license: str, name: str) -> str:
    facts = {"license": license, "library_name": "longtake", "pipeline_tag": "image-to-video"}
    lines = [f"{key}: {json.dumps(value)}" for key, value in facts.items()]
    return "\n".join(
        ["---", *lines, "tags: [world-model, state-space-model]", f"model_name: {json.dumps(name)}", "---"]
    )


def _use(row: dict[str, Any]) -> str:
    if row["kind"] != "train":
        return ""
    return (
        '## Use\n\n```python\nfrom longtake import World\n\nworld = World.load("FOLDER or OWNER/NAME")\n'
        "print(world.action_names, world.frame_shape, world.trained_frames)\n```"
    )


def _data(store: Store, row: dict[str, Any]) -> str:
    name = str(row["dataset_name"])
    try:
        dataset = store.dataset(name)
    except Damaged:
        raise
    except UserError:
        return f"## Data\n\n`{name}` (fingerprint `{row['dataset']}`), which is no longer in the store."
    return f"## Data\n\n`{name}`, fingerprint `{row['dataset']}`:\n\n{_table(_facts(dataset))}"


def _facts(dataset: Dataset) -> list[tuple[str, str]]:
    facts = dataset.manifest
    splits = ", ".join(f"{count} {split}" for split, count in facts.splits.items())
    actions = ", ".join(f"{name} ({meaning})" for name, meaning in facts.action_space.items())
    return [
        ("episodes", splits),
        ("frames", f"{facts.frames:,} at {facts.fps:g} per second, {' x '.join(map(str, dataset.frame_shape))}"),
        ("actions", actions or "none"),
        ("pose", ", ".join(facts.pose or ["none"])),
    ]


def _scores(store: Store, row: dict[str, Any], step: int) -> str:
    """The checkpoint's scores beside those of floors and oracle under the same protocols."""
    rows = store.table("scores")
    if not rows.empty:
        own = rows[(rows.run == row["run"]) & (rows.checkpoint == step)]
        rows = rows[rows.protocol.isin(own.protocol) & ((rows.run == NO_RUN) | rows.index.isin(own.index))]
    if rows.empty:
        return "## Scores\n\nNone: `longtake evaluate` has not scored this checkpoint."
    results = summarise(rows, by=("task", "system")).sort_values(["task", "protocol", "metric", "system"])
    lines = [(str(r.task), str(r.system), str(r.metric), _mean(r), str(r.protocol)) for r in results.itertuples()]
    head = ("task", "system", "metric", "mean over episodes, 95 % interval", "protocol")
    return (
        "## Scores\n\nOn held-out episodes, beside systems without training (floors, and the oracle `nearest_pose`) "
        "and the model with its memory taken away (`/wiped`, `/stranger`). Only lines of one protocol may be "
        "compared.\n\n" + _table(lines, head)
    )


def _mean(line: pd.Series[Any] | Any) -> str:
    return f"{line.mean:.{DIGITS}f} [{line.low:.{DIGITS}f}, {line.high:.{DIGITS}f}], n = {line.episodes}"


def _table(lines: Sequence[tuple[str, ...]], head: tuple[str, ...] = ("", "")) -> str:
    """Markdown; what a cell says cannot end it."""
    rows = [head, tuple("---" for _ in head), *lines]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows
    )
