"""Mixers from a Mamba-2 language model: names, formats, the maths, and what is said when it does not fit."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.mamba2_import import check_mamba2, initialise_from_mamba2
from longtake.models.memory import LayerMemory
from longtake.models.mixers.ssm import BlockSSM
from longtake.models.world_model import Layer, WorldModel
from tests.models.families import SIZES, inputs

DIM, EXPAND, STATE, HEADDIM, CONV = 16, 2, 8, 8, 4
INNER, HEADS = DIM * EXPAND, DIM * EXPAND // HEADDIM


def language_model(layers: int = 3, *, embeddings: str = "embedding", prefix: str = "backbone.") -> dict[str, Tensor]:
    """A tiny language model's weights; transformers call the embedding `embeddings`."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "norm.weight": (DIM,),
        "mixer.in_proj.weight": (2 * INNER + 2 * STATE + HEADS, DIM),
        "mixer.conv1d.weight": (INNER + 2 * STATE, 1, CONV),
        "mixer.conv1d.bias": (INNER + 2 * STATE,),
        "mixer.dt_bias": (HEADS,),
        "mixer.A_log": (HEADS,),
        "mixer.D": (HEADS,),
        "mixer.norm.weight": (INNER,),
        "mixer.out_proj.weight": (DIM, INNER),
    }
    weights = {f"{prefix}{embeddings}.weight": torch.randn(50, DIM, generator=draw)}
    for number in range(layers):
        for name, shape in shapes.items():
            weights[f"{prefix}layers.{number}.{name}"] = torch.randn(shape, generator=draw) * 0.5
    return weights | {f"{prefix}norm_f.weight": torch.ones(DIM), "lm_head.weight": torch.zeros(50, DIM)}


def config(**changes: Any) -> ModelConfig:
    layers = [LayerConfig(), LayerConfig(mixer="none"), LayerConfig(spatial_block="frame")]
    return ModelConfig(**{**SIZES, "layers": layers, **changes})


def written(folder: Path, weights: dict[str, Tensor], form: str) -> Path:
    folder.mkdir(exist_ok=True)
    if form == "safetensors":
        save_file(weights, folder / "model.safetensors")
    elif form == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:  # as large models come
        half = len(weights) // 2
        for number, part in enumerate((list(weights)[:half], list(weights)[half:]), 1):
            save_file({name: weights[name] for name in part}, folder / f"model-0000{number}-of-00002.safetensors")
    return folder


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards"])
@pytest.mark.parametrize(("embeddings", "prefix"), [("embedding", "backbone."), ("embeddings", "backbone."),
                                                     ("embeddings", ""), ("embedding", "model.backbone.")])  # fmt: skip
def test_layers_that_scan_take_the_first_mixers(form: str, embeddings: str, prefix: str, tmp_path: Path) -> None:
    weights = language_model(embeddings=embeddings, prefix=prefix)
    model = WorldModel(config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert initialise_from_mamba2(model, written(tmp_path / "lm", weights, form)) == [(0, 0), (2, 1)]
    after = model.state_dict()
    taken = set()
    for ours, theirs in ((0, 0), (2, 1)):
        for name in [name for name in after if name.startswith(f"layers.{ours}.ssm.")]:
            source = name.replace(f"layers.{ours}.ssm.", f"{prefix}layers.{theirs}.mixer.")
            assert torch.equal(after[name], weights[source])
            taken.add(name)
    assert len(taken) == 16  # eight weights a mixer
    changed = {name for name in after if not torch.equal(after[name], before[name])} - taken
    assert changed == {"layers.0.modulation.bias", "layers.2.modulation.bias"}


def test_one_file_will_do_and_half_precision_too(tmp_path: Path) -> None:
    weights = {name: value.bfloat16() for name, value in language_model().items()}
    folder = written(tmp_path / "lm", weights, "safetensors")
    model = WorldModel(config())
    initialise_from_mamba2(model, folder / "model.safetensors")
    layer = model.layers[0]
    assert isinstance(layer, Layer) and isinstance(layer.mixer, BlockSSM)
    assert torch.equal(layer.mixer.D, weights["backbone.layers.0.mixer.D"].float())


def language_block(weights: dict[str, Tensor], number: int, x: Tensor) -> Tensor:
    """A language model's residual block on x (l, D), token by token, in float64, with none of our code."""
    w = {name: value.double() for name, value in weights.items()}
    w = {n.split(f"layers.{number}.")[1]: v for n, v in w.items() if f"layers.{number}." in n}
    normed = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w["norm.weight"]
    z, xBC, dt = (normed @ w["mixer.in_proj.weight"].T).split([INNER, INNER + 2 * STATE, HEADS], -1)
    taps = w["mixer.conv1d.weight"][:, 0]
    state, out = torch.zeros(HEADS, HEADDIM, STATE, dtype=torch.float64), []
    for t in range(len(x)):
        last = [xBC[t - CONV + 1 + i] * taps[:, i] for i in range(CONV) if t - CONV + 1 + i >= 0]
        mixed = F.silu(torch.stack(last).sum(0) + w["mixer.conv1d.bias"])
        value, B, C = mixed.split([INNER, STATE, STATE])
        value = value.view(HEADS, HEADDIM)
        step = torch.log1p(torch.exp(dt[t] + w["mixer.dt_bias"]))
        decay = torch.exp(-step * torch.exp(w["mixer.A_log"]))
        state = decay[:, None, None] * state + (step[:, None] * value)[..., None] * B
        y = (state @ C + w["mixer.D"][:, None] * value).flatten() * F.silu(z[t])
        y = y * (y.square().mean() + 1e-5).rsqrt() * w["mixer.norm.weight"]
        out.append(w["mixer.out_proj.weight"] @ y)
    return x + torch.stack(out)


def test_a_filled_layer_does_what_the_language_model_did(tmp_path: Path) -> None:
    """One token per frame, so that frames are tokens; x without mean, because our norm takes it away."""
    weights = language_model()
    model = WorldModel(config(height=4, width=4, layers=[LayerConfig()] * 3))
    initialise_from_mamba2(model, written(tmp_path / "lm", weights, "safetensors"))
    x = torch.randn(1, 21, 1, DIM, generator=torch.Generator().manual_seed(1))
    x = x - x.mean(-1, keepdim=True)
    with torch.no_grad():
        ours, _ = model.layers[1](x, torch.randn(1, 21, DIM), torch.randn(1, 21, DIM), LayerMemory(), 0, None)
    expected = language_block(weights, 1, x[0, :, 0].double())
    assert (ours[0, :, 0] - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_every_branch_learns_from_the_first_steps(tmp_path: Path) -> None:
    """No branch is closed twice: after four steps every weight has moved."""
    torch.manual_seed(0)
    model = WorldModel(config(causal=False))
    initialise_from_mamba2(model, written(tmp_path / "lm", language_model(), "safetensors"))
    x, level, conditions = inputs(4)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for _ in range(4):
        model.zero_grad()
        (model(x, level, conditions)[0] - x).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 1e-2 * parameter.grad.sign()
    still = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    assert still == {"conditions.nothing"}  # for conditions that are dropped, and here none are


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"dim": 24, "heads": 2}, [r"layers.0-1.mixer.in_proj.weight: \(84, 16\), this model has \(118, 24\): "
                                   r"set model.dim=16", r"layers.0-1.norm.weight: \(16,\).*model.dim=16"]),
        ({"d_state": 4}, [r"in_proj.weight: .*model.d_state=8", r"conv1d.weight: .*model.d_state=8", "conv1d.bias"]),
        ({"headdim": 16}, [r"in_proj.weight: .*model.headdim=8", r"dt_bias: \(4,\).*\(2,\).*model.headdim=8",
                           "A_log", "mixer.D: "]),
        ({"d_conv": 3}, [r"conv1d.weight: \(48, 1, 4\), this model has \(48, 1, 3\): set model.d_conv=4"]),
        ({"depth": 9}, [r"depth: 6 layers scan, but the language model has 3: set model.depth=3 or less"]),
        ({"layers": [LayerConfig(mixer="none")]}, ["none of this model's layers scans"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_at_once(changes: dict[str, Any], lines: list[str], tmp_path: Path) -> None:
    path = written(tmp_path / "lm", language_model(), "safetensors")
    with pytest.raises(ValueError) as caught:
        check_mamba2(config(**changes), path)
    for line in lines:
        assert [said for said in caught.value.args if re.search(line, said)], (line, caught.value.args)
    with pytest.raises(ValueError) as again:
        initialise_from_mamba2(WorldModel(config(**changes)), path)
    assert again.value.args == caught.value.args


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    weights = language_model()
    del weights["backbone.layers.1.mixer.norm.weight"]
    weights["backbone.layers.0.mixer.in_proj.bias"] = torch.zeros(84)
    weights["backbone.layers.0.mixer.A_log"] = torch.zeros(HEADS, dtype=torch.int8)
    with pytest.raises(ValueError) as caught:
        check_mamba2(config(), written(tmp_path / "lm", weights, "bin"))
    said = "\n".join(caught.value.args)
    assert "layers.1.mixer.norm.weight: missing, this model has (32,)" in said
    assert "layers.0.mixer.in_proj.bias: this model has no such weight" in said
    assert "layers.0.mixer.A_log: int8, a quantised weight" in said


def test_what_is_no_mamba_2_checkpoint_is_refused(tmp_path: Path) -> None:
    def refused(path: Path, message: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=message):
            check_mamba2(config(), path)

    refused(tmp_path / "nowhere", "no checkpoint here", FileNotFoundError)
    refused(written(tmp_path / "other", {"model.embed.weight": torch.zeros(2)}, "bin"), "no mixers.*model.embed.weight")
    mamba_1 = language_model() | {"backbone.layers.0.mixer.x_proj.weight": torch.zeros(2, 2)}
    refused(written(tmp_path / "one", mamba_1, "bin"), "a Mamba-1 language model")
    groups = written(tmp_path / "groups", language_model(), "bin")
    (groups / "config.json").write_text(json.dumps({"ssm_cfg": {"layer": "Mamba2", "ngroups": 8}}))
    refused(groups, "8 groups")
    (tmp_path / "torn.safetensors").write_bytes(b"half a file")
    refused(tmp_path / "torn.safetensors", "cannot be read as weights")
    harmful = tmp_path / "harmful.bin"
    torch.save({"backbone.layers.0.mixer.D": _Runs()}, harmful, pickle_module=pickle)
    refused(harmful, "holds more than tensors and could run code$")


class _Runs:
    """Would run when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a checkpoint ran code",))
