"""What RAY_ADDRESS may be: anything else is one line within seconds."""

from __future__ import annotations

import socket
import threading

import pytest

from longtake.cluster import address
from longtake.cluster.launch import launch
from longtake.errors import UserError


@pytest.mark.parametrize("given", ["nonsense", "http://127.0.0.1:8265", "127.0.0.1", "127.0.0.1:0", "h:99999", "a b:1"])
def test_what_is_no_address_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(UserError, match="expected HOST:PORT") as caught, launch():
        pass
    assert len(caught.value.lines) == 1 and given in str(caught.value)


def test_a_dead_port_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(UserError, match="no Ray cluster answers there .*refused"), launch():
        pass
    with pytest.raises(UserError, match="no Ray cluster answers there"):
        address.require_ray("no-such-host.invalid:6379")


def test_something_else_that_listens_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept(), daemon=True).start()
        with pytest.raises(UserError, match="no head of Ray"):
            address.require_ray(f"127.0.0.1:{server.getsockname()[1]}")
