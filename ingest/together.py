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
    gone: bool = False
    """Whoever asked for it does not want it any more."""


class Together(Generic[T]):
    """Does one thing after the other; what comes while one is under way is then done at once.

    A single caller waits for nobody, and up to `most` that come at the same time share a call. An error is its own caller's:
    where several were done at once they are done again, one by one.
    """

    def __init__(
        self, act: Callable[[Sequence[T]], Awaitable[None]], *, most: int, of_all: tuple[type[Exception], ...] = ()
    ) -> None:
        """`act` does up to `most` of them, and may be asked to do again what it did. Errors `of_all` are nobody's own."""
        self._act = act
        self._most = most
        self._of_all = of_all
        self._waiting: list[_Waiting[T]] = []
        self._group: Sequence[_Waiting[T]] = ()
        self._acting: asyncio.Future[None] | None = None
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
            await self._leave(waiting)
            raise

    async def _leave(self, waiting: _Waiting[T]) -> None:
        waiting.gone = True
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        if waiting not in self._group:  # nobody is at it
            waiting.done.cancel()
        elif self._acting is not None and all(each.gone for each in self._group):
            self._acting.cancel()
        await asyncio.gather(waiting.done, return_exceptions=True)

    async def _run(self) -> None:
        group: list[_Waiting[T]] = []
        try:
            while self._waiting:
                group, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                error = await self._try(group)
                is_shared = error is None or len(group) == 1 or isinstance(error, self._of_all)
                for each in group:
                    if each.gone:
                        each.done.cancel()
                    else:
                        self._settle(each, error if is_shared else await self._try([each]))
        finally:
            self._running = None
            for each in (*group, *self._waiting):  # of a task that was cancelled; else all have their end
                each.done.cancel()

    async def _try(self, group: Sequence[_Waiting[T]]) -> BaseException | None:
        self._group, self._acting = group, asyncio.ensure_future(self._act([each.item for each in group]))
        try:
            [error] = await asyncio.gather(self._acting, return_exceptions=True)
        finally:
            self._group, self._acting = (), None
        return error

    def _settle(self, waiting: _Waiting[T], error: BaseException | None) -> None:
        if waiting.done.done():
            return
        if error is None:
            waiting.done.set_result(None)
        elif isinstance(error, asyncio.CancelledError):
            waiting.done.cancel()
        else:
            waiting.done.set_exception(error)
