"""The files of a table: immutable, versioned by name, and which of them stand.

    tables/NAME/PART.EVENT-DIGEST.parquet        one append; EVENT is its time in ns, DIGEST of the whole file
    tables/NAME/compacted-EVENT-DIGEST.parquet   many appends in one; its metadata tells the EVENT of each part, DIGEST
                                                 is that of its tail (`longtake.storage.sealed_files`)
    tables/NAME/.written/...-DIGEST              empty: a file of that name was written whole

Of a part the version with the newest event stands, wherever it lies; the others are as good as gone, and whoever
finds them may remove them. A file is removed only after one that holds the same or newer versions is there, so at
every moment the files that stand hold every row that an append has acknowledged, once.

The mark in `.written/` comes after its file and goes after it. So a mark whose part nowhere stands in this version or a
newer one tells of a file that was lost; a writer that is killed between the two leaves a file without a mark, which is
as good as any other.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.storage.sealed_files import SealedFile, damaged, digest, seal
from longtake.tables.schema import LAYOUT

if TYPE_CHECKING:
    import pyarrow as pa

    from longtake.storage.store import Store

PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*(/[A-Za-z0-9][A-Za-z0-9._=+-]*)*")
_VERSION = r"(\d{19})-([0-9a-f]{32})"
_LIVE = re.compile(r"(.+)\." + _VERSION)
_COMPACTED = re.compile("compacted-" + _VERSION)
_WRITTEN = ".written/"
_NOTE = b"longtake"


@dataclass(frozen=True, order=True)
class File:
    """A file by name; `part` is None for a compacted one."""

    event: int
    name: str
    part: str | None
    digest: str

    @property
    def mark(self) -> str:
        """The name of its mark."""
        _, table, rest = self.name.removesuffix(".parquet").split("/", 2)
        return f"tables/{table}/{_WRITTEN}{rest}"


@dataclass(frozen=True)
class Listing:
    """The files of a table that are there, and those that were written, by their marks."""

    present: list[File]
    written: list[File]


@dataclass
class Cache:
    """What was read of files while others vanished: a second look fetches only what is new."""

    data: dict[str, bytes] = field(default_factory=dict)
    fragments: dict[str, Any] = field(default_factory=dict)
    sealed: dict[str, SealedFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """A file that stands, at `place`: its Parquet fragment, the parts that it gives with their events, the events of
    rows that it holds but that another file replaces (`stale`), and the only event that is asked for, if one is.
    A compacted one is `sealed`; the others were checked when they were fetched.
    """

    file: File
    place: str
    fragment: Any
    parts: Mapping[str, int]
    stale: frozenset[int]
    only: int | None = None
    sealed: SealedFile | None = None

    def narrowed(self, part: str) -> Piece:
        """The same with the rows of one part."""
        return replace(self, parts={part: self.parts[part]}, only=self.parts[part])

    def checked(self, columns: Collection[str], condition: Any, schema: pa.Schema) -> Any:
        """The fragment, without the row groups that a condition rules out, its bytes in these columns checked."""
        if self.sealed is None:
            return self.fragment
        kept = self.fragment if condition is None else self.fragment.subset(filter=condition, schema=schema)
        self.sealed.require(kept.metadata, {group.id for group in kept.row_groups}, columns)
        return kept


def part_file(table: str, part: str, event: int, rows: pa.Table) -> tuple[File, bytes]:
    """A version of a part: its name, and its bytes."""
    data = _parquet(rows)
    checksum = digest(data).hex()
    return File(event, f"tables/{table}/{part}.{event:019d}-{checksum}.parquet", part, checksum), data


def compacted_file(table: str, event: int, rows: pa.Table, group_rows: int) -> tuple[File, bytes]:
    """A compacted file: its name, and its bytes."""
    data, checksum = seal(_parquet(rows, row_group_size=group_rows))
    return File(event, f"tables/{table}/compacted-{event:019d}-{checksum}.parquet", None, checksum), data


def _parquet(rows: pa.Table, **more: Any) -> bytes:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True, **more)
    return sink.getvalue()


def write(store: Store, file: File, data: bytes) -> None:
    """Write a file, then the mark that it was written."""
    store.write_bytes(file.name, data)
    store.write_bytes(file.mark, b"")


def remove(store: Store, files: Sequence[File], marks: Sequence[File] = ()) -> None:
    """Remove files, and after them their marks and those of others that are gone."""
    store.remove([*(file.name for file in files), *(file.mark for file in files), *(file.mark for file in marks)])


def note(table: str, **more: Any) -> dict[bytes, bytes]:
    """The metadata of a file."""
    return {_NOTE: json.dumps({"layout": LAYOUT, "table": table, **more}).encode()}


def versions(store: Store, table: str, part: str) -> list[File]:
    """The files that hold only this part, oldest first."""
    present = _files(table, store.starting(f"tables/{table}/{part}."), store).present
    return sorted(file for file in present if file.part == part)


def named(name: str) -> File | None:
    """The file of a table that a name of the store is of; None for marks, and for what is none."""
    tables, table, *_ = name.split("/", 2)
    prefix = f"{tables}/{table}/"
    return _named(prefix, name.removeprefix(prefix).removesuffix(".parquet")) if name.endswith(".parquet") else None


def newest_event(store: Store, table: str, start: str) -> int:
    """The newest event that files have which can hold parts of names beginning so; 0 without any."""
    folder = f"tables/{table}/"
    names = [*store.starting(f"{folder}{start}"), *store.starting(f"{folder}compacted-")]
    return max((file.event for file in _files(table, names, store).present), default=0)


def parts_in(store: Store, file: File) -> list[str]:
    """The parts that a compacted file gives; none if it has just been replaced."""
    try:
        return list(_parts(store, file, Cache()))
    except FileNotFoundError:
        return []


def files(store: Store, table: str, part: str | None = None) -> Listing:
    """All files of a table, or those that can hold one part.

    Looked up twice: a listing is no snapshot, and while one goes on, a file may be put where it has passed already
    and the one that it replaces be removed where it has not come yet. What one look missed, the other sees.
    """
    names: set[str] = set()
    folder = f"tables/{table}/"
    for _ in range(2):
        if part is None:
            names.update(store.find(folder))
            continue
        # The marks first: what they tell of is there by then.
        for start in (f"{folder}{_WRITTEN}", folder):
            names.update(store.starting(f"{start}{part}."), store.starting(f"{start}compacted-"))
    every = _files(table, sorted(names), store)
    if part is None:
        return every
    return Listing(*([file for file in some if file.part in (part, None)] for some in (every.present, every.written)))


def _files(table: str, names: Iterable[str], store: Store) -> Listing:
    prefix = f"tables/{table}/"
    listing = Listing([], [])
    strange: list[str] = []
    for name in names:
        rest = name.removeprefix(prefix)
        marked = rest.startswith(_WRITTEN)
        if not marked and not name.endswith(".parquet"):
            continue
        file = _named(prefix, rest.removeprefix(_WRITTEN) if marked else rest.removesuffix(".parquet"))
        if file is not None:
            (listing.written if marked else listing.present).append(file)
        elif not marked:
            strange.append(name)
    if strange:
        also = f", nor are {len(strange) - 1} more below {store.uri}/tables/{table}" if len(strange) > 1 else ""
        raise UserError(
            f"{store.uri}/{strange[0]} is no file of a table of this layout ({LAYOUT}; older ones had no checksums)"
            f"{also}: move {'them' if also else 'it'} away; any other reader of Parquet still reads such files"
        )
    return listing


def _named(prefix: str, version: str) -> File | None:
    """The file PREFIX VERSION.parquet, if it is one of a table."""
    if compacted := _COMPACTED.fullmatch(version):
        return File(int(compacted[1]), f"{prefix}{version}.parquet", None, compacted[2])
    if live := _LIVE.fullmatch(version):
        return File(int(live[2]), f"{prefix}{version}.parquet", live[1], live[3])
    return None


def lost(listing: Listing, pieces: Iterable[Piece]) -> list[File]:
    """Files that were written and that nothing there stands for: of each part the newest that is missing."""
    stands: dict[str | None, int] = {part: event for piece in pieces for part, event in piece.parts.items()}
    stands[None] = max((file.event for file in listing.present if file.part is None), default=-1)
    missing = {file.part: file for file in sorted(listing.written) if file.event > stands.get(file.part, -1)}
    return sorted(missing.values())


def standing(store: Store, candidates: Iterable[File], cache: Cache) -> list[Piece]:
    """The files that give a part, oldest first. Raises FileNotFoundError if one has vanished: look again."""
    candidates = sorted(candidates)
    inside = {file: _parts(store, file, cache) for file in candidates}
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
            sealed=cache.sealed.get(file.name),
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
    missing = {file.name: file for file in wanted if file.name not in cache.data}
    gone = None
    for name, data in store.read_many(list(missing)).items():
        if data is None:
            gone = name
        elif digest(data).hex() != missing[name].digest:
            raise damaged(f"{store.uri}/{name}")
        else:
            cache.data[name] = data
    if gone is not None:
        raise FileNotFoundError(gone)


def _fragment(store: Store, file: File, cache: Cache) -> Any:
    """The Parquet fragment of a file, its footer read and checked."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    if file.name not in cache.fragments:
        if file.part is None:
            cache.sealed[file.name] = SealedFile(store, file.name, file.digest)
            source = cache.sealed[file.name].source()
        else:
            source = pa.BufferReader(cache.data[file.name])
        checking = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        with damage_told(f"{store.uri}/{file.name}"):
            fragment = ds.ParquetFileFormat(default_fragment_scan_options=checking).make_fragment(source)
            fragment.ensure_complete_metadata()
        _read_note(store, file, fragment)
        cache.fragments[file.name] = fragment
    return cache.fragments[file.name]


def _read_note(store: Store, file: File, fragment: Any) -> dict[str, Any]:
    """What the file says of itself. Raises UserError if it is of another layout or table, or says nothing."""
    note = (fragment.physical_schema.metadata or {}).get(_NOTE)
    read: dict[str, Any] = json.loads(note) if note else {}
    if read.get("layout") != LAYOUT:
        raise UserError(
            f"{store.uri}/{file.name} has layout {read.get('layout', 'none')} of tables; this Longtake reads {LAYOUT}"
        )
    if (table := file.name.split("/")[1]) != read["table"]:
        raise UserError(f"{store.uri}/{file.name} is a file of table {read['table']}, not of {table}: move it back")
    return read


@contextlib.contextmanager
def damage_told(place: str) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into what its owner can do."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(place) from error


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
