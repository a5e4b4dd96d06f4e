"""Blobs in a folder: of this machine, or on a disk that several machines share."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ingest.blobs import Blob, gone
from retrieval.errors import ConfigurationError, FilesUnavailable, FootnoteError, StorageFull

PIECE_BYTES = 1024 * 1024


def open_folder(url: str, *, data_dir: Path, credentials: str | None = None) -> Folder:
    """A folder that is there: one that was made here could be the empty mount point of a disk that is missing."""
    path = Path(url.partition(":")[2])
    if credentials:
        raise ConfigurationError(
            f"FOOTNOTE_FILES_CREDENTIALS is set, and {url!r} is a folder, which takes none: unset one of them"
        )
    if not path.is_absolute():
        raise ConfigurationError(f"{url!r} is no absolute path; write file:/folder")
    if not path.is_dir() and path != data_dir:
        raise ConfigurationError(f"the folder {path} does not exist: create it, or mount the disk that holds it")
    return Folder(path)


class Folder:
    """Blobs as `<root>/<key>`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"  # on the same disk, so that a finished file is moved by a rename
        with disk_errors():
            self.incoming.mkdir(parents=True, exist_ok=True)

    def keep(self, key: str, path: Path) -> None:
        final = self.root / key
        with disk_errors():
            _sync(path)
            final.parent.mkdir(parents=True, exist_ok=True)
            path.replace(final)
            _sync(final.parent)  # without this a power cut can forget the new name

    def has(self, key: str) -> bool:
        with disk_errors():
            return (self.root / key).exists()

    def local(self, key: str, folder: Path) -> Path:  # noqa: ARG002 - nothing has to be made
        if not self.has(key):
            raise gone(key)
        return self.root / key

    def pieces(self, key: str, start: int, end: int | None) -> Iterator[bytes]:
        with disk_errors():
            try:
                file = (self.root / key).open("rb")
            except FileNotFoundError as exc:
                raise gone(key) from exc
            file.seek(start)

        def read() -> Iterator[bytes]:
            left = (end if end is not None else 2**63) - start
            with file, disk_errors():
                while left > 0 and (piece := file.read(min(left, PIECE_BYTES))):
                    left -= len(piece)
                    yield piece

        return read()

    def remove(self, keys: Sequence[str]) -> None:
        with disk_errors():
            for key in keys:
                (self.root / key).unlink(missing_ok=True)

    def pages(self, kind: str) -> Iterator[list[Blob]]:
        for folder in (self.root / kind).glob("??"):
            yield list(_blobs(folder))

    def ping(self) -> str:
        if not (self.incoming.is_dir() and os.access(self.incoming, os.W_OK | os.X_OK)):
            raise FilesUnavailable(
                f"the folder {self.root} cannot be written: mount the disk that holds it, or allow us to write"
            )
        return f"folder {self.root}"


def _blobs(folder: Path) -> Iterator[Blob]:
    with disk_errors():
        for path in folder.iterdir():
            try:
                yield Blob(path.name, path.stat().st_mtime)
            except FileNotFoundError:  # removed since the folder was read
                continue


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        raise FilesUnavailable(f"files cannot be read or written: {exc}") from exc
