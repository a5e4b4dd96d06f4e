"""Bytes to text: byte-order mark, UTF-8, the declared encoding, then detection; never a guess that is not counted."""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

from ingest.parsers.parsed import clean
from retrieval.errors import UnreadableDocument

_MARKS = (  # the longer marks first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DAMAGE = 0.001
"""Share of bad characters below which broken UTF-8 is UTF-8 and not something else."""
_SAMPLE_BYTES = 128 * 1024
_EXTINCT = ["mac_cyrillic", "mac_greek", "mac_iceland", "mac_latin2", "mac_turkish", "hp_roman8", "ptcp154", "kz1048"]
"""Close relatives of living encodings, for which detection takes these."""
_HIGH = re.compile(rb"[\x80-\xff]")


class Decoded(NamedTuple):
    """`text` is normalised as `clean` does it."""

    text: str
    encoding: str
    replaced: int
    removed: int


def decode(data: bytes, declared: str | None = None) -> Decoded:
    """Text of `data`. `declared` is what the file says of itself (`charset=`), believed after UTF-8.

    Raises `UnreadableDocument` if no encoding fits.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding)
    wide = wide_encoding(data[:4096])
    if wide:
        return _decoded(data, wide)
    try:
        return _finish(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError:
        pass
    if declared and (known := _known(declared)) and known != "utf-8":
        return _decoded(data, known)
    text = data.decode("utf-8", "replace")
    sound = len(re.findall("[^\x00-\x7f\ufffd]", text))
    bad = text.count("\ufffd")
    # A few bad bytes in Latin-1 text would pass as damaged UTF-8, but only real UTF-8 has sound characters beyond ASCII.
    if bad <= _DAMAGE * len(text) and sound > bad:
        return _finish(text, "utf-8")
    return _decoded(data, _detect(data))


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, told by where its NUL bytes lie."""
    if len(head) < 4 or b"\0" not in head:
        return None
    head = head[: len(head) // 4 * 4]
    quarter = len(head) // 4
    empty = [head[offset::4].count(0) / quarter for offset in range(4)]
    if empty[1] > 0.9 and empty[2] > 0.9 and empty[3] > 0.9 and empty[0] < 0.1:
        return "utf-32-le"
    if empty[0] > 0.9 and empty[1] > 0.9 and empty[2] > 0.9 and empty[3] < 0.1:
        return "utf-32-be"
    low, high = (empty[0] + empty[2]) / 2, (empty[1] + empty[3]) / 2
    if high > 0.5 and low < 0.05:
        return "utf-16-le"
    return "utf-16-be" if low > 0.5 and high < 0.05 else None


def _known(name: str) -> str | None:
    try:
        return codecs.lookup(name.strip("\"' ")).name
    except (LookupError, ValueError):
        return None


def _detect(data: bytes) -> str:
    from charset_normalizer import from_bytes

    first = _HIGH.search(data)  # a long ASCII beginning says nothing
    begin = max(0, first.start() - 4096) if first else 0
    best = from_bytes(data[begin : begin + _SAMPLE_BYTES], cp_exclusion=_EXTINCT).best()
    if best is None:
        raise UnreadableDocument("This file's text encoding cannot be determined. Save it as UTF-8 and upload it again.")
    return best.encoding


def _decoded(data: bytes, encoding: str) -> Decoded:
    try:
        return _finish(data.decode(encoding), encoding)
    except UnicodeDecodeError:
        return _finish(data.decode(encoding, "replace"), encoding)


def _finish(text: str, encoding: str) -> Decoded:
    replaced = text.count("\ufffd")
    body, removed = clean(text.removeprefix("\ufeff"))
    return Decoded(body, encoding, replaced, removed)
