"""Where RAY_ADDRESS leads, asked before Ray is: Ray by itself waits for a quarter of an hour for what is not there."""

from __future__ import annotations

import os
import re
import socket

from longtake.errors import UserError

ANSWER_S = 10.0
_HOST_PORT = re.compile(r"(?:ray://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/@]+):([0-9]{1,5})")


def given() -> str | None:
    """Where RAY_ADDRESS leads, if it leads to a cluster: unset, empty or `local` it means this machine alone."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def require_ray(address: str) -> None:
    """Raise UserError, within some seconds, for an address that is none, or where no head of Ray answers."""
    if address == "auto":
        return
    parts = _HOST_PORT.fullmatch(address)
    if parts is None or not 0 < int(parts[2]) < 65536:
        raise UserError(
            f"RAY_ADDRESS={address}: expected HOST:PORT of a cluster's head (its port is 6379 as a rule), or auto; "
            "unset it for a Ray of this machine alone"
        )
    host, port = parts[1].strip("[]"), int(parts[2])
    try:
        socket.create_connection((host, port), ANSWER_S).close()
    except OSError as error:
        raise _silent(address, str(error.strerror or error)) from error
    if not os.environ.get("RAY_USE_TLS"):
        _require_grpc(address, f"{parts[1]}:{port}")


def _require_grpc(address: str, target: str) -> None:
    """A head speaks gRPC; whatever else listens there would be asked again and again."""
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            raise _silent(address, "something listens there, and it is no head of Ray") from None


def _silent(address: str, why: str) -> UserError:
    return UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({why}); start it, or unset RAY_ADDRESS")
