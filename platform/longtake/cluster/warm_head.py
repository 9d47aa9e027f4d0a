"""The process of `longtake up`: it keeps a local Ray, with workers that have imported what every verb imports.

Started by `start`, in a session of its own. It ends with SIGTERM, or when its Ray has died.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

from longtake.cluster import private_ray, warm
from longtake.cluster.launch import ENVIRONMENT, environment, local, machine_cpus
from longtake.cluster.process_sessions import end_session, members
from longtake.cluster.waiting_workers import IMPORTED, PRELOADED, WaitingWorkers
from longtake.errors import UserError

START_S = 300.0
STOP_S = 20.0
LOOK_S = 0.5
SETTLE_S = 2.0


def start() -> warm.Warm:
    """Start one, and wait until it is there. Raises UserError with the end of its log if it does not come up."""
    log = private_ray.user_folder() / "up.log"
    variables = dict(os.environ) | {"PYTHONPATH": warm.python_path(os.environ)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "longtake.cluster.warm_head"],  # -P: nothing from the folder that one is in
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_S
    while True:
        for _, kept in warm.found():
            if kept is not None and kept.pid == process.pid:
                return kept
        if process.poll() is not None or time.monotonic() > deadline:
            end_session(process.pid)
            lines = log.read_text(errors="replace").strip().splitlines()
            raise UserError(f"Ray did not come up, see {log}: {lines[-1][:200] if lines else 'it says nothing'}")
        time.sleep(LOOK_S / 5)


def stop(kept: warm.Warm) -> None:
    """End one with all that it has started, and remove its folder."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(kept.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while members(kept.pid) and time.monotonic() < deadline:
        time.sleep(LOOK_S / 5)
    end_session(kept.pid)
    private_ray.clear()


def main() -> None:
    """Keep a Ray until SIGTERM comes, or it dies."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    cpus = machine_cpus()
    with environment(ENVIRONMENT):
        before = dict(os.environ)
        os.environ.update({PRELOADED: ",".join(IMPORTED)})
        with local(cpus, dashboard=True) as (folder, token):
            identity = warm.Identity.of(before, token, cpus)
            kept = warm.Warm(folder, _address(), token, os.getpid(), identity)
            kept.write()
            _keep(kept, ended, WaitingWorkers(cpus))


def _keep(kept: warm.Warm, ended: threading.Event, waiting: WaitingWorkers) -> None:
    """Stay until the end, and let new workers wait while no verb works: those that it had end with it."""
    import ray

    used = False
    while not ended.wait(LOOK_S) and any(node["Alive"] for node in ray.nodes()):  # type: ignore[no-untyped-call]
        if kept.user:
            used = True
        elif used:
            used = ended.wait(SETTLE_S)  # until the workers of its job have ended
        else:
            while not kept.user and not ended.is_set() and waiting.add_one():
                pass


def _address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


if __name__ == "__main__":
    main()
