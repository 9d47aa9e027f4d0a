"""A textured torus seen through a moving window: the cheapest world in which memory can be measured, and an exact one.

The world is a square texture of `side` x `side` windows, another one per seed, whose opposite edges meet. A frame is
the window that lies around a position, so a place looks the same whenever one is there, nothing of it can be guessed
from elsewhere, and the number of places is a dial. So are how one walks (`walk`, `back`), things that move on their
own, in view or not (`movers`), a light that changes (`light`), and what only disturbs (`clutter`, `noise`).

`render` shows any pose at any time: the frames of an episode are what it makes of the episode's poses and of its label
`time`, bit for bit. Everything is whole numbers up to a turned view, and nothing depends on the machine.

Units: x and y in windows, from 0 to `side` and round again, y up; yaw in radians, anticlockwise; with a turned view
the heading points to the right of the picture. Letters: T frames, p pixels of a window's edge, S of the world's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from longtake.config import Config
from longtake.datasets.controls import Control, Controls, Motion
from longtake.datasets.episode import Episode
from longtake.datasets.worlds import WRAPS
from longtake.sources.environment import Environment
from longtake.sources.environments.torus_walks import Walk, walk

Frames = NDArray[np.uint8]
Whole = NDArray[np.int64]
FINE = 16
"""Speeds of things are whole numbers of 1/16 pixel a frame."""
DARKEST, BRIGHTEST = 96, 256
"""Of the changing light, in 1/256 of the texture's own brightness."""


class TextureTorusConfig(Config):
    """How large the world is, how it is walked, and what changes in it."""

    source: Literal["texture-torus"] = "texture-torus"
    """A textured torus seen through a moving window."""
    side: int = Field(
        default=8, ge=2, le=256, description="edge of the world in windows: it has side x side places [windows]"
    )
    pixels: int = Field(default=16, ge=8, le=64, description="edge of a window: frames are pixels x pixels [pixels]")
    grain: int = Field(default=8, ge=1, le=64, description="pixels between random colours; divides pixels [pixels]")
    steps: int = Field(default=640, ge=2, description="frames per episode [frames]")
    walk: Walk = Field(default="random", description="random, loops, returns (out and back) or jumps (to seen places)")
    back: int = Field(default=64, ge=2, description="frames of a loop or an excursion, or between jumps [frames]")
    speed: float = Field(default=4.0, gt=0, description="pixels per frame [pixels/frame]")
    heading: Literal["fixed", "free"] = Field(default="fixed", description="of the view: along x, or along the walk")
    movers: int = Field(
        default=0, ge=0, le=256, description="things that move on straight lines, in view or not [count]"
    )
    mover_pixels: int = Field(default=6, ge=1, le=64, description="edge of such a thing, and of clutter [pixels]")
    mover_speed: float = Field(
        default=1.0, ge=0, description="pixels per frame, at most, of things and moving clutter [pixels/frame]"
    )
    light: Literal["steady", "told", "hidden"] = Field(
        default="steady", description="brightness: constant, or changing; told: as a column of the actions"
    )
    light_period: int = Field(default=100, ge=2, description="frames from bright to bright [frames]")
    clutter: int = Field(
        default=0, ge=0, le=64, description="things before the lens, which say nothing of the world [count]"
    )
    clutter_moves: bool = Field(default=False, description="whether clutter drifts over the picture")
    noise: int = Field(
        default=0, ge=0, le=127, description="grey levels, at most, that each pixel is off [grey levels]"
    )
    fps: float = Field(default=10.0, gt=0, description="frames per second of world time [frames/s]")

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.pixels, self.pixels

    @property
    def extent(self) -> int:
        """Edge of the world, in pixels."""
        return self.side * self.pixels

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pixels % self.grain:
            fitting = [grain for grain in range(1, self.pixels + 1) if self.pixels % grain == 0]
            raise ValueError(f"grain: {self.grain} does not divide pixels={self.pixels}; allowed are {fitting}")
        if self.mover_pixels > self.pixels:
            raise ValueError(f"mover_pixels: {self.mover_pixels} is more than the {self.pixels} of a window")
        return self


@dataclass(frozen=True)
class Things:
    """Squares of one colour that move on straight lines over a torus: `at` (k, 2) pixels at time 0, x and y of the
    lower left corner; `velocity` (k, 2) in 1/16 pixel a frame; `colours` (k, 3)."""

    at: Whole
    velocity: Whole
    colours: Frames

    def positions(self, time: Whole) -> Whole:
        """Corners (T, k, 2) at times (T,), not folded."""
        return self.at + time[:, None, None] * self.velocity // FINE


@dataclass(frozen=True)
class World:
    """What a seed makes: the texture (S, S, 3), indexed [y, x], what moves on it and before the lens, and the light."""

    config: TextureTorusConfig
    seed: int
    texture: Frames
    movers: Things
    clutter: Things
    light_phase: float


def make_world(config: TextureTorusConfig, seed: int) -> World:
    """The world of a seed."""
    rng = np.random.default_rng([seed, 0])
    texture = _texture(config, rng)
    movers = _things(config.movers, config.extent, config.mover_speed, rng)
    clutter = _things(config.clutter, config.pixels, config.mover_speed * config.clutter_moves, rng)
    return World(config, seed, texture, movers, clutter, float(rng.uniform(0, 2 * np.pi)))


def _texture(config: TextureTorusConfig, rng: np.random.Generator) -> Frames:
    """Random colours `grain` pixels apart, blended from one to the next; in whole numbers."""
    grain, texels = config.grain, config.extent // config.grain
    image = rng.integers(0, 256, (texels, texels, 3))
    for axis in (0, 1):
        share = np.arange(grain).reshape([-1 if a == axis + 1 else 1 for a in range(4)])
        here, after = (np.expand_dims(part, axis + 1) for part in (image, np.roll(image, -1, axis)))
        blended = (here * (grain - share) + after * share + grain // 2) // grain
        image = blended.reshape([n * grain if a == axis else n for a, n in enumerate(image.shape)])
    return image.astype(np.uint8)


def _things(count: int, extent: int, speed: float, rng: np.random.Generator) -> Things:
    way, pace = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.5, 1, count) * speed * FINE
    velocity = np.rint(np.stack([np.cos(way), np.sin(way)], 1) * pace[:, None]).astype(np.int64)
    return Things(rng.integers(0, extent, (count, 2)), velocity, rng.integers(0, 256, (count, 3), dtype=np.uint8))


# --- what is seen -------------------------------------------------------------------------------------------


def render(pose: NDArray[Any], time: Whole, world: World) -> Frames:
    """What is seen from poses (T, 3) at times (T,), whole frames: uint8 (T, p, p, 3). The truth, wherever asked."""
    pixels, extent = world.config.pixels, world.config.extent
    x, y = _pixels_seen(pose, pixels)
    frames = world.texture[y % extent, x % extent]
    _paint(frames, x, y, world.movers, time, extent, world.config.mover_pixels)
    frames = (frames * _light(world, time)[:, None, None, None] >> 8).astype(np.uint8)
    columns, rows = np.meshgrid(np.arange(pixels), np.arange(pixels))
    _paint(frames, columns[None], rows[None], world.clutter, time, pixels, world.config.mover_pixels)
    return _noisy(frames, time, world) if world.config.noise else frames


def _pixels_seen(pose: NDArray[Any], pixels: int) -> tuple[Whole, Whole]:
    """The pixels of the world, x and y (T, p, p), under each pixel of the views; whole where a view is not turned."""
    x, y, yaw = np.asarray(pose, np.float64).T[:, :, None, None]
    along = np.arange(pixels) - (pixels - 1) / 2
    right, up = along[None, None, :], -along[None, :, None]
    cos, sin = np.cos(yaw), np.sin(yaw)
    # What is looked up lies in the middle of a pixel, so that rounding decides nothing at quarter turns.
    middle = pixels % 2 / 2
    seen_x = np.rint(x * pixels) + middle + right * cos - up * sin
    seen_y = np.rint(y * pixels) + middle + right * sin + up * cos
    return np.floor(seen_x).astype(np.int64), np.floor(seen_y).astype(np.int64)


def _paint(frames: Frames, x: Whole, y: Whole, things: Things, time: Whole, extent: int, edge: int) -> None:
    """Draw things over frames whose pixels lie at x and y of a torus."""
    corners = things.positions(time)
    for number, colour in enumerate(things.colours):
        frames[_covered(x, y, corners[:, number], extent, edge)] = colour


def _covered(x: Whole, y: Whole, corner: Whole, extent: int, edge: int) -> NDArray[np.bool_]:
    """Which pixels (T, p, p) a thing with these corners (T, 2) covers."""
    across, above = x - corner[:, 0, None, None], y - corner[:, 1, None, None]
    return np.asarray((across % extent < edge) & (above % extent < edge))


def _light(world: World, time: Whole) -> Whole:
    """Brightness (T,) in 1/256."""
    if world.config.light == "steady":
        return np.full(len(time), BRIGHTEST)
    wave = (1 + np.cos(2 * np.pi * time / world.config.light_period + world.light_phase)) / 2
    return np.rint(DARKEST + (BRIGHTEST - DARKEST) * wave).astype(np.int64)


def _noisy(frames: Frames, time: Whole, world: World) -> Frames:
    """Frames with noise that follows from the world's seed, the time and the pixel alone (SplitMix64)."""
    size = frames[0].size
    count = (time[:, None] * size + np.arange(size)).astype(np.uint64) + np.uint64(world.seed << 32 & 2**63 - 1)
    mixed = count * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
    level = world.config.noise
    off = ((mixed >> np.uint64(56)).astype(np.int64) * (2 * level + 1) >> 8) - level
    noisy: Frames = np.clip(frames + off.reshape(frames.shape), 0, 255).astype(np.uint8)
    return noisy


# --- episodes -----------------------------------------------------------------------------------------------

ACTIONS = {
    "ahead": "windows, along the heading of the frame before; 0 for a jump",
    "left": "windows, across it",
    "turn": "radians, anticlockwise",
}
LIGHT = {"light": "brightness of the frame, 0 to 1"}
POSE = ["x (windows, of a torus)", "y (windows, of a torus)", "yaw (radians, anticlockwise)"]


TURN = 0.25
"""Radians that a key turns."""


def about(config: TextureTorusConfig) -> dict[str, Any]:
    """What the dataset says of actions and poses."""
    lit = config.light == "told"
    return {"action_space": ACTIONS | LIGHT if lit else ACTIONS, "pose": POSE, "controls": _controls(config)}


def _controls(config: TextureTorusConfig) -> Controls:
    """Keys as one sees the world: with a fixed heading the picture's right is ahead. Actions are moves themselves."""
    pace, free, lit = config.speed / config.pixels, config.heading == "free", config.light == "told"
    ways = {
        "ahead": (("ArrowUp", "w") if free else ("ArrowRight", "d"), (pace, 0.0, 0.0)),
        "back": (("ArrowDown", "s") if free else ("ArrowLeft", "a"), (-pace, 0.0, 0.0)),
        "left" if free else "up": (("q",) if free else ("ArrowUp", "w"), (0.0, pace, 0.0)),
        "right" if free else "down": (("e",) if free else ("ArrowDown", "s"), (0.0, -pace, 0.0)),
    }
    if free:
        ways |= {"turn left": (("ArrowLeft", "a"), (0.0, 0.0, TURN))}
        ways |= {"turn right": (("ArrowRight", "d"), (0.0, 0.0, -TURN))}
    more = (0.0,) if lit else ()
    controls = [Control(name=name, keys=keys, action=action + more) for name, (keys, action) in ways.items()]
    if lit:
        controls.append(Control(name="light", keys=("l",), action=(0.0, 0.0, 0.0, 1.0)))
    gain = tuple(tuple(float(row == at) for at in range(3 + lit)) for row in range(3))
    bounds = ((-1.0, 1.0), (-1.0, 1.0), (-np.pi, np.pi), *([(0.0, 1.0)] if lit else []))
    return Controls(controls=tuple(controls), bounds=bounds, motion=Motion(gain=gain))


def require(config: TextureTorusConfig) -> None:
    """It can be recorded everywhere."""


def generate(config: TextureTorusConfig, seed: int, number: int = 0) -> Episode:
    """Walk `number` of the world of a seed: the same two give the same bytes. Later walks come after the earlier ones.

    frames uint8 (T, p, p, 3), actions float32 (T, 3, or 4 with a told light), pose float32 (T, 3), labels `time`,
    `place` (the window that the position lies in, row by row) and `movers` (how many are in view), int64 (T,).
    """
    world = make_world(config, seed)
    rng = np.random.default_rng([seed, 1 + number])
    path, jumped = walk(config.walk, config.steps, config.speed, config.back, config.extent, rng)
    if config.heading == "fixed":
        path[:, 2] = 0
    time = np.arange(config.steps) + number * config.steps
    pose = np.concatenate([path[:, :2] % config.extent / config.pixels, path[:, 2:] % (2 * np.pi)], 1)
    pose = pose.astype(np.float32)
    actions = _actions(path, jumped, config)
    if config.light == "told":
        light = (_light(world, time) / BRIGHTEST).astype(np.float32)
        light[0] = 0  # the first action of an episode is the null action
        actions = np.concatenate([actions, light[:, None]], 1)
    cell = path[:, :2] % config.extent // config.pixels
    labels = {"time": time, "place": (cell[:, 1] * config.side + cell[:, 0]).astype(np.int64)}
    labels["movers"] = _in_view(pose, time, world)
    return Episode(render(pose, time, world), actions, pose, {"seed": seed, WRAPS: config.side}, labels)


def _actions(path: NDArray[np.float64], jumped: NDArray[Any], config: TextureTorusConfig) -> NDArray[np.float32]:
    """What led into each frame (T, 3); nothing into the first, and nothing by a jump."""
    x, y, turn = np.diff(path, axis=0).T
    cos, sin = np.cos(path[:-1, 2]), np.sin(path[:-1, 2])
    turn = (turn + np.pi) % (2 * np.pi) - np.pi
    led = np.stack([(x * cos + y * sin) / config.pixels, (y * cos - x * sin) / config.pixels, turn], 1)
    led[jumped[1:]] = 0
    return np.concatenate([np.zeros((1, 3)), led]).astype(np.float32)


def _in_view(pose: NDArray[Any], time: Whole, world: World) -> Whole:
    """How many movers show at least a pixel (T,), were nothing before them."""
    x, y = _pixels_seen(pose, world.config.pixels)
    corners, count = world.movers.positions(time), np.zeros(len(time), np.int64)
    for number in range(len(world.movers.colours)):
        covered = _covered(x, y, corners[:, number], world.config.extent, world.config.mover_pixels)
        count += covered.any((1, 2))
    return count


ENVIRONMENT = Environment(TextureTorusConfig, generate, about, require, several_walks=True)
