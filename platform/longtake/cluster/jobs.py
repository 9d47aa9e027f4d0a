"""Jobs on a running Ray cluster: submit, follow, list, stop; the code travels as one wheel (shipping.py).

The head is reached through Ray's jobs API (jobs_api.py). Its log stream ends some seconds after the job, and breaks
with the connection: the status is asked for as well, and the stream begun again.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.cluster import autoscaler
from longtake.cluster import node_watch as nodes
from longtake.cluster.demand import Demand, too_big
from longtake.cluster.jobs_client import (
    connect,
    is_loopback,
    is_own,
    normal_address,
    outside_errors,
    quiet,
    require_same_ray,
)
from longtake.errors import UserError, unknown

POLL_S = 0.5
PATIENCE_S = 60.0
"""How long the head may be out of reach before following a job is given up."""
AGENT_WAIT_S = 20.0
"""How long a head may take to be ready for its first job."""
STOP_WAIT_S = 30
"""How long a job that is told to stop may take to write how far it came."""


@dataclass(frozen=True)
class Job:
    """What the head knows of a job."""

    id: str
    status: str
    command: str
    code: int | None
    """The exit code; None as long as the job is not over."""
    started: datetime.datetime | None
    seconds: float | None
    message: str
    metadata: dict[str, str]

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.code is not None


class Head:
    """The head of a Ray cluster, reached at the address of its dashboard.

    Raises UserError if no Ray answers there, it runs another Ray, or it does not accept the token.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = normal_address(address)
        with outside_errors(self.address):
            self._client = connect(self.address)
        require_same_ray(self._client, self.address)

    # --- the cluster ---------------------------------------------------------------------------------------

    def nodes(self) -> list[dict[str, Any]]:
        """The living nodes: node_ip, is_head_node, resources_total, ..."""
        nodes = self._get("/api/v0/nodes?detail=1&limit=1000")["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE"]

    def is_here(self) -> bool:
        """Whether all nodes are this machine; the address alone does not tell, as tunnels begin here too."""
        return is_loopback(self.address) and all(is_own(node["node_ip"]) for node in self.nodes())

    def grows(self) -> bool:
        """Whether an autoscaler may add nodes."""
        return nodes.autoscales(node.get("labels") or {} for node in self.nodes())

    def require(self, cpus: float, gpus: float, need: Demand | None = None) -> None:
        """Refuse what can never start: Ray would keep it pending, even after a stop.

        `cpus` and `gpus` are those of the job's own process, on one node; `need` is what its workers ask for.
        Of a cluster that grows it is known what single nodes may have, if `ray up` made it; how many workers there
        may be is for the job itself to know.
        """
        grows, where = self.grows(), f"the cluster at {self.address}"
        each = [node["resources_total"] for node in self.nodes()]
        problems = self._own_process(cpus, gpus, each, grows, where) if cpus or gpus else []
        if need is not None and not grows:
            total = [sum(node.get(name, 0) for node in each) for name in ("CPU", "GPU")]
            problems += need.problems(total[0], total[1], where) or need.too_big(each, where)
        if problems:
            raise UserError(*problems)

    def _own_process(
        self, cpus: float, gpus: float, each: list[Mapping[str, float]], grows: bool, where: str
    ) -> list[str]:
        what = f"the job's own process (--cpus {cpus:g} --gpus {gpus:g})"
        problems = too_big(cpus, gpus, each, what, where)
        if not problems or not grows:
            return problems
        kinds = self.kinds_of_nodes()
        return [] if kinds is None else too_big(cpus, gpus, [*each, *kinds], what, f"{where}, also those it may add,")

    def kinds_of_nodes(self) -> list[dict[str, float]] | None:
        """What the head knows of nodes that may come: node_kinds.py, run there as a job that is then forgotten."""
        with outside_errors(self.address):
            command = ["python", "-c", Path(autoscaler.__file__).read_text(encoding="utf-8")]
            job = self._submit(entrypoint=f"exec {shlex.join(command)}", submission_id=f"kinds-{secrets.token_hex(4)}")
            lines: list[str] = []
            ended = self.follow(job, lines.append)
            self._client.delete_job(job)
        if ended.code:
            raise UserError(f"the head at {self.address} cannot tell which nodes may come: {''.join(lines).strip()}")
        kinds: list[dict[str, float]] | None = json.loads("".join(lines).splitlines()[-1])
        return kinds

    # --- jobs ----------------------------------------------------------------------------------------------

    def submit(
        self,
        command: Sequence[str],
        *,
        job: str,
        wheel: Path,
        files: Mapping[str, str] | None = None,
        cpus: float = 0,
        gpus: float = 0,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Start `command` on the cluster and return the job's id.

        It runs in a folder that holds `files` (name → text), with the wheel's packages importable, there and
        in all its workers. `cpus` and `gpus` are set aside for its own process.
        """
        # Ray kills what has not ended in time after a stop; a run first writes that it was stopped.
        stop = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
        environment: dict[str, Any] = {"py_modules": [str(wheel)], "env_vars": stop}
        with tempfile.TemporaryDirectory() as folder, outside_errors(self.address), quiet():
            for name, text in (files or {}).items():
                Path(folder, name).write_text(text, encoding="utf-8")
            if files:
                environment["working_dir"] = folder
            return self._submit(
                entrypoint=f"exec {shlex.join(command)}",
                submission_id=job,
                runtime_env=environment,
                entrypoint_num_cpus=cpus or None,
                entrypoint_num_gpus=gpus or None,
                metadata=dict(metadata or {}),
            )

    def _submit(self, **request: Any) -> str:
        """A head that has just started has no agent to run jobs for some seconds."""
        began = time.monotonic()
        while True:
            try:
                return str(self._client.submit_job(**request))
            except RuntimeError as error:
                if "No available agent" not in str(error):
                    raise
            if time.monotonic() - began > AGENT_WAIT_S:
                raise UserError(f"the head at {self.address} starts no jobs: its agent is not alive")
            time.sleep(POLL_S)

    def job(self, job: str) -> Job:
        """One job. Raises UserError if there is none of that id."""
        with outside_errors(self.address):
            try:
                return _job(self._client.get_job_info(job))
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
        raise UserError(unknown("job", job, (known.id for known in self.jobs())))

    def jobs(self) -> list[Job]:
        """All jobs that were submitted, the oldest first."""
        with outside_errors(self.address):
            jobs = [_job(info) for info in self._client.list_jobs() if info.submission_id]
        return sorted(jobs, key=lambda job: (job.started or datetime.datetime.min.replace(tzinfo=datetime.UTC), job.id))

    def logs(self, job: str) -> str:
        """Everything that a job has printed until now."""
        with outside_errors(self.address):
            return str(self._client.get_job_logs(job))

    def stop(self, job: str) -> Job:
        """Stop a job and wait for its end; one that is over is left as it is."""
        if self.job(job).over:
            return self.job(job)
        with outside_errors(self.address):
            self._client.stop_job(job)
        deadline = time.monotonic() + STOP_WAIT_S + 15
        while not self.job(job).over:
            if time.monotonic() > deadline:
                raise UserError(f"job {job} was told to stop and has not ended; look again with: longtake jobs")
            time.sleep(POLL_S)
        return self.job(job)

    def follow(self, job: str, write: Callable[[str], None]) -> Job:
        """Hand over what the job prints, from its first line on, until it ends.

        Raises UserError if the head is out of reach for long; the job does not mind.
        """
        log = _Log(write)
        asyncio.run(self._until_over(self.job(job).id, log))
        ended = self.job(job)
        with contextlib.suppress(UserError):  # what it printed goes with the node that its own process was on
            log.take(self.logs(job), 0)
        return ended

    async def _until_over(self, job: str, log: _Log) -> None:
        stream = asyncio.create_task(self._stream(job, log))
        seen = time.monotonic()
        try:
            while True:
                try:
                    if (await asyncio.to_thread(self.job, job)).over:
                        return
                    seen = time.monotonic()
                except UserError as error:
                    if time.monotonic() - seen > PATIENCE_S:
                        raise UserError(
                            *error.lines, f"job {job} goes on if the head lives: longtake logs {job} --follow"
                        ) from None
                await asyncio.sleep(POLL_S)
                if stream.done():
                    stream.exception()  # a connection that broke; the next one begins at the first line
                    stream = asyncio.create_task(self._stream(job, log))
        finally:
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)

    async def _stream(self, job: str, log: _Log) -> None:
        position = 0
        async for text in self._client.tail_job_logs(job):
            position = log.take(text, position)

    def _get(self, endpoint: str) -> dict[str, Any]:
        with outside_errors(self.address):
            answer = self._client._do_request("GET", endpoint)
            if answer.status_code >= 500:  # as Ray's client says it, with the reason, of what it asks itself
                raise RuntimeError(f"Request failed with status code {answer.status_code}: {answer.text}")
            answer.raise_for_status()
            data: dict[str, Any] = answer.json()["data"]
            return data


class _Log:
    """A text that arrives in pieces, some of them twice; every character is written once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0

    def take(self, text: str, position: int) -> int:
        """A piece that begins at `position`; returns where it ends."""
        end = position + len(text)
        if end > self._written:
            self._write(text[max(0, self._written - position) :])
            self._written = end
        return end


def _job(info: Any) -> Job:
    start, end = info.start_time, info.end_time
    return Job(
        id=info.submission_id,
        status=info.status.value.lower(),
        command=info.entrypoint.removeprefix("exec "),
        code=_code(info),
        started=datetime.datetime.fromtimestamp(start / 1000, datetime.UTC) if start else None,
        seconds=((end or time.time() * 1000) - start) / 1000 if start else None,
        message="" if info.driver_exit_code is not None else info.message or "",
        metadata=dict(info.metadata or {}),
    )


def _code(info: Any) -> int | None:
    """As in a shell: a process that signal N ended has 128 + N. One that never ran, or was stopped, has 1."""
    if not info.status.is_terminal():
        return None
    if info.status.value == "SUCCEEDED":
        return 0
    code = info.driver_exit_code or 1
    return 128 - code if code < 0 else code
