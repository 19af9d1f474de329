"""Filters of a sweep: comparisons over options, read as a syntax tree and never executed."""

import ast
import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

from polar_jax import checks
from polar_jax import config as options
from polar_jax.sweep import grid
from polar_jax.sweep.grid import SpecError

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_SIGNS: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_ALLOWED = (
    *(ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Name, ast.Constant, ast.List, ast.Tuple),
    *(ast.And, ast.Or, ast.Not, ast.In, ast.NotIn, ast.Load),
    *(*_ARITHMETIC, *_COMPARISONS, *_SIGNS),
)
_SYNTAX = (
    "a filter compares options, numbers and strings with < <= == != >= > in, + - * / // %, "
    "and, or, not and parentheses"
)
_LITERALS = {"true": True, "false": False}
# Names whose misspelling in a filter would silently keep or drop everything.
_CHOICES = {
    "policies": options.POLICIES,
    "environment": (*options.ENVIRONMENTS, options.REAL),
    "order": options.ORDERS,
    "beta": options.BETAS,
}


@dataclasses.dataclass(frozen=True)
class Filter:
    """A condition that configurations must meet.

    Attributes:
      text: as written.
      tree: its syntax, checked.
    """

    text: str
    tree: ast.expr


def parse(text: str) -> Filter:
    """Reads a filter.

    Args:
      text: such as `cache_slots <= num_adapters`.

    Returns:
      The filter.

    Raises:
      SpecError: for what is no filter, and for unknown names.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise SpecError(f"filter {grid.shown(text)} cannot be read: {_SYNTAX}.") from None
    for node in ast.walk(tree):
        _check(text, node)
    return Filter(text, tree)


def keeps(condition: Filter, scope: Mapping[str, Any]) -> bool:
    """Whether a configuration meets a filter.

    Args:
      condition: the filter.
      scope: every option's value; None where it is worked out later.

    Returns:
      True where it does.

    Raises:
      SpecError: for a filter that gives no truth value, compares a number with a string,
        divides by zero, or reads an option without a value.
    """
    try:
        return _truth(condition.tree, scope)
    except (SpecError, ArithmeticError, RecursionError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise SpecError(f"filter {grid.shown(condition.text)}: {reason}.") from None


def _check(text: str, node: ast.AST) -> None:
    """Raises for a node that no filter holds."""
    label = f"filter {grid.shown(text)}"
    literal = not isinstance(node, ast.Constant) or isinstance(node.value, int | float | str)
    if not isinstance(node, _ALLOWED) or not literal:
        part = ast.get_source_segment(text.strip(), node) if isinstance(node, ast.expr) else None
        which = f" must not hold {grid.shown(part)}" if part else " cannot be read"
        raise SpecError(f"{label}{which}: {_SYNTAX}.")
    if isinstance(node, ast.Name) and grid.option_of(node.id) not in {*grid.KINDS, *_LITERALS}:
        hint = grid.nearest(node.id, [*grid.KINDS, *grid.COLUMNS.values()])
        raise SpecError(
            f"{label} reads {node.id}, which is no option{hint}; a string needs quotes."
        )
    if isinstance(node, ast.Compare):
        _check_comparison(label, node)


def _check_comparison(label: str, node: ast.Compare) -> None:
    """Raises for a right side of `in` that is no list, and for unknown names."""
    sides = [node.left, *node.comparators]
    for sign, right in zip(node.ops, node.comparators, strict=True):
        if isinstance(sign, ast.In | ast.NotIn) and not isinstance(right, ast.List | ast.Tuple):
            raise SpecError(f"{label} needs a list [..] after in.")
    named = [grid.option_of(side.id) for side in sides if isinstance(side, ast.Name)]
    parts = [part for side in sides for part in getattr(side, "elts", [side])]
    words = [part.value for part in parts if isinstance(part, ast.Constant)]
    for option in named:
        for word in words:
            replay = option == "environment" and isinstance(word, str) and options.is_replay(word)
            if option in _CHOICES and isinstance(word, str) and not replay:
                checks.one_of(f"{label}: {grid.column(option)}", word, _CHOICES[option])


def _truth(node: ast.expr, scope: Mapping[str, Any]) -> bool:
    value = _value(node, scope)
    if not isinstance(value, bool):
        raise SpecError(
            f"{grid.shown(ast.unparse(node))} must be true or false, got {grid.shown(value)}"
        )
    return value


def _value(node: ast.expr, scope: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return _read(node.id, scope)
        case ast.List() | ast.Tuple():
            return [_value(one, scope) for one in node.elts]
        case ast.BoolOp():
            whole = all if isinstance(node.op, ast.And) else any
            return whole(_truth(one, scope) for one in node.values)
        case ast.UnaryOp(op=ast.Not()):
            return not _truth(node.operand, scope)
        case ast.UnaryOp():
            return _SIGNS[type(node.op)](_number(node.operand, scope))
        case ast.BinOp():
            left, right = _number(node.left, scope), _number(node.right, scope)
            return _ARITHMETIC[type(node.op)](left, right)
        case ast.Compare():
            return _compare(node, scope)
    raise SpecError(_SYNTAX)


def _read(name: str, scope: Mapping[str, Any]) -> Any:
    if name in _LITERALS:
        return _LITERALS[name]
    value = scope[grid.option_of(name)]
    if value is None:
        raise SpecError(f"{name} has no value, as the spec does not set it")
    return value


def _number(node: ast.expr, scope: Mapping[str, Any]) -> float:
    value = _value(node, scope)
    if _kind(value) != "number":
        raise SpecError(f"arithmetic needs numbers, got {grid.shown(value)}")
    return value


def _compare(node: ast.Compare, scope: Mapping[str, Any]) -> bool:
    left = _value(node.left, scope)
    for sign, comparator in zip(node.ops, node.comparators, strict=True):
        right = _value(comparator, scope)
        if isinstance(sign, ast.In | ast.NotIn):
            found = [_alike(left, one) and left == one for one in right]
            holds = any(found) == isinstance(sign, ast.In)
        else:
            holds = _alike(left, right) and _COMPARISONS[type(sign)](left, right)
        if not holds:
            return False
        left = right
    return True


def _alike(left: object, right: object) -> bool:
    """True; raises where two values are not of one kind, as they would never be equal."""
    if _kind(left) != _kind(right) or _kind(left) == "list":
        raise SpecError(f"{grid.shown(left)} cannot be compared with {grid.shown(right)}")
    return True


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "list"
