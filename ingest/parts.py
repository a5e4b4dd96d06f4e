"""Files within files on their way to documents of their own: stored, named, and told what they are."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ingest.documents import Room
from ingest.files import HEAD, Files
from ingest.names import clean_name
from ingest.parsers import Part, detect
from ingest.records import Upload
from retrieval.errors import InvalidInput
from retrieval.types import Metadata

UNKNOWN = "application/octet-stream"
"""A part that no parser takes; its own job finds the reason and fails with it, so that it is not lost in silence."""
MAX_NAME = 300


async def keep_parts(
    kept: list[Upload], parts: Sequence[Part], folder: Path, files: Files, metadata: Metadata, room: Room
) -> None:
    """Append to `kept`, which is empty, one upload for each part until the room is used up; store their bytes from `folder`.

    When it raises, the bytes of some in `kept` may be stored.
    """
    kept += await asyncio.to_thread(_described, parts, folder, metadata, room)
    await files.adopt("originals", {upload.sha256: folder / str(number) for number, upload in enumerate(kept)})


def _described(parts: Sequence[Part], folder: Path, metadata: Metadata, room: Room) -> list[Upload]:
    names, left = _Names(), room.bytes
    uploads: list[Upload] = []
    for number, part in enumerate(parts[: room.documents]):
        with (folder / str(number)).open("rb") as file:
            head = file.read(HEAD)
            file.seek(0)
            sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        left -= size
        if left < 0:
            break
        name = names.unique(part.name)
        try:
            media_type = detect(name, head, size, part.media_type)
        except InvalidInput:
            media_type = UNKNOWN
        uploads.append(Upload(name, sha256, size, media_type, metadata))
    return uploads


class _Names:
    """Gives each part a name that none before it has: `a.txt`, then `a (2).txt`."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """Of a long name the end is kept, which holds the extension."""
        clean = clean_name(name)[-MAX_NAME:].lstrip("/ ") or "part"
        path, wanted = PurePosixPath(clean), clean
        while wanted in self._last:
            self._last[clean] += 1
            wanted = str(path.with_name(f"{path.stem} ({self._last[clean]}){path.suffix}"))
        self._last[wanted] = 1
        return wanted
