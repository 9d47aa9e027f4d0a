"""The page's server: who may play, what is told while one waits, and that a lost connection loses nothing."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from longtake.errors import UserError
from longtake.jobs.play import command
from longtake.jobs.play.server import BUSY, USED, Player, application

SOCKET = "ws://127.0.0.1/socket"
testclient = pytest.importorskip("starlette.testclient")


class Toy:
    """A game whose picture counts its steps."""

    class dream:
        class about:
            name, dataset = "toy", "toys"

        class controls:
            controls = ()

        fps = 50.0

    why_no_truth = "it is a toy"

    def __init__(self) -> None:
        self.count, self.trail, self.closed = 0, [[0.0, 0.0, 0.0]], False
        self.keys: list[set[str]] = []

    def step(self, keys: set[str]) -> None:
        self.count += 1
        self.keys.append(set(keys))

    def rewind(self, frame: int) -> None:
        if frame > self.count:
            raise UserError(f"rewind: to frame {frame}; there are 0 to {self.count}")
        self.count = frame

    def status(self) -> dict[str, Any]:
        return {"frame": self.count, "panes": [{"name": "dream", "height": 1, "width": 1, "psnr": None}]}

    def pixels(self) -> bytes:
        return np.full(3, self.count % 256, np.uint8).tobytes()

    def close(self) -> None:
        self.closed = True


def read(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<I", data[:4])
    return json.loads(data[4 : 4 + length]), data[4 + length :]


def until(window: Any, wanted: Callable[[dict[str, Any]], Any]) -> tuple[dict[str, Any], bytes]:
    for _ in range(500):
        told, pixels = read(window.receive_bytes())
        if wanted(told):
            return told, pixels
    raise AssertionError("it never came")


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def player(toy: Toy) -> Player:
    def load(tell: Callable[[str], None]) -> Any:
        tell("the toy")
        time.sleep(0.3)
        return toy

    return Player(load, lambda game: "dreamt-toy")


@pytest.fixture
def client(player: Player) -> Iterator[Any]:
    with testclient.TestClient(application(player), base_url="http://127.0.0.1") as client:
        yield client


def entered(client: Any, player: Player) -> Any:
    assert client.get("/", params={"token": player.token}).status_code == 200
    return client


def test_the_link_opens_one_browser_alone(client: Any, player: Player) -> None:
    assert client.get("/").status_code == 403 and client.get("/?token=wrong").status_code == 403
    page = client.get("/", params={"token": player.token})
    assert page.status_code == 200 and "connect-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/").status_code == 200, "the same browser may reload"
    client.cookies.clear()
    second = client.get("/", params={"token": player.token})
    assert second.status_code == 403 and "used already" in second.text


def test_only_this_machine_is_answered(client: Any, player: Player) -> None:
    answer = client.get("/", params={"token": player.token}, headers={"host": "evil.example"})
    assert answer.status_code == 403 and not player.used


@pytest.mark.parametrize("headers", [{}, {"cookie": "longtake-play=wrong"}])
def test_a_window_without_the_right_is_sent_away(client: Any, headers: dict[str, str]) -> None:
    with client.websocket_connect(SOCKET, headers=headers) as window:
        closed = window.receive()
    assert closed["code"] == USED and "no right" in closed["reason"]


def test_the_page_of_others_cannot_play(client: Any, player: Player) -> None:
    headers = {"origin": "http://evil.example"}
    with entered(client, player).websocket_connect(SOCKET, headers=headers) as window:
        assert window.receive()["code"] == USED


def play(client: Any) -> Any:
    return client.websocket_connect(SOCKET)


def test_the_page_says_what_it_waits_for_and_then_plays(client: Any, player: Player, toy: Toy) -> None:
    with play(entered(client, player)) as window:
        told, _ = read(window.receive_bytes())
        assert told == {"waits": "the toy", "failed": []}
        told, _ = until(window, lambda told: "hello" in told)
        assert told["hello"]["noTruth"] == "it is a toy" and told["trail"] == [[0, 0, 0]]
        window.send_text(json.dumps({"keys": ["w"]}))
        told, pixels = until(window, lambda told: told["frame"] > 3)
        assert pixels == bytes([told["frame"]] * 3)
        until(window, lambda told: {"w"} in toy.keys)


def test_a_second_window_waits_for_the_first_to_be_gone(client: Any, player: Player) -> None:
    with play(entered(client, player)), play(client) as second:
        closed = second.receive()
        assert closed["code"] == BUSY and "another window" in closed["reason"]


def test_a_lost_connection_loses_nothing(client: Any, player: Player, toy: Toy) -> None:
    with play(entered(client, player)) as window:
        until(window, lambda told: told.get("frame", 0) > 3)
    time.sleep(0.1)
    count = toy.count
    time.sleep(0.3)
    assert toy.count <= count + 1, "the world waits"
    with play(client) as window:
        told, _ = until(window, lambda told: "hello" in told)
        assert told["frame"] >= count


def test_what_cannot_be_done_is_told_in_the_page(client: Any, player: Player) -> None:
    with play(entered(client, player)) as window:
        until(window, lambda told: "hello" in told)
        for order, problem in (
            ({"do": "rewind", "value": 10**6}, "rewind: to frame 1000000"),
            ({"do": "dance"}, "'dance': no order"),
        ):
            window.send_text(json.dumps(order))
            told, _ = until(window, lambda told: "problem" in told)
            assert told["problem"].startswith(problem)
        window.send_text(json.dumps({"do": "save"}))
        assert until(window, lambda told: "saved" in told)[0]["saved"] == "dreamt-toy"
        window.send_text(json.dumps({"do": "pause", "value": True}))
        assert until(window, lambda told: told["paused"])[0]["paused"]


def test_what_cannot_be_loaded_is_told_in_the_page() -> None:
    def load(tell: Callable[[str], None]) -> Any:
        raise UserError("unknown run 'nobody'")

    player = Player(load, lambda game: "")
    with (
        testclient.TestClient(application(player), base_url="http://127.0.0.1") as client,
        play(entered(client, player)) as window,
    ):
        told, _ = until(window, lambda told: told["failed"])
        assert told["failed"] == ["unknown run 'nobody'"]


def test_a_port_that_is_taken_is_told() -> None:
    taken = command._listen(0)
    with taken, pytest.raises(UserError, match=f"--port {taken.getsockname()[1]}: "):
        taken.listen()
        command._listen(taken.getsockname()[1])
