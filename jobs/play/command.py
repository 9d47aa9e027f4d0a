"""`longtake play RUN`: hold a trained world in a page of this machine, under one's keys.

The page shows the dream beside the same dream with its memory wiped, and beside the true world where its simulator is
installed: all of them are given the same keys.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from longtake.errors import UserError
from longtake.storage.store import open_store

if TYPE_CHECKING:
    from longtake.jobs.play.game import Game
    from longtake.models.config import SamplerConfig
    from longtake.worlds.remote import RemoteWorld
    from longtake.worlds.world import World

PACKAGES = ("starlette", "uvicorn", "websockets")
HOST = "127.0.0.1"


def main(
    run: str,
    store: str,
    port: int,
    context: int | None,
    start: int,
    sampler: SamplerConfig,
    service: str | None = None,
) -> None:
    """The command: check, print the link, serve until it is interrupted."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"play needs {', '.join(missing)}: pip install 'longtake[play]'")
    import uvicorn

    from longtake.jobs.play import server

    player = server.Player(loader(run, store, context, start, sampler, service), saver(store))
    listening = _listen(port)
    port = listening.getsockname()[1]
    print(f"play it at http://{HOST}:{port}/?token={player.token}\nCtrl-C ends it", flush=True)
    config = uvicorn.Config(server.application(player), log_level="warning", ws="websockets-sansio")
    uvicorn.Server(config).run(sockets=[listening])


def _listen(port: int) -> socket.socket:
    """A socket of this machine alone. Raises UserError where the port is taken."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}; 0 takes a free one") from None
    return listening


def loader(
    run: str, store: str, context: int | None, start: int, sampler: SamplerConfig, service: str | None
) -> Callable[[Callable[[str], None]], Game]:
    """What makes the game, and tells meanwhile what it waits for. `service`: URL of one that holds the world."""

    def load(tell: Callable[[str], None]) -> Game:
        from longtake.jobs.latents.pictures import true_of
        from longtake.jobs.play.game import Game

        tell("the model" if service is None else f"the service at {service}")
        world = _world(run, store, sampler, service)
        tell("the dataset")
        place = open_store(store)
        dataset = place.dataset(true_of(place, world.about.dataset))
        shown = context or max(1, (world.trained_frames or 32) // 2)
        game = Game(world, dataset, shown // world.frames_per_step * world.frames_per_step, start)
        tell("the context, and the simulator")
        game.begin(0)
        return game

    return load


def _world(run: str, store: str, sampler: SamplerConfig, service: str | None) -> World | RemoteWorld:
    if service is not None:
        from longtake.worlds.remote import RemoteWorld

        return RemoteWorld.connect(service)
    from longtake.worlds.world import World

    return World.load(run, store=store, sampler=sampler, streams=None, states=32, beyond_training=True)


def saver(store: str) -> Callable[[Game], str]:
    """What writes the recordings of a game as a dataset, and names it."""

    def save(game: Game) -> str:
        from longtake.jobs.play.recordings import save as write

        if game.recording is not None:
            game.record()
        dataset = write(game.finished, game.dream.source, open_store(store))
        game.finished = []
        return dataset.name

    return save
