"""The filter language of the wire, `{"year": {"$gte": 2024}}`, as `retrieval.types.Filter`."""

from __future__ import annotations

import math
from typing import Any, get_args

from app.api.inputs import is_printable
from retrieval.errors import InvalidFilter
from retrieval.types import And, Compare, Filter, Not, Operator, Or, Scalar

OPERATORS = frozenset(get_args(Operator))
MAX_DEPTH = 8
MAX_PARTS = 200


def parse_filter(value: dict[str, Any] | None, *, pointer: str = "/filter") -> Filter | None:
    """Raises `InvalidFilter` with a JSON pointer to what is wrong. `{}` and None mean no filter."""
    return _group(value, pointer, MAX_DEPTH) if value else None


def _group(value: Any, pointer: str, depth: int) -> Filter:
    if not isinstance(value, dict) or not value:
        raise InvalidFilter(f"{pointer}: a filter is an object that is not empty")
    if depth == 0:
        raise InvalidFilter(f"{pointer}: nested more than {MAX_DEPTH} deep")
    parts = [_part(key, item, f"{pointer}/{key}", depth) for key, item in value.items()]
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _part(key: str, value: Any, pointer: str, depth: int) -> Filter:
    if not is_printable(key):
        raise InvalidFilter(f"{pointer!r}: holds a NUL or half of a surrogate pair")
    match key:
        case "$and" | "$or":
            if not isinstance(value, list) or not 1 <= len(value) <= MAX_PARTS:
                raise InvalidFilter(f"{pointer}: takes a list of 1 to {MAX_PARTS} filters")
            parts = tuple(_group(item, f"{pointer}/{i}", depth - 1) for i, item in enumerate(value))
            return And(parts) if key == "$and" else Or(parts)
        case "$not":
            return Not(_group(value, pointer, depth - 1))
        case _ if key.startswith("$"):
            raise InvalidFilter(f"{pointer}: unknown operator; here go keys, $and, $or and $not")
        case _:
            return _comparison(key, value, pointer)


def _comparison(key: str, value: Any, pointer: str) -> Filter:
    if not isinstance(value, dict):
        operator: Operator = "in" if isinstance(value, list) else "eq"
        return Compare(key, operator, _operand(operator, value, pointer))
    parts = []
    for name, operand in value.items():
        operator = name.removeprefix("$")
        if not name.startswith("$") or operator not in OPERATORS:
            raise InvalidFilter(
                f"{pointer}/{name}: unknown operator; known: {', '.join(sorted('$' + known for known in OPERATORS))}"
            )
        parts.append(Compare(key, operator, _operand(operator, operand, f"{pointer}/{name}")))
    if not parts:
        raise InvalidFilter(f"{pointer}: names no operator")
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _operand(operator: Operator, value: Any, pointer: str) -> Scalar | tuple[Scalar, ...]:
    match operator:
        case "in" | "nin":
            if not isinstance(value, list) or not 1 <= len(value) <= MAX_PARTS or not all(map(_is_scalar, value)):
                raise InvalidFilter(f"{pointer}: takes a list of 1 to {MAX_PARTS} strings, numbers or booleans")
            return tuple(value)
        case "exists":
            ok, wanted = isinstance(value, bool), "true or false"
        case "contains":
            ok, wanted = isinstance(value, str) and _is_scalar(value), "a string"
        case "gt" | "gte" | "lt" | "lte":
            ok, wanted = _is_scalar(value) and not isinstance(value, bool), "a string or a number"
        case _:
            ok, wanted = _is_scalar(value), "a string, a number or a boolean"
    if not ok:
        raise InvalidFilter(f"{pointer}: takes {wanted}")
    scalar: Scalar = value
    return scalar


def _is_scalar(value: Any) -> bool:
    """A number must be finite and fit 64 bits, a string be UTF-8 without NUL: no store keeps others."""
    match value:
        case bool():
            return True
        case int():
            return abs(value) < 2**63
        case float():
            return math.isfinite(value)
        case _:
            return isinstance(value, str) and is_printable(value)
