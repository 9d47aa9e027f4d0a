"""Rows of a data set's metadata: of Parquet files, and of files with a JSON object in each line."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from longtake.datasets import room
from longtake.errors import UserError
from longtake.sources.formats.base import MOST_BYTES

if TYPE_CHECKING:
    from longtake.storage.store import Store


def parquet_rows(place: Store, name: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file, without statistics of features. Raises UserError for a damaged file."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(place.read_bytes(name)), page_checksum_verification=True) as file:
            with room.limited(MOST_BYTES):
                require_room(file.metadata)
            # Statistics of every feature make most of the columns and all of the size.
            columns = [column for column in file.schema_arrow.names if not column.startswith("stats/")]
            rows: list[dict[str, Any]] = file.read(columns).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{place.uri}: {name} is damaged: {str(error).splitlines()[0]}") from None
    return rows


def json_rows(place: Store, name: str) -> list[dict[str, Any]]:
    """The objects of a file with one in each line. Raises UserError for a damaged file."""
    try:
        rows = [json.loads(line) for line in place.read_bytes(name).decode().splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{place.uri}: {name} is damaged: {error}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{place.uri}: {name} is damaged: a line is no object")
    return rows


def require_room(metadata: Any) -> None:
    """Raise TooLarge for a file that unpacks to more than an episode may take; a run of equal rows takes no byte."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    room.require(max(size, 8 * metadata.num_rows * metadata.num_columns), f"a Parquet file of {metadata.num_rows} rows")
