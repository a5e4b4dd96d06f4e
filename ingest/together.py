"""Calls that wait for one another, made as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T]):
    item: T
    done: asyncio.Future[None]


class Together(Generic[T]):
    """Does one thing after the other; what comes while one is under way is then done at once.

    A single caller waits for nobody, and of many that come at the same time each waits for two calls at most, whatever one
    call costs. An error is its own caller's: where several were done at once they are done again, one by one.
    """

    def __init__(self, act: Callable[[Sequence[T]], Awaitable[None]], *, most: int) -> None:
        """`act` does up to `most` of them, and may be asked to do again what it did."""
        self._act = act
        self._most = most
        self._waiting: list[_Waiting[T]] = []
        self._running: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        return self._running is None

    async def do(self, item: T) -> None:
        """Raises what `act` does. Who is cancelled meanwhile leaves nothing behind that is done later."""
        waiting = _Waiting(item, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        try:
            await asyncio.shield(waiting.done)
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                waiting.done.cancel()
            else:
                await asyncio.wait([waiting.done])
            raise

    async def _run(self) -> None:
        group: list[_Waiting[T]] = []
        try:
            while self._waiting:
                group, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                error = await self._try(group)
                for each in group:
                    self._settle(each, error if len(group) == 1 or error is None else await self._try([each]))
        finally:
            self._running = None
            for each in (*group, *self._waiting):  # of a task that was cancelled; else all have their end
                each.done.cancel()

    async def _try(self, group: Sequence[_Waiting[T]]) -> BaseException | None:
        [error] = await asyncio.gather(self._act([each.item for each in group]), return_exceptions=True)
        return error

    def _settle(self, waiting: _Waiting[T], error: BaseException | None) -> None:
        if waiting.done.done():
            return
        if error is None:
            waiting.done.set_result(None)
        else:
            waiting.done.set_exception(error)
