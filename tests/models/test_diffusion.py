"""Noise levels, targets and the sampler; rollouts commit a frame once, and streams do not see each other."""

import pytest
import torch

from longtake.models.conditions import Conditions
from longtake.models.config import DiffusionConfig, LayerConfig, ModelConfig, SamplerConfig
from longtake.models.diffusion import (
    add_noise,
    ddim_step,
    draw_noise_levels,
    draw_null_context,
    loss_weights,
    sampler_levels,
    target,
    to_clean,
)
from longtake.models.losses import diffusion_forcing_loss
from longtake.models.rollout import prefill, rollout
from longtake.models.tokenizer import PIXELS
from longtake.models.world_model import WorldModel


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_the_clean_frame_comes_back_from_the_target(kind: str) -> None:
    clean, noise = torch.randn(2, 3, 3, 4, 4), torch.randn(2, 3, 3, 4, 4)
    level = torch.tensor([[0.1, 0.5, 1.0], [0.9, 0.3, 0.7]])
    noised = add_noise(clean, noise, level)
    assert torch.allclose(to_clean(kind, target(kind, clean, noise, level), noised, level), clean, atol=1e-5)


def test_ddim_with_the_truth_ends_at_the_truth() -> None:
    clean, x = torch.randn(1, 1, 3, 4, 4), torch.randn(1, 1, 3, 4, 4)
    levels = sampler_levels(4)
    for level, next_level in zip(levels, levels[1:], strict=False):
        x = ddim_step(clean, x, torch.tensor([[level]]), torch.tensor([[next_level]]))
    assert torch.allclose(x, clean, atol=1e-5)


def test_a_clean_prefix_is_clean_and_the_rest_is_not() -> None:
    config = DiffusionConfig(clean_prefix=1.0, clean_prefix_range=[0.5, 0.5], pure_noise=0.5)
    levels = draw_noise_levels(config, 200, 10, torch.Generator().manual_seed(0))
    assert (levels[:, :5] == 0).all()
    assert (levels[:, 5:] > 0).all()
    assert 0.4 < (levels[:, 5:] == 1).float().mean() < 0.6


def test_without_a_prefix_every_frame_has_its_own_level() -> None:
    levels = draw_noise_levels(DiffusionConfig(clean_prefix=0.0), 50, 10, torch.Generator().manual_seed(0))
    assert len(levels.unique()) == 500


def test_a_share_of_clips_begins_after_a_prefix_that_it_does_not_have() -> None:
    config = DiffusionConfig(null_context=0.25, clean_prefix_range=[0.5, 0.9])
    first = draw_null_context(config, 800, 10, torch.Generator().manual_seed(0))
    assert 0.2 < (first > 0).float().mean() < 0.3
    assert set(first.tolist()) == {0, 5, 6, 7, 8}
    assert not draw_null_context(DiffusionConfig(), 800, 10, torch.Generator().manual_seed(0)).any()


def test_the_loss_is_that_of_the_noised_frames_only() -> None:
    clean, noise = torch.zeros(1, 4, 3, 2, 2), torch.zeros(1, 4, 3, 2, 2)
    level = torch.tensor([[0.0, 0.0, 0.5, 1.0]])
    prediction = torch.tensor([9.0, 9.0, 1.0, 2.0])[None, :, None, None, None].expand_as(clean)
    weight = loss_weights(DiffusionConfig(), "x0", level)
    loss, _ = diffusion_forcing_loss(
        lambda *_: (prediction, None), "x0", clean, Conditions(), level, noise, weight / weight.sum()
    )
    assert loss.item() == pytest.approx((1 + 4) / 2)


def test_frames_survive_the_tokenizer() -> None:
    frames = torch.randint(0, 256, (2, 3, 4, 4, 3), dtype=torch.uint8)
    assert torch.equal(PIXELS.decode(PIXELS.encode(frames)), frames)


@pytest.fixture
def model() -> WorldModel:
    torch.manual_seed(0)
    config = ModelConfig(
        height=8,
        width=8,
        patch=4,
        dim=16,
        heads=2,
        d_state=8,
        headdim=8,
        window=3,
        layers=[LayerConfig()] * 2,
    )
    model = WorldModel(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_prefill_in_temporal_blocks_changes_nothing(model: WorldModel) -> None:
    frames, pose = torch.randn(2, 9, 3, 8, 8).clamp(-1, 1), Conditions(pose=torch.randn(2, 9, 4))
    step = Conditions(pose=torch.randn(2, 1, 4))
    made = [
        rollout(
            model,
            step,
            1,
            prefill(model, frames, pose, temporal_block=block),
            SamplerConfig(),
            generators(1, 2),
        )[0]
        for block in (64, 4, 1)
    ]
    assert all(torch.allclose(made[0], other, atol=1e-5) for other in made[1:])


def test_a_stream_does_not_depend_on_its_neighbours(model: WorldModel) -> None:
    frames, pose = torch.randn(2, 5, 3, 8, 8).clamp(-1, 1), torch.randn(2, 9, 4)
    seen, asked = Conditions(pose=pose[:, :5]), Conditions(pose=pose[:, 5:])
    both, _ = rollout(model, asked, 4, prefill(model, frames, seen), SamplerConfig(), generators(1, 2))
    alone_seen, alone_asked = Conditions(pose=pose[1:, :5]), Conditions(pose=pose[1:, 5:])
    alone, memory = rollout(
        model, alone_asked, 4, prefill(model, frames[1:], alone_seen), SamplerConfig(), generators(2)
    )
    assert torch.allclose(both[1:], alone, atol=1e-4)
    assert memory.frames == 9  # every generated frame was committed once, however many calls it took


def test_an_empty_context_is_refused(model: WorldModel) -> None:
    with pytest.raises(ValueError, match="context is empty"):
        prefill(model, torch.zeros(1, 0, 3, 8, 8), Conditions(pose=torch.zeros(1, 0, 4)))
