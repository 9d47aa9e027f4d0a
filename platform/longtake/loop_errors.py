"""What goes wrong on a worker: whose fault it is, and how it reaches the driver."""

from __future__ import annotations

import pickle
import traceback

from safetensors import SafetensorError

from longtake.errors import UserError


class LoopError(Exception):
    """The loop itself failed (no worker was lost): trying again would fail again."""

    def __init__(self, told: str, pickled: bytes | None) -> None:
        super().__init__(told, pickled)
        self.told = told
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
