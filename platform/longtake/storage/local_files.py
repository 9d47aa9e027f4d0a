"""Folders of this machine: written whole, and listed. Only ENOENT says that nothing is there; other errors are told.

The listings of the standard library and of fsspec (`os.path.exists`, `os.walk`, `rglob`, `find`, `glob`) take a folder
that cannot be read for an empty one, and who believes that begins anew what is there already.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from longtake.errors import UserError

TEMPORARY = ".longtake-tmp-"
"""How the names of half-written files begin; no listing shows them."""


def is_there(path: str) -> bool:
    """Whether a file or folder of that path is there. Raises OSError if that cannot be known."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def is_inside(name: str) -> bool:
    """Whether a name that others gave, `/` between its parts, stays within the folder that it is put below."""
    return not any(part in ("", ".", "..") or "\0" in part for part in name.split("/"))


def entries(path: str) -> list[os.DirEntry[str]]:
    """What lies directly in a folder, sorted by name; nothing if there is no such folder. Raises OSError."""
    try:
        with os.scandir(path) as scan:
            return sorted(scan, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def files(path: str) -> Iterator[os.DirEntry[str]]:
    """The files below a folder; linked folders are not entered. Raises OSError."""
    for entry in entries(path):
        if not entry.is_dir():
            yield entry
        elif not entry.is_symlink():
            yield from files(entry.path)


def sizes(path: str) -> dict[str, int]:
    """Bytes of each file below a folder by its path in it; one that vanishes meanwhile is left out. Raises OSError."""
    by_name: dict[str, int] = {}
    for entry in files(path):
        with contextlib.suppress(FileNotFoundError):
            by_name[os.path.relpath(entry.path, path)] = entry.stat().st_size
    return by_name


@contextlib.contextmanager
def errors_told(place: str) -> Iterator[None]:
    """Make of an error of reading one line that names the path; FileNotFoundError stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        what = f"{error.filename or place} cannot be read: {error.strerror or error}"
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise UserError(
            f"{what} ({name}); what is there is not known, and was left as it is: {_cure(error)}"
        ) from error


OTHER_REGION = "the bucket is in another region: set AWS_REGION to that one"
CURES = {
    "ExpiredToken": "the token has run out: log in again (aws sso login), or renew AWS_SESSION_TOKEN",
    "InvalidToken": "AWS_SESSION_TOKEN is not of these keys: renew all three, or unset it",
    "InvalidAccessKeyId": "the server does not know this key: see AWS_ACCESS_KEY_ID, AWS_PROFILE and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not the secret of AWS_ACCESS_KEY_ID",
    "RequestTimeTooSkewed": "this machine's clock is off: set it (timedatectl set-ntp true)",
    "AccessDenied": "the key may not read there: it needs s3:ListBucket and s3:GetObject for that prefix",
    "AuthorizationHeaderMalformed": OTHER_REGION,
    "IllegalLocationConstraintException": OTHER_REGION,
    "PermanentRedirect": OTHER_REGION,
}
"""What to do about what an object storage refuses, by its code."""


def _cure(error: OSError) -> str:
    """What to do about an error of reading; botocore's, which s3fs makes an OSError of, tells its code."""
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    if error.errno == errno.EREMCHG:  # what s3fs makes of a redirect without a code
        code = "PermanentRedirect"
    return CURES.get(code, "mend the storage or its permissions and try again")


def not_written(error: Exception, store: str) -> Exception:
    """The UserError for an error of writing that the system has a number for; any other stays itself."""
    code = getattr(error, "errno", None)
    if code is None and not isinstance(error, PermissionError):
        return error
    named = f"; {name}" if (name := getattr(error, "filename", None)) else ""
    if code in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left in store {store}{named}")
    why = f"{getattr(error, 'strerror', None) or error} ({errno.errorcode.get(code or errno.EACCES, code)})"
    return UserError(f"store {store} cannot be written: {why}{named}")


def sync(path: Path) -> None:
    """Let what a file holds, or the names in a folder, outlast a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move_in(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Move the files of a folder into another one on the same disk; when it returns, a power cut takes none of them."""
    for name in names:
        sync(source / name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, folder / name)
    for inner in sorted(
        {parent for name in names for parent in (folder / name).parents if parent.is_relative_to(folder)}
    ):
        sync(inner)
    sync(folder.parent)


def write(path: Path, data: bytes, temporary_prefix: str) -> None:
    """Write beside the file, sync, then rename: a crash, of the machine too, leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=temporary_prefix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
