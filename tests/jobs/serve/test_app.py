"""The service over HTTP and its WebSocket, and the client with the face of `World`: no Ray."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from longtake.errors import UserError
from longtake.jobs.serve.app import UNAUTHORISED, application
from longtake.jobs.serve.metrics import summary
from longtake.jobs.serve.sessions import Limits, Sessions
from longtake.jobs.serve.token_file import read_or_make
from longtake.models.config import SamplerConfig
from longtake.storage.store import open_store
from longtake.worlds.batch import exact_batch
from longtake.worlds.remote import RemoteWorld
from longtake.worlds.world import World
from tests.worlds.played import exported, seen

uvicorn = pytest.importorskip("uvicorn")
TOKEN = "a token of some length"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MOVES = ["forward", "turn left", "forward"]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = exported(tmp_path_factory.mktemp("served") / "tiny", trained=50)
    return World.load(folder, sampler=SamplerConfig(steps=1), states=2)


@pytest.fixture(scope="module")
def url(fresh: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service on loopback, in a thread."""
    store, least = open_store(tmp_path_factory.mktemp("store")), exact_batch(fresh, 8)
    listening = socket.create_server(("127.0.0.1", 0))
    ready: list[Any] = []

    async def serve() -> None:
        sessions = Sessions(store, fresh, Limits(largest=8), least)

        async def metrics() -> dict[str, Any]:
            return summary({"one": sessions.sample()}, sessions.journal.count())

        app = application(sessions, hashlib.sha256(TOKEN.encode()).hexdigest(), metrics)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="websockets-sansio"))
        ready.append(server)
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    while not ready or not ready[0].started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    ready[0].should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def led(world: World | RemoteWorld) -> list[np.ndarray]:
    frames, pose = seen(4)
    world.observe(frames, pose=pose)
    return [world.step(move) for move in MOVES]


def test_a_remote_world_has_the_face_of_a_world(url: str, fresh: World, tmp_path: Path) -> None:
    remote, local = RemoteWorld.connect(url, TOKEN, seed=3), fresh.fresh([3]).streams_apart()[0]
    for one, two in zip(led(remote), led(local), strict=True):
        # Streams of a batch may round otherwise than one alone, which pictures nearly never show.
        assert one.dtype == np.uint8 and one.shape == (8, 8, 3)
        assert (np.abs(one.astype(int) - two.astype(int)) <= 1).all()
    names = "about controls action_names frame_shape fps sampler trained_frames conditioning frames_per_step streams"
    for name in (*names.split(), "frames", "nbytes", "attention_nbytes"):
        assert getattr(remote, name) == getattr(local, name), name
    assert remote.pose is not None and local.pose is not None and np.allclose(remote.pose, local.pose)
    three = remote.fork(3)
    made = three.step(["forward", "turn left", "forward"])
    assert made.shape == (3, 8, 8, 3) and np.array_equal(made[0], made[2])
    twin = remote.copy()
    first = twin.step("forward")
    assert np.array_equal(twin.rewind(1).step("forward"), first) and np.array_equal(first, made[0])
    assert three.streams_apart()[1].frames == 8 and remote.copy().forget().nbytes == 0
    remote.save(tmp_path / "world")
    assert World.resume(tmp_path / "world").frames == 7
    again = RemoteWorld.resume(tmp_path / "world", url, TOKEN)
    assert np.array_equal(again.step("forward"), first)
    held = RemoteWorld.connect(url, TOKEN, session=remote.session)
    assert held.frames == 7 and np.array_equal(held.step("forward"), first)
    twin.end()
    with pytest.raises(UserError, match="there is none, or it was ended"):
        twin.step("forward")


def test_what_is_wrong_is_one_line(url: str) -> None:
    world = RemoteWorld.connect(url, TOKEN, streams=2)
    for call, line in (
        (lambda: world.step("forwards"), "did you mean forward"),
        (lambda: world.observe(np.zeros((2, 1, 4, 4, 3), np.uint8)), "this world's are uint8"),
        (lambda: world.observe(np.zeros((2, 51, 8, 8, 3), np.uint8), pose=np.zeros((2, 51, 3))), "a context of 51"),
        (lambda: world.rewind(1), "rewind: 1 frames; there are 0"),
        (lambda: world.fork(9), "streams: 18; a session has 1 to 8 here"),
        (lambda: world.fresh([3, 9]), "seeds that follow one another"),
        (lambda: RemoteWorld.connect(url, TOKEN, session="0" * 24), "there is none"),
        (lambda: RemoteWorld.connect(url, "wrong"), "a token is wanted"),
        (lambda: RemoteWorld.connect("http://127.0.0.1:9", TOKEN, patience_s=0.1), "no answer"),
    ):
        with pytest.raises(UserError, match=line) as raised:
            call()
        assert len(raised.value.lines) == 1
    assert world.step(["forward", "turn left"]).shape == (2, 8, 8, 3)


def test_nobody_comes_in_without_the_token(url: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
        for path in ("/", "/metrics", "/sessions/" + "0" * 24):
            answer = requests.get(url + path, headers=headers, timeout=60)
            assert answer.status_code == 401 and list(answer.json()) == ["error"]


def test_answers_are_json_png_or_npy(url: str) -> None:
    begun = requests.post(f"{url}/sessions", json={"seed": 1, "streams": 2}, headers=BEARER, timeout=60)
    path = f"{url}/sessions/{begun.json()['session']}"
    assert begun.status_code == 201

    def step(n: int, accept: str) -> requests.Response:
        return requests.post(path, json={"op": "step", "n": n}, headers=BEARER | {"Accept": accept}, timeout=60)

    answer = step(0, "application/json").json()
    assert answer["n"] == 1 and len(answer["png"]) == 2
    png = step(1, "image/png")
    assert Image.open(io.BytesIO(png.content)).size == (16, 8) and json.loads(png.headers["longtake-session"])["n"] == 2
    assert np.load(io.BytesIO(step(2, "application/x-npy").content)).shape == (2, 8, 8, 3)
    assert step(7, "*/*").status_code == 409
    metrics = requests.get(f"{url}/metrics", headers=BEARER, timeout=60).json()
    assert metrics["frames_per_s"] > 0 and metrics["sessions"] >= 1 and metrics["p99_ms"] >= metrics["p50_ms"] > 0
    assert requests.delete(path, headers=BEARER, timeout=60).status_code == 204
    assert requests.get(path, headers=BEARER, timeout=60).status_code == 404
    wrong = requests.post(f"{url}/sessions", json={"sead": 1}, headers=BEARER, timeout=60)
    assert wrong.status_code == 400 and "did you mean seed" in wrong.json()["error"]


def test_orders_over_a_socket_and_a_lost_connection(url: str) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    world = RemoteWorld.connect(url, TOKEN, seed=5)
    path = f"{url.replace('http', 'ws')}/sessions/{world.session}/socket"

    def ask(window: Any, order: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        window.send(json.dumps(order))
        data = window.recv(timeout=60)
        (length,) = struct.unpack("<I", data[:4])
        return json.loads(data[4 : 4 + length]), data[4 + length :]

    with connect(path, additional_headers=BEARER) as window:
        facts, frames = ask(window, {"op": "step", "n": 0})
        assert facts["n"] == 1 and np.load(io.BytesIO(frames)).shape == (8, 8, 3)
        assert ask(window, {"op": "dance", "n": 1})[0]["status"] == 400
    with connect(path, additional_headers=BEARER) as window:
        assert ask(window, {"op": "step", "n": 1})[0]["frames"] == 2, "the world has waited"
    with connect(path) as window, pytest.raises(ConnectionClosed) as closed:
        window.recv(timeout=60)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == UNAUTHORISED


def test_the_token_is_its_users_alone(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "token"
    token = read_or_make(file)
    assert len(token) > 30 and read_or_make(file) == token and file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    with pytest.raises(UserError, match="others may read it"):
        read_or_make(file)
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(UserError, match="no token of 16 letters"):
        read_or_make(file)
