"""From a query (`longtake.tables.where`) to what Parquet can skip: a condition that every row of the answer fulfils.

The query itself always runs on the rows that come back, so a condition that cannot be told to Parquet costs time and
never rows: `where` means what pandas says it means.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.Eq, ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE,
}  # fmt: skip


def condition(tree: ast.expr, schema: pa.Schema, columns: Collection[str]) -> Any:
    """An Arrow expression over some columns that holds for every row that a query selects; None without one."""
    if isinstance(tree, ast.BoolOp):
        sides = [condition(value, schema, columns) for value in tree.values]
        known = [side for side in sides if side is not None]
        if isinstance(tree.op, ast.And):
            return functools.reduce(operator.and_, known) if known else None
        return functools.reduce(operator.or_, known) if len(known) == len(sides) else None
    if isinstance(tree, ast.Compare):
        ends = [tree.left, *tree.comparators]
        pairs = zip(ends, tree.ops, ends[1:], strict=False)
        known = [one for pair in pairs if (one := _compare(*pair, schema, columns)) is not None]
        return functools.reduce(operator.and_, known) if known else None
    return None


def _compare(left: ast.expr, op: ast.cmpop, right: ast.expr, schema: pa.Schema, columns: Collection[str]) -> Any:
    """One comparison of a column with a constant of its kind."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    kind = type(op)
    if not isinstance(left, ast.Name) and kind in _MIRRORED:
        left, kind, right = right, _MIRRORED[kind], left
    if not isinstance(left, ast.Name) or left.id not in columns or left.id not in schema.names:
        return None
    try:
        value = ast.literal_eval(right)
    except ValueError:
        return None
    column, stored = ds.field(left.id), schema.field(left.id).type
    if isinstance(value, list | tuple | set) and kind in (ast.In, ast.Eq):
        if not all(_alike(one, stored) for one in value):
            return None
        try:
            return column.isin(pa.array(list(value), stored))
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # 1.5 among whole numbers
            return None
    return _COMPARE[kind](column, value) if kind in _COMPARE and _alike(value, stored) else None


def _alike(value: Any, stored: Any) -> bool:
    """Whether a constant and a column are both text, or both numbers that Arrow compares as pandas does."""
    import pyarrow as pa

    if isinstance(value, str):
        return bool(pa.types.is_string(stored) or pa.types.is_large_string(stored))
    if isinstance(value, int) and not isinstance(value, bool):
        return bool(pa.types.is_integer(stored) or pa.types.is_float64(stored)) and abs(value) < 2**53
    return isinstance(value, float) and bool(pa.types.is_float64(stored))
