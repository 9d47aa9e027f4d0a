"""The two backends of an engine: DeepSpeed (ZeRO 0-3) and plain PyTorch, alike in what a step does.

A rank makes one with its model and calls `forward`, `backward` (several times, if it likes) and `step`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from longtake.storage import scratch
from longtake.storage.no_code import only_values

if TYPE_CHECKING:
    from longtake.training.engine_config import EngineConfig
    from longtake.training.host_copies import HostCopies


class Backend(Protocol):
    """What an engine asks of either."""

    model: nn.Module

    def __init__(self, model: nn.Module, config: EngineConfig) -> None: ...
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one loss."""

    def step(self, lr: float) -> float:
        """Average gradients over ranks, clip, update, clear; their norm before clipping. Raises NotFinite."""

    def weights(self) -> dict[str, Tensor]:
        """Whole parameters and buffers by name; every rank calls it."""

    def snapshot(self, copies: HostCopies) -> Callable[[Path], None]:
        """Copy this rank's part of the optimizer into host memory; returns what writes it, as the backend does."""

    def load(self, folder: Path, written_by: int) -> None:
        """Read what as many ranks as `written_by` wrote."""


class NotFinite(Exception):
    """A gradient is not finite; says of which parameter."""


class TorchBackend:
    """AdamW, and one all-reduce of all gradients per step."""

    def __init__(self, model: nn.Module, config: EngineConfig) -> None:
        self.model = model
        self.optimizer = _adamw(model, config)
        self._clip = config.clip
        if world() > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, src=0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.model(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one loss."""
        loss.backward()

    def step(self, lr: float) -> float:
        """Average gradients over ranks, clip, update, clear; their norm before clipping. Raises NotFinite."""
        _average_gradients(list(_trained(self.model)))
        norm = _clip_gradients(self.model, self._clip)
        _set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def weights(self) -> dict[str, Tensor]:
        """Whole parameters and buffers by name; every rank calls it."""
        return self.model.state_dict()

    def snapshot(self, copies: HostCopies) -> Callable[[Path], None]:
        """Copy this rank's part of the optimizer into host memory; returns what writes it, as the backend does."""
        if rank():
            return lambda folder: None
        moments = copies.of(self.optimizer.state_dict())
        return lambda folder: torch.save(moments, folder / "optimizer.pt")

    def load(self, folder: Path, written_by: int) -> None:
        """Read what as many ranks as `written_by` wrote."""
        from safetensors.torch import load_file

        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        with only_values(folder, []):
            self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))


class DeepSpeedBackend:
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
            model=model, optimizer=optimizer, config=deepspeed_config(model, config)
        )
        self.model: nn.Module = self._engine.module
        if config.zero:
            self._watch_norm("_get_norm_groups" if config.zero == 3 else "scaled_global_norm")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one loss."""
        self._engine.backward(loss)

    def step(self, lr: float) -> float:
        """Average gradients over ranks, clip, update, clear; their norm before clipping. Raises NotFinite."""
        _set_lr(self.optimizer, lr)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return self._norm if norm is None else float(norm)

    def weights(self) -> dict[str, Tensor]:
        """Whole parameters and buffers by name; every rank calls it."""
        state = self.model.state_dict()
        if self._config.zero == 3 or self._config.precision == "bf16":  # else these are the fp32 ones, and whole
            from deepspeed.utils import safe_get_full_fp32_param

            state |= {name: safe_get_full_fp32_param(p) for name, p in self.model.named_parameters()}
        return state

    def snapshot(self, copies: HostCopies) -> Callable[[Path], None]:
        """Copy this rank's part of the optimizer into host memory; returns what writes it, as the backend does."""
        taken = _checkpoint_taker(copies)
        own, self._engine.checkpoint_engine = self._engine.checkpoint_engine, taken
        try:
            with scratch.folder() as nothing:
                # The key lets DeepSpeed convert this checkpoint for another number of workers.
                more: dict[str, Any] = {"universal_checkpoint_info": {}}
                self._engine.save_checkpoint(str(nothing), tag="ds", client_state=more, save_latest=False)
                parts = {Path(path).relative_to(nothing): state for path, state in taken.parts.items()}
        finally:
            self._engine.checkpoint_engine = own

        def write(folder: Path) -> None:
            for name, state in parts.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, folder / name, _use_new_zipfile_serialization=own.zipfile_serialization)

        return write

    def load(self, folder: Path, written_by: int) -> None:
        """Read what as many ranks as `written_by` wrote."""
        with only_values(folder / "ds", _values_of_deepspeed()):
            if self._config.zero and written_by != world():
                self._load_of_others(folder / "ds")
            else:
                self._load(folder / "ds")

    def _load_of_others(self, folder: Path) -> None:
        """What another number of ranks wrote."""
        with _universal(folder) as converted:
            self._engine._config.load_universal_checkpoint = True
            decays = [group["weight_decay"] for group in self.optimizer.param_groups]
            try:
                self._load(converted)
            finally:
                self._engine._config.load_universal_checkpoint = False
        # Of a converted checkpoint ZeRO 3 gives all groups the first one's settings, and one step to count with.
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in self.optimizer.optimizer.state.values():
            state["step"] = torch.as_tensor(state["step"]).clone()

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

                raise NotFinite(_first_bad((n, safe_get_full_grad(p)) for n, p in self.model.named_parameters()))
            return norm

        setattr(self.optimizer, name, watched)


def _checkpoint_taker(copies: HostCopies) -> Any:
    """What DeepSpeed hands the parts of a checkpoint to, instead of what writes them: `parts` by path."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    class Taker(TorchCheckpointEngine):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.parts: dict[str, Any] = {}

        def save(self, state_dict: Any, path: str) -> None:
            self.parts[str(path)] = copies.of(state_dict)

    return Taker()


def _values_of_deepspeed() -> list[Any]:
    """The classes beside tensors that its checkpoints are made of; none of them does anything when it is built."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


@contextlib.contextmanager
def _universal(folder: Path) -> Iterator[Path]:
    """DeepSpeed's checkpoint for any number of ranks: a folder per parameter, which goes away with the block."""
    from deepspeed.checkpoint.ds_to_universal import main

    with scratch.folder() as temporary:
        converted = temporary / "universal"
        options = argparse.Namespace(
            input_folder=str(folder),
            output_folder=str(converted),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=False,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(options)
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


def deepspeed_config(model: nn.Module, config: EngineConfig) -> dict[str, Any]:
    """What DeepSpeed is told."""
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


def join_group(device: str) -> None:
    """A group of one where nobody has made a larger one: DeepSpeed wants a group even for one rank."""
    from torch._C._distributed_c10d import HashStore  # torch.distributed has it too, unknown to type checkers

    if not dist.is_initialized():
        backend = "gloo" if device == "cpu" else "nccl"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def rank() -> int:
    """This rank's number."""
    return dist.get_rank()


def world() -> int:
    """Ranks there are."""
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
    if world() == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world()
    for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def _clip_gradients(model: nn.Module, clip: float) -> float:
    """Norm of all gradients before they are scaled down to `clip` (0: not scaled)."""
    trained = list(_trained(model))
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if not norm.isfinite():
        raise NotFinite(_first_bad((name, p.grad) for name, p in model.named_parameters()))
    if clip:
        torch.nn.utils.clip_grads_with_norm_(trained, clip, norm)
    return float(norm)


def _first_bad(gradients: Iterator[tuple[str, Tensor | None]]) -> str:
    # All are looked at, also after the first bad one: under ZeRO a look is a collective call.
    bad = [name for name, gradient in gradients if gradient is not None and not gradient.isfinite().all()]
    return bad[0] if bad else "none alone, but all together"
