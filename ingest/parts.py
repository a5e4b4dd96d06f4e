"""Files within files on their way to documents of their own: stored, named, and told what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ingest.documents import Room
from ingest.files import Files
from ingest.names import clean_name
from ingest.parsers import Part, detect
from ingest.records import Upload
from retrieval.errors import InvalidInput
from retrieval.types import Metadata

UNKNOWN = "application/octet-stream"
"""A part that no parser takes; its own job finds the reason and fails with it, so that it is not lost in silence."""
MAX_NAME = 300


def keep_parts(kept: list[Upload], parts: Sequence[Part], folder: Path, files: Files, metadata: Metadata, room: Room) -> None:
    """Append to `kept` one upload for each part, its bytes moved from `folder` to the file store, until the room is used up.

    Blocks.
    """
    names, left = _Names(), room.bytes
    for number, part in enumerate(parts[: room.documents]):
        left -= (folder / str(number)).stat().st_size
        if left < 0:
            return
        stored = files.adopt("originals", folder / str(number))
        name = names.unique(part.name)
        try:
            media_type = detect(name, stored.head, stored.size, part.media_type)
        except InvalidInput:
            media_type = UNKNOWN
        kept.append(Upload(name, stored.sha256, stored.size, media_type, metadata))


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
