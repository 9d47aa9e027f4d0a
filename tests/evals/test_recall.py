"""Bits are what they are said to be: none for a guess, all for certainty, Fano's for what lies between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.evals.recall import bits, identify

CLIPS = 400


def answers(places: int, error: float, clips: int = CLIPS) -> tuple[np.ndarray, float]:
    """Bits of answers that are wrong about so often, and how often they are."""
    right = np.random.default_rng(0).random((clips, places)) >= error
    return bits(right, np.full(right.shape, 0.5), places), float(1 - right.mean())


def fano(places: int, error: float) -> float:
    parts = [-share * np.log2(share) for share in (error, 1 - error) if share > 0]
    return float(np.log2(places) - sum(parts) - error * np.log2(max(1, places - 1)))


@pytest.mark.parametrize("places", [2, 8, 64])
@pytest.mark.parametrize("error", [0.0, 0.1, 0.5])
def test_bits_are_fanos(places: int, error: float) -> None:
    told, wrong = answers(places, error)
    assert told.mean() == pytest.approx(fano(places, wrong), abs=0.01) and told.mean() < fano(places, wrong)


@pytest.mark.parametrize("places", [2, 8, 64])
def test_a_guess_is_worth_nothing_and_little_is_claimed_by_chance(places: int) -> None:
    for clips in (12, CLIPS):
        assert abs(answers(places, 1 - 1 / places, clips)[0].mean()) < 2 / clips


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 40), st.integers(2, 12), st.floats(0, 1), st.integers(0, 99))
def test_no_answer_is_worth_more_than_its_place(places: int, clips: int, share: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    right, doubt = draw.random((clips, places)) < share, draw.random((clips, places))
    told = bits(right, doubt, places)
    assert told.shape == (clips, places) and np.isfinite(told).all() and (told <= np.log2(places)).all()


def test_a_clip_is_judged_by_the_others() -> None:
    """One lucky clip claims nothing for itself, and a band that no other clip knows tells nothing."""
    right = np.zeros((20, 8), bool)
    right[0] = True
    assert bits(right, np.zeros((20, 8)), 8)[0].max() < 0, "the others say that such answers are wrong"
    doubt = np.full((20, 8), 0.99)
    doubt[0] = 0
    assert np.abs(bits(right, doubt, 8)[0]).max() < 1e-12


def test_who_says_nothing_where_it_knows_nothing_loses_nothing_by_it() -> None:
    """Two of eight places for certain and a guess at the rest: two times three bits; without doubt to tell them apart
    it is Fano's, less."""
    draw = np.random.default_rng(1)
    right = draw.random((CLIPS, 8)) < 1 / 8
    right[:, :2] = True
    doubt = np.full(right.shape, 0.99)
    doubt[:, :2] = 0
    assert bits(right, doubt, 8).sum(1).mean() == pytest.approx(6, abs=0.1)
    assert bits(right, np.full(right.shape, 0.5), 8).sum(1).mean() < 3


def test_a_frame_is_the_candidate_that_it_is_nearest_to() -> None:
    candidates = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    noisy = np.clip(candidates.astype(int) + 9, 0, 255).astype(np.uint8)
    for made, least, most in ((candidates, 0, 0), (noisy, 0.02, 0.2), (np.full_like(candidates, 128), 0.9, 1)):
        found, doubt = identify(made, candidates)
        assert least <= doubt.min() and doubt.max() <= most
        assert (found == np.arange(6)).all() or most == 1
    assert (
        identify(np.full_like(candidates, 128), candidates)[0] == identify(candidates * 0 + 128, candidates)[0]
    ).all()
    same = np.repeat(candidates[:1], 2, 0)
    assert identify(same, same)[1].tolist() == [1, 1], "places that look alike cannot be told apart"
