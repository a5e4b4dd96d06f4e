"""Calls that wait for one another, made as one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")

LONGEST_REST = 0.3
"""Seconds."""


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T, R]):
    item: T
    done: asyncio.Future[R]
    gone: bool = False
    """Whoever asked for it does not want it any more."""


class Together(Generic[K, T, R]):
    """Does one thing after the other; what comes while one is under way is then done at once.

    A single caller waits for nobody, and up to `most` that come at the same time, with the same key, share a call. With a
    `rest`, who comes soon after a call waits for company, until `rest` times as long as the call took have passed. An error
    is its own caller's: where several were done at once they are done again, one by one.
    """

    def __init__(
        self,
        act: Callable[[K, Sequence[T]], Awaitable[Sequence[R]]],
        *,
        most: int,
        rest: float = 0.0,
        of_all: tuple[type[Exception], ...] = (),
    ) -> None:
        """`act` does up to `most` of a key's, gives the result of each in their order, and may be asked to do again what it
        did. Errors `of_all` are nobody's own."""
        self._act = act
        self._most = most
        self._rest = rest
        self._of_all = of_all
        self._lines: dict[K, _Line[T, R]] = {}

    @property
    def idle(self) -> bool:
        return not self._lines

    async def do(self, key: K, item: T) -> R:
        """Raises what `act` does. Who is cancelled meanwhile leaves nothing behind that is done later."""
        line = self._lines.get(key)
        if line is None:
            done = partial(self._lines.pop, key)
            line = self._lines[key] = _Line(partial(self._act, key), self._most, self._rest, self._of_all, done)
        return await line.do(item)


class _Line(Generic[T, R]):
    """Those that wait with one key."""

    def __init__(
        self,
        act: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        most: int,
        rest: float,
        of_all: tuple[type[Exception], ...],
        done: Callable[[], object],
    ) -> None:
        """`done` is called when nobody waits any more: who comes then begins a new line."""
        self._act = act
        self._done = done
        self._most = most
        self._rest = rest
        self._is_full = asyncio.Event()
        self._of_all = of_all
        self._waiting: list[_Waiting[T, R]] = []
        self._group: Sequence[_Waiting[T, R]] = ()
        self._acting: asyncio.Future[Sequence[R]] | None = None
        self._running: asyncio.Task[None] | None = None

    async def do(self, item: T) -> R:
        waiting: _Waiting[T, R] = _Waiting(item, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if len(self._waiting) >= self._most:
            self._is_full.set()
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        try:
            return await asyncio.shield(waiting.done)
        except asyncio.CancelledError:
            await self._leave(waiting)
            raise

    async def _leave(self, waiting: _Waiting[T, R]) -> None:
        waiting.gone = True
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        if waiting not in self._group:  # nobody is at it
            waiting.done.cancel()
        elif self._acting is not None and all(each.gone for each in self._group):
            self._acting.cancel()
        await asyncio.gather(waiting.done, return_exceptions=True)

    async def _run(self) -> None:
        group: list[_Waiting[T, R]] = []
        try:
            while self._waiting:
                group, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                began = time.monotonic()
                found = await self._try(group)
                is_shared = not isinstance(found, BaseException) or len(group) == 1 or isinstance(found, self._of_all)
                for at, each in enumerate(group):
                    if each.gone:
                        each.done.cancel()
                    elif is_shared:
                        _settle(each, found, at)
                    else:
                        _settle(each, await self._try([each]), 0)
                await self._gather(self._rest * (time.monotonic() - began))
        finally:
            self._running = None
            self._done()
            for each in (*group, *self._waiting):  # of a task that was cancelled; else all have their end
                each.done.cancel()

    async def _gather(self, seconds: float) -> None:
        """Let others join, until there are as many as may."""
        self._is_full.clear()
        if seconds and len(self._waiting) < self._most:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_full.wait(), min(seconds, LONGEST_REST))

    async def _try(self, group: Sequence[_Waiting[T, R]]) -> Sequence[R] | BaseException:
        self._group, self._acting = group, asyncio.ensure_future(self._act([each.item for each in group]))
        try:
            [found] = await asyncio.gather(self._acting, return_exceptions=True)
        finally:
            self._group, self._acting = (), None
        return found


def _settle(waiting: _Waiting[T, R], found: Sequence[R] | BaseException, at: int) -> None:
    if waiting.done.done():
        return
    if isinstance(found, asyncio.CancelledError):
        waiting.done.cancel()
    elif isinstance(found, BaseException):
        waiting.done.set_exception(found)
    else:
        waiting.done.set_result(found[at])
