"""No server: workers of this machine watch a small file for each queue, and whoever queues a job sets its time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ingest.records import QUEUES
from retrieval.errors import ConfigurationError, StorageFull

LOOK_SECONDS = 0.05
"""Between two looks at the files, which cost microseconds each and touch neither the disk nor the catalog."""


async def open_local(url: str) -> LocalBroker:
    """Open `local:/folder`. Raises `ConfigurationError` for a URL without a folder."""
    folder = url.partition(":")[2]
    if not folder:
        raise ConfigurationError("broker local: needs a folder, for example local:/var/lib/footnote/wake")
    try:
        return LocalBroker(Path(folder))
    except OSError as exc:
        raise StorageFull(f"{folder} cannot be written ({exc.strerror}): free some room, or set FOOTNOTE_DATA_DIR") from exc


class LocalBroker:
    """Wakes all workers that watch the same folder; the file system keeps the last announcement of each queue, as a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {queue: folder / queue for queue in QUEUES}
        for file in self._files.values():
            if not file.exists():  # touching one that exists would wake its watchers
                file.touch()
        self._seen = {queue: self._announced(queue) for queue in QUEUES}

    def send(self, queue: str, job_ids: Sequence[str]) -> None:  # noqa: ARG002 - who wakes up looks for itself
        now = time.time_ns()  # said by us: the file system's own clock ticks too slowly to tell two announcements apart
        with contextlib.suppress(OSError):  # a disk that cannot be written has told its owner elsewhere
            os.utime(self._files[queue], ns=(now, now))

    async def receive(self, queues: Sequence[str]) -> None:
        while True:
            now = {queue: self._announced(queue) for queue in queues}
            if not now.items() <= self._seen.items():
                break
            await asyncio.sleep(LOOK_SECONDS)
        self._seen |= now

    def _announced(self, queue: str) -> int:
        try:
            return self._files[queue].stat().st_mtime_ns
        except OSError:
            return 0

    async def ping(self) -> str:
        return "local"

    async def close(self) -> None:
        """Nothing is open."""
