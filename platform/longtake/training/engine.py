"""One optimizer step behind a small face: DeepSpeed (ZeRO 0-3) or plain PyTorch, on one rank or many.

Truncated BPTT: call `backward(loss / n)` n times, then `step()` once; n may change from step to step. The
learning rate is a pure function of the step, so a resumed run meets the same one. A saved engine is a folder:

    model.safetensors     weights, fp32, by parameter name: readable with no Longtake, Ray or DeepSpeed
    state.json            the caller's state and what wrote it (step, world size, backend)
    rng-00000.json        random state of each rank
    ds/ or optimizer.pt   moments of the optimizer, in the backend's own form; read as values, never as code

Another number of ranks may go on with it. `autocast` computes matrix products in bf16 and keeps all else in fp32;
`bf16` also keeps the parameters in bf16, beside the fp32 ones that the optimizer moves. `auto` is `autocast` on a card,
with TF32 for the fp32 products that are left, and `fp32` on a CPU.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.training.engine_backends import (
    Backend,
    DeepSpeedBackend,
    NotFinite,
    TorchBackend,
    join_group,
    rank,
    world,
)
from longtake.training.engine_config import EngineConfig, learning_rate
from longtake.training.host_copies import HostCopies, HostMemory


def autocast(device: str) -> torch.autocast:
    """A context in which matrix products are computed in bf16; on a card the fp32 ones that are left become TF32."""
    if device != "cpu":
        torch.set_float32_matmul_precision("high")
    return torch.autocast(torch.device(device).type, torch.bfloat16)


class Engine:
    """A model with its optimizer. Every rank makes one with the same arguments and calls the same methods."""

    def __init__(self, model: nn.Module, config: EngineConfig, *, steps: int, device: str = "cpu") -> None:
        """`steps`: length of the whole run, which the learning rate follows. Weights become rank 0's."""
        if device == "cpu":
            torch.set_num_threads(config.threads)
        join_group(device)
        model.to(device)
        if config.precision_on(device) != "fp32":
            model.forward = autocast(device)(model.forward)
        self.config = config
        self.steps = steps
        self.done = 0
        self._host = HostMemory(device)
        self._backend: Backend = (DeepSpeedBackend if config.backend == "deepspeed" else TorchBackend)(model, config)

    @property
    def model(self) -> nn.Module:
        """The bare model, for evaluation."""
        return self._backend.model

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return learning_rate(self.config, self.done, self.steps)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward pass."""
        return self._backend.forward(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one loss; several of them may precede a step."""
        self._backend.backward(loss)

    def step(self) -> float:
        """Average gradients over ranks, clip, update, clear. Returns their norm before clipping.

        Raises:
            UserError: a gradient is not finite; the first parameter with one is named. Weights are as they were.
        """
        try:
            norm = self._backend.step(self.lr)
        except NotFinite as error:
            raise UserError(
                f"step {self.done}: the gradients are not finite, first that of {error}: look at the data, or lower "
                "engine.lr; the checkpoints before are whole"
            ) from None
        self.done += 1
        return norm

    def full_state_dict(self) -> dict[str, Tensor]:
        """Consolidated weights on the CPU, fp32, on rank 0; nothing on the others. Every rank calls it."""
        return self._weights(self._host.copies())

    def snapshot(self, state: dict[str, Any] | None = None) -> Callable[[Path], None]:
        """Copy this rank's part into host memory; returns what writes it into a folder, when and where one likes.

        Every rank calls it. Training may go on meanwhile: nothing of the engine is looked at again. `state` holds JSON
        values.
        """
        copies, first = self._host.copies(), rank() == 0
        write_optimizer, random_state = self._backend.snapshot(copies), json.dumps(_random_state())
        weights, random_name = self._weights(copies), _random_name()
        description = json.dumps({"engine": self._identity(), "state": state or {}}, indent=1)

        def write(folder: Path) -> None:
            from safetensors.torch import save_file

            folder.mkdir(parents=True, exist_ok=True)
            write_optimizer(folder)
            (folder / random_name).write_text(random_state)
            if first:
                save_file(weights, folder / "model.safetensors")
                (folder / "state.json").write_text(description)
            copies.release()

        return write

    def _weights(self, copies: HostCopies) -> dict[str, Tensor]:
        """Copies of the whole weights, fp32, on rank 0; nothing on the others. Every rank calls it."""
        weights = self._backend.weights()
        if rank():
            return {}
        kinds = {name: torch.float32 if t.is_floating_point() else t.dtype for name, t in weights.items()}
        return {name: copies.of_tensor(tensor, kinds[name]) for name, tensor in weights.items()}

    def save(self, folder: Path, state: dict[str, Any] | None = None) -> None:
        """Write this rank's part into `folder`; every rank calls it. `state` holds JSON values."""
        self.snapshot(state)(folder)

    def load(self, folder: Path) -> dict[str, Any]:
        """Go on where `save` left off; returns its `state`. UserError if another kind of engine wrote it."""
        read = json.loads((folder / "state.json").read_text())
        written = read["engine"]
        self._refuse_other(written)
        self._backend.load(folder, written["world"])
        self.done = written["step"]
        if rank() < written["world"]:  # a rank that the writing run did not have keeps the random state of its seed
            _restore_random_state(json.loads((folder / _random_name()).read_text()))
        state: dict[str, Any] = read["state"]
        return state

    def _identity(self) -> dict[str, Any]:
        zero = self.config.zero if self.config.backend == "deepspeed" else 0
        precision = "bf16" if self.config.precision == "bf16" else "fp32"  # of the parameters
        return {
            "backend": self.config.backend,
            "zero": zero,
            "precision": precision,
            "world": world(),
            "step": self.done,
        }

    def _refuse_other(self, written: dict[str, Any]) -> None:
        mine = self._identity()
        problems = [
            f"engine.{field}: the checkpoint was written with {written[field]}, this run has {mine[field]}: "
            f"set {field} to {written[field]}"
            for field in ("backend", "zero", "precision")
            if written[field] != mine[field]
        ]
        if problems:
            raise UserError(*problems)


def step_of(folder: Path) -> int:
    """Steps that were done when an engine was saved there; nothing is loaded."""
    return int(json.loads((folder / "state.json").read_text())["engine"]["step"])


def _random_name() -> str:
    return f"rng-{rank():05d}.json"


def _random_state() -> dict[str, Any]:
    """As JSON: lists of Python's and numpy's numbers, PyTorch's bytes as hexadecimal text."""
    import numpy as np

    name, words, *rest = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(words).tolist(), *rest],
        "torch": _hex(torch.get_rng_state()),
        "cuda": None if cuda is None else _hex(cuda),
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    import numpy as np

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(_unhex(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_unhex(state["cuda"]))


def _hex(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _unhex(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
