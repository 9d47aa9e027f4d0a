"""A world that a service holds (`longtake serve`), with the face of `World`: the same calls, arrays and bits.

    world = RemoteWorld.connect("http://127.0.0.1:8000", token="...")
    world.observe(frames, pose=pose)
    frame = world.step("forward")

Every call says how many went before it, so one that got no answer is asked once more and is not done twice: a service
that restarts, or loses the process that held this world, is waited for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longtake.datasets.controls import Controls
from longtake.errors import UserError
from longtake.models.config import SamplerConfig
from longtake.worlds import wire
from longtake.worlds.about import About
from longtake.worlds.inputs import Action, Frames

if TYPE_CHECKING:
    import requests

TOKEN_FILE = "~/.longtake/serve_token"
TIMEOUT_S = 120.0
PATIENCE_S = 60.0
"""How long a service that does not answer is waited for."""
NPY = "application/x-npy"
STATE = "longtake-session"
"""Header that tells the facts of the session beside pictures."""
AGAIN = (500, 502, 503, 504)
"""Answers of a service that has just lost a process."""


class Service:
    """A service at a URL, and what it says of its model: `name` and `step` of the run, the rest as `World` has it."""

    def __init__(self, url: str, token: str, patience_s: float) -> None:
        """Raises UserError: nothing answers there, or it refuses the token."""
        import requests

        self.url, self.patience_s = url.rstrip("/"), patience_s
        self._http = requests.Session()
        self._http.trust_env = False  # the token is for this service, whatever .netrc says
        self._http.headers["Authorization"] = f"Bearer {token}"
        facts = self.call("GET", "/").json()
        self.about = About.model_validate_json(json.dumps(facts["about"]))
        self.sampler = SamplerConfig(**facts["sampler"])
        self.name: str = facts["run"]
        self.step: int | None = facts["step"]
        self.trained_frames: int | None = facts["trained_frames"]
        self.conditioning: str = facts["conditioning"]
        self.frames_per_step: int = facts["frames_per_step"]

    def call(self, method: str, path: str, *, session: str = "", **values: Any) -> requests.Response:
        """An answer, asked for again while the service is away. Raises UserError with the service's own line."""
        import requests

        headers = {"Accept": NPY} | ({"x-session-id": session} if session else {})
        deadline, wait = time.monotonic() + self.patience_s, 0.05
        while True:
            try:
                answer = self._http.request(
                    method, self.url + path, headers=headers, timeout=TIMEOUT_S, json=values or None
                )
                problem = f"HTTP {answer.status_code}"
            except requests.RequestException as error:
                answer, problem = None, type(error).__name__
            if answer is not None and answer.status_code not in AGAIN:
                return _accepted(answer, self.url)
            if time.monotonic() + wait > deadline:
                raise UserError(f"{self.url}: no answer ({problem}) within {self.patience_s:g} s; is it running?")
            time.sleep(wait)
            wait = min(2.0, 2 * wait)


def _accepted(answer: requests.Response, url: str) -> requests.Response:
    if answer.ok:
        return answer
    try:
        line = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{url}: HTTP {answer.status_code}; no longtake service answers there") from None
    raise UserError(*str(line).split("\n")) if answer.status_code != 401 else UserError(f"{url}: {line}")


class RemoteWorld:
    """A session of a service: streams of its model, each with a memory of its own, that advance together."""

    def __init__(self, service: Service, facts: dict[str, Any]) -> None:
        """Made by `connect`, `resume`, `fork` and their like."""
        self.source, self._facts = service, facts

    @classmethod
    def connect(
        cls,
        url: str,
        token: str | None = None,
        *,
        seed: int | None = None,
        streams: int | None = None,
        session: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Self:
        """A fresh world in which nothing has been seen, or one that is held there already.

        Args:
            url: of the service.
            token: that `longtake serve` printed; LONGTAKE_SERVE_TOKEN, else the file where it keeps it.
            seed: of the noise; stream i has that of seed + i. None: a random one.
            streams: how many go side by side; None: one, whose arrays have no axis for it.
            session: of a world that is there, by its `session`.
            patience_s: how long a service that does not answer is waited for.

        Raises:
            UserError: nothing answers there, it refuses the token, or there is no such session.
        """
        service = Service(url, _token(token), patience_s)
        if session is not None:
            return cls(service, service.call("GET", f"/sessions/{session}", session=session).json())
        wanted: dict[str, Any] = {"seed": seed, "streams": streams}
        given = {name: value for name, value in wanted.items() if value is not None}
        return cls(service, service.call("POST", "/sessions", **given).json())

    @classmethod
    def resume(cls, path: str | Path, url: str, token: str | None = None) -> Self:
        """The world that `save` wrote, here or of a `World` of the same weights, as a session. Raises UserError."""
        service = Service(url, _token(token), PATIENCE_S)
        return cls(service, service.call("POST", "/sessions", world=wire.text(Path(path).read_bytes())).json())

    def save(self, path: str | Path) -> None:
        """Write all that it goes on from into one file, which `World.resume` reads too."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.source.call("GET", f"/sessions/{self.session}/world", session=self.session).content)

    def end(self) -> None:
        """Let the service forget this session for good."""
        self.source.call("DELETE", f"/sessions/{self.session}", session=self.session)

    # --- what it is ----------------------------------------------------------------------------------------

    @property
    def session(self) -> str:
        """Its name at the service."""
        return str(self._facts["session"])

    @property
    def about(self) -> About:
        """Its name, frames and actions."""
        return self.source.about

    @property
    def controls(self) -> Controls:
        """What can be done in it, by name and key, and how that moves the pose."""
        return self.about.controls

    @property
    def action_names(self) -> tuple[str, ...]:
        """Actions that `step` takes by name."""
        return tuple(control.name for control in self.controls.controls)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of a picture."""
        return self.about.frame_shape

    @property
    def fps(self) -> float:
        """Pictures per second of world time."""
        return self.about.fps

    @property
    def sampler(self) -> SamplerConfig:
        """How its frames are made."""
        return self.source.sampler

    @property
    def trained_frames(self) -> int | None:
        """Frames of the longest clips of its training."""
        return self.source.trained_frames

    @property
    def conditioning(self) -> str:
        """What its model is told of each frame: pose, actions or both."""
        return self.source.conditioning

    @property
    def frames_per_step(self) -> int:
        """Frames that one step makes."""
        return self.source.frames_per_step

    @property
    def streams(self) -> int:
        """How many go side by side."""
        return int(self._facts["streams"])

    @property
    def frames(self) -> int:
        """Frames seen and made so far."""
        return int(self._facts["frames"])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all streams carry."""
        return int(self._facts["nbytes"])

    @property
    def attention_nbytes(self) -> int:
        """Bytes that keys and values of every frame so far would take, were each layer full attention, in fp32."""
        return int(self._facts["attention_nbytes"])

    @property
    def pose(self) -> NDArray[np.float64] | None:
        """x, y and yaw of the last frame, (3,) or (b, 3); None before the first, or in a world without poses."""
        pose = self._facts["pose"]
        return None if pose is None else np.array(pose, np.float64)

    # --- what it does: see `World` for arguments and errors --------------------------------------------------

    def observe(self, frames: ArrayLike, *, actions: ArrayLike | None = None, pose: ArrayLike | None = None) -> None:
        """Show it pictures uint8 (T, H, W, 3), or (b, T, H, W, 3)."""
        shown = wire.text(wire.npy(np.asarray(frames)))
        self._order("observe", frames=shown, actions=_listed(actions), pose=_listed(pose))

    def step(self, action: Action | None = None, *, pose: ArrayLike | None = None) -> Frames:
        """The next picture uint8 (H, W, 3), or (b, H, W, 3), which it then remembers."""
        answer = self._order("step", action=action if isinstance(action, str) else _listed(action), pose=_listed(pose))
        frames: Frames = wire.array(answer, "frames")
        return frames

    def forget(self) -> RemoteWorld:
        """Lose all that is remembered; where it is stays known. Returns itself."""
        self._order("forget")
        return self

    def rewind(self, k: int) -> RemoteWorld:
        """Go back by `k` frames, to the bits that were; returns itself. A fork goes back to where it was forked."""
        self._order("rewind", k=k)
        return self

    def fork(self, n: int) -> RemoteWorld:
        """`n` futures of each stream side by side, as another session."""
        if n < 1:
            raise UserError(f"fork: {n} futures; at least one")
        return self.of_streams([stream for stream in range(self.streams) for _ in range(n)])

    def of_streams(self, chosen: Sequence[int]) -> RemoteWorld:
        """A world of some of the streams, in that order, as another session."""
        return self._forked(list(chosen), False)

    def streams_apart(self) -> list[RemoteWorld]:
        """A session for each stream, whose arrays have no axis of streams."""
        return [self._forked([stream], True) for stream in range(self.streams)]

    def copy(self) -> RemoteWorld:
        """Another one that goes on from here."""
        return self._forked(list(range(self.streams)), bool(self._facts["single"]))

    def fresh(self, seeds: Sequence[int]) -> RemoteWorld:
        """A world of the same model in which nothing has been seen; seeds that follow one another, a stream each."""
        first, count = int(seeds[0]), len(seeds)
        if list(seeds) != list(range(first, first + count)):
            raise UserError(f"seeds: {list(seeds)}; a service takes seeds that follow one another")
        return RemoteWorld(self.source, self.source.call("POST", "/sessions", seed=first, streams=count).json())

    def _forked(self, streams: list[int], single: bool) -> RemoteWorld:
        self._order("fork", streams=streams, single=single)
        session = self._facts["fork"]
        return RemoteWorld(self.source, self.source.call("GET", f"/sessions/{session}", session=session).json())

    def _order(self, op: str, **values: Any) -> bytes:
        """What the service answers to an order; the facts of the session are those after it."""
        given = {name: value for name, value in values.items() if value is not None}
        path = f"/sessions/{self.session}"
        answer = self.source.call("POST", path, session=self.session, op=op, n=self._facts["n"], **given)
        held = answer.headers.get(STATE)
        self._facts = json.loads(held) if held is not None else answer.json()
        return answer.content


def _token(given: str | None) -> str:
    if token := given or os.environ.get("LONGTAKE_SERVE_TOKEN"):
        return token
    file = Path(TOKEN_FILE).expanduser()
    if not file.is_file():
        raise UserError(f"token: none given, none in LONGTAKE_SERVE_TOKEN or {TOKEN_FILE}; longtake serve printed it")
    return file.read_text().strip()


def _listed(values: Any) -> Any:
    return None if values is None else np.asarray(values).tolist()
