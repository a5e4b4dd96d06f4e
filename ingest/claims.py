"""Which job is next, and which workers have fallen silent: the questions behind a claim, each answered by seeks of an index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from ingest.records import QUEUES
from ingest.schema import documents, jobs

LOWER_FIRST = 8
"""Every so many claims one begins with a lower queue, so that a flood of urgent work starves nothing."""
LOT = 32
"""Jobs that a worker takes at once, at most: what they have in common is paid for once."""
LOT_BYTES = 256 * 1024
"""Of the documents of such a lot together: their work should take a second or two, and fit into memory many times."""
LONGEST_WAIT = 3600.0
"""Seconds that a job may be told to wait. One that seems to wait longer was put off by a clock that has been set back since."""


class Turns:
    """Whose turn it is with one worker: urgent queues before the others, and the collections of a queue one after another."""

    def __init__(self, queues: Sequence[str] = QUEUES) -> None:
        self.queues = tuple(queue for queue in QUEUES if queue in queues)
        self._claims = 0
        self._last = dict.fromkeys(self.queues, "")

    def order(self) -> dict[str, str]:
        """Queues in the order in which to ask them, each with the collection that was served last in it."""
        lower_turns, rest = divmod(self._claims + 1, LOWER_FIRST)
        if rest or len(self.queues) == 1:
            return self._last
        lower = self.queues[:0:-1]
        first = lower_turns % len(lower)  # each of them in its turn
        return {queue: self._last[queue] for queue in (*lower[first:], *lower[:first], self.queues[0])}

    def served(self, queue: str, collection: str) -> None:
        self._claims += 1
        self._last[queue] = collection


class Watch:
    """Knows which running jobs stand still: those whose beats stayed the same for `patience` seconds of this process's clock.

    No clock of another machine has a say in it, nor has the time of day: setting a clock takes no job from a worker that
    lives and leaves none with a worker that died. Time in which nobody looked (a pause, a catalog that was away) counts for
    nobody's silence, as a worker may not have been able to renew its lease either.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._since: dict[str, tuple[int, float]] = {}
        self._looked = float("-inf")

    def silent(self, running: Mapping[str, int], now: float) -> list[str]:
        """Ids of the jobs that stand still, of all that are `running` at the time `now`, by their beats."""
        known = self._since if now - self._looked <= self.patience / 2 else {}
        self._looked = now
        self._since = {
            job_id: known[job_id] if job_id in known and known[job_id][0] == beat else (beat, now)
            for job_id, beat in running.items()
        }
        return [job_id for job_id, (_, since) in self._since.items() if now - since >= self.patience]


# Statements with many parts are built once for each set of queues: that takes longer than running them.


@cache
def next_place(queues: tuple[str, ...]) -> sa.Select[Any]:
    """Queue and collection whose turn it is among those with a job that is due; no row if there is none.

    The queues are asked in this order. Parameters: for each of them `last_<queue>`, the collection that was served last.
    """
    asked = []
    for queue in queues:
        due = sa.select(jobs.c.queue, jobs.c.collection).where(is_due(queue)).order_by(jobs.c.collection, jobs.c.id).limit(1)
        asked += [due.where(jobs.c.collection > sa.bindparam(f"last_{queue}")), due]
    found = sa.union_all(*(sa.select(sa.literal(rank).label("rank"), q.subquery()) for rank, q in enumerate(asked))).subquery()
    return sa.select(found.c.queue, found.c.collection).order_by(found.c.rank).limit(1)


def next_jobs(queue: str, collection: str, most: int) -> sa.Select[Any]:
    """The oldest jobs that are due there: `id`, `document_id`, this one's `size` in bytes, and `attempts` so far."""
    here = sa.and_(is_due(queue), jobs.c.collection == collection)
    size = sa.select(documents.c.size).where(documents.c.id == jobs.c.document_id).scalar_subquery()
    row = (jobs.c.id, jobs.c.document_id, sa.func.coalesce(size, 0).label("size"), jobs.c.attempts)
    return sa.select(*row).where(here).order_by(jobs.c.id).limit(most)


def lot_of(due: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Ids of the first of these rows of `next_jobs`, as many as are one lot.

    A large document is a lot of its own. So is one that was tried before: it may be what kills its workers, and others should
    not be tried in vain with it. Two jobs of one document never run at once.
    """
    lot: dict[str, str] = {}
    total = 0
    for row in due:
        total += LOT_BYTES + 1 if row["attempts"] else row["size"]
        whose = row["document_id"] or row["id"]
        if lot and (total > LOT_BYTES or whose in lot):
            break
        lot[whose] = row["id"]
    return list(lot.values())


def is_due(queue: str) -> sa.ColumnElement[bool]:
    """Waits for nothing: neither for its time nor for the end of another job of the same document."""
    busy = jobs.alias("busy")
    blocked = sa.exists().where(busy.c.document_id == jobs.c.document_id, busy.c.state == "running", busy.c.id != jobs.c.id)
    return sa.and_(jobs.c.state == "queued", jobs.c.queue == queue, jobs.c.run_after == 0, ~blocked)


@cache
def overdue(queues: tuple[str, ...], limit: int) -> sa.Select[Any]:
    """Ids of jobs that have waited long enough, at most so many. Parameters: `now`, and `never`, a time too far off for any."""
    now, never = sa.bindparam("now", type_=sa.Float), sa.bindparam("never", type_=sa.Float)
    over = _of_each(queues, lambda waiting: waiting.where(jobs.c.run_after <= now).limit(limit))
    astray = _of_each(queues, lambda waiting: waiting.where(jobs.c.run_after > never).limit(limit))
    return sa.select(sa.union_all(*over, *astray).subquery().c.id).limit(limit)


@cache
def next_retry(queues: tuple[str, ...]) -> sa.Select[Any]:
    """The time at which the first of the waiting jobs is due; null if none waits."""
    first = sa.union_all(*_of_each(queues, lambda waiting: waiting.order_by(jobs.c.run_after).limit(1))).subquery()
    return sa.select(sa.func.min(first.c.run_after))


def _of_each(queues: Iterable[str], narrowed: Callable[[sa.Select[Any]], sa.Select[Any]]) -> list[sa.Select[Any]]:
    """One query for each queue's waiting jobs: a database seeks in each, where it would sort or scan for all at once."""
    waiting = [
        sa.select(jobs.c.id, jobs.c.run_after).where(jobs.c.state == "queued", jobs.c.queue == queue, jobs.c.run_after > 0)
        for queue in queues
    ]
    return [sa.select(narrowed(each).subquery()) for each in waiting]
