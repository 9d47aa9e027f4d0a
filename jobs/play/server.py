"""The page and its socket, on loopback alone: keys come in, pictures go out.

The link holds a token that opens the page once; the browser that used it is known by a cookie from then on. One window
plays at a time. When its connection is lost the world waits where it is, and goes on when the window is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from longtake.errors import UserError
from longtake.jobs.play.game import Game

PAGE = Path(__file__).with_name("page.html")
COOKIE = "longtake-play"
HOSTS = ("127.0.0.1", "localhost")
USED, BUSY = 4403, 4409
"""Codes with which the socket is closed: the link was used elsewhere, another window plays."""
MOST_FPS = 60.0


class Player:
    """One game, its pace, and the window that plays it."""

    def __init__(self, load: Callable[[Callable[[str], None]], Game], save: Callable[[Game], str]) -> None:
        """`load(tell)` makes the game and tells what it waits for; `save(game)` writes what was recorded."""
        self.load, self.save = load, save
        self.token, self.cookie, self.used = secrets.token_urlsafe(24), secrets.token_urlsafe(24), False
        self.game: Game | None = None
        self.waits_for = "the model"
        self.failed: tuple[str, ...] = ()
        self.keys: set[str] = set()
        self.paused, self.once, self.fps = False, False, 0.0
        self.replaying: list[Any] = []
        self.window: WebSocket | None = None
        self.lock = asyncio.Lock()

    async def start(self) -> None:
        """Load the game beside the server, so that the page can say what it waits for."""

        def tell(what: str) -> None:
            self.waits_for = what

        try:
            self.game = await asyncio.to_thread(self.load, tell)
            self.fps = self.game.dream.fps
        except UserError as error:
            self.failed = error.lines

    async def play(self) -> None:
        """Make a frame whenever it is time for one and a window is there to see it."""
        due = time.monotonic()
        while True:
            due = max(due + 1 / (self.fps or MOST_FPS), time.monotonic())
            await asyncio.sleep(max(0.0, due - time.monotonic()) or 0.001)
            if self.game is None or self.window is None or (self.paused and not self.once and not self.replaying):
                continue
            self.once = False
            async with self.lock:
                await asyncio.to_thread(self._advance)
            await self.show()

    def _advance(self) -> None:
        assert self.game is not None
        if self.replaying:
            self.game.act(self.replaying.pop(0))
        else:
            self.game.step(self.keys)

    async def show(self, **more: Any) -> None:
        """Send the pictures and all that is told beside them."""
        if self.window is None:
            return
        if self.game is None:
            await self._send({"waits": self.waits_for, "failed": list(self.failed)}, b"")
            return
        message = self.game.status() | {"paused": self.paused, "fps": self.fps, "replaying": len(self.replaying)}
        await self._send(message | more, self.game.pixels())

    async def _send(self, message: dict[str, Any], pixels: bytes) -> None:
        window, header = self.window, json.dumps(message).encode()
        if window is not None:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it left meanwhile: the world waits
                await window.send_bytes(struct.pack("<I", len(header)) + header + pixels)

    async def welcome(self) -> None:
        """Tell a window that came, or came back, what there is to do, as soon as the game is there."""
        while self.game is None and not self.failed and self.window is not None:
            await self.show()
            await asyncio.sleep(0.2)
        if self.game is None:
            await self.show()
            return
        world, game = self.game.dream, self.game
        await self.show(
            hello={
                "name": world.about.name,
                "dataset": world.about.dataset,
                "controls": [{"name": c.name, "keys": c.keys} for c in world.controls.controls],
                "worldFps": world.fps,
                "noTruth": game.why_no_truth,
            },
            trail=game.trail,
        )

    async def obey(self, order: dict[str, Any]) -> None:
        """Do what the window asks for; a UserError is told in it."""
        if self.game is None:
            return
        try:
            async with self.lock:
                more = await asyncio.to_thread(self._obey, order)
        except UserError as error:
            more = {"problem": str(error)}
        await self.show(**more)

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.game is not None
        game, what, value = self.game, order.get("do"), order.get("value")
        if what == "pause":
            self.paused = bool(value)
        elif what == "once":
            self.paused = self.once = True
        elif what == "fps":
            self.fps = min(MOST_FPS, max(0.0, float(value or 0)))
        elif what == "record":
            game.record()
        elif what == "save":
            return {"saved": self.save(game)}
        elif what == "choose":
            game.choose(int(value or 0))
        else:
            self._travel(game, what, value)
            return {"trail": game.trail}
        return {}

    def _travel(self, game: Game, what: Any, value: Any) -> None:
        self.replaying = []
        if what == "reset":
            game.begin(game.number + 1)
        elif what == "rewind":
            game.rewind(int(value or 0))
            self.paused = True
        elif what == "replay":
            self.replaying = game.replay()
        elif what == "fork":
            game.fork(int(value or 0))
        elif what == "keep":
            game.keep()
        else:
            raise UserError(
                f"{what!r}: no order; there are pause, once, fps, record, save, reset, rewind, replay, fork"
            )


def _same(given: str | None, expected: str) -> bool:
    return hmac.compare_digest((given or "").encode(), expected.encode())


def application(player: Player) -> Starlette:
    """The page at `/`, the socket at `/socket`."""

    async def page(request: Request) -> Response:
        if request.url.hostname not in HOSTS:
            return _plain("This server answers its own machine alone.", 403)
        known = _same(request.cookies.get(COOKIE), player.cookie)
        if not known and not _same(request.query_params.get("token"), player.token):
            return _plain("This link has no token, or a wrong one: use the one that `longtake play` printed.", 403)
        if not known and player.used:
            return _plain("This link was used already, and opens one browser alone: start `longtake play` again.", 403)
        player.used = True
        answer = HTMLResponse(PAGE.read_text(), headers=HEADERS)
        answer.set_cookie(COOKIE, player.cookie, httponly=True, samesite="strict")
        return answer

    async def socket(window: WebSocket) -> None:
        await window.accept()
        if not _same(window.cookies.get(COOKIE), player.cookie) or not _own(window):
            await window.close(USED, "this window has no right to play: use the link that `longtake play` printed")
        elif player.window is not None:
            await window.close(BUSY, "another window plays; close it and reload this one")
        else:
            await _attend(player, window)

    @contextlib.asynccontextmanager
    async def alive(app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(player.start()), asyncio.create_task(player.play())]
        yield
        for task in tasks:
            task.cancel()
        if player.game is not None:
            player.game.close()

    return Starlette(routes=[Route("/", page), WebSocketRoute("/socket", socket)], lifespan=alive)


async def _attend(player: Player, window: WebSocket) -> None:
    """Listen to the window that plays, until it is gone."""
    player.window = window
    hello = asyncio.create_task(player.welcome())
    try:
        while True:
            order = json.loads(await window.receive_text())
            if "keys" in order:
                player.keys = {str(key) for key in order["keys"]}
            else:
                await player.obey(order)
    except (WebSocketDisconnect, ValueError):
        pass
    finally:
        hello.cancel()
        player.window, player.keys = None, set()


def _own(window: WebSocket) -> bool:
    """Whether the page that opened the socket is this server's: a page of others cannot play."""
    origin, host = window.headers.get("origin"), window.headers.get("host")
    return origin in (None, f"http://{host}") and window.url.hostname in HOSTS


HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def _plain(text: str, code: int) -> Response:
    return Response(text + "\n", code, media_type="text/plain")
