"""A filter is held to the keys and types that a collection's documents have: a typo is an error, not an empty result."""

from __future__ import annotations

from collections.abc import Mapping

from retrieval.errors import InvalidFilter
from retrieval.types import BUILT_IN_FIELDS, And, Compare, Filter, MetadataValue, Not, Or


def check_filter(condition: Filter, types: Mapping[str, set[str]]) -> None:
    """Raises `InvalidFilter` for an unknown key, and for one compared with another type than its own.

    `types` is what `Catalog.metadata_types` gives.
    """
    known = {**{key: {type_name(kind())} for key, kind in BUILT_IN_FIELDS.items()}, **types}
    for comparison in _comparisons(condition):
        if comparison.key not in known:
            names = ", ".join(sorted(known))
            raise InvalidFilter(f"filter: no document of the collection has the key {comparison.key!r}; known: {names}")
        _check_types(comparison, known[comparison.key])


def type_name(value: MetadataValue) -> str:
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "string"
        case _:
            return "list"


def _comparisons(condition: Filter) -> list[Compare]:
    match condition:
        case Compare():
            return [condition]
        case And(all=parts) | Or(any=parts):
            return [comparison for part in parts for comparison in _comparisons(part)]
        case Not(not_=part):
            return _comparisons(part)


def _check_types(comparison: Compare, known: set[str]) -> None:
    if comparison.op == "exists":
        return
    values = comparison.value if isinstance(comparison.value, tuple) else (comparison.value,)
    wanted = {"list"} if comparison.op == "contains" else {type_name(value) for value in values}
    if not wanted <= known:
        kinds = ", ".join(sorted(known))
        hint = "; use $contains on a list" if "list" in known else ""
        raise InvalidFilter(
            f"filter: {comparison.key!r} is {kinds}: {comparison.op} {comparison.value!r} cannot be asked of it{hint}"
        )
