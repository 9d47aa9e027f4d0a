"""What was written, by name, size and SHA-256: how a reader knows that it reads just that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from longtake.errors import Damaged, UserError
from longtake.storage import local_files

KEY = "seal"
_STAMP = hashlib.sha256().digest_size


class Entry(NamedTuple):
    """What was written of a file."""

    bytes: int
    sha256: str


Entries = dict[str, Entry]


def sha256(path: Path) -> str:
    """The hash of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries(folder: Path) -> Entries:
    """Every file below a folder, by its name in it."""
    sizes = local_files.sizes(str(folder))
    return {name: Entry(size, sha256(folder / name)) for name, size in sorted(sizes.items())}


def told(entries: Entries) -> dict[str, Any]:
    """As JSON: `files` {name: bytes} and `sha256` {name: hash}."""
    return {
        "files": {name: entry.bytes for name, entry in entries.items()},
        "sha256": {name: entry.sha256 for name, entry in entries.items()},
    }


def entries_of(record: Mapping[str, Any], where: str) -> Entries:
    """The inverse of `told`. Raises Damaged, under the name `where`, for what is no such list."""
    files, sums = record.get("files"), record.get("sha256")
    if not (isinstance(files, dict) and isinstance(sums, dict) and files.keys() == sums.keys()):
        raise Damaged(f"{where}: damaged, it does not say of each file what was written")
    entries = {name: Entry(size, sums[name]) for name, size in files.items()}
    for name, entry in entries.items():
        if type(entry.bytes) is not int or not isinstance(entry.sha256, str) or not local_files.is_inside(name):
            raise Damaged(f"{where}: damaged, what it says of the file {name!r} cannot be")
    return entries


def faults(where: str, sizes: Mapping[str, int], written: Entries) -> list[str]:
    """A line per file that is missing, too long or short, or that nobody wrote; contents are not looked at."""
    wrong = [
        f"{where}/{name}: {sizes.get(name, 0)} bytes, {entry.bytes} were written"
        for name, entry in written.items()
        if sizes.get(name) != entry.bytes
    ]
    return wrong + [f"{where}/{name}: was not written with the rest" for name in sizes if name not in written]


def rot(where: str, name: str) -> str:
    """The line for a file with other bytes than were written."""
    return f"{where}/{name}: damaged, its SHA-256 is not that of what was written"


def dumped(content: Mapping[str, Any]) -> bytes:
    """A JSON file that carries the hash of its own content."""
    return json.dumps({**content, KEY: _digest(content)}, indent=1).encode()


def loaded(data: bytes, where: str) -> dict[str, Any]:
    """The content of such a file.

    Raises:
        Damaged: it is another content than was written.
        UserError: it carries no hash, as those of earlier versions.
    """
    content, is_sealed = _parsed(data, where)
    if not is_sealed and "files" in content:
        raise UserError(
            f"{where}: of an earlier version of longtake, whose files have no SHA-256 and can run code when they are "
            "read; this version reads none such: train it again, or go on with the version that wrote it"
        )
    if not is_sealed:
        raise Damaged(f"{where}: damaged, its checksum does not match")
    return content


def loaded_or_older(data: bytes, where: str) -> dict[str, Any]:
    """The same of a file whose kind had no hash in earlier versions: without one it is taken as it is.

    Raises:
        Damaged: it is another content than was written.
    """
    return _parsed(data, where)[0]


def _parsed(data: bytes, where: str) -> tuple[dict[str, Any], bool]:
    """The content, and whether it carries a hash, which is right then."""
    try:
        content = json.loads(data)
        seal = content.pop(KEY, None)
        whole = seal is None or seal == _digest(content)
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise Damaged(f"{where}: damaged, it is no JSON of ours") from None
    if not whole:
        raise Damaged(f"{where}: damaged, its checksum does not match")
    return content, seal is not None


def stamped(data: bytes) -> bytes:
    """A file of another kind whose readers pass over what stands behind its end, with its SHA-256 there."""
    return data + hashlib.sha256(data).digest()


def unstamped(data: bytes, where: str) -> bytes:
    """The bytes that were stamped. Raises Damaged for others, and for those of an earlier version."""
    content, stamp = data[:-_STAMP], data[-_STAMP:]
    if hashlib.sha256(content).digest() != stamp:
        raise Damaged(f"{where}: damaged, its SHA-256 is not that of what was written")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
