"""A power cut at the moment that a checkpoint is sealed: what was not synced is gone, and what is sealed is whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from longtake.storage import local_files
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints
from longtake.training.context import LocalContext


class Disk:
    """Which files have been synced since they were made, and which names in folders."""

    def __init__(self) -> None:
        self.files: set[int] = set()
        self.names: dict[int, set[str]] = {}
        self._fsync = os.fsync

    def fsync(self, handle: int) -> None:
        """As the disk does it, and noted."""
        self._fsync(handle)
        there = os.fstat(handle)
        path = os.readlink(f"/proc/self/fd/{handle}")
        if os.path.isdir(path):
            self.names[there.st_ino] = set(os.listdir(path))
        else:
            self.files.add(there.st_ino)

    def after_a_cut(self, folder: Path, to: Path) -> None:
        """What is left of a folder: names that were synced, and of files that were not, nothing but zeros."""
        to.mkdir(parents=True)
        for name in self.names.get(folder.stat().st_ino, set()) & set(os.listdir(folder)):
            inner = folder / name
            if inner.is_dir():
                self.after_a_cut(inner, to / name)
            elif inner.stat().st_ino in self.files:
                shutil.copyfile(inner, to / name)
            else:
                (to / name).write_bytes(bytes(inner.stat().st_size))


def write(folder: Path) -> None:
    (folder / "ds").mkdir()
    (folder / "ds/optimizer.pt").write_bytes(b"o" * 1000)
    (folder / "model.safetensors").write_bytes(b"m" * 1000)


def test_what_is_sealed_is_whole_after_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, store = Disk(), open_store(tmp_path / "store")
    (tmp_path / "store").mkdir()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    real, cuts = Store.write_bytes, []

    def write_bytes(self: Store, rel: str, data: bytes) -> None:
        real(self, rel, data)
        if rel.endswith((checkpoints.MARKER, "sealed.json")):
            local_files.sync(tmp_path / "store")  # of the folders above, which were there for long
            local_files.sync(tmp_path / "store/runs")
            cuts.append(tmp_path / f"cut-{len(cuts)}")
            disk.after_a_cut(tmp_path / "store", cuts[-1])

    monkeypatch.setattr(Store, "write_bytes", write_bytes)
    context = LocalContext(store, "r", keep=5, device="cpu")
    for step in (10, 20):
        context.save(step, write)
        context.finish()
    stores = [open_store(cut) for cut in cuts]
    # The first marker's folder may be gone with it; what `save` has come back from is there.
    assert [checkpoints.newest(cut, "r", hashed=True) for cut in stores[1::2]] == [10, 20]
    for cut in stores:
        for step in checkpoints.complete(cut, "r"):
            assert checkpoints.damage(cut, "r", step, hashed=True) == []
