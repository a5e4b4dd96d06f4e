"""Where Weaviate is and how it keeps copies, all of it in the store's URL.

`weaviate://host:8080?grpc=50051`, `weaviates://host` with TLS, `?grpc=HOST:PORT` where gRPC has a host of its own, and for a
cluster `weaviate://a:8080,b:8080,c:8080?grpc=50051&replicas=3&consistency=quorum` (docs/decisions/0009).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from weaviate.classes.config import ConsistencyLevel

from retrieval.errors import ConfigurationError

FORM = "write weaviate://host:8080?grpc=50051, several hosts of one cluster with commas: weaviate://a:8080,b:8080?grpc=50051"
OPTIONS = ("grpc", "replicas", "consistency")


@dataclass(frozen=True, slots=True)
class Node:
    """One server, with where it speaks HTTP and where gRPC."""

    scheme: str
    host: str
    http: int
    grpc_host: str
    grpc: int

    def __str__(self) -> str:
        grpc = self.grpc if self.grpc_host == self.host else f"{_bracketed(self.grpc_host)}:{self.grpc}"
        return f"{self.scheme}://{_bracketed(self.host)}:{self.http}?grpc={grpc}"

    @property
    def secure(self) -> bool:
        return self.scheme == "weaviates"


@dataclass(frozen=True, slots=True)
class Address:
    """The nodes in the order in which they are tried, and how many copies there are and must answer."""

    nodes: tuple[Node, ...]
    replicas: int | None
    """Copies of every object; None leaves it to the server."""
    consistency: ConsistencyLevel
    """How many of them must agree to a write."""


def parse_address(url: str) -> Address:
    """Raises `ConfigurationError`, which names what is wrong."""
    parts = urlsplit(url)
    options = _options(url, parts.query)
    hosts = parts.netloc.split(",")
    grpc = options.get("grpc", "50051").split(",")
    grpc = grpc * len(hosts) if len(grpc) == 1 else grpc
    if not all(hosts) or len(grpc) != len(hosts):
        raise ConfigurationError(f"{url!r} names no host, or not as many gRPC ports as hosts; {FORM}")
    try:
        nodes = tuple(_node(parts.scheme, host, own) for host, own in zip(hosts, grpc, strict=True))
    except ValueError as exc:
        raise ConfigurationError(f"{url!r}: {exc}; {FORM}") from exc
    return Address(nodes, _replicas(url, options), _consistency(url, options))


def _node(scheme: str, host: str, grpc: str) -> Node:
    http = urlsplit(f"//{host}")
    rpc = urlsplit(f"//{grpc}" if ":" in grpc else f"//{_bracketed(http.hostname or '')}:{int(grpc)}")
    node = Node(
        scheme,
        http.hostname or "",
        http.port or (443 if scheme == "weaviates" else 8080),
        rpc.hostname or "",
        rpc.port or 50051,
    )
    if (node.host, node.http) == (node.grpc_host, node.grpc):
        raise ValueError(f"port {node.http} cannot be both its HTTP and its gRPC port")
    return node


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _options(url: str, query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := set(options) - set(OPTIONS):
        raise ConfigurationError(f"{url!r} has an unknown option {min(unknown)!r}; known: {', '.join(OPTIONS)}")
    return options


def _replicas(url: str, options: dict[str, str]) -> int | None:
    value = options.get("replicas")
    if value is None:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ConfigurationError(f"{url!r} asks for replicas={value}; write a number from 1 up, at most that of the nodes")
    return int(value)


def _consistency(url: str, options: dict[str, str]) -> ConsistencyLevel:
    value = options.get("consistency", "quorum")
    try:
        return ConsistencyLevel(value.upper())
    except ValueError as exc:
        raise ConfigurationError(f"{url!r} asks for consistency={value}; write one, quorum or all") from exc
