"""mosaicml-streaming beside the stream: the same episodes in its shards, read by a Python of its own.

Its pins clash with ours, so it is installed apart (`python -m venv V; V/bin/pip install torch mosaicml-streaming av`)
and runs `mosaic_side.py` as another process, which answers line by line.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from longtake.datasets.dataset import Dataset
from longtake.errors import UserError

COLD, WARM = "mosaicml-streaming, cold cache", "mosaicml-streaming, warm cache"
SIDE = Path(__file__).with_name("mosaic_side.py")
LEAVES_S = 60


class Side:
    """The other Python: a line is asked, numbers are answered. Raises UserError with its last words if it ended."""

    def __init__(self, python: str, *arguments: object) -> None:
        self._python, self._words = python, tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if "AWS_ENDPOINT_URL" in environment:
            environment["S3_ENDPOINT_URL"] = environment["AWS_ENDPOINT_URL"]
        try:
            self._process = subprocess.Popen(
                [python, str(SIDE), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise UserError(f"stream.mosaic: {python} does not start: {error.strerror}") from None
        self._answer()

    def ask(self, *words: object) -> list[float]:
        """One command of `mosaic_side.py`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and the answer says why
            print(*words, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> list[float]:
        assert self._process.stdout is not None
        ok, *numbers = self._process.stdout.readline().split() or ["ended"]
        if ok != "ok":
            self._words.seek(0)
            last = self._words.read().strip().splitlines()[-1:]
            raise UserError(f"stream.mosaic: {self._python} ended: {' '.join(last) or 'without a word'}")
        return [float(number) for number in numbers]

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(LEAVES_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._words.close()


@contextlib.contextmanager
def beside(python: str, data: Dataset, clip: int, clips: int, ready: int, steps: int) -> Iterator[Mapping[str, Any]]:
    """Its clips a second over one round, cold and then warm, by name; nothing if no `python` is given.

    clip, clips: frames and clips of a batch. Warm counts `steps` batches after `ready`, made before maybe.
    """
    if not python:
        yield {}
        return
    codec = next(spec.codec for spec in data.manifest.arrays if spec.name == "frames")
    place = data.store.path("mosaic") if data.store.is_folder else f"{data.store.uri}/mosaic"
    with tempfile.TemporaryDirectory(prefix="longtake-mosaic-") as folder:
        side = Side(python, place, folder, clip, clips, codec)
        try:
            _write(side, data, Path(folder, "episode.npz"))
            yield {COLD: lambda: _rate(side.ask("cold")), WARM: lambda: _rate(side.ask("warm", ready, steps))}
        finally:
            side.close()


def _write(side: Side, data: Dataset, file: Path) -> None:
    """The episodes that the stream draws from."""
    for number in data.episodes("train")["episode"].tolist():
        np.savez(file, **data.read(number).arrays())  # type: ignore[arg-type]
        side.ask("write", file)
    file.unlink()
    side.ask("finish")


def _rate(answer: list[float]) -> float:
    clips, seconds = answer
    return clips / seconds
