"""`longtake submit VERB ARGS...`: the same verbs, on a cluster; and `jobs`, `logs`, `stop` to look after them.

A verb's line is read and its config loaded here, with all that can be wrong in it, before anything is shipped. What
travels is one wheel of this code and the config as it was resolved; the store has to be one that the nodes see too.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.cluster import accelerators
from longtake.config import Config, dump, load
from longtake.errors import UserError, unknown
from longtake.storage.store import open_store

if TYPE_CHECKING:
    from typer.core import TyperGroup

    from longtake.cluster.demand import Demand
    from longtake.cluster.jobs import Head, Job

HERE_ONLY = (
    *("submit", "jobs", "logs", "stop", "cluster", "up", "down", "doctor"),
    *("tasks", "metrics", "sources", "mixers", "loggers", "explain", "configs"),
)
"""Commands that are about clusters or list what this code holds, and not for a cluster."""


@dataclass(frozen=True)
class Line:
    """A verb with everything that was said to it; `parsed` are its parameters by the names that cli.py gives them."""

    verb: str
    arguments: list[str]
    parsed: dict[str, Any]

    @property
    def config(self) -> str | None:
        """The name or path of its config, if it takes one and was given one."""
        return self.parsed.get("config")


def main(root: TyperGroup, line: list[str], address: str | None, detach: bool, cpus: float, gpus: float) -> None:
    """The command: read the line, ask the cluster whether it holds the job, ship, follow, leave with the job's code."""
    from longtake.cluster.jobs import Head
    from longtake.cluster.wheel import build_wheel
    from longtake.provenance import new_run_id, provenance

    said = read(root, line)
    files, config = resolve(said)
    if said.parsed.get("dry_run"):
        raise SystemExit(root.main(args=[said.verb, *said.arguments], prog_name="longtake", standalone_mode=False))
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        head = Head(address)
        store = shared_store(said.parsed["store"], head)
        head.require(cpus, gpus, demand(config))
        job = head.submit(
            ["python", "-m", "longtake.jobs", *remote_arguments(root, said, store, files)],
            job=f"{said.verb}-{new_run_id()}",
            wheel=wheel,
            files=files,
            cpus=cpus,
            gpus=gpus,
            metadata={"code_version": provenance()["code_version"], "host": provenance()["host"]},
        )
    print(f"job {job} is submitted to {head.address} (longtake {' '.join(line)}); store {store}", flush=True)
    if detach:
        print(f"follow it with: longtake logs {job} --follow")
    else:
        follow(head, job)


# --- what is shipped ----------------------------------------------------------------------------------------


def read(root: TyperGroup, line: list[str]) -> Line:
    """A verb's line as its own parser reads it, with its own complaints.

    Raises:
        UserError: no such verb, or one that is not for a cluster.
    """

    verbs = [name for name in root.commands if name not in HERE_ONLY]
    verb, *arguments = line
    if verb not in verbs:
        raise UserError(unknown("verb", verb, verbs))
    parsed = root.commands[verb].make_context(verb, list(arguments)).params
    return Line(verb, arguments, parsed)


def resolve(line: Line) -> tuple[dict[str, str], Config | None]:
    """The line's config with its overrides, and the files (name → YAML) that carry it and the configs it names by path.

    Raises:
        UserError: everything that is wrong in the config.
    """
    if line.config is None:
        return {}, None
    config = _load(line.verb, line.config, line.parsed.get("set_") or [])
    files: dict[str, str] = {}
    config = config.model_copy(update=_carry_named(config, files))
    files[_file(line.config)] = dump(config)
    return files, config


def _load(verb: str, name: str, overrides: list[str]) -> Config:
    """By the house's rule: the verb `x` is jobs/x.py or jobs/x/command.py, with XConfig and CONFIGS."""
    module = importlib.import_module(f"longtake.jobs.{verb}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"longtake.jobs.{verb}.command")
    schema: type[Config] = getattr(module, f"{verb.capitalize()}Config")
    return load(schema, name, overrides, search=module.CONFIGS)


def _carry_named(config: Config, files: dict[str, str]) -> dict[str, Any]:
    """A setting that is called like a verb names one of its configs; one that is a path of this machine must travel."""

    def carried(verb: str, name: str) -> str:
        if not _is_path(name):
            return name
        files[f"{verb}-{_file(name)}"] = dump(_load(verb, name, []))
        return f"{verb}-{_file(name)}"

    names: dict[str, Any] = {}
    for verb in ("collect", "train", "evaluate"):
        named = getattr(config, verb, None)
        if isinstance(named, str):
            names[verb] = carried(verb, named)
        elif isinstance(named, tuple):
            names[verb] = tuple(carried(verb, name) for name in named)
    return names


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _file(name: str) -> str:
    return f"{Path(name).stem}.yaml"


def remote_arguments(root: TyperGroup, line: Line, store: str, files: dict[str, str]) -> list[str]:
    """The verb's line for the cluster: the resolved config instead of CONFIG and --set, and the store it sees."""

    command = root.commands[line.verb]
    replaced = {"store", "dry_run"} | ({"config", "set_"} if line.config is not None else set())
    positional, options = [_file(line.config)] if line.config is not None else [], ["--store", store]
    for parameter in command.params:
        value = line.parsed.get(parameter.name)
        if parameter.name in replaced or value is None or value is False or value == []:
            continue
        values = [str(one) for one in (value if isinstance(value, list | tuple) else [value])]
        if parameter.param_type_name == "argument":
            positional += values
        elif value is True:
            options.append(parameter.opts[0])
        else:
            options += [word for one in values for word in (parameter.opts[0], one)]
    return [line.verb, *positional, *options]


def shared_store(uri: str, head: Head) -> str:
    """The store as the cluster's nodes call it.

    Raises:
        UserError: a folder that only this machine has.
    """
    if uri.startswith("s3://") or head.is_here():
        return open_store(uri).uri
    plain = uri.removeprefix("file://")
    if "://" in plain:
        return open_store(uri).uri  # a scheme that is none: its own complaint
    if not plain.startswith("/"):
        raise UserError(
            f"--store {uri} is a folder of this machine, which the nodes of {head.address} do not see: "
            "give s3://BUCKET/PREFIX, or the full path of a folder that every node mounts"
        )
    return plain


def demand(config: Config | None) -> Demand | None:
    """What the workers of a config ask for, if it says how many there are."""
    from longtake.cluster.demand import Demand

    workers, gpus = getattr(config, "workers", 0), getattr(config, "gpus_per_worker", 0.0)
    return Demand(workers, gpus_per_worker=accelerators.least(gpus)) if workers else None


# --- jobs on a cluster --------------------------------------------------------------------------------------


def follow(head: Head, job: str) -> None:
    """Print what a job prints and leave with its exit code. Ctrl-C leaves the job alone.

    Raises:
        SystemExit: always.
    """
    try:
        ended = head.follow(job, _print)
    except KeyboardInterrupt:
        print(f"\njob {job} goes on: longtake logs {job} --follow, or: longtake stop {job}", file=sys.stderr)
        raise SystemExit(130) from None
    print(_ending(ended), file=sys.stderr)
    raise SystemExit(ended.code)


def logs(job: str, address: str | None, follow_: bool) -> None:
    """`longtake logs`: what a job has printed, or with `follow_` all that it prints until its end."""
    from longtake.cluster.jobs import Head

    head = Head(address)
    if follow_:
        follow(head, head.job(job).id)
    _print(head.logs(head.job(job).id))


def stop(job: str, address: str | None) -> None:
    """`longtake stop`."""
    from longtake.cluster.jobs import Head

    head = Head(address)
    if head.job(job).over:
        print(f"job {job} was over already: {head.job(job).status}")
        return
    print(_ending(head.stop(job)))


def listing(address: str | None, format_: str | None, out: str | None) -> None:
    """`longtake jobs`: the cluster's jobs as a table, the oldest first."""
    import pandas as pd

    from longtake.cluster.jobs import Head
    from longtake.jobs.display import show

    show.check_output(format_, out)
    rows = [
        {
            "job": job.id,
            "status": job.status,
            "code": job.code,
            "started": pd.Timestamp(job.started) if job.started else None,
            "seconds": job.seconds,
            "command": job.command.removeprefix("python -m longtake.jobs "),
        }
        for job in Head(address).jobs()
    ]
    frame = pd.DataFrame(rows, columns=["job", "status", "code", "started", "seconds", "command"])
    show.show(frame.astype({"code": "Int64"}), format_, out)


def _ending(job: Job) -> str:
    took = f" after {job.seconds:.0f} s" if job.seconds is not None else ""
    reason = f": {job.message.strip()}" if job.message and job.code else ""
    return f"job {job.id} {job.status}{took}, exit code {job.code}{reason}"


def _print(text: str) -> None:
    print(text, end="", flush=True)
