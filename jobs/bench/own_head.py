"""A Ray head of this machine alone, on free ports of loopback, with all its processes in one session of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from longtake.cluster.private_ray import LOOPBACK
from longtake.cluster.process_sessions import end_session
from longtake.errors import UserError

START_S = 180.0
OWN = {"RAY_AUTH_MODE": "token", LOOPBACK: "0"}
"""What makes it nobody else's, whatever the environment says."""


@dataclass(frozen=True)
class Ports:
    """Where it listens: Ray itself, its dashboard, its client server, its agent."""

    ray: int
    dashboard: int
    client: int
    agent: int

    @property
    def address(self) -> str:
        """Of its dashboard, which takes jobs."""
        return f"http://127.0.0.1:{self.dashboard}"


@contextlib.contextmanager
def own_head(environment: Mapping[str, str], log: Path, cpus: int = 2) -> Iterator[Ports]:
    """A head that takes jobs from those who have its token, while the block runs.

    `environment` is all that it knows: PATH, the token or its file, RAY_TMPDIR (a folder of mode 700), ...

    Raises UserError with the end of its log if it does not start.
    """
    ports = Ports(*free_ports(4))
    command = [
        *("ray", "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={cpus}"),
        *("--node-ip-address=127.0.0.1", f"--port={ports.ray}", f"--ray-client-server-port={ports.client}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={ports.dashboard}"),
        *(f"--dashboard-agent-listen-port={ports.agent}", "--object-store-memory=200000000"),
    ]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=dict(environment) | OWN, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(ports, process, log)
        yield ports
    finally:
        end_session(process.pid)
        process.wait(60)


def _wait(ports: Ports, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not (_is_well(ports) and _listens(ports.agent)):
        if time.monotonic() > deadline or process.poll() is not None:
            raise UserError(f"a Ray head did not start on this machine: {log.read_text()[-3000:]}")
        time.sleep(0.2)


def _is_well(ports: Ports) -> bool:
    """Whether its dashboard says so, on the page that asks nobody for a token."""
    try:
        with urllib.request.urlopen(f"{ports.address}/api/gcs_healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has now."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
