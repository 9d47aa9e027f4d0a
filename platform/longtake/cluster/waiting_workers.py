"""Workers of the warm Ray that wait for a verb: they belong to no job yet, and have imported what every verb imports.

Ray gives a waiting worker to an actor or task only if it was started with the very runtime environment, letter by
letter, that is asked for. Ray Train sets one for its controller, which its ranks and their data tasks inherit; Ray
writes it in two ways, with blanks and without. Where a later Ray asks for others, nothing is given and nothing breaks:
a verb's workers are started anew, as in a Ray of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import psutil

IMPORTED = ("ray.train.torch", "ray.data", "pandas", "pyarrow.parquet", "scipy", "safetensors.torch")
"""Other people's code alone, so that each verb runs ours as it is then."""
PRELOADED = "RAY_preload_python_modules"
"""Ray's own name, in lower case as all names of its settings."""
HANDED_ON = ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
"""Variables that Train hands on to its actors, as they are in the environment; and one that it adds."""
ADDED = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}
YEAR_S = 365 * 24 * 3600
START_S = 30.0


class WaitingWorkers:
    """Those of the Ray that this process keeps, by what they were started for: as many as a training of one rank takes
    for its controller, the rank and their data, and two plain ones. Each has some 250 MB of its own."""

    def __init__(self, cpus: int) -> None:
        runtime_env = {"env_vars": {name: os.environ[name] for name in HANDED_ON} | ADDED}
        self._wanted = {
            json.dumps(runtime_env, sort_keys=True): 4,
            json.dumps(runtime_env, sort_keys=True, separators=(",", ":")): 2,
            "": min(cpus, 2),
        }
        self._kinds: dict[int, str] = {}

    def add_one(self) -> bool:
        """Start one that is missing, and wait until it is there; whether any was."""
        idle = set(idle_workers(os.getpid()))
        if len(idle) >= sum(self._wanted.values()):  # some came later than they were waited for
            return False
        self._kinds = {pid: kind for pid, kind in self._kinds.items() if pid in idle}
        waiting = list(self._kinds.values())
        for kind, count in self._wanted.items():
            if waiting.count(kind) < count:
                _prestart(kind)
                deadline = time.monotonic() + START_S
                while not (new := set(idle_workers(os.getpid())) - idle) and time.monotonic() < deadline:
                    time.sleep(0.1)
                self._kinds |= dict.fromkeys(new, kind)
                return True
        return False


def idle_workers(head: int) -> Iterator[int]:
    """Processes of the Ray of a process that do nothing."""
    for process in psutil.Process(head).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith("ray::IDLE"):
                yield process.pid


def _prestart(runtime_env: str) -> None:
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    node: dict[str, Any] = ray.nodes()[0]  # type: ignore[no-untyped-call]
    request = node_manager_pb2.PrestartWorkersRequest(  # type: ignore[attr-defined]  # made by protobuf
        language=common_pb2.Language.PYTHON,  # type: ignore[attr-defined]
        num_workers=1,
        keep_alive_duration_secs=YEAR_S,
    )
    if runtime_env:
        request.runtime_env_info.serialized_runtime_env = runtime_env
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        stub: Any = node_manager_pb2_grpc.NodeManagerServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.PrestartWorkers(request, timeout=30)
