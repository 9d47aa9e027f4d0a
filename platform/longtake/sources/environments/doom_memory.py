"""Controlled memory episodes in ViZDoom: objects of known colour and place leave the view for exactly n frames.

The walker stands in the middle of a plain room and only turns. Around it stand `objects` pillars and lamps of
different colours, evenly spread, each a little left of, in, or right of the middle of the view that faces it. An
episode looks at one after another, for `look` frames each, then faces a bare direction for exactly `away` frames, cut
to and back from in one action, and looks again, in the same order.

Labels, of every frame: `object`, which of OBJECTS is in view, -1 for none; `place`, 0 left, 1 middle, 2 right, -1 for
none; `order`, as the how-manieth object of the episode it was shown, -1 for none; `gap`, frames since it was last in
view, 0 while it is or for the first time. What is known of the episode names its objects and the texture of its walls,
one of the calm ones of `doom_maze`.
"""

from __future__ import annotations

import math
import random
import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longtake.config import Config
from longtake.datasets.controls import Control, Controls
from longtake.datasets.episode import Episode
from longtake.sources.environment import Environment
from longtake.sources.environments import doom_maze
from longtake.sources.environments.doom_maze import SQUARE, TURN, WARM_UP_TICS, DoomMazeConfig, Pixels
from longtake.sources.resize import shrink, square
from longtake.storage import scratch

OBJECTS = {"green pillar": 30, "red pillar": 32, "yellow lamp": 2028, "grey column": 48}
"""Things that do not move or flicker, by what they look like."""
PLACES = (math.radians(18), 0.0, -math.radians(18))
ROOM = 9  # squares across: what is behind does not fill the view
DISTANCE = 1.6  # squares to an object


class DoomMemoryConfig(Config):
    """What is shown, and for how long it is gone."""

    source: Literal["doom-memory"] = "doom-memory"
    """Objects that leave the view and come back, in ViZDoom."""
    objects: int = Field(default=1, ge=1, le=3, description="shown one after another; one direction stays bare [count]")
    look: int = Field(default=8, ge=1, description="frames at each object, each time [frames]")
    away: int = Field(default=32, ge=1, le=800, description="frames without any object, between the two looks [frames]")
    resolution: tuple[Pixels, Pixels] = Field(default=(64, 64), description="(height, width), area-averaged [pixels]")
    fps: float = Field(
        default=doom_maze.TICS_PER_SECOND / 4, gt=0, description="frames per second of world time [frames/s]"
    )

    @property
    def steps(self) -> int:
        """Frames of an episode."""
        return 2 * self.objects * self.look + self.away


CONTROLS = Controls(
    controls=(
        Control(name="turn left", keys=("ArrowLeft", "a"), action=(0, 0.25)),
        Control(name="turn right", keys=("ArrowRight", "d"), action=(0, -0.25)),
        Control(name="turn round", keys=("ArrowDown", "s"), action=(0, 1)),
    ),
    bounds=((0, 0), (-1, 1)),
)


def about(config: DoomMemoryConfig) -> dict[str, Any]:
    """What the dataset says of actions and poses."""
    return {
        "action_space": {"forward": "0", "turn": "half turns, anticlockwise"},
        "pose": doom_maze.POSE,
        "controls": CONTROLS,
    }


def require(config: DoomMemoryConfig) -> None:
    """Raise UserError if it cannot be recorded here."""
    doom_maze.require(DoomMazeConfig())


def generate(config: DoomMemoryConfig, seed: int) -> Episode:
    """One episode in a room of its own; the same seed gives the same bytes."""
    rng = random.Random(seed)
    engine = DoomMazeConfig(resolution=config.resolution, palette="calm", turn_degrees=180, landmarks=0)
    kinds, places = rng.sample(range(len(OBJECTS)), config.objects), [rng.randrange(3) for _ in range(config.objects)]
    grid = np.zeros((ROOM, ROOM), bool)
    grid[1:-1, 1:-1] = True
    # Directions of sight: the first is bare. Things face nobody, so only their positions matter.
    sights = [2 * math.pi * number / (config.objects + 1) for number in range(config.objects + 1)]
    if config.objects == 1:
        sights = [0.0, math.pi]
    bearings = [sight + PLACES[place] for sight, place in zip(sights[1:], places, strict=True)]
    look = engine.model_copy(update={"texture_region": ROOM, "wall_textures": 1})
    text = doom_maze.textmap(grid, look, rng, things=_things(kinds, bearings))
    with scratch.folder() as folder:
        wad = folder / "room.wad"
        wad.write_bytes(doom_maze.wad_bytes(text))
        game = doom_maze.start(wad, engine, seed)
        try:
            frames, actions, pose = _turn(game, engine, [sights[which] for which in _script(config)])
        finally:
            game.close()
    walls = re.findall('texturemiddle="(.+?)"', text)[0]  # all are alike
    meta = {"seed": seed, "objects": [list(OBJECTS)[kind] for kind in kinds], "away": config.away, "walls": walls}
    return Episode(frames, actions, pose, meta, _labels(config, kinds, places))


def _things(kinds: list[int], bearings: list[float]) -> list[str]:
    """The player in the middle, and the objects around."""
    middle = ROOM / 2
    things = [doom_maze.thing(1, (middle, middle))]
    for kind, bearing in zip(kinds, bearings, strict=True):
        spot = (middle + DISTANCE * math.cos(bearing), middle + DISTANCE * math.sin(bearing))
        things.append(doom_maze.thing(list(OBJECTS.values())[kind], spot))
    return things


def _script(config: DoomMemoryConfig) -> list[int]:
    """For each frame which direction is looked in: 0 the bare one, else an object's."""
    looks = [number for number in range(1, config.objects + 1) for _ in range(config.look)]
    return [*looks, *[0] * config.away, *looks]


def _turn(game: Any, engine: DoomMazeConfig, sights: list[float]) -> tuple[Any, Any, Any]:
    """Frames, actions and pose of looking in these directions."""
    frames = np.empty((len(sights), *engine.resolution, 3), np.uint8)
    actions, pose = np.zeros((len(sights), 2), np.float32), np.empty((len(sights), 3), np.float32)
    game.make_action([0.0, 0.0], WARM_UP_TICS)
    yaw = 0.0
    for t, sight in enumerate(sights):
        turn = (sight - yaw + math.pi) % (2 * math.pi) - math.pi
        doom_maze.apply(game, np.array([0.0, turn / math.pi], np.float32), engine)
        if t:
            actions[t, TURN] = turn / math.pi
        state = game.get_state()
        frames[t] = shrink(square(state.screen_buffer), engine.resolution)
        x, y, angle = state.game_variables
        yaw = math.radians(angle)
        pose[t] = x / SQUARE, y / SQUARE, yaw
    return frames, actions, pose


def _labels(config: DoomMemoryConfig, kinds: list[int], places: list[int]) -> dict[str, NDArray[np.int64]]:
    order = np.array(_script(config)) - 1
    gap, last = np.zeros(len(order), np.int64), dict[int, int]()
    for t, which in enumerate(order.tolist()):
        if which >= 0:
            gap[t] = t - last.get(which, t - 1) - 1
            last[which] = t
    of = {"object": np.array([*kinds, -1]), "place": np.array([*places, -1])}
    return {"order": order, "gap": gap} | {name: values[order] for name, values in of.items()}


ENVIRONMENT = Environment(DoomMemoryConfig, generate, about, require)
