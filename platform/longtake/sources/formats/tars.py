"""Tars: what is in one and where its bytes are, unpacked nowhere. What is not read as it was packed is refused by name.

Read are files (ustar, GNU and PAX, with long names and sizes), sparse ones through their maps, and hard links to what
stands before them. Folders and volume labels hold nothing. Symbolic links, devices, names that lead out of the archive
and types that nobody knows are refused one by one; a tar that is compressed, a part of several volumes, damaged, or
followed by another is refused as a whole from there on.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from longtake.datasets import room
from longtake.sources.formats.base import Refused

if TYPE_CHECKING:
    from longtake.storage.store import Store

BLOCK = tarfile.BLOCKSIZE
MOST_HEADER_BYTES = 2**20
"""Of a long name, or of a PAX header: the longest that a file system makes have a few thousand."""

PIECE = 2**20
"""Read at once of what follows the end of a tar."""

MOST_HOLES = 100
"""Times the stored bytes, beyond 4 GiB: a sparse file that claims more is no episode."""

COMPRESSED_NAMES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
_NOTHING = (tarfile.DIRTYPE, b"D", b"V")  # folders, GNU's lists of what was in a folder, labels of volumes
_OTHER_VOLUME = b"M"
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link, which is not followed: pack with tar --dereference",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
_OF_ONE_FILE = ("path", "linkpath", "size", "GNU.sparse.", "GNU.volume.")


@dataclass(frozen=True)
class Member:
    """A file in a tar: its size, and where its `stored` bytes are; of a sparse one what stretches (start, length) of
    the file they are, one behind the other: the rest of it is zeros.
    """

    name: str
    size: int
    offset: int
    stored: int
    stretches: tuple[tuple[int, int], ...] | None = None


@dataclass
class Contents:
    """Members in their order, reasons by name of those that are refused, and what is wrong with the tar from some
    place on, or nothing.
    """

    members: list[Member] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    damage: str = ""


class _Header(tarfile.TarInfo):
    """A header whose claims are believed only as far as they can be true: tarfile would jump back, or read for ever.

    `packed`: the bytes that it says follow it, which tarfile forgets for a sparse file.
    """

    packed = 0

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        header.packed = header.size
        if header.size < 0:
            raise tarfile.ReadError(f"a size of {header.size} bytes")
        if header.type in _HEADERS and header.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        if header.type == _OTHER_VOLUME:
            raise tarfile.ReadError("it goes on with a file of another volume: join the volumes first")
        return header


def contents(place: Store, tar: str, size: int) -> Contents:
    """What a tar of `size` bytes holds, from its headers."""
    listed = Contents()
    with place.fs.open(place.path(tar), "rb") as file:
        start = file.read(BLOCK)
        for magic, kind in _COMPRESSED.items():
            if start.startswith(magic):
                listed.damage = f"not a tar but {kind}: unpack it first"
                return listed
        file.seek(0)
        end = 0
        places: dict[str, Member] = {}
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
                while (member := archive.next()) is not None:
                    _require_sound(member, archive, end)
                    _take(listed, places, member, archive.offset, size)
                    end = archive.offset
                    archive.members.clear()  # type: ignore[attr-defined]
        # A damaged header makes tarfile raise whatever reading its numbers raises.
        except (tarfile.TarError, ValueError, OverflowError, IndexError, EOFError, RecursionError) as error:
            listed.damage = f"damaged after byte {end}, what follows is not read: {error}"
            return listed
        listed.damage = _after(file, end, size)
    return listed


def read(place: Store, tar: str, member: Member) -> bytes:
    """The bytes of a member as they were packed. Raises Refused if the tar is cut off."""
    room.take(member.stored, f"{member.name} of the tar")
    raw = place.read_range(tar, member.offset, member.stored)
    if len(raw) != member.stored:
        raise Refused(f"{member.name}: the tar is cut off, {len(raw)} of {member.stored} bytes are there")
    if member.stretches is None:
        return raw
    room.take(member.size, f"the sparse file {member.name}")
    data, at = bytearray(member.size), 0
    for start, length in member.stretches:
        data[start : start + length] = raw[at : at + length]
        at += length
    return bytes(data)


# --- headers ------------------------------------------------------------------------------------------------


def _require_sound(member: tarfile.TarInfo, archive: tarfile.TarFile, end: int) -> None:
    """Raise ReadError for a header that sends the reader back, and for one that speaks of all files that follow."""
    if member.size < 0 or archive.offset <= end:
        raise tarfile.ReadError(f"{ascii(member.name)} has a size of {member.size} bytes")
    for name in archive.pax_headers:
        if name.startswith(_OF_ONE_FILE):
            raise tarfile.ReadError(f"a global header gives every file the same {name}")


def _take(listed: Contents, places: dict[str, Member], member: tarfile.TarInfo, after: int, size: int) -> None:
    """Note a member, or why it is not read.

    Args:
        after: where its stored bytes end, up to the next whole block.
        size: of the tar.
    """
    why = ""
    member.name = _plain(member.name)
    if _leads_out(member.name):
        why = "its name leads out of the archive" if member.name.isprintable() else "its name is not printable"
    elif member.islnk():
        target = places.get(_plain(member.linkname))
        if target is None:
            why = f"a hard link to {ascii(member.linkname)}, which is not before it"
        else:
            places[member.name] = replace(target, name=member.name)
    elif member.isreg():
        places[member.name] = _located(member)
        if member.sparse is not None:
            packed = int(member.pax_headers.get("size", cast(_Header, member).packed))
            why = _sparse_fault(places[member.name], packed, after)
        why = why or _cut_fault(places[member.name], size)
    elif member.type in _NOTHING:
        return
    else:
        why = _KINDS.get(member.type, f"of a type that is not known: {member.type!r}")
    if why:
        places.pop(member.name, None)
        listed.refused[ascii(member.name)[1:-1]] = why
    else:
        listed.members.append(places[member.name])


def _plain(name: str) -> str:
    """A name without the parts that mean nothing: ./a is a, and would be another sample of the same files."""
    return "/".join(part for at, part in enumerate(name.split("/")) if part != "." and (part or not at))


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/") or not name.isprintable()


def _located(member: tarfile.TarInfo) -> Member:
    if member.sparse is None:
        return Member(member.name, member.size, member.offset_data, member.size)
    stretches = tuple((int(start), int(length)) for start, length in cast(list[tuple[int, int]], member.sparse))
    return Member(member.name, member.size, member.offset_data, sum(length for _, length in stretches), stretches)


def _sparse_fault(member: Member, packed: int, after: int) -> str:
    """Why a sparse file cannot be put together: its map has to be in order and to account for every stored byte.

    `packed` bytes, filled up to a whole block, lie before `after`: the file's, and before them a map, in some formats.
    """
    end = 0
    for start, length in member.stretches or ():
        if start < end or length < 0:
            return "a sparse file whose map is not in order"
        end = start + length
    if end > member.size:
        return f"a sparse file whose map goes to byte {end} of {member.size}"
    stored = after - -(-packed // BLOCK) * BLOCK + packed - member.offset
    if member.stored != stored:
        return f"a sparse file of whose map {member.stored} bytes are, and {stored} are stored"
    if member.size > 2**32 + MOST_HOLES * member.stored:
        return f"a sparse file of {member.size} bytes, {member.stored} of them stored: it is nearly all holes"
    return ""


def _cut_fault(member: Member, size: int) -> str:
    """Why a file is not there whole: to read so many bytes, which are not there, could take all memory."""
    left = max(size - member.offset, 0)
    return f"the tar is cut off, {left} of {member.stored} bytes are there" if left < member.stored else ""


def _after(file: Any, end: int, size: int) -> str:
    """What is wrong behind the last header that was read: tarfile takes a damaged one for the end, where zeros are."""
    file.seek(end)
    if file.read(BLOCK) != bytes(BLOCK):
        return f"cut off or damaged at byte {end} of {size}, what follows is not read"
    while more := file.read(PIECE):
        if more.count(0) != len(more):
            return f"more follows its end at byte {end}, which is not read: join archives with tar --concatenate"
    return ""
