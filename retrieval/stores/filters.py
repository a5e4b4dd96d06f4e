"""Filters and metadata in the shape that both stores compile from: typed columns, and tests that are true or false.

A key's values live in one column per type, so that a bool never equals a number and "5" never equals 5. `columns_of`
lists what a chunk holds; `resolve` turns a `Filter` into tests on those columns. Every test is plainly true or false for
every chunk (a missing value makes it false), so that `Not` is an honest complement: `ne` is `Not(eq)` in both stores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from retrieval.errors import InvalidFilter
from retrieval.types import BUILT_IN_FIELDS, And, Chunk, Compare, Filter, Metadata, MetadataValue, Not, Or, Scalar

Kind: TypeAlias = Literal["s", "n", "b", "l"]
"""String, number, bool, list of strings."""

ColumnValue: TypeAlias = str | float | bool | list[str]

KEYS = "keys"
"""The column that lists which keys a chunk has: `exists` asks it, for an empty list leaves no trace elsewhere."""

BUILT_IN_KINDS: dict[str, Kind] = {key: "n" if kind is int else "s" for key, kind in BUILT_IN_FIELDS.items()}


@dataclass(frozen=True, slots=True)
class Test:
    """True where `column` holds a value that passes; false where it holds none.

    `in` passes any of `values`, `contains` a list with any of them; the others compare with the only one.
    """

    column: str
    kind: Kind
    op: Literal["in", "contains", "gt", "gte", "lt", "lte"]
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Complement:
    part: Node


Node: TypeAlias = Test | AllOf | AnyOf | Complement


def key_name(key: str) -> str:
    """What `KEYS` lists and columns are named after: safe in any query language, distinct for distinct keys."""
    if key in BUILT_IN_KINDS:
        return key
    raw = key.encode("utf-8", "surrogatepass")
    return f"m_{raw.hex()}" if len(raw) <= 40 else f"m_x{hashlib.blake2b(raw, digest_size=20).hexdigest()}"


def column_name(key: str, kind: Kind) -> str:
    return key if key in BUILT_IN_KINDS else f"{key_name(key)}_{kind}"


def kind_of_column(column: str) -> Kind:
    """The kind of a metadata column, by its name."""
    kinds: dict[str, Kind] = {"s": "s", "n": "n", "b": "b", "l": "l"}
    return kinds[column[-1]]


def number(value: float) -> float:
    """All numbers compare as 64-bit floats; an integer beyond them counts as infinite, and -0.0 as 0.0."""
    try:
        return float(value) + 0.0
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def kind_of(value: MetadataValue) -> Kind:
    if isinstance(value, bool):
        return "b"
    if isinstance(value, str):
        return "s"
    return "n" if isinstance(value, int | float) else "l"


def metadata_columns(metadata: Metadata) -> dict[str, ColumnValue]:
    """The typed columns of a chunk's metadata; a number that is not finite is kept with the chunk but never found."""
    columns: dict[str, ColumnValue] = {}
    for key, value in metadata.items():
        kind = kind_of(value)
        if key in BUILT_IN_KINDS:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(number(value)):
                columns[column_name(key, kind)] = number(value)
        else:
            columns[column_name(key, kind)] = value if isinstance(value, str | bool) else list(value)
    return columns


def key_names(chunk: Chunk) -> list[str]:
    """What `KEYS` holds for a chunk."""
    built_in = ["document_id", "document_name"]
    built_in += [] if chunk.page is None else ["page"]
    built_in += [] if chunk.language is None else ["language"]
    return built_in + [key_name(key) for key in chunk.metadata if key not in BUILT_IN_KINDS]


def resolve(filter_: Filter, known: Collection[str]) -> Node | bool:
    """The filter as tests on `known` columns, or the answer itself where it is the same for every chunk.

    `known` are the metadata columns that the index has: a column that it lacks holds no value. Raises `InvalidFilter`
    for an operator that does not fit its value.
    """
    match filter_:
        case Compare():
            return resolve_compare(filter_, known)
        case And():
            return all_of(resolve(each, known) for each in filter_.all)
        case Or():
            return any_of(resolve(each, known) for each in filter_.any)
        case Not():
            return complement(resolve(filter_.not_, known))


def resolve_compare(compare: Compare, known: Collection[str]) -> Node | bool:
    key, op, value = compare.key, compare.op, compare.value
    match op:
        case "exists":
            if not isinstance(value, bool):
                raise InvalidFilter(f"{key}: 'exists' takes true or false, not {value!r}")
            present = Test(KEYS, "l", "contains", (key_name(key),))
            return present if value else complement(present)
        case "in" | "nin":
            if not isinstance(value, tuple):
                raise InvalidFilter(f"{key}: {op!r} takes a list of values, not {value!r}")
            found = membership(key, value, known)
            return found if op == "in" else complement(found)
        case _ if isinstance(value, tuple):
            raise InvalidFilter(f"{key}: {op!r} takes one value; use 'in' or 'nin' for a list")
        case "eq" | "ne":
            found = membership(key, (value,), known)
            return found if op == "eq" else complement(found)
        case "contains":
            if not isinstance(value, str):
                raise InvalidFilter(f"{key}: 'contains' looks for a string in a list of strings, not {value!r}")
            return on_known(key, "l", Test(column_name(key, "l"), "l", "contains", (value,)), known)
        case "gt" | "gte" | "lt" | "lte":
            if isinstance(value, bool):
                raise InvalidFilter(f"{key}: {op!r} needs a number or a string; true and false have no order")
            operand = value if isinstance(value, str) else number(value)
            kind = kind_of(operand)
            return on_known(key, kind, Test(column_name(key, kind), kind, op, (operand,)), known)
    raise InvalidFilter(f"{key}: unknown operator {op!r}")


def membership(key: str, values: tuple[Scalar, ...], known: Collection[str]) -> Node | bool:
    """Whether the value of `key` is one of `values`: one test for each type among them."""
    by_kind: dict[Kind, list[Scalar]] = {}
    for value in values:
        if isinstance(value, float) and math.isnan(value):
            continue
        kind = kind_of(value)
        by_kind.setdefault(kind, []).append(value if isinstance(value, str | bool) else number(value))
    return any_of(
        on_known(key, kind, Test(column_name(key, kind), kind, "in", tuple(dict.fromkeys(members))), known)
        for kind, members in by_kind.items()
    )


def on_known(key: str, kind: Kind, found: Test, known: Collection[str]) -> Node | bool:
    """`found`, or False where no chunk can pass it."""
    if key in BUILT_IN_KINDS:
        return found if BUILT_IN_KINDS[key] == kind else False
    return found if found.column in known else False


def all_of(parts: Iterable[Node | bool]) -> Node | bool:
    kept = list(parts)
    if any(part is False for part in kept):
        return False
    nodes = tuple(part for part in kept if not isinstance(part, bool))
    return AllOf(nodes) if nodes else True


def any_of(parts: Iterable[Node | bool]) -> Node | bool:
    kept = list(parts)
    if any(part is True for part in kept):
        return True
    nodes = tuple(part for part in kept if not isinstance(part, bool))
    return AnyOf(nodes) if nodes else False


def complement(part: Node | bool) -> Node | bool:
    return (not part) if isinstance(part, bool) else Complement(part)


def wanted_columns(filter_: Filter) -> set[str]:
    """The metadata columns that a filter may look at, to see whether the known ones are worth a refresh."""
    match filter_:
        case Compare():
            if filter_.key in BUILT_IN_KINDS or filter_.op == "exists":
                return set()
            return {column_name(filter_.key, kind) for kind in ("s", "n", "b", "l")}
        case And():
            return set().union(*(wanted_columns(each) for each in filter_.all))
        case Or():
            return set().union(*(wanted_columns(each) for each in filter_.any))
        case Not():
            return wanted_columns(filter_.not_)
