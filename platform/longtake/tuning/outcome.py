"""How a trial of a sweep has ended, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError

if TYPE_CHECKING:
    from longtake.tuning.study import Study


OnEvent = Callable[["Study"], None]


def outcome(error: BaseException | None) -> dict[str, Any]:
    """The last result of a trial: how it ended. What its config is at fault for is no crash: it would come again."""
    reason = "" if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
    return {"done": True, "reason": reason, "crashed": not isinstance(error, UserError)}
