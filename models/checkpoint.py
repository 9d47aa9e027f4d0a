"""A trained model as a folder: `model.safetensors` and `config.json`, readable with no Ray and no DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path

from models.config import ModelConfig
from models.world_model import WorldModel


def load_model(folder: Path) -> WorldModel:
    """The model in a checkpoint folder, on the CPU, ready to generate.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights are not those of the config, or the config is none of ours.
    """
    from safetensors.torch import load_file

    written = json.loads((folder / "config.json").read_text())
    model = WorldModel(ModelConfig.model_validate_json(json.dumps(written["model"])))
    model.trained_frames = written["trained_frames"]
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except RuntimeError as error:
        raise ValueError(
            f"{folder / 'model.safetensors'}: these weights do not fit {folder / 'config.json'}: {error}"
        ) from error
    return model.eval()
