"""Answers that were given before, for as long as they are current."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from app.metrics import CACHE_HITS, CACHE_MISSES

KEEP_SECONDS = 300.0
"""After that a value goes, so that the text of what was deleted does not stay in memory while others are asked for."""


@dataclass(frozen=True, slots=True)
class _Kept:
    value: Any
    size: int
    until: float


class Memory:
    """At most `limit` bytes of values by key; what was not asked for longest goes first. A limit of 0 keeps nothing.

    A key must name all that the value depends on, so that a value is never out of date, only useless.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._kept: dict[Hashable, _Kept] = {}

    def get(self, key: Hashable) -> Any | None:
        kept = self._kept.pop(key, None)
        if kept is not None and kept.until > monotonic():
            self._kept[key] = kept  # at the end: asked last
            CACHE_HITS.inc()
            return kept.value
        self._held -= kept.size if kept else 0
        CACHE_MISSES.inc()
        return None

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Remember a value that takes about `size` bytes."""
        if size > self.limit:
            return
        self._forget(key)
        self._kept[key] = _Kept(value, size, monotonic() + KEEP_SECONDS)
        self._held += size
        while self._held > self.limit or next(iter(self._kept.values())).until <= monotonic():
            self._forget(next(iter(self._kept)))

    def _forget(self, key: Hashable) -> None:
        gone = self._kept.pop(key, None)
        self._held -= gone.size if gone else 0
