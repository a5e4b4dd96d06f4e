"""The disk that holds the data dir, and the room on it that must stay free."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from retrieval.errors import StorageFull

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Disk:
    """A store, a catalog and half-written files that meet a full disk fail in many ways; below the mark nothing begins."""

    folder: Path
    min_free_bytes: int = 0

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free

    def has_room(self, size: int = 0) -> bool:
        """Whether `size` more bytes leave as much free as there must be."""
        return self.free_bytes - size >= self.min_free_bytes

    def require(self, size: int = 0) -> None:
        """Raises `StorageFull` where there is no such room."""
        if not self.has_room(size):
            raise StorageFull(
                f"only {self.free_bytes // MIB} MiB are free on the disk of the data dir, and {self.min_free_bytes // MIB} MiB "
                "(FOOTNOTE_MIN_FREE_DISK_MB) stay so: delete documents or free some room; questions are answered all the while",
                retry_after=60,
            )
