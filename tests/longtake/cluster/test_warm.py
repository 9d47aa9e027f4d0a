"""The Ray that stays warm between verbs, as far as it shows without starting one: found, looked over, lent to one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longtake.cluster import launch, private_ray, waiting_workers, warm, warm_head
from longtake.errors import UserError
from longtake.jobs.clusters import warm as verbs
from longtake.jobs.lookup import doctor

TOKEN = "ab" * 32


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's Rays would lie."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "rays"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    return private_ray.user_folder()


@contextlib.contextmanager
def kept(place: Path, alive: bool = True, **changes: Any) -> Iterator[warm.Warm]:
    """What the process of `longtake up` writes, and its lock."""
    folder = place / "r1"
    folder.mkdir()
    with launch.environment(launch.ENVIRONMENT):
        own = warm.Identity.of(os.environ, TOKEN, launch.machine_cpus())
    one = warm.Warm(str(folder), "127.0.0.1:1", TOKEN, os.getpid(), own)
    one.write()
    if changes:
        written = json.loads((folder / warm.FILE).read_text())
        written["identity"] |= changes
        (folder / warm.FILE).write_text(json.dumps(written))
    lock = os.open(folder, os.O_RDONLY)
    if alive:
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield one
    finally:
        os.close(lock)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which Ray a launch works in, none of which is one."""
    began: list[str] = []

    @contextlib.contextmanager
    def local(*arguments: Any, **options: Any) -> Iterator[tuple[str, str]]:
        began.append("own")
        yield "", ""

    @contextlib.contextmanager
    def joined(one: warm.Warm, quiet: bool) -> Iterator[str]:
        began.append("warm")
        yield ""

    monkeypatch.setattr(launch, "local", local)
    monkeypatch.setattr(launch, "_joined", joined)
    return began


def test_its_file_is_its_users_alone_and_tells_no_variable(place: Path) -> None:
    with kept(place) as one:
        path = Path(one.folder, warm.FILE)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert TOKEN in path.read_text() and "a-secret" not in path.read_text()
        assert list(warm.found()) == [(Path(one.folder), one)]
    assert list(warm.found()) == [(Path(one.folder), None)]  # nobody holds its lock: its process has gone


def test_a_launch_takes_it_once_at_a_time(place: Path, starts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with kept(place) as one:
        with launch.launch():
            assert one.user == str(os.getpid())
            assert capsys.readouterr().err == ""
            with launch.launch():
                assert starts == ["warm", "own"]
            assert capsys.readouterr().err.endswith("is passed over: another verb works on it\n")
        assert one.user == ""
        with launch.launch():
            assert starts == ["warm", "own", "warm"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ray": "2.59.0"}, "it was started by Ray 2.59.0, and not 2.60.0"),
        ({"code": "/elsewhere/longtake"}, "it was started of the code in /elsewhere/longtake, and not "),
        ({"python": "3.11.7 of /elsewhere/.venv"}, "it was started by Python 3.11.7 of /elsewhere/.venv, and not "),
        ({"folder": "/elsewhere"}, "it was started in /elsewhere, and not "),
        ({"cpus": 999}, "it was started for CPUs: 999, and not "),
    ],
)
def test_another_one_is_passed_over_with_a_line(
    changes: dict[str, Any], why: str, place: Path, starts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with kept(place, **changes), launch.launch():
        out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"note: the Ray of `longtake up` is passed over: {why}")
    assert starts == ["own"]


def test_a_killed_one_is_passed_over_with_a_line(
    place: Path, starts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with kept(place, alive=False), launch.launch():
        assert starts == ["own"]
    assert capsys.readouterr().err == "note: the Ray of `longtake up` is passed over: its process was killed\n"
    with private_ray.session_folder():  # as a Ray of one's own makes
        assert not list(warm.found())


def test_workers_of_another_environment_are_not_taken(
    place: Path, starts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a worker may go by is compared; a terminal's width, and another way to the same folder, are not."""
    monkeypatch.setenv("PYTHONPATH", "lib")
    with kept(place):
        monkeypatch.setenv("COLUMNS", "41")
        monkeypatch.setenv("PYTHONPATH", str(Path.cwd() / "lib"))
        with launch.launch():
            assert starts == ["warm"]
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        monkeypatch.setenv("LONGTAKE_CACHE", "/elsewhere")
        with launch.launch():
            assert starts == ["warm", "own"]
    err = capsys.readouterr().err
    assert "it was started with another AWS_SECRET_ACCESS_KEY, LONGTAKE_CACHE\n" in err and "a-secret" not in err


def test_a_ray_of_ones_own_can_be_asked_for(
    place: Path, starts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with kept(place), launch.launch():
        assert starts == ["own"]
    assert capsys.readouterr().err == ""


def test_actors_that_outlive_their_driver_are_not_made_in_it(place: Path, starts: list[str]) -> None:
    """As those of Ray Serve, which would answer on after their verb."""
    with kept(place), launch.launch(lasting=True):
        assert starts == ["own"]


def test_a_folder_that_another_user_could_enter_is_closed_first(place: Path) -> None:
    place.chmod(0o777)
    with kept(place):
        assert list(warm.found())
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_up_twice_says_so(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(warm_head, "start", lambda: pytest.fail("started"))
    with kept(place) as one:
        verbs.up()
    assert capsys.readouterr().out == (
        f"up already: a Ray of {launch.machine_cpus()} CPUs at 127.0.0.1:1, process {one.pid}\n"
    )
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match="RAY_ADDRESS=10.0.0.1:6379: verbs go to that cluster"):
        verbs.up()


def test_down_ends_what_is_up_and_not_a_verbs_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped: list[int] = []
    monkeypatch.setattr(warm_head, "stop", lambda one: stopped.append(one.pid))
    verbs.down()
    with kept(place) as one:
        with warm.lent(launch.machine_cpus()) as (lent, why):
            assert lent is None and why  # outside of a launch, which sets its variables, another environment
        with launch.environment(launch.ENVIRONMENT), warm.lent(launch.machine_cpus()) as (lent, _):
            assert lent == one
            with pytest.raises(UserError, match=f"process {os.getpid()} works on it"):
                verbs.down()
            assert not stopped
            verbs.down(force=True)
        verbs.down()
    assert stopped == [one.pid, one.pid]
    verbs.down()
    assert not list(warm.found()) and not (place / "r1").exists()
    assert capsys.readouterr().out.splitlines()[0] == "nothing is up"


def test_workers_wait_as_many_as_are_given_away_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a verb took are started again, each of its kind; a late one is not started twice."""
    alive: list[int] = []
    kinds: list[str] = []

    def prestart(kind: str) -> None:
        alive.append(len(kinds))
        kinds.append(kind)

    monkeypatch.setattr(waiting_workers, "_prestart", prestart)
    monkeypatch.setattr(waiting_workers, "idle_workers", lambda head: list(alive))
    with launch.environment(launch.ENVIRONMENT):
        waiting = waiting_workers.WaitingWorkers(2)
    while waiting.add_one():
        pass
    assert len(kinds) == 8 and len(set(kinds)) == 3 and kinds.count("") == 2
    trains = [json.loads(kind) for kind in set(kinds) - {""}]
    assert trains[0] == trains[1] and trains[0]["env_vars"]["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.1"
    taken = kinds[1]
    alive.remove(1)
    assert waiting.add_one() and kinds[8:] == [taken] and not waiting.add_one()
    alive.remove(2)
    alive.append(99)
    assert not waiting.add_one()


def test_the_doctor_tells_of_it(place: Path) -> None:
    assert [finding.text for finding in doctor.warm_ray()] == ["none: each verb starts a Ray of its own"]
    with kept(place, ray="2.59.0"):
        (finding,) = doctor.warm_ray()
        assert finding.state == "note" and "verbs here pass over it: it was started by Ray 2.59.0" in finding.text
    (finding,) = doctor.warm_ray()
    assert finding.text == "its process was killed"
