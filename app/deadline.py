"""The time that a question may take: whoever works on it when that is over (embedder, store, language model) is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from retrieval.errors import DeadlineExceeded

T = TypeVar("T")


class Deadline:
    """`seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Raises `DeadlineExceeded` out of the block when the time is over."""
        try:
            async with asyncio.timeout_at(self._at) as limit:
                yield
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                f"no answer within {self.seconds:g} s: give more timeout_seconds (at most FOOTNOTE_MAX_QUERY_SECONDS), "
                "or ask again later"
            ) from exc

    async def each(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The same items, as long as they come in time."""
        async with aclosing(items):
            while True:
                async with self.kept():
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield item
