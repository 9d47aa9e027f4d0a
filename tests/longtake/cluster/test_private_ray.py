"""What makes a local Ray its user's own, as far as it shows without starting one."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.cluster.private_ray import LOOPBACK, private, session_folder
from longtake.errors import UserError

SLEEPER = """
import sys
from longtake.cluster.private_ray import session_folder
with session_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""
ROOT = Path(__file__).resolve().parents[3]


def test_the_token_is_new_each_time_and_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user has set for a cluster is back, in the environment and in what Ray has read of it."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode

    def header() -> str:
        loader = AuthenticationTokenLoader.instance()
        return str(loader.get_token_for_http_header(ignore_auth_mode=True).get("authorization"))

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-clusters")
    monkeypatch.delenv(LOOPBACK, raising=False)
    before, several, seen = dict(os.environ), ray_constants.ENABLE_RAY_CLUSTER, []
    for _ in range(2):
        with private():
            assert get_authentication_mode() == AuthenticationMode.TOKEN
            assert header() == f"Bearer {os.environ['RAY_AUTH_TOKEN']}"
            assert not ray_constants.ENABLE_RAY_CLUSTER
            seen.append(os.environ["RAY_AUTH_TOKEN"])
        assert dict(os.environ) == before and several == ray_constants.ENABLE_RAY_CLUSTER
        assert get_authentication_mode() == AuthenticationMode.DISABLED
        assert header() == "Bearer the-clusters"
    assert len({*seen, "the-clusters"}) == 3 and all(re.fullmatch("[0-9a-f]{64}", token) for token in seen)


def test_nobody_else_may_enter_the_sessions_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is there already, open to all, as an earlier version made it."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "r"))
    own = tmp_path / "r" / f"lt-{os.getuid()}"
    for _ in range(2):
        with session_folder() as folder:
            assert Path(folder).resolve().parent == own
        assert stat.S_IMODE(own.stat().st_mode) == 0o700 and own.stat().st_uid == os.getuid()
        own.chmod(0o777)


def test_what_others_have_put_in_its_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    own = tmp_path / f"lt-{os.getuid()}"
    (tmp_path / "theirs").mkdir()
    own.symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="is not a folder of yours .*set RAY_TMPDIR"), session_folder():
        pass
    own.unlink()
    own.write_text("")
    with pytest.raises(UserError, match="is not a folder of yours"), session_folder():
        pass
    own.unlink()
    own.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    own.rename(tmp_path / "lt-4711")
    with pytest.raises(UserError, match="belongs to another user"), session_folder():
        pass


def test_a_long_path_is_gone_to_by_a_short_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = tmp_path / ("x" * 90)
    monkeypatch.setenv("RAY_TMPDIR", str(far))
    with session_folder() as folder:
        with socket.socket(socket.AF_UNIX) as server:
            deep = Path(folder, "session_2026-11-28_22-54-40_123456_1234567", "sockets")
            deep.mkdir(parents=True)
            server.bind(str(deep / "plasma_store_12"))
        assert far.resolve() in Path(folder).resolve().parents and Path(folder).is_symlink()
    assert not Path(folder).is_symlink() and list((far / f"lt-{os.getuid()}").iterdir()) == []


def test_what_killed_drivers_left_goes_with_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of those that live, and not a moment before."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    sleeper = (
        "import sys, time\nfrom longtake.cluster.private_ray import session_folder\nwith session_folder() as folder:"
    )
    sleeper += "\n    print(folder, flush=True)\n    sys.stdin.read()"
    drivers = [
        subprocess.Popen([sys.executable, "-c", sleeper], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    killed, alive = (Path(driver.stdout.readline().strip()) for driver in drivers if driver.stdout)
    drivers[0].kill()
    drivers[0].wait()
    (killed / "session").mkdir()
    assert killed.is_dir()
    with session_folder():
        assert not killed.exists() and alive.is_dir()
    drivers[1].communicate("", timeout=60)
    assert not alive.exists()


@pytest.mark.parametrize("where", ["/proc/nope", "FILE/x"])
def test_a_place_that_cannot_be_written_is_one_line(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", where.replace("FILE", str(tmp_path / "file")))
    with pytest.raises(UserError, match="Ray cannot write there .*RAY_TMPDIR"), session_folder():
        pass


def test_only_one_place_starts_ray_and_nothing_starts_one_that_asks_nobody() -> None:
    """Each `ray.init` and `ray start` of the rooms, and no test that turns the token off for a Ray of its own."""
    starts, off = set(), set()
    for room in ("platform", "models", "evals", "jobs", "tests"):
        for path in (ROOT / room).rglob("*.py"):
            text, name = path.read_text(), str(path.relative_to(ROOT))
            if room != "tests" and re.search(r'\bray\.init\(|"ray", "start"', text):
                starts.add(name)
            if re.search(r'"?RAY_AUTH_MODE"?(:|=) ?"disabled"', text):
                off.add(name)
    assert starts == {"platform/longtake/cluster/launch.py", "jobs/bench/own_head.py"}
    assert off <= {
        "tests/jobs/test_private_ray.py",  # what a user may have set
        "tests/jobs/clusters/test_submit.py",  # a stranger
        "tests/longtake/cluster/test_private_ray.py",
    }
