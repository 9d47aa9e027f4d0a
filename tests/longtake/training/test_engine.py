"""The engine: its gradients are those of plain PyTorch, and what it saves goes on bitwise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from longtake.errors import UserError
from longtake.training.engine import Engine
from longtake.training.engine_backends import deepspeed_config
from longtake.training.engine_config import EngineConfig, learning_rate
from tests.longtake.training.toy_loop import Carried, backward_all, clip, segments

WORLD = 2
ENGINES = ["torch", "zero0", "zero1", "zero2", "zero3", "zero2 offload"]


def config(name: str, **settings: Any) -> EngineConfig:
    """Of a name such as `torch` or `zero2 bf16 offload`."""
    first, *more = name.split()
    backend = {"backend": "torch"} if first == "torch" else {"zero": int(first[-1])}
    precision = next((word for word in more if word != "offload"), "fp32")
    backend |= {"precision": precision, "offload": "offload" in more}
    return EngineConfig.model_validate({"warmup": 2, **backend, **settings})


# --- learning rate ----------------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_falls() -> None:
    settings = EngineConfig(lr=1.0, warmup=4, final_lr=0.1)
    rates = [learning_rate(settings, step, 104) for step in range(105)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[54] == pytest.approx(0.55)
    assert rates[104] == pytest.approx(0.1)
    assert learning_rate(settings, 10_000, 104) == pytest.approx(0.1)


def test_a_late_decay_leaves_the_rate_alone_until_then() -> None:
    """What a sweep's early rungs see is the rate that was asked for, whatever comes after them."""
    settings = EngineConfig(lr=1.0, warmup=4, final_lr=0.1, decay=0.25)
    rates = [learning_rate(settings, step, 104) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(rates[4:79]) == {1.0} and rates[79] < 1.0
    assert rates[91] == pytest.approx(0.55)
    assert rates[104] == pytest.approx(0.1)


@given(
    step=st.integers(0, 10**6),
    steps=st.integers(1, 10**6),
    warmup=st.integers(0, 100),
    final=st.floats(0, 1),
    decay=st.floats(1e-6, 1),
)
def test_learning_rate_stays_in_its_bounds(step: int, steps: int, warmup: int, final: float, decay: float) -> None:
    settings = EngineConfig(lr=0.5, warmup=warmup, final_lr=final, decay=decay)
    rate = learning_rate(settings, step, steps)
    assert 0 <= rate <= 0.5
    assert rate == learning_rate(settings, step, steps)


# --- one process ------------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_decay_pulls_on_matrices_only(alone: None) -> None:
    engine = Engine(Carried(), config("torch", weight_decay=0.5), steps=5)
    groups = engine._backend.optimizer.param_groups  # type: ignore[attr-defined]
    assert [(g["weight_decay"], {p.ndim for p in g["params"]}) for g in groups] == [(0.5, {2}), (0.0, {1})]


def test_deepspeed_takes_models_of_an_odd_size() -> None:
    odd = torch.nn.Linear(1000, 3)
    assert sum(p.numel() for p in odd.parameters()) == 3003
    settings = deepspeed_config(odd, config("zero1"))["zero_optimization"]
    assert settings["allgather_bucket_size"] == 3004  # DeepSpeed refuses an odd one


def test_weights_are_readable_without_us(alone: None, tmp_path: Path) -> None:
    engine = Engine(Carried(), config("torch"), steps=5)
    engine.save(tmp_path)
    fresh = Carried()
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for mine, theirs in zip(engine.model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_refuses_what_another_engine_wrote(alone: None, tmp_path: Path) -> None:
    engine = Engine(Carried(), config("torch"), steps=5)
    engine.save(tmp_path)
    state = tmp_path / "state.json"
    state.write_text(state.read_text().replace('"torch"', '"deepspeed"').replace('"zero": 0', '"zero": 1'))
    with pytest.raises(UserError) as refused:
        engine.load(tmp_path)
    assert len(refused.value.lines) == 2
    assert "set backend to deepspeed" in refused.value.lines[0]
    assert "set zero to 1" in refused.value.lines[1]


# --- two ranks --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two spawned ranks found, per engine."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(_rank, WORLD, str(folder))
    return [{"folder": folder} | torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def spawn(function: Callable[..., None], world: int, *arguments: Any) -> None:
    """Run `function(rank, *arguments)` in `world` processes of their own."""
    spawned = mp.spawn(function, args=arguments, nprocs=world, join=False)
    assert spawned is not None
    deadline = time.monotonic() + 300
    try:
        while not spawned.join(timeout=1):
            assert time.monotonic() < deadline, "the ranks hang"
    finally:
        for process in spawned.processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_gradients_over_several_backwards_are_plain_pytorch(name: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found, expected = rank[name]["moments"], _plain_moments()
        assert found.keys() == expected.keys()
        for parameter, moment in expected.items():
            assert (found[parameter] - moment).abs().max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_gradient_norm_is_that_before_clipping(name: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank[name]["norm"] == pytest.approx(ranks[0]["torch"]["norm"], rel=1e-5)
        assert rank[name]["told of nan"].startswith("step 4: the gradients are not finite, first that of across.weight")
        assert rank[name]["weights after nan"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_a_loaded_engine_goes_on_bitwise(name: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank[name]["state"] == {"step": 2, "note": [1, 0.1]}
        straight, resumed = rank[name]["straight"], rank[name]["resumed"]
        assert all(torch.equal(straight[key], resumed[key]) for key in straight)
        assert torch.equal(rank[name]["random straight"], rank[name]["random resumed"])
        assert (len(rank[name]["full"]) > 0) == (rank is ranks[0])


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found = {name: _try(name, rank, Path(folder) / name) for name in ENGINES}
    torch.save(found, Path(folder) / f"{rank}.pt")
    _elastic(rank, WORLD, Path(folder), 0)


def _try(name: str, rank: int, folder: Path) -> dict[str, Any]:
    engine = _engine(name, seed=0, clip=0.0)
    found: dict[str, Any] = {"norm": [_step(engine, step, rank, noise=False) for step in range(2)][-1]}
    found["moments"] = _copy(_moments(engine))

    engine = _engine(name, seed=rank, clip=0.5)
    torch.manual_seed(rank)
    for step in range(4):
        if step == 2:
            engine.save(folder, {"step": engine.done, "note": [1, 0.1]})
        _step(engine, step, rank)
    found["straight"], found["random straight"] = _copy(engine.model.state_dict()), torch.randn(3)

    again = _engine(name, seed=7 + rank, clip=0.5)
    found["state"] = again.load(folder)
    for step in range(again.done, 4):
        _step(again, step, rank)
    found["resumed"], found["random resumed"] = _copy(again.model.state_dict()), torch.randn(3)
    found["full"] = again.full_state_dict()

    before = again.full_state_dict()
    hook = dict(again.model.named_parameters())["across.weight"].register_hook(lambda g: g * math.nan)
    with pytest.raises(UserError) as caught:
        _step(again, 4, rank)
    hook.remove()
    after = again.full_state_dict()
    found["told of nan"] = str(caught.value)
    found["weights after nan"] = all(torch.equal(before[key], after[key]) for key in before)
    return found


# --- another number of ranks ------------------------------------------------------------------------------

ELASTIC = ["zero1", "zero2", "zero3"]


@pytest.mark.slow
def test_two_ranks_then_one_then_two_end_as_two_would(ranks: list[dict[str, Any]]) -> None:
    folder = ranks[0]["folder"]
    for number, world in ((1, 1), (2, 2)):
        spawn(_part, world, world, str(folder), number)
    for name in ELASTIC:
        straight, changed = (load_file(folder / f"{name}-{end}" / "model.safetensors") for end in ("straight", "3"))
        for key, value in straight.items():
            assert float((changed[key] - value).norm() / value.norm()) <= 1e-5, (name, key)


def _part(rank: int, world: int, folder: str, number: int) -> None:
    meet = f"file://{folder}/meet{number}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    _elastic(rank, world, Path(folder), number)


def _elastic(rank: int, world: int, folder: Path, number: int) -> None:
    """Steps 2 * number and the next one of each engine; the first part also takes all six without a break."""
    for name in ELASTIC:
        engine = _engine(name, seed=0, clip=0.5)
        if number:
            engine.load(folder / f"{name}-{number}")
        while engine.done < 6:
            x = torch.cat([clip(engine.done, r) for r in range(2)]) if world == 1 else clip(engine.done, rank)
            backward_all(engine, x, segments(engine.done), noise=0.0)
            engine.step()
            if engine.done == 2 * (number + 1):
                engine.save(folder / f"{name}-{number + 1}")
                if number:
                    break
        if not number:
            engine.save(folder / f"{name}-straight")
    dist.barrier()


def _engine(name: str, seed: int, **settings: Any) -> Engine:
    torch.manual_seed(seed)
    return Engine(Carried(), config(name, **settings), steps=4)


def _step(engine: Engine, step: int, rank: int, noise: bool = True) -> float:
    backward_all(engine, clip(step, rank), segments(step), noise=0.1 if noise else 0.0)
    return engine.step()


def _moments(engine: Engine) -> dict[str, torch.Tensor]:
    """AdamW's first moments after two steps: a mix of the two gradients that the optimizer was given."""
    named = dict(engine.model.named_parameters())
    if engine.config.backend == "torch" or engine.config.zero == 0:
        state = engine._backend.optimizer.state  # type: ignore[attr-defined]
        return {name: state[p]["exp_avg"] for name, p in named.items()}
    from deepspeed.utils import safe_get_full_optimizer_state

    # DeepSpeed links states after the first group's step, when the second group has none yet: link again.
    zero = engine._backend.optimizer  # type: ignore[attr-defined]
    if engine.config.zero < 3:
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
    return {name: safe_get_full_optimizer_state(p, "exp_avg") for name, p in named.items()}


def _plain_moments() -> dict[str, torch.Tensor]:
    """The same by a plain loop over both ranks' clips."""
    torch.manual_seed(0)
    model, settings = Carried(), config("torch")
    groups = [[p for p in model.parameters() if (p.ndim < 2) == free] for free in (False, True)]
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[0], "weight_decay": settings.weight_decay},
            {"params": groups[1], "weight_decay": 0},
        ],
        betas=(settings.beta1, settings.beta2),
    )
    for step in range(2):
        optimizer.zero_grad()
        for rank in range(WORLD):
            state, parts = torch.zeros(4, 8), segments(step)
            for part in clip(step, rank).chunk(parts, dim=1):
                prediction, state = model(part, state.detach())
                ((prediction - part).square().mean() / parts / WORLD).backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, 4)
        optimizer.step()
    return {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}


def _copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in tensors.items()}
