"""Originals and texts: one contract for a folder and for a bucket of a real S3 API over HTTP, and what each may meet."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ingest.blobs import open_blobs
from ingest.blobs.folder import disk_errors
from ingest.files import Files
from retrieval.errors import (
    ConfigurationError,
    DocumentNotFound,
    DocumentTooLarge,
    FilesRejected,
    FilesUnavailable,
    StorageFull,
)
from tests.services import Storage

MIB = 1024 * 1024
CREDENTIALS = "key:secret"
LARGE = bytes(range(256)) * 4096 * 12
"""12 MiB, which go to a bucket in three parts."""


def opened(url: str, data_dir: Path, credentials: str | None = CREDENTIALS) -> Files:
    data_dir.mkdir(exist_ok=True)
    return Files(open_blobs(url, data_dir=data_dir, credentials=credentials if url.startswith("s3") else None))


@pytest.fixture(params=["folder", "bucket"])
def url(request, tmp_path) -> str:
    if request.param == "folder":
        (tmp_path / "shared").mkdir()
        return f"file:{tmp_path / 'shared'}"
    storage = request.getfixturevalue("storage")
    return storage.url(storage.bucket())


@pytest.fixture
def files(url, tmp_path) -> Iterator[Files]:
    files = opened(url, tmp_path / "here")
    yield files
    files.close()


@pytest.fixture
def bucket(storage) -> str:
    return storage.bucket()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


async def put(files: Files, data: bytes, limit: int = 1 << 40) -> str:
    return (await files.put("originals", pieces(data), limit=limit)).sha256


async def read(files: Files, sha256: str, *span: int) -> bytes:
    return b"".join([piece async for piece in await files.stream("originals", sha256, *span)])


async def kept(files: Files, kind: str = "originals") -> set[str]:
    return {blob.sha256 async for blob in files.blobs(kind)}


def unfinished(folder: Path) -> list[Path]:
    return [path for incoming in folder.glob("*/incoming") for path in incoming.iterdir()]


# --- the contract ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"short", LARGE], ids=["empty", "short", "large"])
async def test_what_was_put_is_read_back_by_another_machine(files, url, tmp_path, data):
    stored = await files.put("originals", pieces(data), limit=len(data))
    assert (stored.sha256, stored.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert stored.head == data[: 64 * 1024]
    other = opened(url, tmp_path / "elsewhere")
    assert await other.has_originals([stored.sha256])
    with other.scratch() as folder:
        assert (await other.local("originals", stored.sha256, folder)).read_bytes() == data
    assert await read(other, stored.sha256) == data
    if data:
        assert await read(other, stored.sha256, 0, 3) == data[:3]
        assert await read(other, stored.sha256, 2) == data[2:]
        assert await read(other, stored.sha256, len(data) - 1, len(data)) == data[-1:]
    assert unfinished(tmp_path) == []
    other.close()


async def test_a_text_comes_back_to_the_letter(files):
    text = "Zeile\r\n\u2028\ufeffüß 漢字 🙂\n"
    key = await files.put_text(text)
    assert key == hashlib.sha256(text.encode()).hexdigest()
    assert await files.text(key) == text
    assert await files.text(await files.put_text("")) == ""


async def test_what_is_not_there_is_said_before_the_first_byte(files, tmp_path):
    with pytest.raises(DocumentNotFound, match="upload it again"):
        await files.stream("originals", "0" * 64)
    with pytest.raises(DocumentNotFound):
        await files.local("originals", "0" * 64, tmp_path)
    assert not await files.has_originals(["0" * 64, await put(files, b"there")])
    assert await files.has_originals([])


async def test_too_large_a_stream_and_one_that_breaks_leave_nothing(files, tmp_path):
    with pytest.raises(DocumentTooLarge):
        await put(files, LARGE, limit=len(LARGE) - 1)

    async def broken() -> AsyncIterator[bytes]:
        yield LARGE
        raise ConnectionResetError(errno.ECONNRESET, "the caller went away")

    with pytest.raises(FilesUnavailable):
        await files.put("originals", broken(), limit=1 << 40)
    assert await kept(files) == set()
    assert unfinished(tmp_path) == []


async def test_both_kinds_of_the_same_bytes_go_at_once_and_unknown_ones_are_no_error(files):
    key = await files.put_text("the same")
    assert await put(files, b"the same") == key
    stays = await put(files, b"another")
    await files.discard([key, "0" * 64])
    assert await kept(files) == {stays}
    assert await kept(files, "texts") == set()
    await files.discard([])


async def test_blobs_are_listed_by_the_page_with_the_time_of_their_writing(files, monkeypatch):
    monkeypatch.setattr("ingest.blobs.bucket.KEYS_AT_ONCE", 7)
    began = time.time()
    with files.scratch() as folder:
        paths = {}
        for number in range(60):
            path = folder / str(number)
            path.write_bytes(b"%d" % number)
            paths[hashlib.sha256(b"%d" % number).hexdigest()] = path
        await files.adopt("originals", paths)
    found = {blob.sha256: blob.modified async for blob in files.blobs("originals")}
    assert set(found) == set(paths)
    assert all(began - 2 < modified < time.time() + 2 for modified in found.values())
    assert await kept(files, "texts") == set()


async def test_a_text_that_is_put_again_is_young_again(files, storage):
    key = await files.put_text("again")
    [before] = [blob async for blob in files.blobs("texts")]
    deadline = time.monotonic() + 10
    while (after := await anext(files.blobs("texts"))).modified == before.modified:
        assert time.monotonic() < deadline  # S3 counts whole seconds
        await files.put_text("again")
    assert after.sha256 == key


async def test_many_write_and_remove_the_same_bytes_and_no_reader_sees_half(files):
    sha256 = hashlib.sha256(LARGE).hexdigest()
    seen: list[int] = []

    async def look() -> None:
        while len(seen) < 4:
            try:
                seen.append(len(await read(files, sha256)))
            except DocumentNotFound:
                await asyncio.sleep(0)

    async def write() -> None:
        for _ in range(2):
            await put(files, LARGE)
            await files.discard([sha256])
        await put(files, LARGE)

    await asyncio.gather(look(), write(), write())
    assert set(seen) == {len(LARGE)}


async def test_all_that_can_be_adopted_is_even_if_one_cannot(files):
    with files.scratch() as folder:
        (folder / "0").write_bytes(b"0")
        paths = {"f" * 64: folder / "gone", hashlib.sha256(b"0").hexdigest(): folder / "0"}
        with pytest.raises(FilesUnavailable):
            await files.adopt("originals", paths)
    assert await kept(files) == {hashlib.sha256(b"0").hexdigest()}


async def test_trying_out_writes_reads_and_removes(files):
    assert await files.ping()
    await files.try_out()
    assert await kept(files, "texts") == set()


WRITER = """
import asyncio, sys
from pathlib import Path
from ingest.blobs import open_blobs
from ingest.files import Files

async def pieces():
    for _ in range(int(sys.argv[3])):
        yield bytes(range(256)) * 4096

async def main():
    credentials = "key:secret" if "s3:" in sys.argv[1] else None
    files = Files(open_blobs(sys.argv[1], data_dir=Path(sys.argv[2]), credentials=credentials))
    began = status()
    stored = await files.put("originals", pieces(), limit=1 << 40)
    with files.scratch() as folder:
        assert (await files.local("originals", stored.sha256, folder)).stat().st_size == stored.size
    size = sum([len(piece) async for piece in await files.stream("originals", stored.sha256)])
    assert size == stored.size
    print(status() - began)

def status():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the highest memory of a process is read from /proc")
async def test_two_hundred_megabytes_pass_in_bounded_memory(url, tmp_path):
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-c", WRITER, url, str(tmp_path / "here"), "200"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100, "MiB on top of what the process took before"


async def test_a_writer_that_is_killed_half_way_leaves_nothing_to_be_seen(url, tmp_path, storage):
    here = tmp_path / "here"
    here.mkdir()
    process = subprocess.Popen([sys.executable, "-c", WRITER, url, str(here), "60" if url.startswith("s3") else "2000"])
    bucket = url.removeprefix("s3://").partition("/")[0]
    deadline = time.monotonic() + 60
    while not half_written(url, tmp_path, storage, bucket):
        assert process.poll() is None
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    files = opened(url, here)
    assert await kept(files) == set()
    left = unfinished(tmp_path)
    assert left
    for path in left:
        os.utime(path, (0, 0))
    await files.sweep()
    assert unfinished(tmp_path) == []
    sha256 = await put(files, LARGE)
    assert await read(files, sha256) == LARGE
    files.close()


def half_written(url: str, folder: Path, storage: Storage, bucket: str) -> bool:
    if url.startswith("s3"):
        return "<Upload>" in storage.ask("GET", f"/{bucket}?uploads")
    return any(path.stat().st_size > 20 * MIB for incoming in folder.glob("*/incoming") for path in incoming.rglob("*"))


# --- a folder -------------------------------------------------------------------------------------------------------------


def test_a_shared_folder_must_be_there(tmp_path):
    with pytest.raises(ConfigurationError, match="mount"):
        open_blobs(f"file:{tmp_path / 'missing'}", data_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="file:/folder"):
        open_blobs("file:folder", data_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="takes none"):
        open_blobs(f"file:{tmp_path}", data_dir=tmp_path, credentials=CREDENTIALS)
    with pytest.raises(ConfigurationError, match="known: file, s3"):
        open_blobs("ftp://host", data_dir=tmp_path)


async def test_a_folder_that_was_unmounted_is_unavailable(tmp_path):
    files = opened(f"file:{tmp_path}", tmp_path)
    (tmp_path / "incoming").rmdir()
    for call in (files.ping(), put(files, b"x"), files.sweep()):
        with pytest.raises(FilesUnavailable):
            await call


def test_a_full_disk_is_an_error_of_its_own():
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(StorageFull), disk_errors():
            raise OSError(number, "full")


# --- a bucket -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["s3:", "s3:///prefix", "s3://bucket?regoin=x", "s3://bucket?endpoint=http://x&acl=public"])
def test_a_malformed_url_is_told_the_form(tmp_path, url):
    with pytest.raises(ConfigurationError, match="of the form s3://"):
        open_blobs(url, data_dir=tmp_path)


@pytest.mark.parametrize("credentials", ["hunter2", "hunter2:", ":hunter2"])
def test_malformed_credentials_are_not_shown(tmp_path, credentials):
    with pytest.raises(ConfigurationError, match="KEY_ID:SECRET") as caught:
        open_blobs("s3://bucket", data_dir=tmp_path, credentials=credentials)
    assert "hunter2" not in str(caught.value)


async def test_objects_lie_where_a_copied_folder_would(storage, bucket, tmp_path):
    files = opened(storage.url(bucket), tmp_path)
    sha256 = await put(files, b"x")
    assert storage.keys(bucket) == [f"kept/originals/{sha256[:2]}/{sha256}"]
    storage.ask("PUT", f"/{bucket}/kept/originals/README.txt", b"of somebody else")
    assert await kept(files) == {sha256}


async def test_an_original_that_is_there_is_not_sent_again(storage, bucket, tmp_path):
    files = opened(storage.url(bucket), tmp_path)
    sha256 = await put(files, b"x")
    path = f"/{bucket}/kept/originals/{sha256[:2]}/{sha256}"
    storage.ask("PUT", path, b"a mark")
    await put(files, b"x")
    assert storage.ask("GET", path) == "a mark"
    with pytest.raises(FilesRejected, match="other bytes"):  # and a mark is no document
        await files.local("originals", sha256, tmp_path)


async def test_a_bucket_that_does_not_exist_is_named(storage, tmp_path):
    files = opened(storage.url("nowhere"), tmp_path)
    for call in (files.ping(), put(files, b"x"), put(files, LARGE), files.discard(["0" * 64]), kept(files)):
        with pytest.raises(FilesRejected, match="there is no bucket for s3://nowhere/kept: create it"):
            await call


async def test_a_wrong_key_is_refused_and_not_shown(storage, bucket, tmp_path):
    files = opened(storage.url(bucket), tmp_path, "AKIDHUNTER:hunter2")
    storage.ask("POST", "/moto-api/reset-auth", b"0")
    try:
        for call in (files.ping(), put(files, b"x"), files.has_originals(["0" * 64]), files.discard(["0" * 64]), kept(files)):
            with pytest.raises(FilesRejected, match="FOOTNOTE_FILES_CREDENTIALS") as caught:
                await call
            assert "hunter" not in str(caught.value).lower()
    finally:
        storage.ask("POST", "/moto-api/reset-auth", b"inf")


async def test_an_endpoint_that_is_away_is_told_within_seconds_and_may_be_tried_again(storage, tmp_path):
    files = opened(storage.url("bucket", "http://127.0.0.1:1"), tmp_path)
    began = time.monotonic()
    for call in (files.ping(), put(files, b"x"), files.discard(["0" * 64]), kept(files)):
        with pytest.raises(FilesUnavailable, match="s3://bucket/kept does not answer") as caught:
            await call
        assert caught.value.retryable
        assert caught.value.retry_after
        assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        ("503 Slow Down", "SlowDown", FilesUnavailable),
        ("500 Internal Server Error", "InternalError", FilesUnavailable),
        ("507 Insufficient Storage", "XMinioStorageFull", StorageFull),
        ("403 Forbidden", "QuotaExceeded", StorageFull),
        ("403 Forbidden", "RequestTimeTooSkewed", FilesRejected),
    ],
)
async def test_what_the_bucket_answers_becomes_an_error_of_ours(storage, tmp_path, status, code, error):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = f"<Error><Code>{code}</Code></Error>"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        files = opened(storage.url("bucket", f"http://127.0.0.1:{port}"), tmp_path)
        with pytest.raises(error):
            await files.put_text("x")
