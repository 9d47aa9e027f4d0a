"""What goes wrong on a worker: whose fault it is, and how it reaches the driver."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError

from longtake.errors import UserError


class LoopError(Exception):
    """The loop itself failed (no worker was lost): trying again would fail again."""

    def __init__(self, message: str, pickled: bytes | None) -> None:
        super().__init__(message, pickled)
        self.told = message
        self.pickled = pickled

    @staticmethod
    def of(error: Exception) -> LoopError:
        """The error that is being handled, as it travels from a worker to the driver."""
        return LoopError(traceback.format_exc(), _pickle(error))

    def original(self) -> Exception:
        """The loop's own exception, with the worker's traceback as a note unless it is the user's to fix."""
        error = pickle.loads(self.pickled) if self.pickled else RuntimeError("the train loop failed")
        assert isinstance(error, Exception)
        if not isinstance(error, UserError):
            error.add_note(self.told)
        return error


def is_loss(error: Exception) -> bool:
    """Whether an error says that another process went away, which replacing the workers mends."""
    import ray.exceptions
    import torch

    if isinstance(error, ray.exceptions.RayTaskError):
        return False  # a data task raised; it would raise again
    lost = (ray.exceptions.RayError, ConnectionError, TimeoutError, torch.distributed.DistError)
    if isinstance(error, lost):
        return True
    words = ("gloo", "nccl", "connection closed", "connection reset", "peer")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def how_died(failures: Mapping[int, BaseException], killed_by_kernel: int) -> str:
    """How a group's workers were lost, from Ray's error of each rank and the kernel's count of kills meanwhile."""
    ranks = sorted(rank for rank, error in failures.items() if _is_out_of_memory(error))
    if not ranks and not killed_by_kernel:
        return "a worker died (killed, or its node went away)"
    who = "worker " + ", ".join(map(str, ranks)) if ranks else "a worker, it seems,"
    whose = "its" if ranks else "this"
    return (
        f"{who} was killed because {whose} machine ran out of memory (set recompute=true, bptt_blocks or a smaller "
        "data.frames_per_step, or place fewer workers on a machine)"
    )


def kernel_kills() -> int:
    """Processes of this machine, or of its container, that the kernel has killed so far for want of memory."""
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with contextlib.suppress(OSError):
            counts = dict(line.split() for line in Path(path).read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return 0


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether Ray's memory monitor killed the process; the kernel's own killer leaves no word in Ray's error."""
    import ray.exceptions

    while error is not None:
        if isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in str(error):
            return True
        error = error.__cause__
    return False


def is_of_storage(error: Exception) -> bool:
    """Whether an error of writing says that the storage is full or gone, not that a rank is or that we are wrong."""
    if isinstance(error, ConnectionError | TimeoutError):
        return False
    words = ("PytorchStreamWriter", "inline_container")  # what torch.save says of a full disk
    return isinstance(error, OSError | UserError | SafetensorError) or any(word in str(error) for word in words)


def _pickle(error: Exception) -> bytes | None:
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # some exceptions can be written and not be read
    except Exception:
        return None
    return pickled
