"""`longtake serve RUN`: a trained world for a team, on this machine or on the cluster at RAY_ADDRESS.

Everything that can be wrong is told before Ray starts. The service ends with Ctrl-C or SIGTERM; sessions stay in the
store, and the next service of the same run goes on with them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import socket
import threading
from pathlib import Path

from longtake.errors import UserError
from longtake.jobs.serve import token_file
from longtake.storage.store import open_store
from longtake.worlds.remote import TOKEN_FILE

PACKAGES = ("starlette", "uvicorn", "websockets", "mmh3")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(
    run: str,
    store: str,
    *,
    host: str,
    port: int,
    token: str | None,
    replicas: tuple[int, int],
    batch: int,
    held: int,
    idle_s: float,
    cpus: float,
    gpus: float,
    steps: int,
    context_noise: float,
) -> None:
    """The command: check, start, print where it answers and by which token, serve until it is interrupted."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'longtake[serve]'")
    fewest, most = replicas
    if fewest > most:
        raise UserError(f"--min-replicas {fewest}: more than --max-replicas {most}")
    place = open_store(store)
    place.require_exists()
    place.require_writable()
    file = Path(token or TOKEN_FILE).expanduser()
    secret = token_file.read_or_make(file)
    port = _free(host, port)

    from longtake.cluster.demand import Demand
    from longtake.cluster.launch import launch
    from longtake.jobs.serve import deployment
    from longtake.jobs.serve.sessions import Limits
    from longtake.models.config import SamplerConfig

    settings = deployment.Settings(
        run=run,
        store=place.uri,
        sampler=SamplerConfig(steps=steps, context_noise=context_noise),
        limits=Limits(largest=batch, held=held, idle_s=idle_s),
        token_digest=hashlib.sha256(secret.encode()).hexdigest(),
        min_replicas=fewest,
        max_replicas=most,
        cpus=cpus,
        gpus=gpus,
    )
    name = deployment.load(settings).about.name
    print(f"{name}: {fewest} to {most} replicas start, each measures which batches are exact", flush=True)
    with launch(Demand(fewest, cpus, 0, gpus), lasting=True):
        deployment.deploy(settings, host, port)
        print(f"it answers at http://{host}:{port}\ntoken: {secret} (kept in {file})\nCtrl-C ends it", flush=True)
        _wait()


def _free(host: str, port: int) -> int:
    """A port of that host that can be listened to. Raises UserError."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: {error.strerror}; port 0 takes a free one") from None
        return int(probe.getsockname()[1])


def _wait() -> None:
    """Until SIGTERM or Ctrl-C."""
    threading.Event().wait()
