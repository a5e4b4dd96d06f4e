"""What somebody does to a store behind the product's back, through the store's own client: one class per store, same verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import weaviate
from weaviate.classes.data import DataObject
from weaviate.classes.query import Filter as Where

from retrieval.stores.lance_import import lancedb
from retrieval.stores.rows import place_name
from retrieval.stores.weaviate_address import parse_address
from retrieval.stores.weaviate_schema import chunk_class, framed, live_class, marker_uuid, unframed
from retrieval.types import Index

COLUMN_OF_YEAR = "m_79656172_n"
"""Where both stores keep the metadata key `year` for filters."""


class BehindLance:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def table(self, index: Index) -> Any:
        return await (await lancedb.connect_async(str(self.folder))).open_table(place_name(index))

    async def remove_chunks(self, index: Index, document_id: str, count: int | None = None) -> None:
        """The first `count` of a document's chunks, or all."""
        last = "" if count is None else f" AND position < {count}"
        await (await self.table(index)).delete(f"document_id = '{document_id}'{last}")

    async def change(self, index: Index, document_id: str, field: str) -> None:
        """One field of a document's first chunk: text, terms, year or vector."""
        table = await self.table(index)
        where = f"document_id = '{document_id}' AND position = 0"
        row = (await table.query().where(where).to_arrow()).to_pylist()[0]
        name = COLUMN_OF_YEAR if field == "year" else field
        row[name] = {"text": "tampered", "terms": "tampered", "year": 1999.0, "vector": list(reversed(row["vector"]))}[field]
        await table.delete(where)
        await table.add(pa.Table.from_pylist([row], schema=await table.schema()))

    async def copy(self, index: Index, document_id: str, other: str) -> None:
        """All of a document once more, under an id that no catalog knows."""
        table = await self.table(index)
        rows = (await table.query().where(f"document_id = '{document_id}'").to_arrow()).to_pylist()
        fresh = [{**row, "id": f"{row['id']}-{other}", "document_id": other} for row in rows]
        await table.add(pa.Table.from_pylist(fresh, schema=await table.schema()))

    async def remove_index(self, index: Index) -> None:
        await (await lancedb.connect_async(str(self.folder))).drop_table(place_name(index))


class BehindWeaviate:
    def __init__(self, url: str) -> None:
        [at] = parse_address(url).nodes
        self.client = weaviate.use_async_with_custom(
            http_host=at.host,
            http_port=at.http,
            http_secure=False,
            grpc_host=at.grpc_host,
            grpc_port=at.grpc,
            grpc_secure=False,
            skip_init_checks=True,
        )

    def part(self, index: Index, name: str) -> Any:
        return self.client.collections.use(name).with_tenant(place_name(index))

    def chunks(self, index: Index) -> Any:
        return self.part(index, chunk_class(index))

    async def objects(self, index: Index, document_id: str) -> list[Any]:
        """In no order: whoever changes one of them changes any."""
        mine = Where.by_property("document_id").equal(framed(document_id))
        return list((await self.chunks(index).query.fetch_objects(filters=mine, limit=10_000, include_vector=True)).objects)

    async def remove_chunks(self, index: Index, document_id: str, count: int | None = None) -> None:
        async with self.client:
            for item in (await self.objects(index, document_id))[:count]:
                await self.chunks(index).data.delete_by_id(item.uuid)

    async def remove_marker(self, index: Index, document_id: str) -> None:
        async with self.client:
            await self.part(index, live_class(index)).data.delete_by_id(marker_uuid(document_id))

    async def change(self, index: Index, document_id: str, field: str) -> None:
        async with self.client:
            item = (await self.objects(index, document_id))[0]
            if field == "vector":
                vector = np.asarray(item.vector["default"])[::-1].tolist()
                await self.chunks(index).data.update(item.uuid, vector=vector)
            else:
                name = COLUMN_OF_YEAR if field == "year" else field
                await self.chunks(index).data.update(item.uuid, {name: 1999.0 if field == "year" else "tampered"})

    async def copy(self, index: Index, document_id: str, other: str, version: str | None = None) -> None:
        """With a marker that makes it visible; or under a `version` that has none, as a crashed writer leaves it."""
        async with self.client:
            items = await self.objects(index, document_id)
            live = version or unframed(items[0].properties["version"])
            changed = {"document_id": framed(other), "version": framed(live)}
            fresh = [DataObject(properties={**i.properties, **changed}, vector=i.vector["default"]) for i in items]
            await self.chunks(index).data.insert_many(fresh)
            if version is None:
                marker = DataObject(uuid=marker_uuid(other), properties={"live": live, "chunks": len(items)})
                await self.part(index, live_class(index)).data.insert_many([marker])

    async def remove_index(self, index: Index) -> None:
        async with self.client:
            for name in (chunk_class(index), live_class(index)):
                await self.client.collections.use(name).tenants.remove([place_name(index)])


Behind = BehindLance | BehindWeaviate
