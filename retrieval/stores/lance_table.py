"""One LanceDB table: its columns, its indexes, and the one commit that replaces documents."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from retrieval.stores.filters import KEYS, ColumnValue, key_names, kind_of_column, metadata_columns
from retrieval.stores.lance_filter import in_list
from retrieval.stores.lance_import import FTS, BTree, FullTextOperator, HnswSq, MatchQuery
from retrieval.stores.rows import metadata_from_json, metadata_to_json, ranked
from retrieval.types import Candidates, Chunk, EmbeddedChunk, Matrix, Scores, Vector

T = TypeVar("T")

COMMIT_ATTEMPTS = 10
PARTITION_ROWS = 100_000
"""Rows per partition of the vector index: one graph for most tables, so that a search misses next to nothing."""

CHUNK_COLUMNS = Chunk.__slots__
SEARCHED = (*CHUNK_COLUMNS, "vector")
"""What a search brings back: not the terms, nor the columns that only filters read."""
COLUMN_TYPES: dict[str, Any] = {"s": pa.string(), "n": pa.float64(), "b": pa.bool_(), "l": pa.list_(pa.string())}

FULL_TEXT = FTS(
    base_tokenizer="whitespace",
    with_position=False,
    stem=False,
    lower_case=False,
    remove_stop_words=False,
    ascii_folding=False,
    max_token_length=None,
)
"""`terms` are analysed already: split them at spaces and touch nothing."""


def table_schema(dimension: int) -> Any:
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("document_name", pa.string(), nullable=False),
            pa.field("position", pa.int64(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("end", pa.int64(), nullable=False),
            pa.field("page", pa.float64()),  # compared with numbers of any type, which LanceDB does not cast to integers
            pa.field("headings", pa.list_(pa.string()), nullable=False),
            pa.field("language", pa.string()),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field(KEYS, pa.list_(pa.string()), nullable=False),
            pa.field("terms", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False),
        ]
    )


async def create_table(database: Any, name: str, dimension: int) -> Any:
    table = await database.create_table(name, schema=table_schema(dimension))
    await table.create_index("terms", config=FULL_TEXT)
    return table


async def dimension_of(table: Any) -> int:
    return int((await table.schema()).field("vector").type.list_size)


async def replace_documents(table: Any, documents: Mapping[str, Sequence[EmbeddedChunk]]) -> None:
    """Make the rows of these documents exactly the given ones, in one commit.

    The caller holds the table's lock, so nobody adds a column or a row of these documents in between.
    """
    rows = [row for chunks in documents.values() for row in chunks]
    columns = [metadata_columns(row.chunk.metadata) for row in rows]
    schema = await table.schema()
    missing = sorted({name for each in columns for name in each} - set(schema.names))
    if missing:
        added = pa.schema([pa.field(name, COLUMN_TYPES[kind_of_column(name)]) for name in missing])
        await retried(lambda: table.add_columns(added))
        schema = await table.schema()
    data = to_arrow(rows, columns, schema)
    merge = (
        table.merge_insert("id")
        .when_matched_update_all()
        .when_not_matched_insert_all()
        .when_not_matched_by_source_delete(in_list("document_id", documents))
    )
    await retried(lambda: merge.execute(data))


def to_arrow(rows: Sequence[EmbeddedChunk], metadata: Sequence[Mapping[str, ColumnValue]], schema: Any) -> Any:
    chunks = [row.chunk for row in rows]
    built_in: dict[str, Any] = {
        "headings": [list(chunk.headings) for chunk in chunks],
        "metadata": [metadata_to_json(chunk.metadata) for chunk in chunks],
        KEYS: [key_names(chunk) for chunk in chunks],
        "terms": [row.terms for row in rows],
        "vector": fixed_size_list([row.vector for row in rows], schema.field("vector").type),
    }
    arrays = []
    for field in schema:
        values = built_in.get(field.name)
        if values is None and field.name in CHUNK_COLUMNS:
            values = [getattr(chunk, field.name) for chunk in chunks]
        elif values is None:
            values = [each.get(field.name) for each in metadata]
        arrays.append(values if isinstance(values, pa.Array) else pa.array(values, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def fixed_size_list(vectors: Sequence[Vector], type_: Any) -> Any:
    """Vectors as one Arrow array, without a Python float per number."""
    flat = np.concatenate(vectors) if vectors else np.empty(0)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(np.float32)), type=type_)


async def limited(query: Any, where: str | None, limit: int) -> Any:
    """The Arrow table of at most `limit` rows that pass `where`, a condition that LanceDB applies before it ranks."""
    if where:
        query = query.where(where)
    return await query.limit(limit).to_arrow()


def any_of_terms(terms: Sequence[str]) -> Any:
    return MatchQuery(" ".join(terms), "terms", operator=FullTextOperator.OR)  # type: ignore[call-arg]  # the others have defaults


def chunks_of(table: Any) -> list[Chunk]:
    return [to_chunk(row) for row in table.select(list(CHUNK_COLUMNS)).to_pylist()]


def to_chunk(row: dict[str, Any]) -> Chunk:
    row["page"] = None if row["page"] is None else int(row["page"])
    row["headings"] = tuple(row["headings"])
    row["metadata"] = metadata_from_json(row["metadata"])
    return Chunk(**row)


def sound_rows(table: Any) -> Iterator[EmbeddedChunk]:
    """The rows whose columns say the same as the chunk in them, as `to_arrow` wrote them; all others are left out."""
    names = [name for name in table.schema.names if name.startswith("m_")]
    for row, vector in zip(table.drop_columns("vector").to_pylist(), vectors_of(table), strict=True):
        extra = {name: row[name] for name in names if row[name] is not None}
        terms, keys = row["terms"], row[KEYS]
        try:
            chunk = to_chunk({name: row[name] for name in CHUNK_COLUMNS})
            if metadata_columns(chunk.metadata) == extra and key_names(chunk) == keys:
                yield EmbeddedChunk(chunk, vector, terms)
        except (ValueError, TypeError, AttributeError):
            continue  # its metadata is no JSON any more


def vectors_of(table: Any) -> Matrix:
    column = table.column("vector")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors: Matrix = flat.reshape(table.num_rows, column.type.list_size)
    return vectors


def candidates(rows: Any, scores: Scores, limit: int) -> Candidates:
    """The best rows of an Arrow table."""
    ids, vectors = rows.column("id").to_pylist(), vectors_of(rows)
    best = ranked(ids, scores, limit)
    return Candidates(
        [ids[at] for at in best.tolist()],
        scores[best],
        lambda places: vectors[best[places]],
        lambda place: chunk_at(rows, int(best[place])),
    )


def chunk_at(rows: Any, place: int) -> Chunk:
    return chunks_of(rows.slice(place, 1))[0]


async def ensure_indexes(table: Any, vector_index_rows: int) -> None:
    """Build what the table lacks for its size; `optimize` keeps it up to date afterwards."""
    present = {column for index in await table.list_indices() for column in index.columns}
    if "terms" not in present:
        await table.create_index("terms", config=FULL_TEXT)
    rows = await table.count_rows()
    if rows < vector_index_rows:
        return
    for column in ("id", "document_id"):
        if column not in present:
            await table.create_index(column, config=BTree())
    if "vector" not in present:
        partitions = 1 + rows // PARTITION_ROWS
        await table.create_index("vector", config=HnswSq(distance_type="cosine", num_partitions=partitions))


async def retried(commit: Callable[[], Awaitable[T]], attempts: int = COMMIT_ATTEMPTS) -> T:
    """Try a commit again, after a random pause, while another process's commit gets in first."""
    for attempt in range(1, attempts):
        try:
            return await commit()
        except RuntimeError as exc:
            if not is_conflict(exc):
                raise
        await asyncio.sleep(random.uniform(0.0, 0.02 * 2**attempt))  # noqa: S311 - jitter
    return await commit()


def is_conflict(error: RuntimeError) -> bool:
    """LanceDB has no exception of its own for a lost race; Lance's texts are "Retryable commit conflict", "Commit conflict",
    and "Too many concurrent writers"."""
    text = str(error).lower()
    return "commit conflict" in text or "concurrent" in text
