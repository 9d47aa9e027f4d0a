"""One place that starts Ray: `launch()` owns ray.init, its environment, and the arithmetic of workers.

A local Ray is open to nobody else (private_ray.py); of a cluster at RAY_ADDRESS the user has the token.
The processes of a local Ray end with the driver, also when that is killed: the kernel tells them (PDEATHSIG).
Two idle agents of Ray may linger for up to a minute: they try to report to the server that died with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from longtake.cluster import accelerators, node_watch, preemption, warm
from longtake.cluster.address import given, require_ray
from longtake.cluster.autoscaler import kinds_of_nodes
from longtake.cluster.demand import Demand, Resources
from longtake.cluster.private_ray import private, session_folder
from longtake.errors import UserError

if TYPE_CHECKING:
    from ray.job_config import JobConfig


# What every process of a local Ray inherits, unless the user has set it: quiet, offline, ranks that meet on loopback.
# Train looks at its workers ten times a second, not every 2 s. One thread per rank keeps sums bitwise repeatable.
# Threads that decode video share two heaps: with glibc's one for each, a data task holds half a GB more. No idle
# workers in advance: Train cannot use them. We tell of a lost worker or node, not Ray's paragraphs. The dashboard's
# processes, begun by `python -c`, would import a `platform/` of the folder one is in.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed while executing|Raylet is terminated|marked dead because",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "PYTHONSAFEPATH": "1",
}
# What a running cluster is asked to keep of these: the rest is settled when its nodes start.
ON_A_CLUSTER = (
    "MALLOC_ARENA_MAX",
    "OMP_NUM_THREADS",
    "RAY_DATA_DISABLE_PROGRESS_BARS",
    "RAY_DEDUP_LOGS_SKIP_REGEX",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
)
# How a bucket is reached, and those who watch a training: workers on a cluster must know it too. No key and no token:
# Ray writes what a job gives to its workers into logs, tables and the dashboard. Nodes have theirs from a profile,
# ~/.aws or their own environment.
TOLD_TO_WORKERS = (
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_MAX_ATTEMPTS",
    "AWS_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "AWS_RETRY_MODE",
    "LONGTAKE_CACHE",
    "LONGTAKE_CACHE_GB",
    "LONGTAKE_S3_PATIENCE_S",
    "LONGTAKE_S3_TIMEOUT_S",
    "MLFLOW_TRACKING_URI",
    "WANDB_BASE_URL",
    "WANDB_MODE",
)


SECRET = re.compile("pass|pwd|token|secret|key", re.IGNORECASE)
"""Names of what stands in an address and is nobody's to read."""


@contextlib.contextmanager
def launch(
    need: Demand | None = None,
    *,
    cpus: int | None = None,
    dashboard: bool = False,
    object_store_mb: int = 400,
    quiet: bool = True,
    lasting: bool = False,
) -> Iterator[None]:
    """A Ray to work in: the open one, the one at RAY_ADDRESS, the one that `longtake up` keeps, if that is free and
    like ours, or a local one that ends with the block. RAY_ADDRESS=local always means the last.

    `cpus` overrides the machine's count (logical). Not `quiet` shows what workers print. `lasting`: actors are made
    that outlive their driver, so the warm Ray, which outlives it too, is not for them. On a cluster a line says so when
    nodes come or go while the block runs, and whether what is left is enough.
    Raises UserError with the arithmetic if `need` is more than there is; on this machine before Ray starts.
    """
    address = given()
    with environment(ENVIRONMENT if address is None else {k: ENVIRONMENT[k] for k in ON_A_CLUSTER}):
        import ray  # after the environment, parts of which it reads only now

        if ray.is_initialized():
            _check(need, *_room(), "the open Ray")
            yield
        elif address is None:
            own = lasting or os.environ.get("RAY_ADDRESS") == "local"
            with _on_this_machine(need, cpus or machine_cpus(), dashboard, object_store_mb, quiet, own):
                yield
        else:
            with _attached(need, address, quiet):
                yield


def machine_cpus() -> int:
    """CPUs this process may use: its affinity mask, cut by the container's quota."""
    cpus = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


@contextlib.contextmanager
def _on_this_machine(
    need: Demand | None, cpus: int, dashboard: bool, object_store_mb: int, quiet: bool, own: bool
) -> Iterator[None]:
    gpus = accelerators.local_count() if need is not None and need.gpus_per_worker else 0
    _check(need, {"CPU": cpus, "GPU": gpus}, [{"CPU": cpus, "GPU": gpus}], "this machine")
    with (
        contextlib.nullcontext((None, "")) if own else warm.lent(cpus) as (kept, why),
        contextlib.ExitStack() as stack,
    ):
        if kept is not None and not (why := stack.enter_context(_joined(kept, quiet))):
            yield
            return
        stack.close()
        if why:
            print(f"note: the Ray of `longtake up` is passed over: {why}", file=sys.stderr, flush=True)
        with local(cpus, dashboard=dashboard, object_store_mb=object_store_mb, quiet=quiet):
            yield


@contextlib.contextmanager
def local(
    cpus: int, *, dashboard: bool = False, object_store_mb: int = 400, quiet: bool = True
) -> Iterator[tuple[str, str]]:
    """A Ray of this process, which ends with the block: the folder of its session, and its token."""
    import ray

    with session_folder() as folder, private() as token:
        try:
            with preemption.kept(), _slow_start_told():
                ray.init(
                    job_config=_own_path(),
                    address="local",  # without it ray.init would join any Ray that happens to run on this machine
                    num_cpus=cpus,
                    include_dashboard=dashboard,
                    dashboard_host="127.0.0.1",
                    object_store_memory=object_store_mb * 2**20,
                    _temp_dir=folder,
                    logging_level=logging.ERROR if quiet else logging.INFO,
                    log_to_driver=not quiet,
                )
            yield folder, token
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _slow_start_told() -> Iterator[None]:
    """Raises UserError where Ray has waited for its own processes for half a minute, and gives up."""
    try:
        yield
    except Exception as error:  # Ray has no type of its own for it
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray did not start within 30 s: this machine is too busy, or /dev/shm or the disk is full; "
            "`longtake doctor` looks, workers=0 trains without Ray"
        ) from error


@contextlib.contextmanager
def _joined(kept: warm.Warm, quiet: bool) -> Iterator[str]:
    """The block in the Ray that `longtake up` keeps, whose workers have our environment; or why it cannot be joined."""
    import ray

    why = ""
    with private(kept.token):
        try:
            with preemption.kept():
                ray.init(
                    job_config=_own_path(),
                    address=kept.address,
                    logging_level=logging.ERROR if quiet else logging.INFO,
                    log_to_driver=not quiet,
                )
        except (ConnectionError, RuntimeError) as error:
            why = f"it does not answer ({str(error).splitlines()[0]})"
        try:
            yield why
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _attached(need: Demand | None, address: str, quiet: bool) -> Iterator[None]:
    import ray

    require_ray(address)
    with preemption.kept():
        _attach(address, quiet)
    try:
        _check(need, *_room(), f"the cluster at {address}")
        with node_watch.watch_nodes(need, lambda line: print(line, flush=True)):
            yield
    finally:
        ray.shutdown()


def _own_path() -> JobConfig:
    """Ray's settings of a job whose workers import what this process may, and nothing from the folder that the user is
    in.

    Ray would put that folder, and the script's, before all else on the path of its workers: a `torch.py` or a
    `platform/` of the user's would end them. What is to be imported from elsewhere is named in PYTHONPATH.
    """
    from ray.job_config import JobConfig

    class OwnPath(JobConfig):
        def _serialize(self) -> Any:  # Ray says text; it is bytes, and as text the head would read nothing of it
            self._py_driver_sys_path.clear()
            return super()._serialize()

    return OwnPath()


def _attach(address: str, quiet: bool) -> None:
    import ray

    passed = {name: _without_password(name) for name in TOLD_TO_WORKERS if name in os.environ}
    passed |= {name: os.environ.get(name, ENVIRONMENT[name]) for name in ON_A_CLUSTER}
    handed_on = _variables_of_the_job()
    try:
        ray.init(
            address=address,
            job_config=_own_path(),
            runtime_env={"env_vars": {k: v for k, v in passed.items() if k not in handed_on}},
            logging_level=logging.ERROR if quiet else logging.INFO,
            log_to_driver=not quiet,
        )
    except ConnectionError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there; start it, or unset RAY_ADDRESS"
        ) from error


def _without_password(name: str) -> str:
    """A variable as workers are told it. Raises UserError for an address with a password in it: Ray writes what it
    hands to workers into logs, tables and the dashboard."""
    value = os.environ[name]
    parts = urlsplit(value)
    if "@" in parts.netloc or any(SECRET.search(key) for key in parse_qs(parts.query)):
        raise UserError(
            f"{name}: has a password in it, which everybody who sees the cluster's dashboard would read; give the "
            "address alone, and the rest to the nodes, as their MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return value


def _variables_of_the_job() -> set[str]:
    """What the job that this driver runs as gives to its workers already; Ray refuses a name given twice."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return set((job.get("runtime_env") or {}).get("env_vars") or {})


def count_gpus() -> int:
    """Cards that a job could have: those of this machine; on a cluster also those that its autoscaler may add.

    `accelerators.UNKNOWN` where nobody tells how far a cluster may grow.
    """
    here, ray = given() is None, sys.modules.get("ray")
    if here and (ray is None or not ray.is_initialized()):
        return accelerators.local_count()
    with launch():
        cards = int(min(_room()[0].get("GPU", 0), accelerators.UNKNOWN))
    # Ray counts cards that PyTorch may have no build for.
    return min(cards, accelerators.local_count()) if here else cards


def _check(need: Demand | None, total: Resources, each: Sequence[Resources], where: str) -> None:
    if need is None:
        return
    problems = need.problems(total.get("CPU", 0), total.get("GPU", 0), where) or need.too_big(each, where)
    if problems:
        raise UserError(*problems)


def _room() -> tuple[Resources, list[Resources]]:
    """What the open Ray has, or may be brought to by its autoscaler: in all, and on each node or kind of node.

    Without limit where nobody tells.
    """
    import ray

    total: dict[str, float] = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
    rows = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [row["Resources"] for row in rows if row["Alive"]]
    if not node_watch.autoscales(row["Labels"] for row in rows):
        return total, alive
    kinds = kinds_of_nodes()
    if kinds is None:
        endless = {"CPU": math.inf, "GPU": math.inf}
        return total | endless, [*alive, endless]
    for name in ("CPU", "GPU"):
        total[name] = max(total.get(name, 0), sum(kind["most"] * kind.get(name, 0) for kind in kinds))
    return total, [*alive, *kinds]


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set what is not set, and take it back afterwards."""
    added = [key for key in values if key not in os.environ]
    os.environ.update({key: values[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
