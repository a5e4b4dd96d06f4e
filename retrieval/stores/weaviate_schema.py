"""How chunks lie in Weaviate: two classes per schema, their properties, and filters in Weaviate's terms.

`Footnote_<schema>` holds the chunks, `FootnoteLive_<schema>` one small marker per document that says which write of it is
visible. The markers have a class of their own because Weaviate's BM25 counts every object of a class as a text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from weaviate.classes.config import (
    Configure,
    DataType,
    Property,
    ReplicationDeletionStrategy,
    StopwordsPreset,
    Tokenization,
    VectorDistances,
)
from weaviate.classes.data import DataObject
from weaviate.classes.query import Filter as Where

from retrieval.stores.filters import KEYS, AllOf, AnyOf, Complement, Kind, Node, Test, key_names, metadata_columns
from retrieval.stores.rows import metadata_from_json, metadata_to_json
from retrieval.stores.weaviate_rows import Row
from retrieval.types import Chunk, EmbeddedChunk, Index, Scalar, Vector

BATCH_OBJECTS = 500
BATCH_BYTES = 8_000_000
"""Bounds of one gRPC message, where the server's own is not lower; a message is held in memory several times over."""

CHUNK_FIELDS = ["text", "chunk", "version", "chunk_id", "document_id"]
"""The properties that make a chunk, and what must be known of all that a search finds; the others are only searched."""

INDEX_RECORD = UUID(bytes=hashlib.blake2b(b"index", digest_size=16).digest())
"""The object beside a tenant's markers that holds the dimension of the index."""

MULTI_TENANCY = Configure.multi_tenancy(enabled=True, auto_tenant_activation=True)
"""An operator may deactivate the tenants of idle collections, which frees their memory and files: the next use wakes them."""

ADDED_TYPES = {"n": DataType.NUMBER, "b": DataType.BOOL, "s": DataType.TEXT, "l": DataType.TEXT_ARRAY}


def chunk_class(index: Index) -> str:
    return f"Footnote_{schema_name(index.schema)}"


def live_class(index: Index) -> str:
    return f"FootnoteLive_{schema_name(index.schema)}"


def schema_name(schema: str) -> str:
    """The schema's name if it may stand in the name of a class, else a readable part of it with its hash."""
    if re.fullmatch(r"[0-9A-Za-z_]{1,80}", schema):
        return schema
    digest = hashlib.blake2b(schema.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{re.sub(r'[^0-9A-Za-z]', '_', schema)[:60]}_{digest}"


def chunk_class_settings(replicas: int | None) -> dict[str, Any]:
    return {
        "replication_config": replication(replicas),
        "properties": [
            Property(name="text", data_type=DataType.TEXT, index_filterable=False, index_searchable=False),
            Property(name="chunk", data_type=DataType.TEXT, index_filterable=False, index_searchable=False),
            Property(
                name="terms",
                data_type=DataType.TEXT,
                tokenization=Tokenization.WHITESPACE,
                index_filterable=False,
                index_searchable=True,
            ),
            *(column("s", name) for name in ("version", "chunk_id", "document_id", "document_name", "language")),
            column("n", "page"),
            column("l", KEYS),
        ],
        "vector_config": Configure.Vectors.self_provided(
            vector_index_config=Configure.VectorIndex.hnsw(distance_metric=VectorDistances.COSINE)
        ),
        "inverted_index_config": Configure.inverted_index(bm25_k1=1.2, bm25_b=0.75, stopwords_preset=StopwordsPreset.NONE),
        "multi_tenancy_config": MULTI_TENANCY,
    }


def live_class_settings(replicas: int | None) -> dict[str, Any]:
    return {
        "replication_config": replication(replicas),
        "properties": [
            Property(name="live", data_type=DataType.TEXT, index_filterable=False, index_searchable=False),
            Property(name="chunks", data_type=DataType.INT, index_filterable=True),
            Property(name="dimension", data_type=DataType.INT, index_filterable=False),
        ],
        "vector_config": Configure.Vectors.self_provided(vector_index_config=Configure.VectorIndex.none()),
        "multi_tenancy_config": MULTI_TENANCY,
    }


def replication(replicas: int | None) -> Any:
    """So many copies of every object, None for as many as the server makes by itself.

    A copy that missed writes is brought up to date in the background, and a deletion that it missed is not undone by it.
    """
    return Configure.replication(
        factor=replicas,
        async_enabled=True if replicas and replicas > 1 else None,
        deletion_strategy=ReplicationDeletionStrategy.TIME_BASED_RESOLUTION,
    )


def column(kind: Kind, name: str) -> Property:
    """A property that filters look at."""
    if kind in {"n", "b"}:
        return Property(name=name, data_type=ADDED_TYPES[kind], index_filterable=True)
    return Property(
        name=name, data_type=ADDED_TYPES[kind], tokenization=Tokenization.FIELD, index_filterable=True, index_searchable=False
    )


def framed(text: str) -> str:
    """A string as it is stored to be compared: Weaviate trims what it indexes and takes the empty string for null.

    The frame keeps spaces and emptiness, and the order by code point (the closing character is the lowest but one).
    """
    return f"={text}\x01"


def unframed(stored: str | None) -> str:
    return stored[1:-1] if stored else ""


def chunk_uuid(chunk_id: str, version: str) -> UUID:
    """Differs with every write, so that a chunk that is written again never overwrites the one that is visible."""
    return hashed_uuid(f"chunk\x00{version}\x00{chunk_id}")


def marker_uuid(document_id: str) -> UUID:
    return hashed_uuid(f"document\x00{document_id}")


def hashed_uuid(text: str) -> UUID:
    return UUID(bytes=hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())


def to_object(row: EmbeddedChunk, version: str) -> DataObject[Any, Any]:
    chunk = row.chunk
    properties: dict[str, Any] = {
        "text": chunk.text,
        "chunk": chunk_to_json(chunk),
        "terms": row.terms,
        "version": framed(version),
        "chunk_id": framed(chunk.id),
        "document_id": framed(chunk.document_id),
        "document_name": framed(chunk.document_name),
        KEYS: [framed(name) for name in key_names(chunk)],
    }
    if chunk.language is not None:
        properties["language"] = framed(chunk.language)
    if chunk.page is not None:
        properties["page"] = float(chunk.page)
    for name, value in metadata_columns(chunk.metadata).items():
        if isinstance(value, str):
            properties[name] = framed(value)
        else:
            properties[name] = [framed(each) for each in value] if isinstance(value, list) else value
    return DataObject(uuid=chunk_uuid(chunk.id, version), properties=properties, vector=row.vector.tolist())


def chunk_to_json(chunk: Chunk) -> str:
    """All of a chunk but its text, so that it comes back exactly as it was given."""
    fields = {name: getattr(chunk, name) for name in chunk.__slots__ if name not in {"text", "metadata"}}
    return json.dumps({**fields, "metadata": metadata_to_json(chunk.metadata)})


@dataclass(frozen=True, slots=True)
class Found:
    """A stored chunk, visible or not."""

    chunk_id: str
    document_id: str
    version: str
    vector: Vector
    score: float
    text: str
    rest: str

    def read(self) -> Chunk:
        return chunk_from_json(self.text, self.rest)


def to_found(row: Row) -> Found:
    chunk_id, document_id, version = (unframed(row.text(name)) for name in ("chunk_id", "document_id", "version"))
    return Found(chunk_id, document_id, version, row.vector, row.score, row.text("text"), row.text("chunk"))


def chunk_from_json(text: str, rest: str) -> Chunk:
    """Undoes `chunk_to_json`."""
    fields = json.loads(rest)
    fields["headings"] = tuple(fields["headings"])
    fields["metadata"] = metadata_from_json(fields["metadata"])
    return Chunk(text=text, **fields)


def sound_row(item: Any) -> EmbeddedChunk | None:
    """The chunk of a stored object if all that is searched of it says the same, as `to_object` wrote it."""
    held = {name: value for name, value in item.properties.items() if value not in (None, "", [])}
    try:
        vector = np.asarray(item.vector.get("default", ()), dtype=np.float32)
        row = EmbeddedChunk(chunk_from_json(held.get("text", ""), held["chunk"]), vector, held.get("terms", ""))
        wanted = to_object(row, unframed(held["version"])).properties
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # the chunk in it is no JSON any more, or lacks a field
    return row if held == {name: value for name, value in wanted.items() if value not in ("", [])} else None


def batches(objects: Sequence[DataObject[Any, Any]], message_bytes: int) -> Iterator[list[DataObject[Any, Any]]]:
    """Objects in groups that fit into one message of the server's."""
    most = min(BATCH_BYTES, message_bytes // 2)
    batch: list[DataObject[Any, Any]] = []
    size = 0
    for each in objects:
        weight = sum(4 * len(value) for value in each.properties.values() if isinstance(value, str)) + 4 * len(
            each.vector or ()
        )
        if batch and (len(batch) == BATCH_OBJECTS or size + weight > most):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += weight
    if batch:
        yield batch


def to_where(node: Node) -> Any:
    """A resolved filter as the client's filter."""
    match node:
        case AllOf(parts):
            return Where.all_of([to_where(part) for part in parts])
        case AnyOf(parts):
            return Where.any_of([to_where(part) for part in parts])
        case Complement(part):
            return Where.not_(to_where(part))  # the rest of all objects, also of those without the property
        case Test():
            return test_to_where(node)


def test_to_where(test: Test) -> Any:
    prop = Where.by_property(test.column)
    values = [comparable(value) for value in test.values]
    if test.kind == "b":
        return Where.any_of([prop.equal(value) for value in values])
    match test.op:
        case "in" | "contains":
            return prop.contains_any(values)
        case "gt":
            return prop.greater_than(values[0])
        case "gte":
            return prop.greater_or_equal(values[0])
        case "lt":
            return prop.less_than(values[0])
        case "lte":
            return prop.less_or_equal(values[0])


def comparable(value: Scalar) -> Any:
    return framed(value) if isinstance(value, str) else value
