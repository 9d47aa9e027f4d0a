"""Arrays between a served world and who holds it: npy files, as text in JSON. Nothing in them can run code."""

from __future__ import annotations

import base64
import binascii
import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from longtake.errors import UserError


def npy(values: NDArray[Any]) -> bytes:
    """An array as an npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values), allow_pickle=False)
    return file.getvalue()


def array(data: bytes, what: str) -> NDArray[Any]:
    """The array of an npy file. Raises UserError, which calls it `what`."""
    file = io.BytesIO(data)
    try:
        if npy_format.read_magic(file) != (1, 0):
            raise ValueError("its version is not 1.0")
        shape, _, dtype = npy_format.read_array_header_1_0(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size != len(data) - file.tell():  # before as much is allocated as the header claims
            raise ValueError(f"{shape} of {dtype} is not what it holds")
        values: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{what}: no npy file of numbers: {error}") from None
    return values


def text(data: bytes) -> str:
    """Bytes as JSON can hold them."""
    return base64.b64encode(data).decode()


def data(text: str, what: str) -> bytes:
    """The bytes of `text`. Raises UserError, which calls them `what`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{what}: no base64: {error}") from None
