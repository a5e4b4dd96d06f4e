"""What callers send that needs a closer look than a type: names, metadata, text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from app.errors import RangeNotSatisfiable
from ingest.names import clean_name
from retrieval.errors import InvalidInput
from retrieval.types import BUILT_IN_FIELDS, Metadata, MetadataValue

MAX_NAME = 500
MAX_KEYS = 100
MAX_METADATA_BYTES = 32 * 1024


async def _known_parameters(request: Request) -> None:
    """A parameter that is spelt wrong would be ignored, and the caller would never know: it is refused."""
    if not request.query_params:
        return
    route: APIRoute = request.scope["route"]
    known = sorted(set(_parameters(route.dependant)))
    takes = f"this route takes {', '.join(known)}" if known else "this route takes none"
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        raise RequestValidationError(
            [
                {"type": "extra_forbidden", "loc": ("query", name[:100]), "msg": f"unknown parameter; {takes}"}
                for name in unknown
            ]
        )


def _parameters(dependant: Dependant) -> Iterator[str]:
    """Names in the query that a route, or what it depends on, declares."""
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _parameters(inner)


KnownParameters = Depends(_known_parameters)


def safe_name(name: str) -> str:
    """A document's name as we keep it: a relative path without tricks."""
    clean = clean_name(name)
    if not clean or len(clean) > MAX_NAME:
        raise InvalidInput(f"name: a document's name has 1 to {MAX_NAME} visible characters")
    return clean


def parse_metadata(value: Any) -> Metadata:
    """A flat JSON object of strings, numbers, booleans and lists of strings; null values are left out.

    Raises `InvalidInput` that names the key.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise InvalidInput(f'metadata: not JSON ({exc}); send an object such as {{"year": 2026}}') from exc
    if not isinstance(value, dict):
        raise InvalidInput('metadata: not an object; send one such as {"year": 2026}')
    if len(value) > MAX_KEYS or len(json.dumps(value)) > MAX_METADATA_BYTES:
        raise InvalidInput(f"metadata: at most {MAX_KEYS} keys and {MAX_METADATA_BYTES // 1024} KiB")
    return {_key(key): _value(key, item) for key, item in value.items() if item is not None}


def byte_range(value: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of one range as in `bytes=0-499`; None for what is not one, which means the whole.

    Raises `RangeNotSatisfiable` for a range that begins at or beyond `size`.
    """
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", value)
    first, last = found.groups() if found else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        return None
    start, end = (int(first), int(last or size) + 1) if first else (size - int(last), size)
    if start >= size:
        raise RangeNotSatisfiable(f"the document has {size} bytes, and none of the range that was asked for")
    return max(0, start), min(end, size)


def is_printable(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def printable(text: str, *, what: str) -> str:
    """Refuses lone surrogates, which no store and no UTF-8 can carry, and NUL."""
    if not is_printable(text):
        raise InvalidInput(f"{what}: holds a NUL or half of a surrogate pair; send well-formed text")
    return text


def _key(key: str) -> str:
    if not 1 <= len(key) <= 100 or key.startswith("$") or key in BUILT_IN_FIELDS:
        shown = repr(key[:100])
        raise InvalidInput(
            f"metadata: the key {shown} is empty, longer than 100 characters, begins with $, or is the name of a built-in field"
        )
    return printable(key, what="metadata")


def _value(key: str, value: Any) -> MetadataValue:
    match value:
        case str():
            return printable(value, what=f"metadata.{key}")
        case bool():
            return value
        case float():
            if not math.isfinite(value):
                raise InvalidInput(f"metadata.{key}: not a finite number")
            return value
        case int() if abs(value) < 2**53:
            return value
        case list() if all(isinstance(item, str) for item in value):
            return tuple(printable(item, what=f"metadata.{key}") for item in value)
        case _:
            raise InvalidInput(f"metadata.{key}: takes a string, a number below 2^53, a boolean or a list of strings")
