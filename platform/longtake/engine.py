"""One optimizer step behind a small face: DeepSpeed (ZeRO 0-3) or plain PyTorch, on one rank or many.

Truncated BPTT: call `backward(loss / n)` n times, then `step()` once; n may change from step to step. The
learning rate is a pure function of the step, so a resumed run meets the same one. A saved engine is a folder:

    model.safetensors     weights, fp32, by parameter name: readable with no Longtake, Ray or DeepSpeed
    state.json            the caller's state and what wrote it (step, world size, backend)
    rng-00000.pt          random state of each rank
    ds/ or optimizer.pt   moments of the optimizer, in the backend's own form

Another number of ranks may go on with it. `autocast` computes matrix products in bf16 and keeps all else in fp32;
`bf16` also keeps the parameters in bf16, beside the fp32 ones that the optimizer moves.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn

from longtake.config import Config
from longtake.errors import UserError


class EngineConfig(Config):
    """How gradients become a step."""

    backend: Literal["deepspeed", "torch"] = "deepspeed"
    zero: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "autocast", "bf16"] = "fp32"
    offload: bool = False  # the optimizer's moments and the fp32 parameters lie in the CPU's memory
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(50, ge=0)  # steps
    final_lr: float = Field(0.1, ge=0, le=1)  # the cosine ends at this share of lr
    weight_decay: float = Field(0.01, ge=0)  # on matrices only
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip: float = Field(1.0, ge=0)  # largest norm of all gradients together; 0: as they are
    threads: int = Field(1, ge=1)  # of a rank on a CPU; sums are bitwise repeatable for a fixed number

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problems, shared = [], self.backend == "deepspeed" and self.zero > 0
        if self.precision == "bf16" and not (shared and self.zero > 1):
            problems.append(
                "precision: bf16 parameters need fp32 ones and fp32 sums of gradients beside them, which ZeRO 2 and 3 "
                "keep: set backend to deepspeed and zero to 2, or precision to autocast"
            )
        if self.offload and not shared:
            problems.append("offload: ZeRO does it: set backend to deepspeed and zero to 1, 2 or 3")
        if problems:
            raise ValueError(*problems)
        return self


def learning_rate(config: EngineConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`: linear warm-up, then a cosine to final_lr * lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    share = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * share


class Engine:
    """A model with its optimizer. Every rank makes one with the same arguments and calls the same methods."""

    def __init__(self, model: nn.Module, config: EngineConfig, *, steps: int, device: str = "cpu") -> None:
        """`steps`: length of the whole run, which the learning rate follows. Weights become rank 0's."""
        if device == "cpu":
            torch.set_num_threads(config.threads)
        _join_group(device)
        model.to(device)
        if config.precision != "fp32":
            autocast = torch.autocast(torch.device(device).type, torch.bfloat16)
            model.forward = autocast(model.forward)
        self.config = config
        self.steps = steps
        self.done = 0
        self._backend: _Backend = (_DeepSpeed if config.backend == "deepspeed" else _Torch)(model, config)

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
        except _NotFinite as error:
            raise UserError(
                f"step {self.done}: the gradients are not finite, first that of {error}: look at the data, or lower "
                "engine.lr; the checkpoints before are whole"
            ) from None
        self.done += 1
        return norm

    def full_state_dict(self) -> dict[str, Tensor]:
        """Consolidated weights on the CPU, fp32, on rank 0; nothing on the others. Every rank calls it."""
        weights = self._backend.weights()
        return {} if _rank() else {name: _portable(tensor) for name, tensor in weights.items()}

    def save(self, folder: Path, state: dict[str, Any] | None = None) -> None:
        """Write this rank's part into `folder`; every rank calls it. `state` holds JSON values."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(folder)
        torch.save(_random_state(), folder / f"rng-{_rank():05d}.pt")
        weights = self.full_state_dict()
        if _rank() == 0:
            save_file(weights, folder / "model.safetensors")
            written = {"engine": self._identity(), "state": state or {}}
            (folder / "state.json").write_text(json.dumps(written, indent=1))

    def load(self, folder: Path) -> dict[str, Any]:
        """Go on where `save` left off; returns its `state`. UserError if another kind of engine wrote it."""
        read = json.loads((folder / "state.json").read_text())
        written = read["engine"]
        self._refuse_other(written)
        self._backend.load(folder, written["world"])
        self.done = written["step"]
        mine = folder / f"rng-{_rank():05d}.pt"
        if mine.exists():  # a rank that the writing run did not have keeps the random state of its seed
            _restore_random_state(torch.load(mine, weights_only=False))
        state: dict[str, Any] = read["state"]
        return state

    def _identity(self) -> dict[str, Any]:
        zero = self.config.zero if self.config.backend == "deepspeed" else 0
        precision = "bf16" if self.config.precision == "bf16" else "fp32"  # of the parameters
        return {
            "backend": self.config.backend,
            "zero": zero,
            "precision": precision,
            "world": _world(),
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


# --- backends ----------------------------------------------------------------------------------------------


class _Backend(Protocol):
    model: nn.Module

    def __init__(self, model: nn.Module, config: EngineConfig) -> None: ...
    def forward(self, *args: Any, **kwargs: Any) -> Any: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, lr: float) -> float: ...
    def weights(self) -> dict[str, Tensor]: ...
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path, world: int) -> None: ...


class _NotFinite(Exception):
    """A gradient is not finite; says of which parameter."""


class _Torch:
    """AdamW, and one all-reduce of all gradients per step."""

    def __init__(self, model: nn.Module, config: EngineConfig) -> None:
        self.model = model
        self.optimizer = _adamw(model, config)
        self._clip = config.clip
        if _world() > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, src=0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> float:
        _average_gradients(list(_trained(self.model)))
        norm = _clip_gradients(self.model, self._clip)
        _set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def save(self, folder: Path) -> None:
        if _rank() == 0:
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path, world: int) -> None:
        from safetensors.torch import load_file

        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=False))


class _DeepSpeed:
    """AdamW with its moments (ZeRO 1), gradients (ZeRO 2) and parameters (ZeRO 3) shared out over the ranks."""

    def __init__(self, model: nn.Module, config: EngineConfig) -> None:
        deepspeed = _import_deepspeed(next(model.parameters()).device.type)
        self._config = config
        self._norm = 0.0
        optimizer = _adamw(model, config)
        if config.zero == 0:
            # Without ZeRO the gradients are whole at this point, and DeepSpeed would not tell their norm.
            optimizer.register_step_pre_hook(lambda *_: self._clip_here())
        self._engine, self.optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=_deepspeed_config(model, config)
        )
        self.model: nn.Module = self._engine.module
        if config.zero:
            self._watch_norm("_get_norm_groups" if config.zero == 3 else "scaled_global_norm")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, lr: float) -> float:
        _set_lr(self.optimizer, lr)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return self._norm if norm is None else float(norm)

    def weights(self) -> dict[str, Tensor]:
        found = self.model.state_dict()
        if self._config.zero == 3 or self._config.precision == "bf16":  # else these are the fp32 ones, and whole
            from deepspeed.utils import safe_get_full_fp32_param

            found |= {name: safe_get_full_fp32_param(p) for name, p in self.model.named_parameters()}
        return found

    def save(self, folder: Path) -> None:
        # The key lets DeepSpeed convert this checkpoint for another number of workers.
        self._engine.save_checkpoint(
            str(folder), tag="ds", client_state={"universal_checkpoint_info": {}}, save_latest=False
        )
        if _rank() == 0:
            for script in folder.glob("zero_to_*.py"):
                script.unlink()  # DeepSpeed's own way to what model.safetensors already is

    def load(self, folder: Path, world: int) -> None:
        if self._config.zero and world != _world():
            with _universal(folder / "ds") as converted:
                self._engine._config.load_universal_checkpoint = True
                decays = [group["weight_decay"] for group in self.optimizer.param_groups]
                self._load(converted)
                self._engine._config.load_universal_checkpoint = False
            # Of a converted checkpoint ZeRO 3 gives all groups the first one's settings, and one step to count with.
            for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
                group["weight_decay"] = decay
            for state in self.optimizer.optimizer.state.values():
                state["step"] = torch.as_tensor(state["step"]).clone()
        else:
            self._load(folder / "ds")

    def _load(self, folder: Path) -> None:
        loaded, _ = self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
        assert loaded is not None, f"DeepSpeed found no checkpoint in {folder}"

    def _clip_here(self) -> None:
        self._norm = _clip_gradients(self.model, self._config.clip)

    def _watch_norm(self, name: str) -> None:
        """Stop where DeepSpeed would pass over a step, silently, and forget the gradients that were to blame."""
        norm_of = getattr(self.optimizer, name)

        def watched() -> Any:
            norm = norm_of()
            parts = norm if isinstance(norm, list) else [norm]
            # DeepSpeed says -1 for a norm that is not finite.
            if any(not math.isfinite(part) or part < 0 for part in map(float, parts)):
                from deepspeed.utils import safe_get_full_grad

                raise _NotFinite(_first_bad((n, safe_get_full_grad(p)) for n, p in self.model.named_parameters()))
            return norm

        setattr(self.optimizer, name, watched)


@contextlib.contextmanager
def _universal(folder: Path) -> Iterator[Path]:
    """DeepSpeed's checkpoint for any number of ranks: a folder per parameter, which goes away with the block."""
    from deepspeed.checkpoint.ds_to_universal import main

    with tempfile.TemporaryDirectory(prefix="longtake-") as temporary:
        converted = Path(temporary) / "universal"
        asked = argparse.Namespace(
            input_folder=str(folder),
            output_folder=str(converted),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=False,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(asked)
        yield converted


def _import_deepspeed(device: str) -> Any:
    """DeepSpeed, told its device (else it warns) and kept from compiling C++ on a CPU (75 s)."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # not ours to mend
    return deepspeed


def _deepspeed_config(model: nn.Module, config: EngineConfig) -> dict[str, Any]:
    size = sum(p.numel() for p in model.parameters())
    # DeepSpeed would set aside 500 M elements for any model; it wants an even number of them.
    bucket = min(max(size + size % 2, 1000), 50_000_000)
    bf16: dict[str, Any] = {}
    if config.precision == "bf16":
        # Sums over temporal blocks in bf16 would lose what is small.
        bf16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    offload = {"offload_optimizer": {"device": "cpu"}} if config.offload else {}
    return bf16 | {
        "zero_force_ds_cpu_optimizer": False,  # which would be compiled
        "train_micro_batch_size_per_gpu": 1,  # the stream decides; DeepSpeed only counts with it
        "gradient_accumulation_steps": 1,
        "steps_per_print": 10**9,
        "gradient_clipping": config.clip if config.zero else 0.0,
        # With its own accumulation ZeRO 1 and 2 keep only the last of several backwards.
        "managed_gradient_accumulation": False,
        "zero_optimization": {
            "stage": config.zero,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            **offload,
        },
    }


# --- what both need ----------------------------------------------------------------------------------------


def _join_group(device: str) -> None:
    """A group of one where nobody has made a larger one: DeepSpeed wants a group even for one rank."""
    from torch._C._distributed_c10d import HashStore  # torch.distributed has it too, unknown to type checkers

    if not dist.is_initialized():
        backend = "gloo" if device == "cpu" else "nccl"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def _rank() -> int:
    return dist.get_rank()


def _world() -> int:
    return dist.get_world_size()


def _trained(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if p.requires_grad)


def _adamw(model: nn.Module, config: EngineConfig) -> torch.optim.AdamW:
    """Weight decay pulls on matrices; not on biases, gains, decay rates and what says `_no_weight_decay`."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in _trained(model):
        is_free = parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False)
        (free if is_free else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=config.lr, betas=(config.beta1, config.beta2))


def _set_lr(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean over ranks, in place; a parameter that a rank did not use counts as zero, as in DeepSpeed."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if _world() == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= _world()
    for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def _clip_gradients(model: nn.Module, clip: float) -> float:
    """Norm of all gradients before they are scaled down to `clip` (0: not scaled)."""
    trained = list(_trained(model))
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if not norm.isfinite():
        raise _NotFinite(_first_bad((name, p.grad) for name, p in model.named_parameters()))
    if clip:
        torch.nn.utils.clip_grads_with_norm_(trained, clip, norm)
    return float(norm)


def _first_bad(gradients: Iterator[tuple[str, Tensor | None]]) -> str:
    # All are looked at, also after the first bad one: under ZeRO a look is a collective call.
    bad = [name for name, gradient in gradients if gradient is not None and not gradient.isfinite().all()]
    return bad[0] if bad else "none alone, but all together"


def _portable(tensor: Tensor) -> Tensor:
    """An own copy: ZeRO lays parameters out in one buffer, and safetensors refuses what shares memory."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).clone().contiguous()


def _random_state() -> dict[str, Any]:
    import numpy as np

    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    import numpy as np

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
