"""What is counted for Prometheus: by this process, or by all that answer on the port, whichever of them is asked."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SHARED = "PROMETHEUS_MULTIPROC_DIR" in os.environ
"""Whether several processes count together (`app.serve`), in a folder that `prometheus_client` found when it was imported."""

_REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "footnote_http_requests_total", "HTTP requests by route and status", ["method", "route", "status"], registry=_REGISTRY
)
SECONDS = Histogram(
    "footnote_http_request_seconds",
    "Seconds from a request to the start of its response",
    ["method", "route"],
    registry=_REGISTRY,
)
WAITING = Gauge("footnote_queries_waiting", "Questions that wait for a place", registry=_REGISTRY, multiprocess_mode="livesum")
CACHE_HITS = Counter("footnote_query_cache_hits_total", "Questions answered from memory", registry=_REGISTRY)
CACHE_MISSES = Counter("footnote_query_cache_misses_total", "Questions that memory had no answer to", registry=_REGISTRY)


def counted() -> bytes:
    """All of it, in Prometheus's text format."""
    if not _SHARED:
        return generate_latest(_REGISTRY)
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget(pid: int) -> None:
    """Of a process that ended only its counters count on."""
    if _SHARED:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)  # type: ignore[no-untyped-call]
