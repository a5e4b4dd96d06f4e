"""The queue alone: jobs per second (claimed, begun and settled, with nothing to do), this process's CPU time for each, and
milliseconds from a committed job to the worker that has it, with each broker. No service, no documents.

FOOTNOTE_TEST_POSTGRES_URL=… FOOTNOTE_TEST_REDIS_URL=… FOOTNOTE_TEST_AMQP_URL=… python benchmarks/job_queue.py

Without a variable, what it names is left out. PostgreSQL gets a database of its own, which is removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from ingest.brokers import open_broker
from ingest.database import Database, open_database
from ingest.documents import add_jobs
from ingest.job_rows import Job
from ingest.jobs import Jobs
from ingest.records import new_job
from ingest.worker import Worker


class Nothing:
    """A pipeline that settles at once, and remembers when it was given what."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.began: dict[str, float] = {}
        self.more = asyncio.Event()

    async def run(self, job: Job, _progress: object) -> None:
        self.began[job.id] = time.perf_counter()
        await self.jobs.succeed(job)
        self.more.set()

    async def housekeep(self) -> None:
        """Nothing is kept."""

    async def until(self, count: int) -> None:
        while len(self.began) < count:
            await self.more.wait()
            self.more.clear()


@asynccontextmanager
async def catalog(kind: str, folder: Path) -> AsyncIterator[str]:
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{folder / 'catalog.sqlite'}"
        return
    server = make_url(os.environ["FOOTNOTE_TEST_POSTGRES_URL"])
    name = f"footnote_queue_{os.getpid()}"
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        async with engine.connect() as connection:
            await connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        await engine.dispose()


async def put(database: Database, count: int) -> list[str]:
    rows = [new_job("rebuild", f"c{number % 10}") for number in range(count)]
    async with database.writing() as connection:
        await add_jobs(connection, rows)
    return [row["id"] for row in rows]


async def measure(url: str, broker_url: str, count: int, samples: int) -> dict[str, float]:
    sender, receiver = await open_broker(broker_url), await open_broker(broker_url)
    door, own = await open_database(url, sender.send), await open_database(url, receiver.send)
    jobs = Jobs(own, lease_seconds=30, max_attempts=3)
    pipeline = Nothing(jobs)
    await put(door, count)
    stop = asyncio.Event()
    began, worked = time.perf_counter(), time.process_time()
    worker = asyncio.create_task(Worker(jobs, pipeline, receiver, concurrency=4).run(stop))  # type: ignore[arg-type]
    await pipeline.until(count)
    rate, cpu = count / (time.perf_counter() - began), 1000 * (time.process_time() - worked) / count
    await asyncio.sleep(3)  # it is idle then, and has heard what was announced
    waits = []
    for number in range(samples):
        [job_id] = await put(door, 1)
        committed = time.perf_counter()
        await pipeline.until(count + number + 1)
        waits.append(1000 * (pipeline.began[job_id] - committed))
        await asyncio.sleep(0.05 + 0.4 * number / samples)
    stop.set()
    await worker
    for each in (door, own, sender, receiver):
        await each.close()
    return {
        "jobs_per_second": round(rate),
        "cpu_ms_per_job": round(cpu, 2),
        "p50_ms": round(statistics.median(waits), 1),
        "p95_ms": round(statistics.quantiles(waits, n=20)[-1], 1),
        "max_ms": round(max(waits), 1),
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=50)
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    catalogs = ["sqlite", *(["postgresql"] if "FOOTNOTE_TEST_POSTGRES_URL" in os.environ else [])]
    servers = [os.environ[name] for name in ("FOOTNOTE_TEST_REDIS_URL", "FOOTNOTE_TEST_AMQP_URL") if name in os.environ]
    for kind in catalogs:
        for broker in ("local", *servers):
            with tempfile.TemporaryDirectory() as name:
                broker_url = f"local:{name}/wake" if broker == "local" else broker
                async with catalog(kind, Path(name)) as url:
                    found = await measure(url, broker_url, args.jobs, args.samples)
                row = {"catalog": kind, "broker": broker.partition(":")[0], **found, "load": round(os.getloadavg()[0], 1)}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
