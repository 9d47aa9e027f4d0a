"""Procedural mazes in ViZDoom, seen through the eyes of a walker that keeps coming back: a new maze per seed.

A depth-first maze with loops is written as a UDMF text map in a three-lump WAD (the engine builds its own
nodes), so no map editor, no scenario file and no system package is needed. Textures are those of the
bundled Freedoom.

The worlds are made for measuring memory: walls, floors, ceilings and light change from region to region,
drawn from palettes of strongly different mean colours, so that a place can be recognised even at 32 x 32
pixels and cannot be guessed from its neighbours.

Units: a *square* is one step of the (2n+1) x (2n+1) map grid (a cell, a passage or a wall block), `SQUARE`
map units wide. Pose is (x, y, yaw) in squares and radians, y up, yaw anticlockwise.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import random
import struct
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longtake.config import Config
from longtake.datasets.controls import Control, Controls
from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.sources.environment import Environment
from longtake.sources.environments.doom_textures import (
    FLATS,
    LANDMARKS,
    PLAIN_CEILING,
    PLAIN_FLOOR,
    PLAIN_LIGHT,
    WALLS,
)
from longtake.sources.resize import shrink, square
from longtake.storage import scratch

if TYPE_CHECKING:
    from vizdoom import DoomGame

SQUARE = 96
FORWARD, TURN = 0, 1  # columns of the action; turn is in units of `turn_degrees`, anticlockwise
TICS_PER_SECOND = 35
WARM_UP_TICS = 10  # the engine ignores turns in the first 8 of a level

Square = tuple[int, int]
Grid = NDArray[np.bool_]  # [y, x], True where one can walk
Pixels = Annotated[int, Field(ge=8, le=960)]
PLAYER = "thing{type=1;"
STEPS: tuple[Square, ...] = ((1, 0), (-1, 0), (0, 1), (0, -1))


class DoomMazeConfig(Config):
    """What the mazes look like and how they are walked.

    The engine renders 90 degrees of view at 4:3 in its smallest adequate resolution; `view` says which part
    is kept before it is averaged down.
    """

    source: Literal["doom-maze"] = "doom-maze"
    """A maze per seed, in ViZDoom."""
    cells: int = Field(default=4, ge=2, le=32, description="per side; the map grid is 2 * cells + 1 squares [cells]")
    braid: float = Field(default=0.25, ge=0, le=1, description="share of inner walls opened to make loops [share]")
    resolution: tuple[Pixels, Pixels] = Field(default=(32, 32), description="(height, width), area-averaged [pixels]")
    view: Literal["square", "full"] = Field(default="square", description="central 74 degrees, or all 4:3")
    palette: Literal["rich", "calm"] = Field(default="rich", description="bold patterns, or plain colours")
    wall_textures: int = Field(default=24, ge=1, le=24, description="of the palette, that one maze uses [count]")
    texture_region: int = Field(default=1, ge=1, description="edge, in squares, of a region that looks alike [squares]")
    vary_floor: bool = Field(default=True, description="floor and ceiling differ from region to region")
    vary_light: bool = Field(default=True, description="light level differs from region to region")
    landmarks: int = Field(default=4, ge=0, le=len(LANDMARKS), description="objects placed in dead ends [count]")
    steps: int = Field(default=256, ge=2, description="frames per episode [frames]")
    tics: int = Field(default=4, ge=1, le=35, description="engine tics (1/35 s) per action [tics]")
    turn_degrees: float = Field(default=30.0, gt=0, le=180, description="largest turn of one action [degrees]")
    random_actions: float = Field(default=0.1, ge=0, le=1, description="share of actions drawn at random [share]")

    @property
    def fps(self) -> float:
        """Frames per second of world time."""
        return TICS_PER_SECOND / self.tics


ACTION_SPACE = {"forward": "0 or 1", "turn": "-1 to 1 times turn_degrees, anticlockwise"}
POSE = ["x (squares)", "y (squares)", "yaw (radians, anticlockwise)"]


CONTROLS = Controls(
    controls=(
        Control(name="forward", keys=("ArrowUp", "w"), action=(1, 0)),
        Control(name="turn left", keys=("ArrowLeft", "a"), action=(0, 1)),
        Control(name="turn right", keys=("ArrowRight", "d"), action=(0, -1)),
    ),
    bounds=((0, 1), (-1, 1)),
)


def about(config: DoomMazeConfig) -> dict[str, Any]:
    """What the dataset says of actions and poses."""
    return {"action_space": ACTION_SPACE, "pose": POSE, "controls": CONTROLS}


def require(config: DoomMazeConfig) -> None:
    """Raise UserError if it cannot be recorded here."""
    if importlib.util.find_spec("vizdoom") is None:
        raise UserError("source doom-maze needs the package vizdoom: pip install 'longtake[doom]'")


def generate(config: DoomMazeConfig, seed: int, number: int = 0) -> Episode:
    """Walk `number` of the maze of a seed; the same two give the same bytes.

    Walks of one maze begin in different places, where there are any, and go different ways.

    frames uint8 (T, H, W, 3), actions float32 (T, 2) where action t leads into frame t, pose float32 (T, 3).
    """
    grid, text, rng = build(config, seed, number)
    with scratch.folder() as folder:
        wad = folder / "maze.wad"
        wad.write_bytes(wad_bytes(text))
        game = start(wad, config, seed)
        try:
            return _walk(game, grid, config, rng, seed)
        finally:
            game.close()


def build(config: DoomMazeConfig, seed: int, number: int = 0) -> tuple[Grid, str, random.Random]:
    """The maze of a seed as a grid and as a text map with the start of a walk, and what that walk is drawn by."""
    rng = random.Random(seed)
    grid = maze(config.cells, config.braid, rng)
    text = textmap(grid, config, rng)
    if number:
        rng = random.Random(f"{seed}, walk {number}")
        text = _begun_elsewhere(text, grid, rng)
    return grid, text, rng


def maze(cells: int, braid: float, rng: random.Random) -> Grid:
    """A depth-first maze of cells x cells; then a share `braid` of the walls between two cells is opened."""
    grid = np.zeros((2 * cells + 1, 2 * cells + 1), dtype=bool)
    grid[1, 1] = True
    stack = [(1, 1)]
    while stack:
        x, y = stack[-1]
        ways = [(a, b) for a, b in STEPS if _inside(grid, x + 2 * a, y + 2 * b) and not grid[y + 2 * b, x + 2 * a]]
        if not ways:
            stack.pop()
            continue
        a, b = rng.choice(ways)
        grid[y + b, x + a] = grid[y + 2 * b, x + 2 * a] = True
        stack.append((x + 2 * a, y + 2 * b))
    for y in range(1, 2 * cells):
        for x in range(1, 2 * cells):
            between_cells = (x + y) % 2
            if between_cells and not grid[y, x] and rng.random() < braid:
                grid[y, x] = True
    return grid


def _inside(grid: Grid, x: int, y: int) -> bool:
    height, width = grid.shape
    return bool(0 <= x < width and 0 <= y < height)


def _open(grid: Grid, x: int, y: int) -> bool:
    return _inside(grid, x, y) and bool(grid[y, x])


def open_squares(grid: Grid) -> list[Square]:
    """Every square one can stand on, row by row."""
    return [(int(x), int(y)) for y, x in np.argwhere(grid)]


# --- the map ------------------------------------------------------------------------------------------------


def textmap(grid: Grid, config: DoomMazeConfig, rng: random.Random, things: list[str] | None = None) -> str:
    """The maze as a UDMF text map: one sector per region, wall textures by the region of the wall block.

    things: what stands in it, by default the player and landmarks somewhere.
    """
    regions = (grid.shape[0] - 1) // config.texture_region + 1
    palette = rng.sample(WALLS[config.palette], config.wall_textures)
    walls = [[rng.choice(palette) for _ in range(regions)] for _ in range(regions)]
    blocks = ['namespace="zdoom";']
    blocks += [_sector(config, rng) for _ in range(regions * regions)]
    blocks += _lines(grid, walls, config.texture_region)
    blocks += _things(grid, config.landmarks, rng) if things is None else things
    return "\n".join(blocks)


def _sector(config: DoomMazeConfig, rng: random.Random) -> str:
    flats = FLATS[config.palette]
    floor, ceiling, light = rng.choice(flats), rng.choice(flats), rng.randrange(176, 256, 8)
    if not config.vary_floor:
        floor, ceiling = PLAIN_FLOOR, PLAIN_CEILING
    if not config.vary_light:
        light = PLAIN_LIGHT
    return (
        f'sector{{heightfloor=0;heightceiling={SQUARE};texturefloor="{floor}";textureceiling="{ceiling}";'
        f"lightlevel={light};}}"
    )


def _lines(grid: Grid, walls: list[list[str]], region: int) -> list[str]:
    """Vertices, sides, lines: a wall towards a solid square, a see-through line where the sector changes."""
    vertices: dict[Square, int] = {}
    sides: list[str] = []
    lines: list[str] = []

    def sector(x: int, y: int) -> int:
        return (y // region) * len(walls) + x // region

    def side(x: int, y: int, texture: str) -> int:
        sides.append(f"sidedef{{sector={sector(x, y)};{texture}}}")
        return len(sides) - 1

    for x, y in open_squares(grid):
        for a, b in STEPS:
            ends = [vertices.setdefault(v, len(vertices)) for v in _edge(x, y, a, b)]
            head = f"linedef{{v1={ends[0]};v2={ends[1]};"
            if not _open(grid, x + a, y + b):
                texture = f'texturemiddle="{walls[(y + b) // region][(x + a) // region]}";'
                lines.append(f"{head}sidefront={side(x, y, texture)};blocking=true;}}")
            elif a + b > 0 and sector(x, y) != sector(x + a, y + b):
                front, back = side(x, y, ""), side(x + a, y + b, "")
                lines.append(f"{head}sidefront={front};sideback={back};twosided=true;}}")
    corners = [f"vertex{{x={x * SQUARE}.0;y={y * SQUARE}.0;}}" for x, y in vertices]
    return corners + sides + lines


def _edge(x: int, y: int, a: int, b: int) -> tuple[Square, Square]:
    """The edge of square (x, y) towards (a, b), directed so that the square lies on its right."""
    return {
        (1, 0): ((x + 1, y + 1), (x + 1, y)),
        (-1, 0): ((x, y), (x, y + 1)),
        (0, 1): ((x, y + 1), (x + 1, y + 1)),
        (0, -1): ((x + 1, y), (x, y)),
    }[a, b]


def _things(grid: Grid, landmarks: int, rng: random.Random) -> list[str]:
    """The player's start and one landmark in each of some dead ends."""
    squares = open_squares(grid)
    start = rng.choice(squares)
    dead_ends = [s for s in squares if s != start and sum(_open(grid, s[0] + a, s[1] + b) for a, b in STEPS) == 1]
    rng.shuffle(dead_ends)
    things = [thing(1, _middle(start), rng.choice((0, 90, 180, 270)))]
    return things + [thing(t, _middle(s)) for t, s in zip(rng.sample(LANDMARKS, landmarks), dead_ends, strict=False)]


def _begun_elsewhere(text: str, grid: Grid, rng: random.Random) -> str:
    """The same map, with the player in another square: where no landmark stands."""
    kept = [line for line in text.split("\n") if not line.startswith(PLAYER)]
    standing = [line for line in kept if line.startswith("thing{")]
    free = [square for square in open_squares(grid) if not any(_at(_middle(square)) in line for line in standing)]
    return "\n".join([*kept, thing(1, _middle(rng.choice(free)), rng.choice((0, 90, 180, 270)))])


def _middle(square: Square) -> tuple[float, float]:
    return square[0] + 0.5, square[1] + 0.5


def thing(kind: int, at: tuple[float, float], angle: int = 0) -> str:
    """A thing of the engine at a point, in squares."""
    skills = "".join(f"skill{s}=true;" for s in range(1, 6))
    return f"thing{{type={kind};{_at(at)}angle={angle};{skills}single=true;}}"


def _at(point: tuple[float, float]) -> str:
    x, y = (c * SQUARE for c in point)
    return f"x={x};y={y};"


def wad_bytes(text: str) -> bytes:
    """A WAD archive with one map: header, lump data, directory."""
    body = text.encode()
    lumps = ((b"MAP01", 12, 0), (b"TEXTMAP", 12, len(body)), (b"ENDMAP", 12 + len(body), 0))
    directory = b"".join(struct.pack("<ii8s", offset, size, name) for name, offset, size in lumps)
    return struct.pack("<4sii", b"PWAD", len(lumps), 12 + len(body)) + body + directory


# --- the walk -----------------------------------------------------------------------------------------------


def start(wad: Path, config: DoomMazeConfig, seed: int) -> DoomGame:
    """The engine, in a map."""
    import vizdoom

    game = vizdoom.DoomGame()
    game.set_doom_scenario_path(str(wad))
    game.set_doom_config_path(str(wad.with_name("vizdoom.ini")))  # else the engine writes one into the work folder
    game.set_doom_map("MAP01")
    game.set_window_visible(False)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, _screen(config.resolution)))
    game.set_render_hud(False)
    game.set_render_weapon(False)
    game.set_render_crosshair(False)
    game.set_render_messages(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_episode_timeout(0)
    game.set_seed(seed % 2**31)
    game.set_available_buttons([vizdoom.Button.MOVE_FORWARD, vizdoom.Button.TURN_LEFT_RIGHT_DELTA])
    variable = vizdoom.GameVariable
    game.set_available_game_variables([variable.POSITION_X, variable.POSITION_Y, variable.ANGLE])
    with contextlib.chdir(wad.parent):  # the engine makes a folder `_vizdoom` where it starts
        game.init()
    return game


def _screen(resolution: tuple[int, int]) -> str:
    """The smallest 4:3 engine resolution with at least as many pixels both ways."""
    for height, width in ((120, 160), (240, 320), (480, 640), (960, 1280)):
        if height >= resolution[0] and min(height, width) >= resolution[1]:
            return f"RES_{width}X{height}"
    raise AssertionError(f"the config allows no {resolution}")


def _walk(game: DoomGame, grid: Grid, config: DoomMazeConfig, rng: random.Random, seed: int) -> Episode:
    frames = np.empty((config.steps, *config.resolution, 3), np.uint8)
    actions = np.zeros((config.steps, 2), np.float32)
    pose = np.empty((config.steps, 3), np.float32)
    walker = Walker(grid, config, rng)
    game.make_action([0.0, 0.0], WARM_UP_TICS)
    for t in range(config.steps):
        if t:
            actions[t] = walker.act(*pose[t - 1].tolist())
            apply(game, actions[t], config)
        frames[t], pose[t] = look(game, config)
    return Episode(frames, actions, pose, {"seed": seed, "squares": int(grid.sum())})


def look(game: DoomGame, config: DoomMazeConfig) -> tuple[NDArray[np.uint8], tuple[float, float, float]]:
    """What is seen, and the pose it is seen from."""
    state = game.get_state()
    # The episode has no time limit and nothing that kills, and x, y and angle are asked for in start.
    assert state is not None and state.game_variables is not None
    seen = square(state.screen_buffer) if config.view == "square" else state.screen_buffer
    x, y, angle = state.game_variables
    return shrink(seen, config.resolution), (x / SQUARE, y / SQUARE, math.radians(angle))


def apply(game: DoomGame, action: NDArray[np.float32], config: DoomMazeConfig) -> None:
    """Turn in the first tic, walk in all: the engine would repeat the turn in every tic of one call."""
    forward, degrees = float(action[FORWARD]), -float(action[TURN]) * config.turn_degrees
    game.make_action([forward, degrees], 1)
    if config.tics > 1:
        game.make_action([forward, 0.0], config.tics - 1)


class Walker:
    """Walks shortest paths to one random square after another, with a share of random actions."""

    def __init__(self, grid: Grid, config: DoomMazeConfig, rng: random.Random) -> None:
        self.grid, self.config, self.rng = grid, config, rng
        self.squares = open_squares(grid)
        self.towards: dict[Square, Square] = {}

    def act(self, x: float, y: float, yaw: float) -> tuple[float, float]:
        """(forward, turn) from a position in squares and a yaw in radians."""
        here = (math.floor(x), math.floor(y))
        if here not in self.towards:
            self.towards = paths_to(self.grid, self.rng.choice([s for s in self.squares if s != here]))
        to = self.towards[here]
        angle = math.atan2(to[1] + 0.5 - y, to[0] + 0.5 - x) - yaw
        angle = (angle + math.pi) % (2 * math.pi) - math.pi
        if self.rng.random() < self.config.random_actions:
            return float(self.rng.random() < 0.5), self.rng.choice((-1.0, 0.0, 1.0))
        turn = max(-1.0, min(1.0, angle / math.radians(self.config.turn_degrees)))
        return float(abs(angle) < math.radians(40)), turn


def paths_to(grid: Grid, goal: Square) -> dict[Square, Square]:
    """For every square that leads to the goal, the next one on a shortest path to it."""
    towards: dict[Square, Square] = {}
    queue = deque([goal])
    while queue:
        x, y = queue.popleft()
        for a, b in STEPS:
            near = (x + a, y + b)
            if _open(grid, *near) and near not in towards and near != goal:
                towards[near] = (x, y)
                queue.append(near)
    return towards


ENVIRONMENT = Environment(DoomMazeConfig, generate, about, require, several_walks=True)
