"""The service's face: HTTP with JSON, PNG or npy, and a WebSocket for each session. Every request shows the token.

GET /                       the model: actions, size of frames, what it was trained on
POST /sessions              begin a session: {"seed": 0, "streams": 4}, or {"world": a saved one, base64}
POST /sessions/ID           an order, see `longtake.jobs.serve.orders`; pictures as the header Accept wants them
GET /sessions/ID            where it is; GET /sessions/ID/world: what `World.save` writes; DELETE /sessions/ID
WS /sessions/ID/socket      orders as text; answers: length of the JSON in four bytes, the JSON, an npy file
GET /metrics
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import io
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from longtake.errors import UserError, unknown
from longtake.jobs.serve import orders
from longtake.jobs.serve.journal import UnknownSession
from longtake.jobs.serve.sessions import Answer, Conflict, Sessions
from longtake.worlds import wire
from longtake.worlds.inputs import Frames
from longtake.worlds.remote import NPY, STATE
from longtake.worlds.world import World

UNAUTHORISED = 4401
"""Code with which a socket without the token is closed."""
TIDY_S = 5.0
FIELDS = ("seed", "streams", "world")


def application(sessions: Sessions, token_digest: str, metrics: Callable[[], Awaitable[dict[str, Any]]]) -> ASGIApp:
    """The ASGI application. token_digest: SHA-256 of the token, in hex; metrics: of all replicas."""

    @contextlib.asynccontextmanager
    async def alive(app: Starlette) -> AsyncIterator[None]:
        tidying = asyncio.create_task(_tidy(sessions))
        yield
        tidying.cancel()
        await sessions.close()

    face = _Face(sessions, metrics)
    routes = [
        Route("/", face.about),
        Route("/metrics", face.metrics),
        Route("/sessions", face.begin, methods=["POST"]),
        Route("/sessions/{id}", face.facts, methods=["GET"]),
        Route("/sessions/{id}", face.act, methods=["POST"]),
        Route("/sessions/{id}", face.end, methods=["DELETE"]),
        Route("/sessions/{id}/world", face.world),
        WebSocketRoute("/sessions/{id}/socket", face.socket),
    ]
    handlers: Any = {UserError: _refused}
    return _Guard(Starlette(routes=routes, exception_handlers=handlers, lifespan=alive), token_digest)


async def _tidy(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(min(TIDY_S, sessions.limits.idle_s))
        sessions.tidy()


class _Guard:
    """Lets nobody in without the token."""

    def __init__(self, app: ASGIApp, digest: str) -> None:
        self.app, self.digest = app, digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._knows(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            line = "a token is wanted: Authorization: Bearer TOKEN, the one that `longtake serve` printed"
            refusal = JSONResponse({"error": line}, 401, {"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": UNAUTHORISED, "reason": "a token is wanted"})

    def _knows(self, scope: Scope) -> bool:
        kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).hexdigest()
        return kind.lower() == "bearer" and hmac.compare_digest(given, self.digest)


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, _status(error))


def _status(error: Exception) -> int:
    return 404 if isinstance(error, UnknownSession) else 409 if isinstance(error, Conflict) else 400


class _Face:
    """What each route does."""

    def __init__(self, sessions: Sessions, metrics: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self.sessions, self._metrics = sessions, metrics

    async def about(self, request: Request) -> Response:
        return JSONResponse(about(self.sessions.fresh, self.sessions.limits.largest))

    async def metrics(self, request: Request) -> Response:
        return JSONResponse(await self._metrics())

    async def begin(self, request: Request) -> Response:
        facts = _begin_facts(await request.body())
        if (world := facts.get("world")) is not None:
            return JSONResponse(await self.sessions.take(wire.data(world, "world")), 201)
        return JSONResponse(await self.sessions.begin(facts.get("seed"), facts.get("streams")), 201)

    async def facts(self, request: Request) -> Response:
        return JSONResponse(await self.sessions.facts(request.path_params["id"]))

    async def act(self, request: Request) -> Response:
        answer = await self.sessions.act(request.path_params["id"], orders.read(await request.body()))
        return _shown(answer, request.headers.get("accept", ""))

    async def end(self, request: Request) -> Response:
        await self.sessions.end(request.path_params["id"])
        return Response(status_code=204)

    async def world(self, request: Request) -> Response:
        return Response(await self.sessions.packed(request.path_params["id"]), media_type="application/octet-stream")

    async def socket(self, socket: WebSocket) -> None:
        """Orders one after another; what is wrong is told, and the next one may come."""
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):  # the world waits
            while True:
                text = await socket.receive_text()
                try:
                    answer = await self.sessions.act(socket.path_params["id"], orders.read(text))
                except UserError as error:
                    answer = Answer({"error": str(error), "status": _status(error)})
                await socket.send_bytes(_framed(answer))


def _begin_facts(body: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise UserError('a session is begun with JSON, such as {"seed": 0}')
    if wrong := [unknown("field", str(name), FIELDS) for name in facts if name not in FIELDS]:
        raise UserError(*wrong)
    for name, kind in zip(FIELDS, (int, int, str), strict=True):
        if facts.get(name) is not None and type(facts[name]) is not kind:
            raise UserError(f"{name}: {facts[name]!r}; expected {'text' if kind is str else 'a whole number'}")
    return facts


def about(world: World, largest: int) -> dict[str, Any]:
    """What a client knows of the model."""
    return {
        "about": world.about.model_dump(mode="json"),
        "run": world.source.name,
        "step": world.source.step,
        "sampler": world.sampler.model_dump(mode="json"),
        "trained_frames": world.trained_frames,
        "conditioning": world.conditioning,
        "frames_per_step": world.frames_per_step,
        "most_streams": largest,
    }


def _shown(answer: Answer, accept: str) -> Response:
    """Pictures as they are wanted: one PNG, an npy file, or PNGs in the JSON."""
    frames = answer.frames
    if frames is None:
        return JSONResponse(answer.facts)
    headers = {STATE: json.dumps(answer.facts)}
    if NPY in accept:
        return Response(wire.npy(frames), media_type=NPY, headers=headers)
    pictures = frames.reshape(-1, *frames.shape[-3:])
    if "image/png" in accept:
        return Response(_png(np.concatenate(list(pictures), 1)), media_type="image/png", headers=headers)
    return JSONResponse(answer.facts | {"png": [wire.text(_png(picture)) for picture in pictures]})


def _png(picture: Frames) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _framed(answer: Answer) -> bytes:
    facts = json.dumps(answer.facts).encode()
    return struct.pack("<I", len(facts)) + facts + (b"" if answer.frames is None else wire.npy(answer.frames))
