"""A document while it is being read: its portions for whoever indexes them, and the whole of it at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from ingest.aside import aside
from ingest.parsers import Parsed, finish


class Reading:
    """Portions as they come; each reader, one after the other, gets all of them."""

    def __init__(self, name: str, portions: AsyncGenerator[Parsed]) -> None:
        self._name = name
        self._coming = portions
        self._read: list[Parsed] = []
        self._whole: Parsed | None = None

    async def portions(self) -> AsyncIterator[Parsed]:
        for portion in self._read:
            yield portion
        async for portion in self._coming:
            self._read.append(portion)
            yield portion

    async def whole(self) -> Parsed:
        """All portions as one. Raises `EmptyDocument`."""
        if self._whole is None:
            portions = [portion async for portion in self.portions()]
            self._whole = await aside(sum(len(portion.text) for portion in portions), finish, portions, self._name)
        return self._whole
