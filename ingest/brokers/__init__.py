"""The port to a broker, which wakes workers, and the table of the brokers that we ship."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from retrieval.registry import Registry


class Broker(Protocol):
    """Tells workers that there is something to claim. The catalog owns the jobs: what a broker loses is only a little time.

    So nothing here fails where the broker is away: a message is then not sent or not heard, and workers, who look into the
    catalog by themselves every few seconds, find the job without it.
    """

    def send(self, queue: str, job_ids: Sequence[str]) -> None:
        """Announce jobs of a queue that can be claimed; returns at once."""

    async def receive(self, queues: Sequence[str]) -> None:
        """Return when a job of one of these queues was announced; waits for as long as that takes.

        What is announced while nobody waits here is kept: for this worker, or for another that waits.
        """

    async def ping(self) -> str:
        """Name of the broker; raises `BrokerUnavailable` with the cure if it is not there."""

    async def close(self) -> None:
        """Send what is still to be sent, within a moment, and release connections and threads; idempotent."""


BROKERS: Registry[Broker] = Registry(
    "broker",
    {
        "local": "ingest.brokers.local:open_local",
        "redis": "ingest.brokers.redis:open_redis",
        "rediss": "ingest.brokers.redis:open_redis",
        "amqp": "ingest.brokers.rabbitmq:open_rabbitmq",
        "amqps": "ingest.brokers.rabbitmq:open_rabbitmq",
    },
)


async def open_broker(url: str) -> Broker:
    """Open a broker by URL: `local:/folder`, `redis://host:6379/0`, `amqp://user:password@host:5672/`.

    Raises `ConfigurationError` for an unknown scheme or a malformed URL; a server that does not answer is no error.
    """
    opener = BROKERS.load(url.partition(":")[0])
    broker: Broker = await opener(url)
    return broker
