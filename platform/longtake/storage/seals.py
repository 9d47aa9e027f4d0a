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


def entries_of(record: Mapping[str, Any]) -> Entries:
    """The inverse of `told`."""
    return {name: Entry(size, record["sha256"][name]) for name, size in record["files"].items()}


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
    try:
        content = json.loads(data)
        seal = content.pop(KEY, None)
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise Damaged(f"{where}: damaged, it is no JSON of ours") from None
    if seal is None and "files" in content:
        raise UserError(
            f"{where}: of an earlier version of longtake, whose files have no SHA-256 and can run code when they are "
            "read; this version reads none such: train it again, or go on with the version that wrote it"
        )
    if seal != _digest(content):
        raise Damaged(f"{where}: damaged, its checksum does not match")
    record: dict[str, Any] = content
    return record


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
