"""RabbitMQ, by Dramatiq's broker for it."""

from __future__ import annotations

import logging

import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from ingest.brokers.server import QUOTED, ServerBroker
from retrieval.errors import ConfigurationError

IDLE_SECONDS = 0.5
"""RabbitMQ pushes: this is only how often a listening thread looks whether it should stop."""


async def open_rabbitmq(url: str) -> ServerBroker:
    """Open `amqp://` or `amqps://`; options of pika may follow as a query. Raises `ConfigurationError`."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it tells in many lines and tracebacks what we tell in one
    options = {"socket_timeout": 5, "blocked_connection_timeout": 10, "heartbeat": 60}
    try:
        broker = RabbitmqBroker(url=url, middleware=[], confirm_delivery=True)
    except Exception as exc:  # pika's parser raises whatever its parts raise
        raise ConfigurationError(f"FOOTNOTE_BROKER_URL is no URL such as amqp://user:password@host:5672/; {QUOTED}") from exc
    for name, value in options.items():
        if f"{name}=" not in url:
            setattr(broker.parameters, name, value)
    return ServerBroker(url, "RabbitMQ", broker, idle_seconds=IDLE_SECONDS, check=lambda: _check(broker))


def _check(broker: RabbitmqBroker) -> None:
    """A sign of life over the sender's connection, which this also keeps from being closed as idle."""
    try:
        broker.connection.process_data_events(0)
    except pika.exceptions.AMQPError:
        del broker.connection  # it died while nothing was sent; is the server back?
        broker.connection.process_data_events(0)
