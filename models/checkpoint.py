"""A trained model as a folder, readable with no Ray and no DeepSpeed:

model.safetensors, config.json     the world model, how long its clips were, the kind of its tokenizer
tokenizer/                         where it lives on latents: the autoencoder, whole
SHA256SUMS                         in an exported folder: what `sha256sum --check` and `exported.require_sums` compare
"""

from __future__ import annotations

import json
from pathlib import Path

from longtake.models.config import ModelConfig
from longtake.models.exported import CONFIG, TOKENIZER, WEIGHTS, require_sums
from longtake.models.tokenizer import PIXELS, Tokenizer, load_tokenizer
from longtake.models.world_model import WorldModel


def load_model(folder: Path) -> WorldModel:
    """The model in a checkpoint folder, on the CPU, ready to generate.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights are not those of the config, the config is none of ours, or a file is damaged.
    """
    from safetensors.torch import load_file

    require_sums(folder)
    written = json.loads((folder / CONFIG).read_text())
    model = WorldModel(ModelConfig.model_validate_json(json.dumps(written["model"])))
    model.trained_frames = written["trained_frames"]
    model.shown_context = written.get("shown_context", True)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS}: these weights do not fit {folder / CONFIG}: {error}") from error
    return model.eval()


def load_model_tokenizer(folder: Path, device: str = "cpu") -> Tokenizer:
    """What stands between frames and the model in a checkpoint folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder's tokenizer is damaged, or needs a package that is missing.
    """
    kind = json.loads((folder / CONFIG).read_text())["tokenizer"]
    return PIXELS if kind == PIXELS.kind else load_tokenizer(folder / TOKENIZER, device)
