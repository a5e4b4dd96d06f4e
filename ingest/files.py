"""Originals and canonical texts, kept by content hash in a folder: written atomically, never changed, read by all processes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from retrieval.errors import DocumentTooLarge, FootnoteError, ServiceError, StorageFull

Kind = Literal["originals", "texts"]
KINDS: tuple[Kind, ...] = ("originals", "texts")
HEAD = 64 * 1024
ABANDONED_SECONDS = 24 * 3600
"""After so long without a write, an unfinished file has lost its writer."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What `put` wrote: the content's SHA-256 in hex, its size in bytes, and its first 64 KiB."""

    sha256: str
    size: int
    head: bytes


class Files:
    """A folder of immutable blobs, `<root>/<kind>/ab/<sha256>`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "incoming").mkdir(parents=True, exist_ok=True)

    def path(self, kind: Kind, sha256: str) -> Path:
        return self.root / kind / sha256[:2] / sha256

    def has_original(self, sha256: str) -> bool:
        return self.path("originals", sha256).exists()

    async def put(self, kind: Kind, pieces: AsyncIterator[bytes], *, limit: int) -> Stored:
        """Write a stream; nothing is visible until all of it is on disk.

        Raises `DocumentTooLarge` as soon as more than `limit` bytes came, `StorageFull` when the disk is.
        """
        digest, size, head = hashlib.sha256(), 0, b""
        with disk_errors(), tempfile.NamedTemporaryFile(dir=self.root / "incoming", delete=False) as file:
            temporary = Path(file.name)
            try:
                async for piece in pieces:
                    size += len(piece)
                    if size > limit:
                        raise DocumentTooLarge(
                            f"the document is larger than {limit // 2**20} MiB; split it, or raise FOOTNOTE_MAX_FILE_MB"
                        )
                    digest.update(piece)
                    head += piece[: max(0, HEAD - len(head))]
                    await asyncio.to_thread(file.write, piece)
                await asyncio.to_thread(self._keep, file, temporary, self.path(kind, digest.hexdigest()))
            finally:
                temporary.unlink(missing_ok=True)  # noqa: ASYNC240 - one system call
        return Stored(digest.hexdigest(), size, head)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for the files of one job, removed with what is left in it; `adopt` takes files out of it."""
        with tempfile.TemporaryDirectory(dir=self.root / "incoming", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def adopt(self, kind: Kind, path: Path) -> Stored:
        """Take over a file that lies in a `scratch` folder. Blocks. Raises `StorageFull`."""
        with disk_errors(), path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            self._keep(file, path, self.path(kind, digest))
        return Stored(digest, size, head)

    def sweep(self) -> None:
        """Remove what processes left behind that were killed while they wrote."""
        latest = time.time() - ABANDONED_SECONDS
        with disk_errors():
            paths = list((self.root / "incoming").iterdir())
        for path in paths:
            with contextlib.suppress(OSError):  # another worker sweeps as well
                if path.stat().st_mtime < latest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    async def put_text(self, text: str) -> str:
        """Store a canonical text as UTF-8; its key is the hash of those bytes."""

        async def once() -> AsyncIterator[bytes]:
            yield text.encode()

        return (await self.put("texts", once(), limit=2**40)).sha256

    async def text(self, key: str) -> str:
        raw = await asyncio.to_thread(self.path("texts", key).read_bytes)
        return raw.decode()

    def discard(self, sha256: str) -> None:
        """Remove these bytes, as an original and as a text; call it by `Catalog.remove_blob` only."""
        for kind in KINDS:
            self.path(kind, sha256).unlink(missing_ok=True)

    @staticmethod
    def _keep(file: IO[bytes], temporary: Path, final: Path) -> None:
        file.flush()
        os.fsync(file.fileno())
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(final)
        folder = os.open(final.parent, os.O_RDONLY)  # without this a power cut can forget the new name
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def disk_errors() -> Iterator[None]:
    """A full or failing disk as our errors."""
    try:
        yield
    except FootnoteError:
        raise
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull(
                "the disk that holds the data dir is full: free some room or set FOOTNOTE_DATA_DIR to a larger one"
            ) from exc
        raise ServiceError(f"the data dir cannot be written: {exc}") from exc
