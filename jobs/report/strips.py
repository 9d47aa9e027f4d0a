"""Picture strips: what was asked beside what each system generated, made again from the checkpoints.

The noise of a clip depends on the protocol and the episode alone, so these are the frames that were scored.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longtake.evals.protocol import Protocol
from longtake.jobs.evaluate.cells import ScoreCell, Variant
from longtake.jobs.plots.base import Look, looks
from longtake.jobs.report.claims import best_model, ranked_models, reach
from longtake.tables.schema import NO_RUN
from longtake.training import checkpoints

if TYPE_CHECKING:
    import pandas as pd

    from longtake.jobs.report.gather import Material, TaskScores

Image = NDArray[np.uint8]
SHOWN_CONTEXT, SHOWN_MADE = 2, 10  # columns
TILE_PX = 64  # about, on the page: a frame times or by a whole number
MOST_ROWS = 8
"""Pictured of a task beside the truth: a page stays small and is made soon, however many systems were scored."""
UNPICTURED = ("floor", "stranger")
"""They show nothing new."""
VARIANTS: dict[str, Variant] = {"wiped": "wiped", "ceiling": "reconstruction"}
"""What of a checkpoint stands behind a look; the whole model behind others."""
FORGOTTEN = (127, 127, 127, 56)  # where a wiped model's context would be
QUANTILES = {"a hard one": 0.2, "a middling one": 0.5, "an easy one": 0.8}


@dataclass(frozen=True)
class Row:
    """A row of a strip: whose frames, and their mean PSNR over the whole generation of this episode."""

    name: str
    ink: str
    psnr: float | None


@dataclass(frozen=True)
class Strip:
    """One episode as a PNG (a data URI), `width` x `height` on the page, and the words around it."""

    episode: int
    note: str
    uri: str
    width: int
    height: int
    context: list[str]
    distances: list[int]
    context_width: int
    made_width: int
    rows: list[Row]


@dataclass(frozen=True)
class Generated:
    """Frames uint8 (b, t, H, W, 3) that a system generated for b clips."""

    look: Look
    frames: Image


@dataclass(frozen=True)
class Shown:
    """Some episodes of a task with what the systems made of them: `truth` (b, context + horizon, H, W, 3).

    `models` are those that are shown, the best first.
    """

    task: TaskScores
    protocol: Protocol
    episodes: dict[int, str]
    truth: Image
    generated: list[Generated]
    fps: float
    models: list[str]

    def distances(self, episode: int) -> pd.Series[int]:
        """Of every judged frame of an episode, to the context frame that shows the same place."""
        rows = self.task.scores[self.task.scores.episode == episode]
        return rows[rows.frame >= 0].drop_duplicates("frame").set_index("frame").distance.sort_index()


def show(material: Material, task: TaskScores) -> Shown | None:
    """Three episodes of a task: a hard, a middling and an easy one for the best model.

    What cannot be shown (a checkpoint or dataset that is gone) is told in the material's notes.
    """
    protocol = task.definition
    name = str(task.scores.dataset.iloc[0])
    if protocol is None or not material.store.exists(f"datasets/{name}/manifest.json"):
        what = f"the definition of protocol {task.protocol}" if protocol is None else f"dataset {name}"
        material.notes.append(f"{task.task}: no pictures, since {what} is not in this store.")
        return None
    dataset = material.store.dataset(name)
    if dataset.fingerprint != protocol.dataset:
        material.notes.append(f"{task.task}: no pictures, since dataset {name} is not the one that was scored.")
        return None
    chosen = pick_episodes(task.scores, material.window)
    models = pick_models(material, task)
    cells = list(_cells(material, task, name, protocol, tuple(chosen), models))
    if not cells:
        return None
    with one_thread():
        truth = _truth(cells[0][1])
        generated = [Generated(look, generate(cell)) for look, cell in cells]
    return Shown(task, protocol, chosen, truth, generated, dataset.manifest.fps, models)


def make_strips(shown: Shown) -> list[Strip]:
    """A strip per episode."""
    return [_strip(shown, clip, episode) for clip, episode in enumerate(shown.episodes)]


def pick_episodes(scores: pd.DataFrame, window: int) -> dict[int, str]:
    """Episode → why: at fixed quantiles of the best model's PSNR beyond what windows reach, not by taste."""
    beyond = reach(scores, window)
    best = best_model(scores, beyond)
    rows = scores[(scores.metric == "psnr") & (scores.distance > beyond) & (scores.system == best)]
    ranked = rows.groupby("episode").value.mean().sort_values(kind="stable")
    reasons: dict[int, str] = {}
    for note, quantile in QUANTILES.items():
        reasons.setdefault(int(ranked.index[round(quantile * (len(ranked) - 1))]), note)
    return reasons


def pick_models(material: Material, task: TaskScores) -> list[str]:
    """The best models, as many as fit into the rows with their controls and the oracle; the rest is told in the notes.

    A model is shown with all of its rows or not at all, and one always is.
    """
    rows = [look for look in looks(task.scores).values() if look.kind not in UNPICTURED]
    ranked = ranked_models(task.scores, reach(task.scores, material.window))
    free = MOST_ROWS - sum(look.kind == "oracle" for look in rows)
    needed = np.cumsum([sum(model_of(look) == model for look in rows) for model in ranked])
    kept = max(1, int((needed <= free).sum()))
    if ranked[kept:]:
        left_out = ", ".join(ranked[kept:])
        material.notes.append(f"{task.task}: pictures of the {kept} best models only; left out: {left_out}.")
    return ranked[:kept]


def model_of(look: Look) -> str | None:
    """The model that a row is of, with its controls; None for what is of none."""
    return None if look.kind in ("floor", "oracle") else look.system.partition("/")[0]


def _is_of(look: Look, models: Sequence[str]) -> bool:
    return model_of(look) in (None, *models)


def _cells(
    material: Material,
    task: TaskScores,
    dataset: str,
    protocol: Protocol,
    episodes: tuple[int, ...],
    models: Sequence[str],
) -> Iterator[tuple[Look, ScoreCell]]:
    """Each system to show, as a cell of an evaluation."""
    rows = task.scores.drop_duplicates("system")
    subjects = {s: (str(run), int(step)) for s, run, step in zip(rows.system, rows.run, rows.checkpoint, strict=True)}
    store = material.store
    for look in looks(task.scores).values():
        run, step = subjects[look.system]
        if look.kind in UNPICTURED or not _is_of(look, models):
            continue
        if run != NO_RUN and step not in checkpoints.complete(store, run):
            material.notes.append(f"{look.name}: no pictures, since the checkpoint of step {step} is gone.")
            continue
        variant = VARIANTS.get(look.kind, "whole")
        yield look, ScoreCell(store.uri, dataset, protocol, look.system, run, step, variant, episodes)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, as in an evaluation: sums come out the same bit for bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _truth(cell: ScoreCell) -> Image:
    """Frames (b, context + horizon, H, W, 3) of the cell's clips."""
    from longtake.jobs.evaluate.cell import read_clip

    return np.stack([read_clip(cell, episode).frames for episode in cell.episodes])


def generate(cell: ScoreCell) -> Image:
    """Frames (b, horizon, H, W, 3) that the cell's system makes of its clips."""
    from longtake.evals.scoring import answer
    from longtake.jobs.evaluate.cell import build_system, conditions_of, no_repeated_warnings, read_clip

    questions = [read_clip(cell, episode) for episode in cell.episodes]
    with no_repeated_warnings():
        return answer(build_system(cell, questions), cell.protocol, questions, conditions_of(cell, questions))


def _strip(shown: Shown, clip: int, episode: int) -> Strip:
    """Lay out one episode: the truth first, then every system."""
    protocol, truth = shown.protocol, shrunk(shown.truth[clip])
    given = even(protocol.context, SHOWN_CONTEXT)
    distances = shown.distances(episode)
    columns = [int(distances.index[j]) for j in even(len(distances), SHOWN_MADE)]
    context = [truth[t] for t in given]
    grid: list[list[Image | None]] = [[*context, *(truth[protocol.context + j] for j in columns)]]
    rows = [Row("truth", "ink", None)]
    scores = shown.task.scores
    means = scores[(scores.episode == episode) & (scores.metric == "psnr")].groupby("system").value.mean()
    for one in shown.generated:
        context_row: Sequence[Image | None] = [None] * len(context) if one.look.kind == "wiped" else context
        grid.append([*context_row, *shrunk(one.frames[clip, columns])])
        rows.append(Row(called(one.look), one.look.ink, float(means[one.look.system])))
    image = mosaic(grid, len(context))
    height, width = truth.shape[1:3]
    scale = max(1, round(TILE_PX / width))
    return Strip(
        episode=episode,
        note=shown.episodes[episode],
        uri=data_uri(image),
        width=image.shape[1] * scale,
        height=image.shape[0] * scale,
        context=[f"{t - protocol.context}".replace("-", "\N{MINUS SIGN}") for t in given],
        distances=[int(distances[j]) for j in columns],
        context_width=(len(context) * (width + gap_px(width)) - gap_px(width)) * scale,
        made_width=(len(columns) * (width + gap_px(width)) - gap_px(width)) * scale,
        rows=rows,
    )


def shrunk(frames: Image) -> Image:
    """Frames (t, H, W, 3), large ones shrunk by a whole number: a strip shows many beside each other."""
    by = max(1, round(frames.shape[2] / TILE_PX))
    if by == 1:
        return frames
    height, width = (size // by * by for size in frames.shape[1:3])
    cut = frames[:, :height, :width].astype(np.float32)
    blocks = cut.reshape(len(frames), height // by, by, width // by, by, 3)
    small: Image = blocks.mean((2, 4)).round().astype(np.uint8)
    return small


def called(look: Look) -> str:
    """A wiped model stands below the model, in its colour."""
    return "memory wiped" if look.kind == "wiped" else look.name


def even(count: int, shown: int) -> list[int]:
    """At most `shown` indices out of `count`, evenly spaced, the first and the last among them."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(shown, count)).round())]


def gap_px(width: int) -> int:
    """Pixels between frames of that width."""
    return max(1, width // 16)


def mosaic(grid: Sequence[Sequence[Image | None]], context: int) -> Image:
    """Rows of frames uint8 (H, W, 3) → one RGBA picture with clear gaps, a wider one after `context` columns.

    None is a frame that the system was not left with.
    """
    height, width = next(tile.shape[:2] for row in grid for tile in row if tile is not None)
    gap = gap_px(width)
    columns, extra = len(grid[0]), gap * 4 if context else 0
    picture = np.zeros((len(grid) * (height + gap) - gap, columns * (width + gap) - gap + extra, 4), np.uint8)
    for r, row in enumerate(grid):
        for c, tile in enumerate(row):
            y, x = r * (height + gap), c * (width + gap) + (extra if c >= context else 0)
            area = picture[y : y + height, x : x + width]
            if tile is None:
                area[:] = FORGOTTEN
            else:
                area[..., :3], area[..., 3] = tile, 255
    return picture


def data_uri(image: Image) -> str:
    """An RGBA picture as a PNG in a URI."""
    from PIL import Image as Pictures

    buffer = io.BytesIO()
    Pictures.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
