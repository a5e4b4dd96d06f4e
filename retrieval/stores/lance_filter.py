"""Filters as the SQL that LanceDB reads. Values are always quoted here; columns are named by `retrieval.stores.filters`."""

from __future__ import annotations

import math
from collections.abc import Iterable

from retrieval.stores.filters import AllOf, AnyOf, Complement, Node, Test
from retrieval.types import Scalar

COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def literal(value: Scalar) -> str:
    """A value as an SQL literal; standard strings know one escape only, the doubled quote."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if math.isfinite(value) else f"CAST('{value}' AS DOUBLE)"


def in_list(column: str, values: Iterable[Scalar]) -> str:
    return f"{column} IN ({', '.join(literal(value) for value in values)})"


def to_sql(node: Node) -> str:
    """The SQL condition of a resolved filter."""
    match node:
        case AllOf(parts):
            return "(" + " AND ".join(to_sql(part) for part in parts) + ")"
        case AnyOf(parts):
            return "(" + " OR ".join(to_sql(part) for part in parts) + ")"
        case Complement(part):
            return f"(NOT {to_sql(part)})"
        case Test():
            # NULL would poison NOT: with the check in front, every test is true or false.
            return f"({node.column} IS NOT NULL AND {condition(node)})"


def condition(test: Test) -> str:
    if test.op == "contains":
        return "(" + " OR ".join(f"array_has({test.column}, {literal(value)})" for value in test.values) + ")"
    if test.op == "in":
        return in_list(test.column, test.values)
    return f"{test.column} {COMPARISONS[test.op]} {literal(test.values[0])}"
