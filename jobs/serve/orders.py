"""What a client may ask of a session, as JSON: checked before anything happens, and kept in the session's journal.

Every order says `n`, how many were done before it: asked once more, it is answered once more and not done twice.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from longtake.errors import UserError, unknown

Numbers: TypeAlias = list[Any]
"""Nested lists of numbers, which the world checks."""


class Ordered(BaseModel):
    """What all orders say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: Annotated[int, Field(ge=0)]


class Step(Ordered):
    """The next picture, by a name, names of each stream, numbers, or a pose."""

    op: Literal["step"] = "step"
    action: str | Numbers | None = None
    pose: Numbers | None = None


class Observe(Ordered):
    """Pictures are shown: an npy file of uint8, base64."""

    op: Literal["observe"] = "observe"
    frames: str
    actions: Numbers | None = None
    pose: Numbers | None = None


class Rewind(Ordered):
    """Back by `k` frames."""

    op: Literal["rewind"] = "rewind"
    k: int


class Forget(Ordered):
    """All that is remembered is lost."""

    op: Literal["forget"] = "forget"


class Fork(Ordered):
    """Another session of some streams; one may be named twice. `single`: arrays have no axis of streams."""

    op: Literal["fork"] = "fork"
    streams: list[int]
    single: bool = False


Order = Step | Observe | Rewind | Forget | Fork
OPS: dict[str, type[Ordered]] = {kind.model_fields["op"].default: kind for kind in get_args(Order)}
_ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="op")])


def read(text: bytes | str) -> Order:
    """An order of JSON. Raises UserError with a line for everything that is wrong in it."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("an order is JSON, such as " + Step(n=0, action="forward").model_dump_json()) from None
    if not isinstance(values, dict) or str(values.get("op")) not in OPS:
        op = values.get("op") if isinstance(values, dict) else values
        raise UserError(unknown("op", str(op), OPS))
    try:
        return _ORDER.validate_python(values)
    except ValidationError as error:
        raise UserError(*map(_line, error.errors())) from None


def _line(problem: Any) -> str:
    op, *path = (str(part) for part in problem["loc"])
    fields = [name for name in OPS[op].model_fields if name != "op"]
    if problem["type"] == "extra_forbidden":
        return unknown(f"field of {op}", path[0], fields)
    return f"{'.'.join(path[:1])}: {problem['msg'].lower()} (op {op})"
