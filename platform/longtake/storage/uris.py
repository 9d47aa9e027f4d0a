"""What a user calls a place: a folder, or s3://BUCKET/PREFIX, whose text after the bucket is meant letter by letter."""

from __future__ import annotations

import os
import re
from pathlib import Path

from longtake.errors import UserError
from longtake.storage import local_files


def normal(uri: str) -> str:
    """An absolute folder, or s3://bucket/prefix without a slash at its end; what follows the bucket is literal."""
    if uri != uri.strip() and "://" in uri:
        raise UserError(f"store {uri!r}: white space before or after it")
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower() if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) else ""
    if scheme == "s3" and rest.startswith("//"):
        return _normal_s3(uri, *rest[2:].partition("/")[::2])
    if scheme not in ("", "file") or (scheme == "file" and not rest.startswith("/")):
        expected = "expected a folder (./NAME for one with a colon), file:///FOLDER or s3://BUCKET/PREFIX"
        raise UserError(f"store {uri!r}: unknown scheme {scheme!r}; {expected}")
    path = Path(os.path.abspath(os.path.expanduser((rest.removeprefix("//") if scheme else uri) or ".")))
    with local_files.errors_told(str(path)):
        is_file = path.exists() and not path.is_dir()
    if is_file:
        raise UserError(f"store {path} is a file; expected a folder or s3://BUCKET/PREFIX")
    return str(path)


def _normal_s3(uri: str, bucket: str, prefix: str) -> str:
    if not bucket:
        raise UserError(f"store {uri!r} names no bucket; expected s3://BUCKET/PREFIX")
    if "@" in bucket:  # it would be in every table and log
        name = bucket.rpartition("@")[2]
        raise UserError(f"store: a key before the bucket {name}; keys come from AWS_* or ~/.aws, never from a URI")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", bucket):
        raise UserError(f"store {uri!r}: {bucket!r} is no name of a bucket: letters, digits, dots and hyphens")
    if "?versionId=" in prefix:
        raise UserError(f"store {uri!r}: ?versionId= names one version of one object, not a place")
    return f"s3://{bucket}/{prefix.strip('/')}".rstrip("/")
