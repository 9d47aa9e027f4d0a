"""What tests of several rooms share: an S3 server of their own, on loopback; and `tests` for their own processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Processes that tests start, and Ray's workers, find `tests` too, and of this folder nothing else: from the root
    itself they could import `models` beside `longtake.models`, one file under two names."""
    shown = ROOT / "build" / "importable"
    shown.mkdir(parents=True, exist_ok=True)
    link = shown / "tests"
    if not link.is_symlink():
        link.symlink_to(ROOT / "tests", target_is_directory=True)
    paths = [os.environ.get("PYTHONPATH"), str(ROOT / "platform"), str(shown)]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    sys.path.append(str(shown))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a moto server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        try:
            _wait(url)
            import boto3

            boto3.client("s3").create_bucket(Bucket="bucket")
            yield "s3://bucket/wm"
        finally:
            server.terminate()
            server.wait(60)


def _wait(url: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"no server at {url}")
