"""What a result came from: code, machine, versions; and the ids that runs get."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import subprocess
import time
from pathlib import Path

from longtake import __version__

_PACKAGES = ("deepspeed", "mamba-ssm", "numpy", "pandas", "pyarrow", "ray", "torch", "triton", "vizdoom")
_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"  # no two that look alike


def new_run_id() -> str:
    """A new id such as 20261121-041233-k3f9: UTC, sortable by time, unique."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + "".join(secrets.choice(_LETTERS) for _ in range(4))


@functools.cache
def provenance() -> dict[str, str]:
    """code_version, hardware, host, and versions (JSON text of package → version) of this process."""
    return {
        "code_version": _code_version(),
        "hardware": _hardware(),
        "host": platform.node(),
        "versions": json.dumps(_versions(), sort_keys=True),
    }


def _code_version() -> str:
    """The release, and the commit when it runs from a checkout; `.dirty` if files differ from that commit."""
    here = Path(__file__).resolve().parent
    commit = _output("git", "-C", str(here), "describe", "--always", "--dirty=.dirty", "--abbrev=12", "--exclude=*")
    return f"{__version__}+g{commit}" if commit else __version__


def _hardware() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [f"{os.cpu_count()} x {_processor()}", f"{memory:.0f} GiB"]
    if shutil.which("nvidia-smi"):
        cards = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
        parts += [f"{cards.count(card)} x {card}" for card in sorted(set(cards))]
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _versions() -> dict[str, str]:
    versions = {"longtake": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _output(*command: str) -> str:
    """What a command prints, or nothing if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
