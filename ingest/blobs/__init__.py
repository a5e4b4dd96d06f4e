"""The port to where blobs are kept, and the table of the places that we ship."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from retrieval.errors import DocumentNotFound
from retrieval.registry import Registry


class Blob(NamedTuple):
    """One that is kept: the last part of its key, and when it was written (seconds since 1970)."""

    sha256: str
    modified: float


class Blobs(Protocol):
    """Immutable bytes by key, `<kind>/ab/<sha256>`, the same for every process that opens the same place.

    All methods block: `ingest.files` calls them from threads of its own. They raise `FilesUnavailable` when the place cannot be
    reached, `FilesRejected` when it refuses us, `StorageFull`, and `DocumentNotFound` when asked for bytes that are not there.
    """

    incoming: Path
    """Where the files that `keep` takes are written; a folder of this machine, unless the blobs lie on a shared disk."""

    def keep(self, key: str, path: Path) -> None:
        """Store the file at `path`, which may be gone afterwards; nobody sees a part of it. What was there is replaced."""

    def has(self, key: str) -> bool:
        """Whether all bytes of it are there."""

    def local(self, key: str, folder: Path) -> Path:
        """A file of this machine with the bytes, to be read only; one that has to be made is made in `folder`."""

    def pieces(self, key: str, start: int, end: int | None) -> Iterator[bytes]:
        """The bytes from `start` to before `end`, which lie within them; the call itself asks for them and raises."""

    def remove(self, keys: Sequence[str]) -> None:
        """Forget these; unknown ones are no error."""

    def pages(self, kind: str) -> Iterator[list[Blob]]:
        """All whose key begins with `kind`, in no order, some at a time."""

    def ping(self) -> str:
        """Name the place, if it is there and lets us in."""


def gone(key: str) -> DocumentNotFound:
    """What asking for bytes that are not there raises."""
    return DocumentNotFound(f"the bytes of the document are gone ({key}): upload it again")


PLACES: Registry[Blobs] = Registry(
    "place for files", {"file": "ingest.blobs.folder:open_folder", "s3": "ingest.blobs.bucket:open_bucket"}
)


def open_blobs(url: str, *, data_dir: Path, credentials: str | None = None) -> Blobs:
    """Open a place by URL: `file:/folder`, `s3://bucket/prefix?endpoint=http://host:9000&region=eu-central-1`.

    `data_dir` is a folder of this machine for unfinished files. Raises `ConfigurationError` for an unknown scheme or a
    malformed URL; `ping` finds out whether anything answers there.
    """
    blobs: Blobs = PLACES.load(url.partition(":")[0])(url, data_dir=data_dir, credentials=credentials)
    return blobs
