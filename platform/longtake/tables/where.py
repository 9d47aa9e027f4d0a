"""Which rows: a query such as `metric == 'psnr' and distance > 6`, read, vetted and answered without running any code.

The grammar is a part of pandas' own, with its meaning; & and | bind like `and` and `or`. Everything that is not listed
in `ALLOWED` is refused by name before a row is looked at: nothing here calls, looks up or evaluates what a query says.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from longtake.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd

ALLOWED = (
    "allowed are columns, numbers, text, True, False, == != < <= > >=, and or not (& | ~), + - * / // %, in and not in "
    "a list, COLUMN.isna(), COLUMN.notna(), COLUMN.between(A, B)"
)
MOST_CHARACTERS = 1_000_000
"""A report asks for hundreds of runs by name: that is long, and flat."""

DEEPEST = 50
"""Brackets and operators inside each other."""

MOST_OPERATORS = 1000
"""Each is a pass over the rows; names and numbers in a list cost one together."""

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MEMBERSHIP = (ast.In, ast.NotIn, ast.Eq, ast.NotEq)
"""What may stand before a list: equal to a list means in it, as pandas has it."""

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_GROWING = (ast.Add, ast.Sub, ast.Mult)
"""What may lead from whole numbers to larger ones."""

_LARGEST = 9.2e18
"""Of whole numbers that are calculated: a little under 2**63, for it is compared with floats."""

_METHODS = {"isna": 0, "notna": 0, "between": 2}
_LIST = (ast.List, ast.Tuple, ast.Set)
_LEXEME = re.compile(r"""(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|`(?P<column>[^`]*)`|(?P<other>.)""", re.DOTALL)
_PLAIN = {"&": " and ", "|": " or ", "\n": " ", "\r": " ", "\t": " "}
_WORDS: dict[type[ast.AST], str] = {
    ast.Attribute: "a look into an object",
    ast.Call: "a call",
    ast.Subscript: "an index",
    ast.Lambda: "a function",
    ast.NamedExpr: "an assignment",
    ast.JoinedStr: "a formatted text",
    ast.IfExp: "if and else",
    ast.Dict: "a dictionary",
    ast.Starred: "a star",
}


def parse(where: str) -> ast.expr:
    """The query as a tree of allowed pieces only. Raises UserError naming the first piece that is not."""
    if len(where) > MOST_CHARACTERS:
        raise UserError(f"where: {len(where)} characters; a query has {MOST_CHARACTERS} at most")
    source, columns = _python(where)
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "too deep"
        _refuse(where, f"cannot be read: {reason}")
    _require_shallow(tree, where)
    if (count := sum(map(_operators, ast.walk(tree)))) > MOST_OPERATORS:
        _refuse(where, f"{count} operators, {MOST_OPERATORS} at most: COLUMN in [A, B, ...] is one")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = columns.get(node.id, node.id)
    _vet(tree, where)
    return tree


def names(tree: ast.expr) -> set[str]:
    """The columns that a query reads."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def select(frame: pd.DataFrame, where: str, tree: ast.expr, every: Sequence[str]) -> pd.DataFrame:
    """The rows that a parsed query selects, as pandas' own `query` does; a missing truth value selects no row.

    Args:
        where: the text of the query, for errors.
        every: the columns that there are, whether or not they were read.

    Raises:
        UserError: an unknown column, values that cannot be compared, a query that is no condition.
    """
    for name in sorted(names(tree)):
        if name not in every:
            raise UserError(f"where {shown(where)}: {unknown('column', name, every)}")
    try:
        mask = _value(tree, frame)
    except Exception as error:  # what pandas raises for values that do not go together has no common base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"where {shown(where)} cannot be answered: {reason[:300]}") from error
    if not _is_condition(mask):
        _refuse(where, "selects no rows, it is no condition")
    selected: pd.DataFrame = frame[mask.fillna(False).astype(bool)]
    return selected


def shown(where: str) -> str:
    """A query as errors show it: on one line, the middle of a long one left out."""
    return repr(where if len(where) <= 200 else f"{where[:120]} ... {where[-60:]}")


def _refuse(where: str, why: str) -> NoReturn:
    raise UserError(f"where {shown(where)}: {why}; {ALLOWED}; such as: metric == 'psnr' and distance > 6")


# --- reading ----------------------------------------------------------------------------------------------


def _python(where: str) -> tuple[str, dict[str, str]]:
    """The query as a Python expression, and what its names stand for: columns in backticks, & and | as pandas has them.

    Raises UserError for brackets too deep for the parser, a text without an end, and letters that look like others.
    """
    columns: dict[str, str] = {}
    pieces, depth = [], 0
    for lexeme in _LEXEME.finditer(where):
        if lexeme["column"] is not None:
            name = f"column_in_backticks_{len(columns)}"
            columns[name] = lexeme["column"]
            pieces.append(f" {name} ")
        elif lexeme["text"] is not None:
            pieces.append(lexeme["text"])
        else:
            mark = lexeme["other"]
            if mark in "'\"":
                _refuse(where, f"the text that begins at character {lexeme.start() + 1} has no end")
            if not (" " <= mark <= "~" or mark in _PLAIN) or mark in "@#`":
                _refuse(where, f"{ascii(mark)} at character {lexeme.start() + 1} is not allowed outside a text")
            depth += (mark in "([{") - (mark in ")]}")
            if depth > DEEPEST:
                _refuse(where, f"more than {DEEPEST} brackets inside each other")
            pieces.append(_PLAIN.get(mark, mark))
    return "".join(pieces), columns


def _require_shallow(tree: ast.expr, where: str) -> None:
    """Raise UserError for a tree that is deeper than what works on it may go."""
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        if not level:
            return
    _refuse(where, f"more than {DEEPEST} operators inside each other")


def _operators(node: ast.AST) -> int:
    if isinstance(node, ast.Compare):
        return len(node.ops)
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    signed = isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant)
    return int(signed or isinstance(node, ast.BinOp | ast.Call))


def _vet(node: ast.expr, where: str) -> None:
    """Raise UserError naming the first piece of a query that is not allowed."""
    if isinstance(node, ast.Name):
        return
    if isinstance(node, ast.Constant):
        _vet_constant(node.value, where)
    elif isinstance(node, ast.BoolOp):
        _vet_all(node.values, where)
    elif isinstance(node, ast.UnaryOp):
        _vet(node.operand, where)
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        _vet_number(node.left, where)
        _vet_number(node.right, where)
    elif isinstance(node, ast.Compare):
        _vet_compare(node, where)
    elif isinstance(node, ast.Call):
        _vet_call(node, where)
    else:
        what = _WORDS.get(type(node), "")
        _refuse(where, f"{_text(node)} is not allowed{f': {what}' if what else ''}")


def _vet_all(nodes: Sequence[ast.expr], where: str) -> None:
    for node in nodes:
        _vet(node, where)


def _vet_number(node: ast.expr, where: str) -> None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        _refuse(where, f"{_text(node)} is text: + - * / // % are for numbers")
    _vet(node, where)


def _vet_constant(value: object, where: str) -> None:
    if isinstance(value, str) and any("\ud800" <= mark <= "\udfff" for mark in value):
        _refuse(where, f"{ascii(value)[:60]} is not allowed: half a character, which no text holds")
    if isinstance(value, bool | str):
        return
    if isinstance(value, int) and value >= 2**63:
        _refuse(where, "a whole number of more than 64 bits is not allowed")
    if value is None:
        _refuse(where, "None is not allowed: COLUMN.isna() finds what is missing")
    if not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(where, f"{ascii(value)[:60]} is not allowed")


def _vet_compare(node: ast.Compare, where: str) -> None:
    _vet(node.left, where)
    for op, right in zip(node.ops, node.comparators, strict=True):
        if isinstance(right, _LIST):
            if not isinstance(op, _MEMBERSHIP) or len(node.ops) > 1:
                _refuse(where, f"{_text(node)} is not allowed: a list stands behind `in`, `not in`, == or !=")
            for value in right.elts:
                if not isinstance(_bare(value), ast.Constant):
                    _refuse(where, f"{_text(value)} is not allowed in a list: numbers and text are")
                _vet(value, where)
        elif type(op) in _COMPARE:
            _vet(right, where)
        elif isinstance(op, ast.In | ast.NotIn):
            _refuse(where, f"{_text(node)} is not allowed: behind `in` stands a list, such as ['psnr', 'ssim']")
        else:
            _refuse(where, f"{_text(node)} is not allowed: == compares, COLUMN.isna() finds what is missing")


def _vet_call(node: ast.Call, where: str) -> None:
    method = node.func
    if not isinstance(method, ast.Attribute) or method.attr not in _METHODS or node.keywords:
        _refuse(where, f"{_text(node)} is not allowed: a call")
    if len(node.args) != _METHODS[method.attr]:
        _refuse(where, f"{_text(node)} is not allowed: {method.attr} takes {_METHODS[method.attr]} values")
    _vet_all([method.value, *node.args], where)


def _bare(node: ast.expr) -> ast.expr:
    """A constant without its sign."""
    return node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd) else node


def _text(node: ast.expr) -> str:
    """A piece of a query as it was written, about."""
    text = ast.unparse(node)
    return ascii(text if len(text) <= 60 else f"{text[:60]}...")


# --- answering --------------------------------------------------------------------------------------------


def _value(node: ast.expr, frame: pd.DataFrame) -> Any:
    """A column of the frame's length, or a constant. The node was vetted: no other kinds come here."""
    if isinstance(node, ast.Name):
        return frame[node.id]
    if isinstance(node, ast.BoolOp):
        return _both(node, [_condition(value, frame) for value in node.values])
    if isinstance(node, ast.UnaryOp):
        return _signed(node, frame)
    if isinstance(node, ast.BinOp):
        return _calculated(node, frame)
    if isinstance(node, ast.Compare):
        return _compared(node, frame)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _called(node.func, [_value(value, frame) for value in node.args], frame)
    assert isinstance(node, ast.Constant), ast.dump(node)
    return node.value


def _condition(node: ast.expr, frame: pd.DataFrame) -> Any:
    value = _value(node, frame)
    if not _is_condition(value):
        raise TypeError(f"{_text(node)} is no condition")
    return value


def _is_condition(value: Any) -> bool:
    import pandas as pd

    return isinstance(value, pd.Series) and bool(pd.api.types.is_bool_dtype(value.dtype))


def _both(node: ast.BoolOp, sides: Sequence[Any]) -> Any:
    joined = sides[0]
    for side in sides[1:]:
        joined = joined & side if isinstance(node.op, ast.And) else joined | side
    return joined


def _signed(node: ast.UnaryOp, frame: pd.DataFrame) -> Any:
    if isinstance(node.op, ast.Not | ast.Invert):
        return ~_condition(node.operand, frame)
    value = _number(node.operand, frame)
    return -value if isinstance(node.op, ast.USub) else value


def _calculated(node: ast.BinOp, frame: pd.DataFrame) -> Any:
    left, right = _number(node.left, frame), _number(node.right, frame)
    calculate = _ARITHMETIC[type(node.op)]
    value = calculate(left, right)
    if isinstance(node.op, _GROWING) and _is_whole(value):
        _require_64_bits(calculate(left * 1.0, right * 1.0), node)
    return value


def _is_whole(value: Any) -> bool:
    import pandas as pd

    return isinstance(value, int) or (isinstance(value, pd.Series) and pd.api.types.is_integer_dtype(value.dtype))


def _require_64_bits(about: Any, node: ast.BinOp) -> None:
    """Raise OverflowError where the result, given as floats, is beyond whole numbers: a column's would wrap round."""
    import numpy as np

    if np.any(abs(about) > _LARGEST):
        raise OverflowError(f"{_text(node)} is a whole number of more than 64 bits")


def _number(node: ast.expr, frame: pd.DataFrame) -> Any:
    """What can be calculated with: numbers and times; text cannot."""
    import pandas as pd

    value = _value(node, frame)
    if isinstance(value, str) or (isinstance(value, pd.Series) and pd.api.types.is_string_dtype(value.dtype)):
        raise TypeError(f"{_text(node)} is text: + - * / // % are for numbers")
    return value


def _compared(node: ast.Compare, frame: pd.DataFrame) -> Any:
    """`a < b < c` is `a < b and b < c`, as everywhere."""
    left, result = _value(node.left, frame), None
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        if isinstance(comparator, _LIST):
            if not hasattr(left, "isin"):
                raise TypeError(f"{_text(node.left)} is no column: a column stands before `in`")
            one = left.isin([_value(value, frame) for value in comparator.elts])
            one = ~one if isinstance(op, ast.NotIn | ast.NotEq) else one
        else:
            right = _value(comparator, frame)
            one, left = _COMPARE[type(op)](left, right), right
        result = one if result is None else result & one
    return result


def _called(method: ast.Attribute, values: Sequence[Any], frame: pd.DataFrame) -> Any:
    column = _value(method.value, frame)
    if not hasattr(column, "isna"):
        raise TypeError(f"{_text(method.value)} is no column: {method.attr} is asked of one")
    if method.attr == "between":
        low, high = values
        return (column >= low) & (column <= high)
    return column.isna() if method.attr == "isna" else column.notna()
