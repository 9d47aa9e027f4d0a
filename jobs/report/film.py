"""The film of a page: truth beside what every system generated, frame by frame, the same distance everywhere.

A row per system and a column per episode, in one mp4, so that everything moves together. Frames that were the context
have a coloured edge.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longtake.datasets import video
from longtake.jobs.report.strips import FORGOTTEN, Generated, Image, Row, Shown, called, even, model_of

TILE_PX = 160  # of a frame's longer side, at least, in the film: whole multiples of small frames
EDGE_PX = 4
SLOWEST, FASTEST = 4.0, 10.0  # frames per second: to see what happens, and to see it move
MOST = 240  # frames of time; longer episodes are thinned
SCREEN = (20, 24, 29)
SHOWN = (224, 168, 32)
"""Behind and between the frames, and around those that were the context: --screen and --shown of the page."""


@dataclass(frozen=True)
class Film:
    """An mp4 as a data URI, `width` x `height`; what each of its frames is, in words; and its rows and columns.

    `left_out` says in words what it would have shown too, had it been allowed to be larger; empty for nothing.
    """

    uri: str
    width: int
    height: int
    fps: float
    moments: list[str]
    context: int
    rows: list[Row]
    columns: list[str]
    left_out: str


def make_film(shown: Shown, limit: int = 2**62) -> Film:
    """The whole episodes, first the context, then the generation: as much as `limit` letters of its URI can hold.

    First the models that are not the best are left out, from the worst on, then every other frame.
    """
    models, most = shown.models, MOST
    while True:
        film = _film(shown, models, most)
        if len(film.uri) <= limit or most == 2:
            return film
        if len(models) > 1:
            models = models[: max(1, min(len(models) - 1, int(len(models) * limit / len(film.uri))))]
        else:
            most = max(2, len(film.moments) // 2)


def _film(shown: Shown, models: Sequence[str], most: int) -> Film:
    """With these models, and at most so many frames of time."""
    protocol = shown.protocol
    rows = [one for one in shown.generated if model_of(one.look) in (None, *models)]
    times = even(protocol.context + protocol.horizon, most)
    pictures = (_picture(_tiles(shown, rows, t), t < protocol.context) for t in times)
    fps = float(min(FASTEST, max(SLOWEST, shown.fps)))
    file = io.BytesIO()
    video.write(file, pictures, fps)
    height, width = _picture(_tiles(shown, rows, 0), is_context=True).shape[:2]
    without = ", ".join(shown.models[len(models) :])
    every = f"all but {len(times)} of {protocol.context + protocol.horizon} frames" if most < MOST else ""
    return Film(
        uri="data:video/mp4;base64," + base64.b64encode(file.getvalue()).decode(),
        width=width // 2 * 2,
        height=height // 2 * 2,
        fps=fps,
        moments=[_moment(shown, t) for t in times],
        context=sum(t < protocol.context for t in times),
        rows=[Row("truth", "ink", None), *(Row(called(one.look), one.look.ink, None) for one in rows)],
        columns=[f"{note} (episode {episode})" for episode, note in shown.episodes.items()],
        left_out=" and ".join(filter(None, (without, every))),
    )


def _tiles(shown: Shown, generated: Sequence[Generated], t: int) -> Image:
    """The frames of one moment (row, clip, H, W, 3), the truth first; small ones enlarged."""
    context = shown.protocol.context
    truth = shown.truth[:, t]
    rows = [truth]
    for one in generated:
        if t >= context:
            rows.append(one.frames[:, t - context])
        else:
            rows.append(np.full_like(truth, FORGOTTEN[0]) if one.look.kind == "wiped" else truth)
    tiles = np.stack(rows)
    zoom = max(1, round(TILE_PX / max(truth.shape[1:3])))
    return tiles.repeat(zoom, axis=2).repeat(zoom, axis=3)


def _picture(tiles: Image, is_context: bool) -> Image:
    """Tiles (row, column, H, W, 3) of one moment as one picture, each with its edge."""
    rows, columns, height, width = tiles.shape[:4]
    high, wide = height + 2 * EDGE_PX, width + 2 * EDGE_PX
    picture = np.empty((rows * (high + EDGE_PX) - EDGE_PX, columns * (wide + EDGE_PX) - EDGE_PX, 3), np.uint8)
    picture[:] = SCREEN
    for r in range(rows):
        for c in range(columns):
            area = picture[r * (high + EDGE_PX) :, c * (wide + EDGE_PX) :][:high, :wide]
            area[:] = SHOWN if is_context else SCREEN
            area[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX] = tiles[r, c]
    return picture


def _moment(shown: Shown, t: int) -> str:
    """What the frame at time `t` is."""
    context = shown.protocol.context
    if t < context:
        return f"context, frame {t + 1} of {context}"
    per_episode = [shown.distances(episode) for episode in shown.episodes]
    distances = sorted({int(distance[t - context]) for distance in per_episode if t - context in distance.index})
    if not distances:
        return "generated, not judged"
    far = f"{distances[0]} to {distances[-1]}" if len(distances) > 1 else f"{distances[0]}"
    return f"generated, distance {far}"
