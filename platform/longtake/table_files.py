"""The files of a table: immutable, versioned by name, and which of them stand.

    tables/NAME/PART.EVENT-TAG.parquet        one append; EVENT is its time in ns, TAG four random bytes
    tables/NAME/compacted-EVENT-TAG.parquet   many appends in one; its metadata tells the EVENT of each part

Of a part the version with the newest event stands, wherever it lies; the others are as good as gone, and whoever
finds them may remove them. A file is removed only after one that holds the same or newer versions is there, so at
every moment the files that stand hold every row that an append has acknowledged, once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.schema import LAYOUT

if TYPE_CHECKING:
    import pyarrow as pa

    from longtake.store import Store

PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*(/[A-Za-z0-9][A-Za-z0-9._=+-]*)*")
_VERSION = r"(\d{19})-[0-9a-f]{8}\.parquet"
_LIVE = re.compile(r"(.+)\." + _VERSION)
_COMPACTED = re.compile("compacted-" + _VERSION)
_NOTE = b"longtake"


@dataclass(frozen=True, order=True)
class File:
    """A file by name; `part` is None for a compacted one."""

    event: int
    name: str
    part: str | None


@dataclass
class Cache:
    """What was read of files while others vanished: a second look fetches only what is new."""

    data: dict[str, bytes] = field(default_factory=dict)
    fragments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """A file that stands, at `place`: its Parquet fragment, the parts that it gives with their events, the events of
    rows that it holds but that another file replaces (`stale`), and the only event that is asked for, if one is.
    """

    file: File
    place: str
    fragment: Any
    parts: Mapping[str, int]
    stale: frozenset[int]
    only: int | None = None

    def narrowed(self, part: str) -> Piece:
        """The same with the rows of one part."""
        return replace(self, parts={part: self.parts[part]}, only=self.parts[part])


def part_name(table: str, part: str, event: int) -> str:
    """A new name for a version of a part."""
    return f"tables/{table}/{part}.{event:019d}-{os.urandom(4).hex()}.parquet"


def compacted_name(table: str, event: int) -> str:
    """A new name for a compacted file."""
    return f"tables/{table}/compacted-{event:019d}-{os.urandom(4).hex()}.parquet"


def note(table: str, **more: Any) -> dict[bytes, bytes]:
    """The metadata of a file."""
    return {_NOTE: json.dumps({"layout": LAYOUT, "table": table, **more}).encode()}


def versions(store: Store, table: str, part: str) -> list[File]:
    """The files that hold only this part, oldest first."""
    found = _files(table, store.starting(f"tables/{table}/{part}."), store)
    return sorted(file for file in found if file.part == part)


def files(store: Store, table: str, part: str | None = None) -> list[File]:
    """All files of a table, or those that can hold one part.

    Looked up twice: a listing is no snapshot, and while one goes on, a file may be put where it has passed already
    and the one that it replaces be removed where it has not come yet. What one look missed, the other sees.
    """
    found: set[str] = set()
    for _ in range(2):
        if part is None:
            found.update(store.find(f"tables/{table}"))
        else:
            found.update(store.starting(f"tables/{table}/{part}."), store.starting(f"tables/{table}/compacted-"))
    every = _files(table, sorted(found), store)
    return [file for file in every if part is None or file.part in (part, None)]


def _files(table: str, names: Iterable[str], store: Store) -> list[File]:
    prefix = f"tables/{table}/"
    found = []
    for name in names:
        rest = name.removeprefix(prefix)
        if live := _LIVE.fullmatch(rest):
            found.append(File(int(live[2]), name, live[1]))
        elif compacted := _COMPACTED.fullmatch(rest):
            found.append(File(int(compacted[1]), name, None))
        elif name.endswith(".parquet"):
            raise UserError(f"{store.uri}/{name} is no file of a table of this layout ({LAYOUT}): move it away")
    return found


def standing(store: Store, found: Iterable[File], cache: Cache) -> list[Piece]:
    """The files that give a part, oldest first. Raises FileNotFoundError if one has vanished: look again."""
    found = sorted(found)
    inside = {file: _parts(store, file, cache) for file in found}
    # Of one version in several files (a compaction that was killed, or two at once), the newest compaction's counts.
    winner: dict[str, tuple[int, bool, File]] = {}
    for file, parts in inside.items():
        for part, event in parts.items():
            claim = (event, file.part is None, file)
            winner[part] = max(winner.get(part, claim), claim)
    given: dict[File, dict[str, int]] = {}
    for part, (event, _, file) in winner.items():
        given.setdefault(file, {})[part] = event
    _fetch(store, [file for file in given if file.part is not None], cache)
    return [
        Piece(
            file,
            f"{store.uri}/{file.name}",
            _fragment(store, file, cache),
            parts,
            stale=frozenset(inside[file].values()) - set(parts.values()),
        )
        for file, parts in sorted(given.items(), key=lambda item: item[0])
    ]


def _parts(store: Store, file: File, cache: Cache) -> dict[str, int]:
    """Part → event of what a file holds."""
    if file.part is not None:
        return {file.part: file.event}
    parts: dict[str, int] = _read_note(store, file, _fragment(store, file, cache))["parts"]
    return parts


def _fetch(store: Store, wanted: Iterable[File], cache: Cache) -> None:
    """Read live parts whole: they are small, and an object storage gives many at the same time."""
    missing = [file.name for file in wanted if file.name not in cache.data]
    gone = None
    for name, data in store.read_many(missing).items():
        if data is None:
            gone = name
        else:
            cache.data[name] = data
    if gone is not None:
        raise FileNotFoundError(gone)


def _fragment(store: Store, file: File, cache: Cache) -> Any:
    """The Parquet fragment of a file, its footer read and checked."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    if file.name not in cache.fragments:
        source = pa.BufferReader(cache.data[file.name]) if file.part is not None else store.open(file.name)
        with damage_told(f"{store.uri}/{file.name}"):
            fragment = ds.ParquetFileFormat().make_fragment(source)
            fragment.ensure_complete_metadata()
        _read_note(store, file, fragment)
        cache.fragments[file.name] = fragment
    return cache.fragments[file.name]


def _read_note(store: Store, file: File, fragment: Any) -> dict[str, Any]:
    """What the file says of itself. Raises UserError if it is of a newer layout or says nothing."""
    told = (fragment.physical_schema.metadata or {}).get(_NOTE)
    read: dict[str, Any] = json.loads(told) if told else {}
    if read.get("layout") != LAYOUT:
        raise UserError(
            f"{store.uri}/{file.name} has layout {read.get('layout', 'none')} of tables; this Longtake reads {LAYOUT}"
        )
    return read


@contextlib.contextmanager
def damage_told(place: str) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into what its owner can do."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{place} is damaged ({reason}); remove it and do the work that wrote it again") from error


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The union of the columns; one that has types without a common one (number and text) becomes text."""
    import pyarrow as pa

    distinct = list({str(schema): schema for schema in schemas}.values())
    fields: dict[str, pa.Field] = {}
    for schema in distinct:
        for one in schema.remove_metadata():
            held = fields.get(one.name)
            fields[one.name] = one if held is None else _common_field(held, one)
    return pa.schema(list(fields.values()))


def _common_field(one: pa.Field, other: pa.Field) -> pa.Field:
    import pyarrow as pa

    try:
        return pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive").field(0)
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.field(one.name, pa.string())
