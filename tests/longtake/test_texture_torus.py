"""The torus source: its truth can be computed for any pose and time, and each dial does what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longtake.datasets.episode import Episode, faults
from longtake.sources.environments import texture_torus
from longtake.sources.environments.texture_torus import TextureTorusConfig, generate, make_world, render

SMALL = TextureTorusConfig(side=4, steps=200)
EVERYTHING = {
    "movers": 4,
    "light": "told",
    "clutter": 2,
    "clutter_moves": True,
    "noise": 9,
    "heading": "free",
    "walk": "jumps",
}


def torus(**dials: object) -> TextureTorusConfig:
    return TextureTorusConfig.model_validate({"side": 4, "steps": 200, **dials})


def poses(episode: Episode) -> np.ndarray:
    assert episode.pose is not None
    return episode.pose


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**40),
    st.integers(0, 3),
    st.sampled_from(["random", "loops", "returns", "jumps"]),
    st.sampled_from(["fixed", "free"]),
    st.sampled_from([8, 12, 16]),
)
def test_poses_replay_the_frames_bit_for_bit(seed: int, number: int, walk: str, heading: str, pixels: int) -> None:
    config = torus(**EVERYTHING | {"walk": walk, "heading": heading, "pixels": pixels, "grain": 4, "back": 9})
    episode = generate(config, seed, number)
    assert not faults(episode) and len(episode) == 200 and episode.frames.shape[1:] == (pixels, pixels, 3)
    world, time = make_world(config, seed), episode.labels["time"]
    np.testing.assert_array_equal(render(poses(episode), time, world), episode.frames)
    some = np.random.default_rng(0).permutation(200)[:50]  # in any order, and one by one
    np.testing.assert_array_equal(render(poses(episode)[some], time[some], world), episode.frames[some])
    assert (poses(episode)[:, :2] >= 0).all() and (poses(episode)[:, :2] < config.side).all()


def test_the_same_seed_and_walk_give_the_same_bytes_and_others_do_not() -> None:
    config = torus(**EVERYTHING)
    one = generate(config, 3, 1)
    for name, array in generate(config, 3, 1).arrays().items():
        np.testing.assert_array_equal(array, one.arrays()[name])
    assert (generate(config, 3, 0).pose != one.pose).any(), "another walk"
    np.testing.assert_array_equal(make_world(config, 3).texture, make_world(config, 3).texture)
    assert (make_world(config, 4).texture != make_world(config, 3).texture).mean() > 0.9, "another world"


def test_a_view_is_a_window_of_the_texture_and_goes_round() -> None:
    world = make_world(SMALL, 1)
    at = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, np.pi]], np.float32)
    middle, corner, round_again, turned = render(at, np.zeros(4, np.int64), world)
    np.testing.assert_array_equal(middle, world.texture[8:24, 24:40][::-1], "row 0 of a picture is up")
    np.testing.assert_array_equal(corner, round_again)
    assert (corner[0] == world.texture[7, np.arange(-8, 8)]).all()
    np.testing.assert_array_equal(turned, corner[::-1, ::-1], "half a turn about the middle of the window")


def test_a_turned_view_has_the_heading_to_its_right() -> None:
    """A bright column ahead, seen at the right edge from every heading."""
    world = make_world(torus(grain=1), 0)
    world.texture[:] = 0
    world.texture[20:, :] = 255  # all that lies more than four pixels above the position
    at = np.array([[2, 1, np.pi / 2], [2, 1, -np.pi / 2], [2, 1, 0]], np.float32)
    up, down, along = render(at, np.zeros(3, np.int64), world)
    assert up[:, -4:].all() and not up[:, :11].any()
    assert down[:, :4].all() and not down[:, 5:].any()
    assert along[:4].all() and not along[5:].any()


def test_actions_lead_into_their_frames() -> None:
    for heading in ("fixed", "free"):
        episode = generate(torus(heading=heading, speed=3.0), 5)
        yaw, actions = poses(episode)[:, 2].astype(float), episode.actions.astype(float)
        assert (episode.actions[0] == 0).all() and actions.shape == (200, 3)
        cos, sin = np.cos(yaw[:-1]), np.sin(yaw[:-1])
        moved = np.stack([actions[1:, 0] * cos - actions[1:, 1] * sin, actions[1:, 0] * sin + actions[1:, 1] * cos], 1)
        gap = (np.diff(poses(episode)[:, :2].astype(float), axis=0) - moved + 2) % 4 - 2
        assert np.abs(gap).max() < 1e-5
        turned = (np.diff(yaw) - actions[1:, 2] + np.pi) % (2 * np.pi) - np.pi
        assert np.abs(turned).max() < 1e-5 and (actions[1:, 2].any() == (heading == "free"))


def test_walks_come_back_when_they_say() -> None:
    loops, returns = (generate(torus(walk=walk, back=20), 2).frames for walk in ("loops", "returns"))
    np.testing.assert_array_equal(loops[21:41], loops[1:21], "the second lap")
    for away in (1, 7, 19):
        np.testing.assert_array_equal(returns[20 + away], returns[20 - away], "the way back")
    jumps = generate(torus(walk="jumps", back=20), 2)
    for jump in range(21, 200, 21):
        assert (jumps.frames[:jump] == jumps.frames[jump]).all((1, 2, 3)).any() and not jumps.actions[jump].any()
    assert (np.diff(poses(generate(torus(walk="random"), 2))[:, 0]) != 0).mean() > 0.9


def test_labels_tell_the_time_the_place_and_the_things_in_view() -> None:
    second = generate(torus(movers=6), 9, 1)
    assert second.labels["time"].tolist() == list(range(200, 400)), "walks of a world come one after another"
    x, y = poses(second)[:, 0], poses(second)[:, 1]
    np.testing.assert_array_equal(second.labels["place"], y.astype(int) * 4 + x.astype(int))
    world, bare = make_world(torus(movers=6), 9), make_world(torus(movers=6), 9)
    bare.texture[:], world.texture[:] = 0, 0
    world.movers.colours[:] = 255
    seen = render(poses(second), second.labels["time"], world).any((1, 2, 3))
    np.testing.assert_array_equal(seen, second.labels["movers"] > 0)
    assert 0.05 < seen.mean() < 0.95


def test_things_move_on_while_nobody_looks() -> None:
    world = make_world(torus(movers=1, mover_speed=1.0), 0)
    world.texture[:] = 0
    world.movers.colours[:] = 255
    start, velocity = world.movers.at[0], world.movers.velocity[0]
    for time in (0, 16, 1600):
        middle = (start + time * velocity // 16 + [3, 3]) / 16 % 4
        seen = render(np.array([[*middle, 0]], np.float32), np.array([time]), world)[0]
        assert (seen[..., 0] > 0).sum() == 36, "all of it"
    assert 0.4 < np.hypot(*velocity) / 16 < 1.1


def test_lights_clutter_and_noise_do_what_they_say() -> None:
    steady, hidden, told = (generate(torus(light=light), 4) for light in ("steady", "hidden", "told"))
    np.testing.assert_array_equal(hidden.frames, told.frames)
    assert hidden.actions.shape[1] == 3 and told.actions.shape[1] == 4
    ratio = told.frames[1:].mean((1, 2, 3)) / steady.frames[1:].mean((1, 2, 3))
    assert np.abs(ratio - told.actions[1:, 3]).max() < 0.01 and ratio.min() < 0.45 and ratio.max() > 0.95
    bare, noisy = generate(torus(), 4).frames.astype(int), generate(torus(noise=9), 4).frames.astype(int)
    off = noisy - bare
    inside = (bare > 9) & (bare < 246)
    assert set(np.unique(off[inside])) == set(range(-9, 10)) and abs(off[inside].mean()) < 0.05
    assert abs(np.corrcoef(off[1].ravel(), off[2].ravel())[0, 1]) < 0.1
    for moves in (False, True):
        cluttered = generate(torus(clutter=1, clutter_moves=moves), 4).frames
        covered = (cluttered != bare).any(-1)
        assert covered.sum((1, 2)).max() <= 36 and covered.any((1, 2)).all()
        assert ((covered == covered[0]).mean() > 0.95) != moves


def test_a_place_says_nothing_of_another() -> None:
    """Windows that do not touch share no colour: what is seen of one place cannot be guessed from the others."""
    textures = np.stack([make_world(torus(), seed).texture[::8, ::8, 0] for seed in range(400)]).astype(float)
    flat = textures.reshape(400, -1)
    apart = np.corrcoef(flat.T)[~np.eye(flat.shape[1], dtype=bool)]
    assert np.abs(apart).max() < 0.3 and abs(apart.mean()) < 0.01


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"grain: 5 does not divide pixels=16; allowed are \[1, 2, 4, 8, 16\]"):
        torus(grain=5)
    with pytest.raises(ValidationError, match="mover_pixels: 20 is more than the 16 of a window"):
        torus(mover_pixels=20)
    for wrong in ({"side": 1}, {"walk": "loop"}, {"light": "off"}, {"heading": "north"}):
        with pytest.raises(ValidationError):
            torus(**wrong)
    assert texture_torus.about(torus(light="told"))["action_space"]["light"]
