"""Messages as Outlook saves them, written for tests: a compound file of streams, one for each property."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from typing import TypeAlias

Folder: TypeAlias = Mapping[str, "bytes | Folder"]

_SECTOR, _MINI, _CUTOFF = 512, 64, 4096
_FREE, _END, _FAT, _NONE = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD, 0xFFFFFFFF


def message(
    properties: Mapping[int, str | bytes | int | datetime],
    *items: tuple[str, Folder],
    header: int = 32,
    page: int | None = None,
) -> Folder:
    """A message's folder; text is in UTF-16, or in the code page `page`. `items` are its attachments and recipients."""
    fixed, streams = b"", {}
    for number, value in {**properties, **({0x3FDE: page, 0x3FFD: page} if page else {})}.items():
        kind, raw, row = _property(value, page)
        fixed += struct.pack("<HHI", kind, number, 6) + row
        if raw is not None:
            streams[f"__substg1.0_{number:04X}{kind:04X}"] = raw
    return {"__properties_version1.0": bytes(header) + fixed, **streams, **dict(items)}


def attachment(number: int, name: str, data: bytes | Folder, **more: str) -> tuple[str, Folder]:
    """A file, or a message within the message."""
    numbers = {"cid": 0x3712, "type": 0x370E}
    held: dict[int, str | bytes | int | datetime] = {0x3707: name, **{numbers[key]: value for key, value in more.items()}}
    if isinstance(data, bytes):
        return f"__attach_version1.0_#{number:08X}", message({**held, 0x3701: data}, header=8)
    return f"__attach_version1.0_#{number:08X}", message(held, ("__substg1.0_3701000D", data), header=8)


def recipient(number: int, name: str, address: str, role: int = 1) -> tuple[str, Folder]:
    return f"__recip_version1.0_#{number:08X}", message({0x3001: name, 0x39FE: address, 0x0C15: role}, header=8)


def _property(value: str | bytes | int | datetime, page: int | None) -> tuple[int, bytes | None, bytes]:
    if isinstance(value, str):
        raw = value.encode(f"cp{page}") if page else value.encode("utf-16-le")
        return (0x001E if page else 0x001F), raw, struct.pack("<II", len(raw) + 1, 0)
    if isinstance(value, bytes):
        return 0x0102, value, struct.pack("<II", len(value), 0)
    if isinstance(value, int):
        return 0x0003, None, struct.pack("<II", value, 0)
    since_1601 = int(value.timestamp() * 10_000_000) + 116_444_736_000_000_000
    return 0x0040, None, struct.pack("<Q", since_1601)


def compound(root: Folder) -> bytes:
    """A compound file with all short streams in its mini stream, as the format wants it."""
    entries: list[list[object]] = []
    streams: list[tuple[int, bytes]] = []

    def add(name: str, content: bytes | Folder) -> int:
        index = len(entries)
        entries.append([name, 2 if isinstance(content, bytes) else 1, _NONE, _NONE, _END, 0])
        if isinstance(content, bytes):
            streams.append((index, content))
            return index
        children = [add(*item) for item in content.items()]
        for child, sibling in pairwise(children):
            entries[child][2] = sibling  # a tree with right branches only
        entries[index][3] = children[0] if children else _NONE
        return index

    add("Root Entry", root)
    entries[0][1] = 5
    fat: list[int] = [_FAT]
    body = b""

    def store(data: bytes) -> int:
        nonlocal body
        count = -(-len(data) // _SECTOR)
        first = len(fat)
        fat.extend(range(first + 1, first + count))
        fat.append(_END)
        body += data.ljust(count * _SECTOR, b"\0")
        return first

    mini, minifat = b"", []
    for index, data in streams:
        entries[index][5] = len(data)
        if len(data) >= _CUTOFF:
            entries[index][4] = store(data)
        elif data:
            count = -(-len(data) // _MINI)
            entries[index][4] = len(minifat)
            minifat += [*range(len(minifat) + 1, len(minifat) + count), _END]
            mini += data.ljust(count * _MINI, b"\0")
    entries[0][4], entries[0][5] = store(mini), len(mini)
    minifat_start = store(struct.pack(f"<{len(minifat)}I", *minifat).ljust(_SECTOR, b"\xff"))
    directory = store(b"".join(_entry(*entry) for entry in entries))
    assert len(fat) <= _SECTOR // 4, "one sector of sector numbers is all that this writer knows"
    head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + struct.pack("<HHHHH6x", 0x3E, 3, 0xFFFE, 9, 6)
    counts = struct.pack("<IIIIIIIII", 0, 1, directory, 0, _CUTOFF, minifat_start, 1, _END, 0)
    sectors = struct.pack("<I", 0) + b"\xff" * 4 * 108
    return head + counts + sectors + struct.pack(f"<{len(fat)}I", *fat).ljust(_SECTOR, b"\xff") + body


def _entry(name: str, kind: int, right: int, child: int, start: int, size: int) -> bytes:
    encoded = name.encode("utf-16-le") + b"\0\0"
    head = encoded.ljust(64, b"\0") + struct.pack("<HBBIII", len(encoded), kind, 1, _NONE, right, child)
    return head + bytes(36) + struct.pack("<IQ", start, size)
