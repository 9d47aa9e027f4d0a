"""What a user calls a place is meant letter by letter; what a server refuses is one line; and nothing looks empty."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from longtake.errors import UserError
from longtake.storage.store import Store, open_store

ODD = [
    "hash#tag",
    "what?now",
    "a b",
    "per%20cent",
    "br[a]c*",
    "plus+",
    "ünï-日本",
    "semi;colon",
    "a=b&c",
    "it's",
    "new\nline",
]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["folder", "S3"])
def test_names_are_literal(kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "S3" and "\n" in name:
        return  # look-alikes take no such key
    root = str(tmp_path) if kind == "folder" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    beside, store = open_store(root), open_store(f"{root}/{name}")
    beside.write_bytes(f"{name[:2]}/d/other.txt", b"0")
    store.require_writable()
    for file in ("d/y.txt", "d/z[1].txt", "d/#?.txt"):
        store.write_bytes(file, file.encode())
    names = ["d/#?.txt", "d/y.txt", "d/z[1].txt"]
    assert store.list("d") == store.find() == store.starting("d/") == store.glob("d/*") == names
    assert store.read_many([*names, "d/none"]) == {**{file: file.encode() for file in names}, "d/none": None}
    assert beside.exists(f"{name}/d/y.txt") and store.sizes("d") == {file[2:]: len(file) for file in names}
    store.remove(["d/z[1].txt", "d/y.txt"])
    assert store.find() == ["d/#?.txt"]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3:/bucket/x", "expected a folder"),
        ("s3:x", "expected a folder"),
        ("s3a://bucket/x", "unknown scheme"),
        ("https://bucket.example/x", "unknown scheme"),
        ("file:here", "expected a folder"),
        ("a:b", "./NAME"),
        ("s3://", "names no bucket"),
        ("s3://Bucket#x/y", "no name of a bucket"),
        ("s3://a b/y", "no name of a bucket"),
        ("s3://key@bucket/y", "a key before the bucket"),
        ("s3://bucket/x?versionId=3", "one version"),
        (" s3://bucket/x", "white space"),
    ],
)
def test_places_that_are_none_are_refused(uri: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        open_store(uri)


def test_what_file_leads_to() -> None:
    assert open_store("file:///a/b").uri == open_store("file:/a/b").uri == open_store("/a/b").uri == "/a/b"
    assert open_store("S3://bucket/x/").uri == "s3://bucket/x"


@dataclass
class Answer:
    """What the server says to everything."""

    status: int
    code: str


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answer]:
    answer = Answer(403, "AccessDenied")

    class Refusing(BaseHTTPRequestHandler):
        def reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            page = b"<html><body>please log in</body></html>"
            error = f"<Error><Code>{answer.code}</Code><Message>{answer.code} happened</Message></Error>".encode()
            body = page if answer.code == "HTML" else error
            self.send_response(answer.status)
            self.send_header("Content-Type", "text/html" if answer.code == "HTML" else "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = reply

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{http.server_port}",
        "LONGTAKE_S3_PATIENCE_S": "20",
    }.items():
        monkeypatch.setenv(name, value)
    yield answer
    http.shutdown()
    http.server_close()


ASKED: list[Callable[[Store], object]] = [
    lambda store: store.require_exists(),
    lambda store: store.find(),
    lambda store: store.list("a"),
    lambda store: store.table("runs"),
]


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (400, "ExpiredToken", "ExpiredToken.*log in again"),
        (403, "InvalidAccessKeyId", "InvalidAccessKeyId.*AWS_PROFILE"),
        (403, "SignatureDoesNotMatch", "SignatureDoesNotMatch.*not the secret of"),
        (403, "RequestTimeTooSkewed", "RequestTimeTooSkewed.*clock"),
        (403, "AccessDenied", "AccessDenied.*s3:ListBucket"),
        (301, "PermanentRedirect", "another region"),
        (400, "AuthorizationHeaderMalformed", "AuthorizationHeaderMalformed.*AWS_REGION"),
        (404, "NoSuchBucket", "no such bucket"),
        (200, "HTML", "login page"),
        (302, "HTML", "login page"),
    ],
)
def test_what_a_server_refuses_is_one_line_and_never_empty(server: Answer, status: int, code: str, told: str) -> None:
    server.status, server.code = status, code
    for ask in ASKED:
        with pytest.raises(UserError, match=told) as caught:
            ask(open_store("s3://bucket/x"))
        assert len(caught.value.lines) == 1


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AWS_ENDPOINT_URL", "localhost:9000", "AWS_ENDPOINT_URL: 'localhost:9000' is no address"),
        ("AWS_ENDPOINT_URL_S3", "nothing", "AWS_ENDPOINT_URL_S3: 'nothing' is no address"),
        ("AWS_PROFILE", "nope", "nope"),
    ],
)
def test_settings_that_lead_nowhere_are_one_line(
    server: Answer, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        open_store("s3://bucket/x").find()
