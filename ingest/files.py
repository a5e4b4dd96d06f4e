"""Originals and canonical texts, kept by content hash in a folder or a bucket: whole or not at all, never changed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from ingest.blobs import Blob, Blobs
from ingest.blobs.folder import disk_errors
from retrieval.errors import DocumentTooLarge, FilesRejected

T = TypeVar("T")

Kind = Literal["originals", "texts"]
KINDS: tuple[Kind, ...] = ("originals", "texts")
HEAD = 64 * 1024
THREADS = 16
"""Of its own, so that a disk or bucket which hangs holds up nothing else."""
ASKED_AT_ONCE = 8
"""Files that one thread looks for."""
ABANDONED_SECONDS = 24 * 3600
"""After so long without a write, an unfinished file has lost its writer."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What `put` wrote: the content's SHA-256 in hex, its size in bytes, and its first 64 KiB."""

    sha256: str
    size: int
    head: bytes


class Files:
    """Immutable bytes by kind and SHA-256. Raises what `Blobs` raises."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._threads = ThreadPoolExecutor(THREADS, "files")

    def close(self) -> None:
        """Begin nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def put(self, kind: Kind, pieces: AsyncIterator[bytes], *, limit: int) -> Stored:
        """Write a stream; nothing is visible until all of it is stored. Originals that are there already are not stored again.

        Raises `DocumentTooLarge` as soon as more than `limit` bytes came, `StorageFull` when the disk is.
        """
        digest, size, head = hashlib.sha256(), 0, b""
        with disk_errors(), self.scratch() as folder, tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            async for piece in pieces:
                size += len(piece)
                if size > limit:
                    raise _too_large(limit)
                digest.update(piece)
                head += piece[: max(0, HEAD - len(head))]
                await self._run(file.write, piece)
            file.flush()
            await self._run(self._keep, kind, digest.hexdigest(), Path(file.name))
        return Stored(digest.hexdigest(), size, head)

    async def put_bytes(self, kind: Kind, data: bytes, *, limit: int) -> Stored:
        """As `put`, of bytes that are here: one call of a thread."""
        if len(data) > limit:
            raise _too_large(limit)
        return await self._run(self._put, kind, data)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for the files of one job, removed with what is left in it; `adopt` takes files out of it."""
        folder = self._unfinished()
        with disk_errors():
            folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            try:
                folder.rmdir()  # it mostly is empty
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)

    async def adopt(self, kind: Kind, paths: Mapping[str, Path]) -> None:
        """Take over files that lie in a `scratch` folder, by their SHA-256. Those that can be stored are when it raises."""
        work = [self._run(self._keep, kind, sha256, path) for sha256, path in paths.items()]
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def local(self, kind: Kind, sha256: str, folder: Path) -> Path:
        """A file with these bytes to read; one that has to be made is made in `folder`."""
        return await self._run(self._blobs.local, _key(kind, sha256), folder)

    async def stream(self, kind: Kind, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end` in pieces; awaiting it asks for them, so that it raises before the first."""
        pieces = await self._run(self._blobs.pieces, _key(kind, sha256), start, end)

        async def read() -> AsyncIterator[bytes]:
            while piece := await self._run(next, pieces, b""):
                yield piece

        return read()

    async def has_originals(self, hashes: Collection[str]) -> bool:
        """Whether the bytes of all are there."""
        return await self._has("originals", hashes)

    async def has_texts(self, keys: Collection[str]) -> bool:
        """Whether these texts are all there."""
        return await self._has("texts", keys)

    async def _has(self, kind: Kind, hashes: Collection[str]) -> bool:
        """Some at once, as a bucket takes its time, and some by one thread, as a folder answers sooner than a thread starts."""
        wanted = [_key(kind, sha256) for sha256 in hashes]
        some = [wanted[at : at + ASKED_AT_ONCE] for at in range(0, len(wanted), ASKED_AT_ONCE)]
        return all(await asyncio.gather(*(self._run(self._have, keys) for keys in some)))

    def _have(self, keys: Sequence[str]) -> bool:
        return all(self._blobs.has(key) for key in keys)

    async def put_text(self, text: str) -> str:
        """Store a canonical text as UTF-8; its key is the hash of those bytes."""
        return (await self._run(self._put, "texts", text.encode())).sha256

    async def text(self, key: str) -> str:
        return b"".join([piece async for piece in await self.stream("texts", key)]).decode()

    async def discard(self, hashes: Sequence[str]) -> None:
        """Remove these bytes, as originals and as texts; call it by `Catalog.remove_blobs` only."""
        await self._run(self._blobs.remove, [_key(kind, sha256) for sha256 in hashes for kind in KINDS])

    async def blobs(self, kind: Kind) -> AsyncIterator[Blob]:
        """All that is kept, in no order, referred to or not."""
        pages = self._blobs.pages(kind)
        while (page := await self._run(next, pages, None)) is not None:
            for blob in page:
                yield blob

    async def sweep(self) -> None:
        """Remove what processes left behind that were killed while they wrote."""
        await self._run(self._sweep)

    async def ping(self) -> str:
        """Name the folder or bucket; raises `FilesUnavailable` or `FilesRejected` with the cure if it is not there for us."""
        return await self._run(self._blobs.ping)

    async def try_out(self) -> None:
        """Write, read and remove a text that nobody else has: whether all of that is allowed, no other way tells."""
        text = f"Footnote was here: {secrets.token_hex(16)}"
        key = await self.put_text(text)
        if await self.text(key) != text:
            raise FilesRejected("what was written to the folder or bucket of files was read back as something else")
        await self.discard([key])

    async def _run(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _keep(self, kind: Kind, sha256: str, path: Path) -> None:
        """Store a file. An original that is there needs no second copy: whoever names it looks for it again (`has_originals`).

        A text is written anew all the same: it is young then, and nobody takes it for one that was forgotten.
        """
        if kind != "originals" or not self._blobs.has(_key(kind, sha256)):
            self._blobs.keep(_key(kind, sha256), path)

    def _unfinished(self) -> Path:
        return self._blobs.incoming / secrets.token_hex(16)

    def _put(self, kind: Kind, data: bytes) -> Stored:
        sha256 = hashlib.sha256(data).hexdigest()
        with disk_errors():
            path = self._unfinished()
            try:
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(data)
                self._keep(kind, sha256, path)
            finally:
                path.unlink(missing_ok=True)
        return Stored(sha256, len(data), data[:HEAD])

    def _sweep(self) -> None:
        latest = time.time() - ABANDONED_SECONDS
        with disk_errors():
            paths = list(self._blobs.incoming.iterdir())
        for path in paths:
            with contextlib.suppress(OSError):  # another worker sweeps as well
                if path.stat().st_mtime < latest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _too_large(limit: int) -> DocumentTooLarge:
    return DocumentTooLarge(f"the document is larger than {limit // 2**20} MiB; split it, or raise FOOTNOTE_MAX_FILE_MB")


def _key(kind: Kind, sha256: str) -> str:
    return f"{kind}/{sha256[:2]}/{sha256}"
