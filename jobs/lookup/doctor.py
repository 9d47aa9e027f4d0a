"""`longtake doctor`: what works on this machine and what does not, with what to do about it; exit code 1 for a problem.

A line each: ok, note (something that is not there and may not be wanted) or PROBLEM.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from longtake.errors import UserError
from longtake.jobs.display.table_formats import size

LEAST_SHM = 1e9
"""Bytes of /dev/shm: Ray keeps its objects there, and without room for them on the disk, slowly."""
LEAST_DISK = 5e9
EXTRAS = {
    "vizdoom": ("mazes in Doom", "doom"),
    "ale_py": ("Atari games", "atari"),
    "gymnasium": ("Gymnasium environments", "atari"),
    "memory_maze": ("Memory Maze, played", "maze"),
    "diffusers": ("diffusers' autoencoders", "vae"),
    "tensorboard": ("to show TensorBoard's files", "tensorboard"),
    "mlflow": ("watch: [mlflow]", "mlflow"),
    "wandb": ("watch: [wandb]", "wandb"),
}
"""Packages that are wanted by some: what for, and the extra that brings them."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: Literal["ok", "note", "PROBLEM"]
    what: str
    text: str
    way_out: str = ""


def main(store: str, ray: bool = True) -> int:
    """The command; the exit code is 1 if there is a problem."""
    looks: list[Callable[[], Iterator[Finding]]] = [code, versions, extras, weights, torch_and_gpus, room]
    looks += [lambda: places(store), warm_ray, *([start_of_ray] if ray else [])]
    worst = 0
    for look in looks:
        for finding in look():
            print(f"{finding.state:<8}{finding.what:<12}{finding.text}", flush=True)
            if finding.way_out:
                print(f"{'':<20}-> {finding.way_out}", flush=True)
            worst |= finding.state == "PROBLEM"
    return worst


def code() -> Iterator[Finding]:
    """Python, and where the code of longtake and its command come from."""
    import longtake

    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("ok", "python", f"{version} in {sys.prefix}")
    yield Finding("ok", "longtake", f"{longtake.__version__} in {Path(longtake.__file__).resolve().parent}")
    script = Path(sys.prefix) / "bin" / "longtake"
    if script.is_file():
        first = script.read_bytes().split(b"\n")[0].decode(errors="replace").removeprefix("#!").strip()
        if first.startswith("/") and Path(first).parent.resolve() != script.parent.resolve():
            yield Finding(
                "PROBLEM",
                "command",
                f"{script} runs {first}: the checkout was moved, or .venv copied",
                "remove .venv and run: make setup",
            )


def versions() -> Iterator[Finding]:
    """Whether the installed packages are those that longtake asks for."""
    from packaging.requirements import Requirement

    wrong = []
    for line in importlib.metadata.requires("longtake") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} is not {requirement.specifier}")
    if wrong:
        yield Finding("PROBLEM", "packages", ", ".join(wrong), "make setup, or pip install -r requirements.txt")
    else:
        yield Finding("ok", "packages", "all that longtake needs, in versions that fit")


def extras() -> Iterator[Finding]:
    """Packages that not everybody needs."""
    for name, (purpose, extra) in EXTRAS.items():
        if find_spec(name) is None:
            yield Finding("note", name, f"not installed: {purpose}", f"pip install 'longtake[{extra}]'")


def weights() -> Iterator[Finding]:
    """The nets of LPIPS and FVD."""
    from longtake.evals.registry import METRICS
    from longtake.models.perceptual.weights import MissingWeights, locate

    for name, metric in METRICS.items():
        if metric.weights is None:
            continue
        try:
            locate(metric.weights)
        except MissingWeights as error:
            yield Finding("note", name, str(error))


def torch_and_gpus() -> Iterator[Finding]:
    """PyTorch's build, and the cards that it sees."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    yield Finding("ok", "torch", f"{torch.__version__}, {build}")
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        yield Finding("ok", f"GPU {number}", f"{card.name}, {size(card.total_memory)}")
    if torch.cuda.device_count() == 0:
        drivers = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
        if drivers and not torch.version.cuda:
            yield Finding(
                "PROBLEM", "GPU", "there is a card, and torch is built for CPUs", "install a CUDA build of torch"
            )
        elif drivers:
            yield Finding(
                "PROBLEM", "GPU", "there is a driver, and torch sees no card", "compare nvidia-smi with torch"
            )
        else:
            yield Finding("note", "GPU", "none: training and evaluation run on CPUs")


def room() -> Iterator[Finding]:
    """Shared memory, and the disk that Ray writes to."""
    from longtake.cluster.launch import machine_cpus

    load = os.getloadavg()[0]
    busy = " and busy: what is measured now is too slow" if load > machine_cpus() + 1 else ""
    yield Finding("note" if busy else "ok", "CPUs", f"{machine_cpus()}, {load:.1f} processes want one{busy}")
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    way = "docker run --shm-size=2g, or a larger tmpfs" if free < LEAST_SHM else ""
    yield Finding("PROBLEM" if free < LEAST_SHM else "ok", "/dev/shm", f"{size(free)} free", way)
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    way = "set RAY_TMPDIR to a folder with room and a short path" if free < LEAST_DISK else ""
    yield Finding("PROBLEM" if free < LEAST_DISK else "ok", "disk", f"{size(free)} free in {folder}, for Ray", way)


def places(uri: str) -> Iterator[Finding]:
    """The store: whether it can be written, and how much room it has."""
    from longtake.storage.store import open_store

    try:
        store = open_store(uri)
        existed = not store.is_folder or Path(store.path("")).exists()
        if existed:
            store.require_writable()
        free = store.free_bytes() if existed else None
    except UserError as error:
        yield Finding("PROBLEM", "store", "; ".join(error.lines), "name another: --store, or LONGTAKE_STORE")
        return
    state = "can be written" if existed else "is not there yet, the first verb that writes makes it"
    yield Finding("ok", "store", f"{store.uri} {state}" + (f", {size(free)} free" if free is not None else ""))


def warm_ray() -> Iterator[Finding]:
    """The Ray that `longtake up` keeps."""
    from longtake.cluster import warm
    from longtake.jobs.clusters.warm import described, why_passed_over

    try:
        kept_ones = [kept for _, kept in warm.found()]
    except UserError as error:
        yield Finding("PROBLEM", "warm ray", "; ".join(error.lines))
        return
    for kept in kept_ones:
        if kept is None:
            yield Finding("note", "warm ray", "its process was killed", "longtake up starts another")
        else:
            yield Finding("note" if why_passed_over(kept) else "ok", "warm ray", described(kept))
    if not kept_ones:
        yield Finding("note", "warm ray", "none: each verb starts a Ray of its own", "longtake up keeps one")


def start_of_ray() -> Iterator[Finding]:
    """A local Ray, or the warm one, with one task in it, and how long that took."""
    from longtake.cluster.launch import launch

    began = time.monotonic()
    try:
        with launch():
            import ray

            answer = ray.get(ray.remote(lambda: 1).remote())
    except Exception as error:  # whatever it is, it is what to tell
        yield Finding("PROBLEM", "ray", f"does not start: {type(error).__name__}: {error}".splitlines()[0], RAY_FAILS)
        return
    yield Finding("ok", "ray", f"started and ran {answer} task in {time.monotonic() - began:.0f} s")


RAY_FAILS = "look at the disk and /dev/shm above; workers=0 trains without Ray"
