"""Ray's jobs API over HTTP, usually at the end of an ssh tunnel: address, token, time-out, and errors one can act on.

An address in the environment would win over the one that is passed to Ray's client, and its requests would wait
forever. Here it is the other way round, and they do not.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from longtake.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
REQUEST_TIMEOUT_S = 30.0


def normal_address(address: str | None) -> str:
    """The given address, or RAY_API_SERVER_ADDRESS, or the dashboard's usual one, as http://HOST:PORT."""
    text = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    text = text if "://" in text else f"http://{text}"
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"address {text!r}: expected the dashboard's, such as {DEFAULT_ADDRESS}")
    return text.rstrip("/")


def token() -> str | None:
    """The cluster's token, where Ray's own tools look for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return (path.read_text().strip() or None) if path.is_file() else None


def connect(address: str) -> Any:
    """Ray's client for this very address, with the token if there is one, and with a time-out."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's client, with a time-out."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=REQUEST_TIMEOUT_S, **options)

    key = token()
    with _without_environment("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        return Client(address, headers={"Authorization": f"Bearer {key}"} if key else None)


@contextlib.contextmanager
def _without_environment(*names: str) -> Iterator[None]:
    """Hide variables for a moment."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what Ray says about every package that it sends."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def outside_errors(address: str) -> Iterator[None]:
    """Turn what can go wrong outside this program into a line that says what to do."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        missing = "Authentication required" in error.message
        raise UserError(
            f"{address} wants a token and got none: put the cluster's into ~/.ray/auth_token (mode 600), "
            "or name its file in RAY_AUTH_TOKEN_PATH"
            if missing
            else f"{address} does not accept this token: copy the cluster's into ~/.ray/auth_token, "
            "or name its file in RAY_AUTH_TOKEN_PATH"
        ) from None
    except (requests.exceptions.JSONDecodeError, requests.exceptions.HTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 200)
        raise UserError(f"what answers at {address} is not a Ray head (HTTP {status}); give --address") from None
    except (ConnectionError, requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        raise UserError(
            f"no Ray head answers at {address}: open the tunnel in another terminal "
            "(ray dashboard cluster.yaml), or give --address"
        ) from None
    except RuntimeError as error:
        if "Version check returned 404" in str(error):
            raise UserError(f"what answers at {address} is not a Ray head (HTTP 404); give --address") from None
        broken = re.match(r"Request failed with status code (5\d\d): (.*)", str(error), re.DOTALL)
        if broken is None:
            raise
        reason = (broken[2].strip(" .\n").splitlines() or ["no reason given"])[-1]
        raise UserError(f"the head at {address} could not answer (HTTP {broken[1]}): {reason}") from None


def require_same_ray(client: Any, address: str) -> None:
    """Raise UserError if the cluster's Ray is of another version: the code that is sent is made for this one."""
    import ray

    if client._server_ray_version != ray.__version__:
        raise UserError(
            f"the cluster at {address} runs Ray {client._server_ray_version}, here it is {ray.__version__}: "
            "make them the same (requirements.txt)"
        )


def is_loopback(address: str) -> bool:
    """Whether a URL leads to this machine, or into a tunnel that begins here."""
    host = urlsplit(address).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def is_own(ip: str) -> bool:
    """Whether an address belongs to this machine: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
