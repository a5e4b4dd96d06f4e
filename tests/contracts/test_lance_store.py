"""The store contract on LanceDB, and what is special about files that several processes share."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pytest

from retrieval.errors import ConfigurationError, StoreUnavailable
from retrieval.stores import open_store
from retrieval.stores.lance import TIDY_COMMITS, open_lance
from retrieval.stores.rows import place_name
from retrieval.types import Compare
from tests.contracts.behind import BehindLance
from tests.contracts.filter_contract import everything
from tests.contracts.rows_for_tests import document, ids, unit_vectors
from tests.contracts.store_contract import StoreContract


class TestLanceStore(StoreContract):
    @pytest.fixture
    def open_one(self, tmp_path):
        return lambda: open_store(f"lance:{tmp_path}/lance")

    @pytest.fixture
    def behind(self, tmp_path):
        return BehindLance(tmp_path / "lance")

    async def settle(self, store, index):
        await store.tidy(index)

    async def test_processes_that_write_at_once_lose_nothing_and_are_read_at_once(self, store, index, tmp_path):
        writers = [await writer(f"lance:{tmp_path}/lance", index.generation, name, 10) for name in "ab"]
        seen = []
        while any(each.returncode is None for each in writers):
            found = await store.scan(index, limit=5000)
            for document_id in {chunk.document_id for chunk in found}:
                mine = [chunk for chunk in found if chunk.document_id == document_id]
                assert len(mine) == (6 if document_id == "shared" else 5)
            seen.append(len(found))
            await asyncio.sleep(0.2)  # leaves the cores to the writers
        assert [await each.wait() for each in writers] == [0, 0]
        assert await store.count(index) == 2 * 10 * 5 + 6
        assert len(set(seen)) > 2, "the reader never saw the table grow"
        assert len(await everything(store, index, Compare("a", "gte", 0))) == 50

    async def test_a_killed_writer_leaves_whole_documents_and_no_lock(self, store, index, tmp_path):
        process = await writer(f"lance:{tmp_path}/lance", index.generation, "k", 10_000)
        written = 0
        while written < 5:
            written = int(await process.stdout.readline())
        process.kill()
        await process.wait()
        counts = {await store.count(index, f"k{number}") for number in range(written)}
        assert counts == {5}
        await store.replace(index, {"after": document("after", 2)})
        assert await store.count(index, "after") == 2

    async def test_a_table_that_a_full_disk_left_half_made_is_made_anew(self, store, index, tmp_path):
        """`create` has made folders and perhaps files, but no version was written."""
        folder = tmp_path / "lance" / f"{place_name(index)}.lance"
        for manifest in (folder / "_versions").glob("*.manifest"):
            manifest.rename(manifest.with_name(f".tmp_{manifest.name}_unfinished"))
        assert await store.count(index) == 0
        assert not await store.keyword(index, ["word"], 5)
        await store.create(index)
        await store.replace(index, {"d": document("d", 3)})
        assert await store.count(index) == 3
        await store.drop(index)
        assert not folder.exists()

    async def test_a_table_that_another_process_writes_files_into_is_dropped(self, store, index, tmp_path):
        """As one does that merges files at this moment: what it writes comes back while the folder is being removed."""
        await store.replace(index, {"d": document("d", 3)})
        folder = tmp_path / "lance" / f"{place_name(index)}.lance" / "data"
        script = (
            "import pathlib, sys, time\nfolder, end = pathlib.Path(sys.argv[1]), time.time() + 0.4\nprint(flush=True)\n"
            "while time.time() < end:\n    folder.mkdir(parents=True, exist_ok=True)\n    (folder / str(time.time())).touch()\n"
        )
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", script, folder, stdout=asyncio.subprocess.PIPE)
        await other.stdout.readline()
        await store.drop(index)
        await other.wait()
        assert await store.count(index) == 0

    async def test_many_small_commits_are_tidied_in_the_background(self, store, index):
        for number in range(TIDY_COMMITS + 1):
            await store.replace(index, {f"d{number}": document(f"d{number}", 1, seed=number)})
        for _ in range(100):
            table = await store._open(place_name(index))
            if (await table.stats())["fragment_stats"]["num_fragments"] < TIDY_COMMITS / 2:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the small files were never merged")
        assert await store.count(index) == TIDY_COMMITS + 1

    async def test_a_large_table_gets_a_vector_index_that_finds_the_nearest(self, index, tmp_path):
        store = await open_lance(f"lance:{tmp_path}/lance", vector_index_rows=2000)
        rows = document("big", 2000)
        await store.replace(index, {"big": rows})
        await store.tidy(index)
        table = await store._open(place_name(index))
        assert {column for each in await table.list_indices() for column in each.columns} >= {"vector", "terms", "id"}
        late = document("late", 50, seed=5, metadata={"late": True})
        await store.replace(index, {"late": late})  # not in the index yet, and found all the same
        matrix = np.stack([row.vector for row in [*rows, *late]])
        names = [row.chunk.id for row in [*rows, *late]]
        hits = 0
        for question in unit_vectors(10, seed=3):
            best = {names[place] for place in np.argsort(-(matrix @ question))[:50]}
            hits += len(best & set(ids(await store.nearest(index, question, 50))))
        assert hits >= 490
        assert len(await store.nearest(index, rows[0].vector, 100, Compare("late", "eq", True))) == 50
        await store.replace(index, {"big": []})
        assert await store.count(index) == 50
        assert len(await store.nearest(index, rows[0].vector, 100)) == 50
        await store.close()


async def writer(url: str, generation: str, name: str, count: int) -> asyncio.subprocess.Process:
    arguments = ["-m", "tests.contracts.lance_writer", url, generation, name, str(count)]
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)


async def test_a_url_without_a_folder_is_refused():
    with pytest.raises(ConfigurationError, match="folder"):
        await open_store("lance:")


async def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="file"):
        await open_store(f"lance:{tmp_path}/file/lance")


async def test_a_folder_that_vanished_is_named(tmp_path):
    store = await open_store(f"lance:{tmp_path}/lance")
    (tmp_path / "lance").rmdir()
    with pytest.raises(StoreUnavailable, match="missing"):
        await store.ping()
    await store.close()
