"""ZIP archives: every file in one becomes a document of its own."""

from __future__ import annotations

import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ingest.names import clean_name
from ingest.parsers.parsed import File, Parsed, Part, Receipt
from retrieval.errors import DocumentTooLarge, EmptyDocument, EncryptedDocument, UnreadableDocument

_MAX_DEPTH = 2
"""An archive in an archive is unpacked with it; one in that is not."""
_MAX_FILES = 10_000
_MAX_BYTES = 200 * 1024 * 1024
"""Unpacked, of the archive and of those in it together."""
_NAMED = 20
"""How many files a note names."""
_UTF8_NAME, _ENCRYPTED = 0x800, 0x1
_DOS = ["cp437", "cp850", "cp852", "cp866", "cp932", "gb18030", "big5", "cp949"]
_WINDOWS = ["cp1250", "cp1251", "cp1252", "cp1253", "cp1255", "cp1256"]
_TELLING = 3
"""Fewer bytes beyond ASCII tell no encoding; the format's own is code page 437."""

_BROKEN = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
"""What the library raises on archives that are damaged, or packed as it does not know."""
_LOCKED = "are protected by a password"
_DAMAGED = "are damaged, or packed in a way that is not supported"
_DEEP = "are archives in an archive in the archive"
_HIDDEN = "are hidden files or links, or belong to the system"
_EMPTY = "are empty"
_LOST = (_LOCKED, _DAMAGED, _DEEP)
"""Reasons for which a person may miss a file."""
_SYSTEM = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


@dataclass(slots=True)
class _Unpacked:
    parts: list[Part] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Names of files that were not read, by reason."""
    files: int = 0
    size: int = 0


def parse_zip(file: File) -> Parsed:
    """An archive has no text of its own; what was left out of it stands in the notes."""
    found = _Unpacked()
    _unpack(file.data, "", 1, file.name, found)
    if not found.parts:
        raise _nothing(file.name, found)
    notes = {
        reason: f"{len(names):,} files {reason} and were not read: {_listed(names)}" for reason, names in found.left.items()
    }
    lost = " ".join(notes[reason] for reason in _LOST if reason in notes)
    doubt = f"{lost} Take them out and upload them by themselves." if lost else None
    return Parsed("", (), Receipt("zip", notes=tuple(notes.values()), needs_attention=doubt), tuple(found.parts))


def _unpack(data: bytes, folder: str, depth: int, whole: str, found: _Unpacked) -> None:
    """Add the files of one archive to what was `found` in the `whole`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        _count(members, whole, found)
        for member, name in zip(members, _names(members), strict=True):
            path = folder + name
            content = _content(archive, member, path, found)
            if content is None:
                continue
            if not (name.lower().endswith(".zip") and zipfile.is_zipfile(io.BytesIO(content))):
                found.parts.append(Part(path, content))
            elif depth < _MAX_DEPTH:
                _unpack_inner(content, path, depth + 1, whole, found)
            else:
                found.left[_DEEP].append(path)


def _unpack_inner(data: bytes, path: str, depth: int, whole: str, found: _Unpacked) -> None:
    try:
        _unpack(data, f"{path}/", depth, whole, found)
    except _BROKEN:
        found.left[_DAMAGED].append(path)


def _count(members: Iterable[zipfile.ZipInfo], whole: str, found: _Unpacked) -> None:
    """Believes the sizes that an archive declares: its reader stops at them."""
    for member in members:
        found.files += 1
        found.size += member.file_size
    if found.files > _MAX_FILES or found.size > _MAX_BYTES:
        raise DocumentTooLarge(
            f"{whole} unpacks to more than {_MAX_FILES:,} files or {_MAX_BYTES // 2**20} MB. Unpack it and upload its files."
        )


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str, found: _Unpacked) -> bytes | None:
    """A member's bytes, or None, with the reason noted where a person may ask."""
    if member.is_dir():
        return None
    reason = _unwanted(member, path)
    if not reason:
        try:
            return archive.read(member)
        except _BROKEN:
            reason = _DAMAGED
    found.left[reason].append(path)
    return None


def _unwanted(member: zipfile.ZipInfo, path: str) -> str | None:
    steps = path.split("/")
    if stat.S_ISLNK(member.external_attr >> 16) or any(step.startswith((".", "~$")) or step in _SYSTEM for step in steps):
        return _HIDDEN
    if not member.file_size:
        return _EMPTY
    return _LOCKED if member.flag_bits & _ENCRYPTED else None


def _names(members: list[zipfile.ZipInfo]) -> Iterator[str]:
    """Names as their writer meant them: one without the UTF-8 mark is in UTF-8 all the same, or in his computer's encoding."""
    raw_names = [_raw_name(member) for member in members]
    encoding = _encoding(b"\n".join(raw for raw in raw_names if raw))
    for member, raw in zip(members, raw_names, strict=True):
        name = raw.decode(encoding, "replace") if raw else member.filename
        yield clean_name(name) or "part"


def _encoding(names: bytes) -> str:
    from charset_normalizer import from_bytes

    try:
        names.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        pass
    if sum(byte > 127 for byte in names) < _TELLING:
        return "cp437"
    best = from_bytes(names, cp_isolation=[*_DOS, *_WINDOWS]).best()
    return best.encoding if best else "cp437"


def _raw_name(member: zipfile.ZipInfo) -> bytes | None:
    """The bytes of a name that the library had to take for code page 437."""
    if member.flag_bits & _UTF8_NAME or member.filename.isascii():
        return None
    try:
        return member.filename.encode("cp437")
    except UnicodeEncodeError:
        return None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more + "."


def _nothing(name: str, found: _Unpacked) -> EncryptedDocument | UnreadableDocument | EmptyDocument:
    if _LOCKED in found.left:
        return EncryptedDocument(f"{name} is protected by a password. Unpack it and upload the files in it.")
    if _DAMAGED in found.left or _DEEP in found.left:
        return UnreadableDocument(f"No file in {name} can be unpacked. Pack it again, or upload the files by themselves.")
    return EmptyDocument(f"{name} holds no files.")
