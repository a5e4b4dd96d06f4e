"""Work that blocks, in a thread if it would hold up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

FEW = 10_000
"""Characters that are gone through in a millisecond or two: a thread would take a loop with much to do as long to answer."""


async def aside(characters: int, call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """What `call` gives, which goes through so many characters."""
    if characters <= FEW:
        return call(*arguments, **named)
    return await asyncio.to_thread(call, *arguments, **named)
