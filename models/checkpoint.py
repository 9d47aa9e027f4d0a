"""A trained model as a folder, readable with no Ray and no DeepSpeed:

model.safetensors, config.json     the world model, how long its clips were, the kind of its tokenizer
tokenizer/                         where it lives on latents: the autoencoder, whole
SHA256SUMS                         in an exported folder: what `sha256sum --check` and `exported.require_sums` compare
"""

from __future__ import annotations

from pathlib import Path

from longtake.models.description import CONFIG, read_world_model
from longtake.models.exported import TOKENIZER, WEIGHTS, load_weights, require_sums
from longtake.models.tokenizer import PixelTokenizer, Tokenizer, load_tokenizer
from longtake.models.world_model import WorldModel


def load_model(folder: Path) -> WorldModel:
    """The model in a checkpoint folder, on the CPU, ready to generate.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights are not those of the config, the config is none of ours, or a file is damaged.
    """
    require_sums(folder)
    described = read_world_model(folder)
    model = WorldModel(described.model)
    model.trained_frames, model.shown_context = described.trained_frames, described.shown_context
    try:
        model.load_state_dict(load_weights(folder / WEIGHTS))
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS}: these weights do not fit {folder / CONFIG}: {error}") from error
    return model.eval()


def load_model_tokenizer(folder: Path, device: str = "cpu") -> Tokenizer:
    """What stands between frames and the model in a checkpoint folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the config is no world model's; the tokenizer is damaged, or needs a package that is missing.
    """
    described = read_world_model(folder)
    return load_tokenizer(folder / TOKENIZER, device) if described.on_latents else PixelTokenizer()
