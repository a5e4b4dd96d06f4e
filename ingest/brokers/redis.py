"""Redis, by Dramatiq's broker for it."""

from __future__ import annotations

import redis
from dramatiq.brokers.redis import RedisBroker
from redis.backoff import NoBackoff
from redis.retry import Retry

from ingest.brokers.server import QUOTED, ServerBroker
from retrieval.errors import ConfigurationError

IDLE_SECONDS = 0.2
"""Redis is asked again and again, seldomer the longer nothing came: this is the longest pause between two questions."""


async def open_redis(url: str) -> ServerBroker:
    """Open `redis://` or `rediss://`; options of redis-py may follow as a query. Raises `ConfigurationError`."""
    try:
        client = redis.Redis.from_url(  # one more try, as a connection from the pool may have died while it lay there
            url, socket_timeout=5, socket_connect_timeout=5, health_check_interval=30, retry=Retry(NoBackoff(), 1)
        )
    except (ValueError, TypeError) as exc:
        raise ConfigurationError(f"FOOTNOTE_BROKER_URL is no URL such as redis://host:6379/0; {QUOTED}") from exc
    broker = RedisBroker(client=client, middleware=[])  # type: ignore[no-untyped-call]
    return ServerBroker(url, "Redis", broker, idle_seconds=IDLE_SECONDS, check=client.ping)
