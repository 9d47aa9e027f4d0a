"""Mixers from a Mamba-2 language model: its checkpoint, original or as converted by transformers, into our scans.

The k-th layer that scans takes layer k of the language model: with fewer of them, the first ones. What fits is the
mixer, name by name, and the weight of the norm before it; embeddings and head have no place in a world model.

A fresh layer is closed (AdaLN-Zero: every gate is 0), so a pretrained mixer would be silent. Its branch starts open:
gate 1, and its adaptive scale is the language model's norm weight; so the mixer does from the first step what it did
in the language model, up to the mean over channels that our norm takes away. The branches that we add (attention,
feed-forward) stay closed by their gates, and scans backward in time (causal: false) by a zero output projection. No
branch gets both: with gate and output zero nothing would ever be learned.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from longtake.models.config import ModelConfig
from longtake.models.mixers.ssm import BlockSSM
from longtake.models.world_model import Layer, WorldModel

Weights = Mapping[str, Tensor]

_NAME = re.compile(r"(?:model\.)?(?:backbone\.)?layers\.(\d+)\.(mixer\.[\w.]+|norm\.weight)")
_MAMBA_1 = "mixer.x_proj.weight"
_GROUPS = ("ngroups", "n_groups")
_FORMATS = ("*.safetensors", "*.bin", "*.pt")


def initialise_from_mamba2(model: WorldModel, path: Path) -> list[tuple[int, int]]:
    """Fill the mixers of a fresh model from a checkpoint, in place.

    Args:
        path: a `.safetensors`, `.bin` or `.pt` file, or a folder that holds such files (safetensors are preferred).

    Returns:
        Pairs (layer of the model, layer of the language model).

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a file that cannot be read, or that is none of a Mamba-2 language model (one argument per problem).
        ValueError: every name whose shape does not fit the model, with the settings that would (one argument each).
    """
    weights = _read(path)
    problems = list(_problems(model, weights))
    if problems:
        raise ValueError(*(f"{path}: {problem}" for problem in problems))
    pairs = list(enumerate(_scanning(model)))
    with torch.no_grad():
        for theirs, ours in pairs:
            layer = model.layers[ours]
            assert isinstance(layer, Layer) and isinstance(layer.mixer, BlockSSM)
            start = f"layers.{theirs}."
            for name, parameter in layer.mixer.named_parameters():
                parameter.copy_(weights[f"{start}mixer.{name}"])
            layer.open_mixer(weights[f"{start}norm.weight"])
            if isinstance(layer.mixer_back, BlockSSM):
                nn.init.zeros_(layer.mixer_back.out_proj.weight)
    return [(ours, theirs) for theirs, ours in pairs]


def check_mamba2(config: ModelConfig, path: Path) -> None:
    """Raise what `initialise_from_mamba2` would for a model of this config, without making one."""
    with torch.device("meta"):
        model = WorldModel(config)
    problems = list(_problems(model, _read(path)))
    if problems:
        raise ValueError(*(f"{path}: {problem}" for problem in problems))


# --- reading ----------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Tensor]:
    """The weights of the layers, by their names from `layers.` on."""
    _refuse_groups(path)
    weights: dict[str, Tensor] = {}
    names: list[str] = []
    for file in _files(path):
        for name, tensor in _load(file).items():
            names.append(name)
            if match := _NAME.fullmatch(name):
                weights[f"layers.{match[1]}.{match[2]}"] = tensor
    if any(name.endswith(_MAMBA_1) for name in weights):
        raise ValueError(f"{path}: a Mamba-1 language model; its mixers are others, take a Mamba-2 one")
    if not weights:
        raise ValueError(
            f"{path}: no mixers of a Mamba-2 language model (backbone.layers.N.mixer...); its names are such as "
            + ", ".join(names[:3])
        )
    return weights


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for pattern in _FORMATS:
        if files := sorted(path.glob(pattern)):
            return files
    raise FileNotFoundError(f"{path}: no checkpoint here; expected a file, or a folder with {', '.join(_FORMATS)}")


def _load(file: Path) -> dict[str, Tensor]:
    """All tensors of a file; nothing in it is run."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's words advise to read it all the same, and so to run it
        raise ValueError(
            f"{file}: cannot be read as weights: it is damaged, or holds more than tensors and could run code"
        ) from error
    except Exception as error:  # each format has its own errors for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file}: cannot be read as weights: {reason}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{file}: holds a {type(loaded).__name__}, expected tensors by name")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def _refuse_groups(path: Path) -> None:
    """Several groups of B and C have the shapes of one wider state, and mean something else."""
    for name in ("config.json", "params.json"):
        file = (path if path.is_dir() else path.parent) / name
        if file.is_file():
            said = json.loads(file.read_text())
            groups = next((s[key] for s in (said, said.get("ssm_cfg") or {}) for key in _GROUPS if key in s), 1)
            if groups != 1:
                raise ValueError(f"{path}: its mixers have {groups} groups ({name}); ours have one")


# --- what does not fit ------------------------------------------------------------------------------------


def _scanning(model: WorldModel) -> list[int]:
    """Numbers of the layers that scan, from first to last."""
    return [number for number, layer in enumerate(model.config.stack) if layer.mixer_class is BlockSSM]


def _problems(model: WorldModel, weights: Weights) -> Iterator[str]:
    layers = _scanning(model)
    count = 1 + max(int(name.split(".")[1]) for name in weights)
    if not layers:
        yield "layers: none of this model's layers scans (mixer: ssm), so there is nothing to fill"
    if len(layers) > count:
        yield f"depth: {len(layers)} layers scan, but the language model has {count}: set model.depth={count} or less"
    differing = _fields(model.config, weights)
    seen: dict[str, list[int]] = {}
    for theirs, ours in zip(range(count), layers, strict=False):
        layer = model.layers[ours]
        assert isinstance(layer, Layer) and isinstance(layer.mixer, BlockSSM)
        expected = {f"mixer.{name}": tuple(value.shape) for name, value in layer.mixer.named_parameters()}
        for name, shape in {**expected, "norm.weight": (model.config.dim,)}.items():
            for problem in _misfit(name, weights.get(f"layers.{theirs}.{name}"), shape, differing):
                seen.setdefault(problem, []).append(theirs)
        for name in weights:
            if name.startswith(f"layers.{theirs}.mixer.") and name.split(".", 2)[2] not in expected:
                seen.setdefault(f"{name.split('.', 2)[2]}: this model has no such weight", []).append(theirs)
    for problem, where in seen.items():
        span = f"{where[0]}-{where[-1]}" if len(where) > 1 else str(where[0])
        yield f"backbone.layers.{span}.{problem}"


def _misfit(name: str, theirs: Tensor | None, ours: tuple[int, ...], differing: dict[str, int]) -> Iterator[str]:
    """What is wrong with one weight."""
    if theirs is None:
        yield f"{name}: missing, this model has {ours}"
    elif not theirs.is_floating_point() or theirs.element_size() < 2:
        yield f"{name}: {str(theirs.dtype).removeprefix('torch.')}, a quantised weight; take the checkpoint before that"
    elif tuple(theirs.shape) != ours:
        fits = ", ".join(f"model.{field}={value}" for field, value in differing.items() if field in _DECIDE[name])
        yield f"{name}: {tuple(theirs.shape)}, this model has {ours}" + (f": set {fits}" if fits else "")


_HEADS = ("dim", "expand", "headdim")
_DECIDE = {
    "mixer.in_proj.weight": ("dim", "expand", "d_state", "headdim"),
    "mixer.conv1d.weight": ("dim", "expand", "d_state", "d_conv"),
    "mixer.conv1d.bias": ("dim", "expand", "d_state"),
    "mixer.dt_bias": _HEADS,
    "mixer.A_log": _HEADS,
    "mixer.D": _HEADS,
    "mixer.norm.weight": ("dim", "expand"),
    "mixer.out_proj.weight": ("dim", "expand"),
    "norm.weight": ("dim",),
}
"""Settings that decide the shape of each weight."""


def _fields(config: ModelConfig, weights: Weights) -> dict[str, int]:
    """The settings that differ from the language model's, with its values, as far as its shapes tell."""
    try:
        width, dim = weights["layers.0.mixer.out_proj.weight"].shape[::-1]
        conv, _, kernel = weights["layers.0.mixer.conv1d.weight"].shape
        heads = len(weights["layers.0.mixer.A_log"])
    except (KeyError, ValueError, TypeError):
        return {}
    fields = {
        "dim": dim,
        "expand": width // dim,
        "headdim": width // heads,
        "d_state": (conv - width) // 2,
        "d_conv": kernel,
    }
    return {field: value for field, value in fields.items() if getattr(config, field) != value}
