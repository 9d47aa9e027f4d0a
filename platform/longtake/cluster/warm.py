"""The Ray that `longtake up` keeps warm on this machine, as verbs see it: found, looked over, lent to one at a time.

Its process (warm_head.py) holds the lock of its session's folder (private_ray.py) as long as it lives, and writes
there, for its user alone (mode 600), where it listens, its token and what it was started with. A verb takes it only
where a Ray of its own would be the same: the same code, packages, CPUs, folder and environment. Else a line says why
not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from longtake.cluster import private_ray

FILE = "warm.json"
BUSY = "busy"
"""Locked by the verb that it is lent to, whose process id is in it."""
OF_A_TERMINAL = (
    *("_", "OLDPWD", "PWD", "SHLVL", "TERM", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "COLORTERM", "COLUMNS", "LINES"),
    *("LS_COLORS", "PS1", "PROMPT_COMMAND", "DISPLAY", "WINDOWID", "STY", "TMUX", "TMUX_PANE", "EDITOR", "PAGER"),
    *("SSH_AUTH_SOCK", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "VIRTUAL_ENV_PROMPT", "LONGTAKE_STORE"),
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", private_ray.LOOPBACK, "PYTEST_CURRENT_TEST"),
    *("RAY_CLIENT_MODE", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
)
"""Variables that say nothing to a worker: of where one types, of the driver alone, and what a launch, the import of Ray
or torch, and a look for cards set by themselves."""


@dataclass(frozen=True)
class Identity:
    """What decides how a worker's code runs: Ray, Python and its packages, our code, CPUs, the folder that relative
    paths are of, and the environment, each variable by a keyed hash, as there may be passwords among them."""

    ray: str
    python: str
    code: str
    cpus: int
    folder: str
    variables: dict[str, str]

    @classmethod
    def of(cls, environment: Mapping[str, str], key: str, cpus: int) -> Identity:
        """That of a Ray which this process would start in an environment; `key` is the token."""
        code = str(Path(__file__).resolve().parents[1])
        python = f"{sys.version.split()[0]} of {sys.prefix}"
        return cls(version("ray"), python, code, cpus, os.getcwd(), _hashed(environment, key))

    def unlike(self, other: Identity) -> str:
        """What is not the same of another one, in words; empty: nothing."""
        for name, words in (
            ("ray", "by Ray"),
            ("python", "by Python"),
            ("code", "of the code in"),
            ("cpus", "for CPUs:"),
            ("folder", "in"),
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"it was started {words} {theirs}, and not {mine}"
        names = sorted(
            name
            for name in self.variables.keys() | other.variables.keys()
            if self.variables.get(name) != other.variables.get(name)
        )
        return f"it was started with another {', '.join(names[:3])}" if names else ""


@dataclass(frozen=True)
class Warm:
    """A Ray that is kept: its session's folder, where it listens, its token, the process that keeps it."""

    folder: str
    address: str
    token: str
    pid: int
    identity: Identity

    def write(self) -> None:
        """Tell of it in its folder. From here on verbs find it."""
        path = Path(self.folder, FILE)
        half = path.with_suffix(".new")
        with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)
        half.replace(path)

    @property
    def user(self) -> str:
        """The process that it is lent to; empty: nobody's."""
        path = Path(self.folder, BUSY)
        with contextlib.suppress(FileNotFoundError):
            return path.read_text() if _is_locked(path) else ""
        return ""


def found() -> Iterator[tuple[Path, Warm | None]]:
    """The folders of kept Rays, each with the Ray if it lives: as a rule none or one. Raises UserError."""
    for folder in sorted(private_ray.user_folder().glob(f"{private_ray.PREFIX}*")):
        with contextlib.suppress(FileNotFoundError):
            written = json.loads((folder / FILE).read_text())
            identity = Identity(**written.pop("identity"))
            yield folder, Warm(**written, identity=identity) if _is_locked(folder) else None


@contextlib.contextmanager
def lent(cpus: int) -> Iterator[tuple[Warm | None, str]]:
    """A kept Ray that is like one's own and free, for this process alone while the block runs; or why there is none,
    in words: empty where none is kept."""
    why = ""
    for _, warm in found():
        if warm is None:
            why = "its process was killed"
        elif not (why := Identity.of(os.environ, warm.token, cpus).unlike(warm.identity)):
            with contextlib.ExitStack() as stack:
                if stack.enter_context(_taken(Path(warm.folder, BUSY))):
                    yield warm, ""
                    return
                why = "another verb works on it"
    yield None, why


@contextlib.contextmanager
def _taken(path: Path) -> Iterator[bool]:
    """Hold a file's lock, with this process's id in it; False: another has it."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield True


def _is_locked(path: Path) -> bool:
    """Whether a living process has the lock of a file or folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(opened)
    return False


def _hashed(variables: Mapping[str, str], key: str) -> dict[str, str]:
    """The variables that a worker may go by, each as a hash that tells nothing of it."""
    relevant = {name: value for name, value in variables.items() if name not in OF_A_TERMINAL}
    relevant["PYTHONPATH"] = python_path(variables)
    return {name: _keyed(f"{name}={value}", key) for name, value in relevant.items()}


def _keyed(text: str, key: str) -> str:
    return hmac.new(key.encode(), text.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:16]


def python_path(variables: Mapping[str, str]) -> str:
    """PYTHONPATH with folders that mean the same wherever a process is started."""
    parts = [part for part in variables.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.pathsep.join(os.path.abspath(part) for part in parts)
