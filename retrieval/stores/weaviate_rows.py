"""What Weaviate's searches answer, read straight from its messages.

The client makes a Python number of each of a vector's, asks each property which of eleven types it has, and makes a model of
each id that is asked for: more than half of the CPU that a search took here. This reaches into the client, hence the bound on
its version.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from retrieval.types import Vector

_NO_VECTOR = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class Row:
    """One stored object: its id's 16 bytes, and what the search says of it; `updated` is in seconds of the server's clock."""

    uuid: bytes
    vector: Vector
    score: float
    updated: float
    _fields: Any

    def text(self, name: str) -> str:
        """A property; empty where the object has none."""
        value: str = self._fields[name].text_value
        return value

    def number(self, name: str) -> int:
        """The same of a whole number, 0 where the object has none."""
        value: int = self._fields[name].int_value
        return value


def straight(part: Any) -> Any:
    """The queries of a part of a class, as `Objects.reading` has just made it; what they give is a list of `Row` instead of
    the client's objects."""
    query = part.query
    for name in _conversions(query.__class__):
        setattr(query, name, rows)
    return query


@cache
def _conversions(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_result_to_")]


def rows(reply: Any, _options: object) -> list[Row]:
    return [_row(each.properties.non_ref_props.fields, each.metadata) for each in reply.results]


def _row(fields: Any, metadata: Any) -> Row:
    packed = metadata.vectors[0].vector_bytes if metadata.vectors else metadata.vector_bytes
    vector = np.frombuffer(packed, "<f4") if packed else _NO_VECTOR
    uuid = metadata.id_as_bytes.rjust(16, b"\0")  # servers before 1.39 leave out zeros in front
    return Row(uuid, vector, metadata.score, metadata.last_update_time_unix / 1000, fields)
