"""The film of a page: truth beside what every system generated, frame by frame, the same distance everywhere.

A row per system and a column per episode, in one mp4, so that everything moves together. Frames that were the context
have a coloured edge.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from jobs.report.strips import FORGOTTEN, Image, Row, Shown, called, even
from longtake import video

TILE_PX = 160  # of a frame's longer side, at least, in the film: whole multiples of small frames
EDGE_PX = 4
SLOWEST, FASTEST = 4.0, 10.0  # frames per second: to see what happens, and to see it move
MOST = 240  # frames; longer ones are thinned
SCREEN = (20, 24, 29)
SHOWN = (224, 168, 32)
"""Behind and between the frames, and around those that were the context: --screen and --shown of the page."""


@dataclass(frozen=True)
class Film:
    """An mp4 as a data URI, `width` x `height`; what each of its frames is, in words; and its rows and columns."""

    uri: str
    width: int
    height: int
    fps: float
    moments: list[str]
    context: int
    rows: list[Row]
    columns: list[str]


def make_film(shown: Shown) -> Film:
    """The whole episodes: first the context, then the generation."""
    protocol = shown.protocol
    times = even(protocol.context + protocol.horizon, MOST)
    tiles = np.stack([_row(shown, frames, wiped) for frames, wiped in _rows(shown)])  # row, clip, t, H, W, 3
    pictures = np.stack([_picture(tiles[:, :, t], t < protocol.context) for t in times])
    fps = float(min(FASTEST, max(SLOWEST, shown.fps)))
    file = io.BytesIO()
    video.write(file, pictures, fps)
    return Film(
        uri="data:video/mp4;base64," + base64.b64encode(file.getvalue()).decode(),
        width=pictures.shape[2] // 2 * 2,
        height=pictures.shape[1] // 2 * 2,
        fps=fps,
        moments=[_moment(shown, t) for t in times],
        context=sum(t < protocol.context for t in times),
        rows=[Row("truth", "ink", None), *(Row(called(one.look), one.look.ink, None) for one in shown.made)],
        columns=[f"{note} (episode {episode})" for episode, note in shown.episodes.items()],
    )


def _rows(shown: Shown) -> list[tuple[Image, bool]]:
    """The generated frames (b, horizon, H, W, 3) of each row, and whether its context was wiped."""
    truth = (shown.truth[:, shown.protocol.context :], False)
    return [truth, *((one.frames, one.look.kind == "wiped") for one in shown.made)]


def _row(shown: Shown, frames: Image, wiped: bool) -> Image:
    """Context and generation of one system (b, t, H, W, 3), small frames enlarged."""
    context = shown.truth[:, : shown.protocol.context]
    if wiped:
        context = np.full_like(context, FORGOTTEN[0])
    whole = np.concatenate([context, frames], axis=1)
    zoom = max(1, round(TILE_PX / max(whole.shape[2:4])))
    return whole.repeat(zoom, axis=2).repeat(zoom, axis=3)


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
    distances = sorted({int(shown.distances(episode)[t - context]) for episode in shown.episodes})
    far = f"{distances[0]} to {distances[-1]}" if len(distances) > 1 else f"{distances[0]}"
    return f"generated, distance {far}"
