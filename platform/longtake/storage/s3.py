"""The one S3 client: s3fs, and how long it waits for a server that is slow, breaks off, or is gone.

    AWS_ENDPOINT_URL             leads to a server other than Amazon's
    LONGTAKE_S3_PATIENCE_S       how long a request is tried again after it failed, 120 if not set
    LONGTAKE_S3_TIMEOUT_S        of one connection and of one silence while reading, 10 if not set

A request that a server answers with "no" (missing, forbidden) is not tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper
from fsspec.exceptions import FSTimeoutError
from s3fs import S3FileSystem

from longtake.errors import UserError

PATIENCE_S, TIMEOUT_S = 120.0, 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0
CONNECTIONS = 64  # at the same time; the default of 10 is less than what a batch of clips asks for

BROKEN = (
    aiohttp.ClientError,
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    ConnectionError,
    FSTimeoutError,
    ResponseParserError,
    TimeoutError,
)
BUSY = (errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO))
"""What s3fs makes of the answers 500 to 504."""

PORTAL = "a login page, a proxy or another region does that; look at AWS_ENDPOINT_URL, AWS_REGION and the network"
_inside: ContextVar[bool] = ContextVar("inside", default=False)


def client() -> PatientS3:
    """The client that the environment asks for. Raises UserError for settings that cannot be meant."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        parts = urlsplit(os.environ.get(name, ""))
        if "@" in parts.netloc:  # it is told to workers, and in errors
            raise UserError(f"{name}: has a name or password before the host; keys come from AWS_* or ~/.aws")
        if os.environ.get(name) and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise UserError(f"{name}: {os.environ[name]!r} is no address; expected http://HOST:PORT or https://HOST")
    # Look-alikes compute other checksums than Amazon: some refuse theirs, some keep a damaged object.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    timeout = _seconds("LONGTAKE_S3_TIMEOUT_S", TIMEOUT_S)
    return PatientS3(
        patience_s=_seconds("LONGTAKE_S3_PATIENCE_S", PATIENCE_S),
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL"),
        use_listings_cache=False,  # other processes write too
        config_kwargs={
            "connect_timeout": timeout,
            "read_timeout": timeout,
            "max_pool_connections": CONNECTIONS,
            "retries": {"total_max_attempts": 1},  # patience is ours, with an end in time
        },
    )


def _seconds(name: str, default: float) -> float:
    given = os.environ.get(name, "")
    try:
        seconds = float(given or default)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise UserError(f"{name}: {given!r} is no number of seconds above 0")
    return seconds


class PatientS3(S3FileSystem):  # type: ignore[misc]
    """s3fs that tries a broken request again until `patience_s` have passed since it first failed."""

    def __init__(self, *args: Any, patience_s: float = PATIENCE_S, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience_s = patience_s

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In here a server has to answer the first time: what is asked before anything has begun."""
        patience, self.patience_s = self.patience_s, 0.0
        try:
            yield
        finally:
            self.patience_s = patience

    async def set_session(self, *args: Any, **kwargs: Any) -> Any:
        """Connect. Raises UserError for settings that lead nowhere, such as a profile that is not there."""
        try:
            connected = await super().set_session(*args, **kwargs)
        except (boto.BotoCoreError, ValueError) as error:
            raise UserError(f"object storage: {error}") from error
        self._s3.meta.events.register("after-call.s3.ListObjectsV2", _require_listing, unique_id="longtake-listing")
        return connected

    async def _call_s3(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        call = super()._call_s3
        attempt = self._patiently(lambda: call(method, *args, **kwargs))
        return await (_listed(attempt, kwargs["Bucket"]) if method == "list_objects_v2" else attempt)

    call_s3 = sync_wrapper(_call_s3)

    async def _cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The answer's body can break as well as the request for it."""
        cat = super()._cat_file
        return await self._patiently(lambda: cat(path, *args, **kwargs))

    async def _lsdir(self, *args: Any, **kwargs: Any) -> Any:
        """Listings come in pages, which s3fs asks for by themselves."""
        listing = super()._lsdir
        return await _listed(self._patiently(lambda: listing(*args, **kwargs)), str(args[0]).split("/")[0])

    async def _find(self, *args: Any, **kwargs: Any) -> Any:
        find = super()._find
        return await self._patiently(lambda: find(*args, **kwargs))

    async def _patiently(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        if _inside.get():
            return await attempt()  # who called this will try again
        token, until, pause, left = _inside.set(True), 0.0, FIRST_PAUSE_S, None
        try:
            while True:
                try:
                    return await asyncio.wait_for(attempt(), left)
                except Exception as error:
                    if isinstance(error, RecursionError):  # botocore, of an answer 302 to everything
                        raise UserError(f"the object storage at {self._place} only sends elsewhere: {PORTAL}") from None
                    if isinstance(error, boto.BotoCoreError) and not _may_pass(error):
                        raise UserError(f"the object storage at {self._place} cannot be asked: {error}") from error
                    if not _may_pass(error):
                        raise
                    now = time.monotonic()
                    until = until or now + self.patience_s
                    if now + pause > until:
                        raise self._gone(error) from error
                await asyncio.sleep(pause)
                left, pause = until - time.monotonic(), min(2 * pause, LONGEST_PAUSE_S)
        finally:
            _inside.reset(token)

    def _gone(self, error: Exception) -> UserError:
        why = str(error) or type(error).__name__
        waited = f"for {self.patience_s:g} s (LONGTAKE_S3_PATIENCE_S)" if self.patience_s else "when asked"
        return UserError(f"the object storage at {self._place} did not answer {waited}: {why}")

    @property
    def _place(self) -> str:
        return self.endpoint_url or "Amazon S3"


def _require_listing(parsed: dict[str, Any], **_: Any) -> None:
    """Raise UserError for an answer that is no listing: a proxy's or a portal's page would read as an empty folder."""
    if parsed.get("ResponseMetadata", {}).get("HTTPStatusCode") == 200 and "IsTruncated" not in parsed:
        raise UserError(f"the object storage answered a listing with something else: {PORTAL}")


async def _listed(listing: Awaitable[Any], bucket: str) -> Any:
    """A listing: of a prefix without objects it is empty, so that "not found" can only mean the bucket."""
    try:
        return await listing
    except FileNotFoundError as error:
        raise UserError(f"s3://{bucket}: no such bucket (any more); make it, or mend the name") from error


def _may_pass(error: Exception) -> bool:
    """Whether the same request may do better in a while."""
    return isinstance(error, BROKEN) or (isinstance(error, OSError) and error.errno in BUSY)
