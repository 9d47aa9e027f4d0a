"""A local Ray that is its user's own: a random token, loopback alone, and a folder that nobody else may enter.

Whoever joins a Ray runs code in it, and Ray by itself listens on every interface. Started in the block `private()`,
with its files in `session_folder()`, each of its servers is on loopback and asks for the token, but for two kinds:

- Prometheus' ports, of which each process that has metrics opens one, give numbers to whoever is on this machine.
- torch's TCPStore, in which the ranks of a training meet, is bound to every interface: torch has no setting for it.
  It holds their addresses, and takes no code.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from longtake.errors import UserError
from longtake.storage import scratch

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray takes 127.0.0.1 for the address of this machine, as it always does on macOS and Windows. Without it
Ray replaces a 127.0.0.1 that it is given by the address that others know, and listens to them."""


@contextlib.contextmanager
def private(token: str | None = None) -> Iterator[str]:
    """A Ray that starts while the block runs is on loopback, and wants a token that it and this process have: yielded.

    It is new for each block, or `token`, that of a Ray that runs; and only in the environment, which no other user can
    read. What the user has set for clusters comes back afterwards.
    """
    from ray._private import ray_constants

    token = token or secrets.token_hex(32)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, LOOPBACK: "0"}
    several = ray_constants.ENABLE_RAY_CLUSTER  # read from the environment at the import, which may be long past
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with replaced(own):
            _read_again()
            yield token
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = several
        _read_again()


def _read_again() -> None:
    """Ray keeps the first token that it reads in a process. The mode comes first: a thread that still ends asks it."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def session_folder() -> Iterator[str]:
    """Where Ray may write while the block runs: under RAY_TMPDIR, or the system's, in a folder of this user's.

    Ray opens what it makes to all users (mode 777), and its sockets in there ask nobody for a token; so nobody else may
    enter the folder (mode 700). What drivers that were killed have left in it is removed. A path that is too long for
    sockets is gone to by a short way round. Raises UserError for a place that cannot be used, or is somebody else's.
    """
    parent = _parent()
    try:
        with scratch.folder(_own(parent), PREFIX, keep_failed=True) as folder, _short(folder) as path:
            yield str(path)
    except OSError as error:
        if error.filename and Path(str(error.filename)).is_relative_to(parent):
            raise UserError(f"Ray cannot write to {parent} ({error.strerror}): {_ELSEWHERE}") from error
        raise


def user_folder() -> Path:
    """Where the sessions' folders lie: this user's alone. Raises UserError as `session_folder` does."""
    return _own(_parent())


def clear() -> None:
    """Remove the folders of sessions whose process was killed."""
    scratch.clear(user_folder(), PREFIX)


def _parent() -> Path:
    usual = tempfile.gettempdir()
    return Path(os.environ.get("RAY_TMPDIR") or (usual if len(usual) < 12 else _SHORT)).absolute()


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """The folder by a path that leaves room for the sockets that lie deep under it (limit 107 bytes)."""
    if len(str(folder)) <= MOST_BYTES:
        yield folder
        return
    with scratch.folder(_own(Path(_SHORT)), "s") as near:
        (near / "r").symlink_to(folder)
        yield near / "r"


def _own(parent: Path) -> Path:
    """A folder of this user's that nobody else may enter; it is made if need be."""
    folder = parent / f"lt-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise UserError(f"{parent}: Ray cannot write there ({error.strerror}): {_ELSEWHERE}") from error
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise UserError(f"{folder} is not a folder of yours ({error.strerror}): {_ELSEWHERE}") from None
    try:
        if os.fstat(opened).st_uid != os.getuid():
            raise UserError(f"{folder} belongs to another user, who could read and change your work: {_ELSEWHERE}")
        os.fchmod(opened, 0o700)  # whatever the umask is, and whoever made it
    finally:
        os.close(opened)
    return folder


PREFIX = "r"
"""Of a session's folder, short as sockets lie under it."""
_ELSEWHERE = "remove it, or set RAY_TMPDIR to another folder"
_SHORT = "/tmp"
MOST_BYTES = 107 - len("/session_2026-11-28_22-54-40_123456_1234567/sockets/plasma_store_12")
"""Of the path that Ray is given: Linux takes no longer ones for sockets."""


@contextlib.contextmanager
def replaced(values: Mapping[str, str]) -> Iterator[None]:
    """The environment with these values while the block runs; afterwards it is as it was."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
