"""Plain text and subtitles. Paragraphs are parted by blank lines; a title is guessed only where its form says so."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import chain

from ingest.parsers.decode import decode
from ingest.parsers.parsed import Draft, File, Kind, Parsed, Receipt, assemble

_BLANK = re.compile(r"\n(?:[ \t]*\n)+")
_UNDERLINE = re.compile(r"([=\-~^\"'#*+`:.])\1{2,}$")
_MARKED = re.compile(r"(={1,6}|\*{1,6}) +(\S.*?)(?: +=+)?$")
_SECTION = re.compile(r"(?:chapter|part|section|book|appendix|article|annex) +(?:\d+|[ivxlc]+)\b", re.IGNORECASE)
_NUMBERED = re.compile(r"(\d{1,2}(?:\.\d{1,2})+)\.?[ \t]+\S")
_ITEM = re.compile(r"[ \t]*(?:[-*•‣◦·]|\d{1,3}[.)])[ \t]+\S")
_TITLE_CHARACTERS = 90
_LEAD_CHARACTERS = 300
_PROSE_CHARACTERS = 160
"""Of a line that is a whole paragraph: no editor wraps as late as this."""
_CLOSING = ".,;:!?。，；：！？"


def parse_text(file: File) -> Parsed:
    """Text of any kind without markup that we know."""
    text, encoding, replaced, removed = decode(file.data)
    receipt = Receipt("text", encoding=encoding, replaced_characters=replaced, removed_characters=removed)
    title, rest = _lead(text)
    drafts = text_drafts(rest)
    if title:
        below = (draft._replace(depth=draft.depth + 1) if draft.kind == "title" else draft for draft in drafts)
        drafts = chain([Draft("title", title, depth=1)], below)
    return assemble(drafts, receipt)


def _lead(text: str) -> tuple[str, str]:
    """What the text is called, if its first line says so, and the rest of it.

    That is a line by itself before a paragraph of at least twice its length that is one line too, so that it is no line of
    a wrapped paragraph. With a blank line between them it may be a short paragraph: then a closing mark tells them apart.
    """
    title, _, rest = text.lstrip().partition("\n")
    below = rest.lstrip()
    title, next_line = title.rstrip(), below.partition("\n")[0]
    is_apart = "\n" in rest[: len(rest) - len(below)]
    is_short = 0 < len(title) <= _LEAD_CHARACTERS and len(next_line) >= max(2 * len(title), _PROSE_CHARACTERS)
    if not is_short or _ITEM.match(title) or (is_apart and title[-1] in _CLOSING):
        return "", text
    return title, below


def text_drafts(text: str, page: int | None = None) -> Iterator[Draft]:
    """Paragraphs, lists and titles of plain text."""
    for paragraph in _BLANK.split(text):
        yield from _paragraph(paragraph.strip("\n"), page)


def _paragraph(paragraph: str, page: int | None) -> Iterator[Draft]:
    lines = paragraph.split("\n", 2)
    if len(lines) > 1 and _UNDERLINE.match(lines[1]) and 0 < len(lines[0].strip()) <= len(lines[1]) + 2:
        yield Draft("title", lines[0].strip(), page, 1 if lines[1][0] == "=" else 2)
        if len(lines) > 2:
            yield Draft(_kind(lines[2]), lines[2], page)
        return
    depth = _title_depth(paragraph) if len(lines) == 1 else 0
    if depth:
        marked = _MARKED.match(paragraph)
        yield Draft("title", marked[2] if marked else paragraph.strip(), page, depth)
    else:
        yield Draft(_kind(paragraph), paragraph, page)


def _title_depth(line: str) -> int:
    """Depth of a title that stands alone on its line; 0 if it is none."""
    line = line.strip()
    if not 0 < len(line) <= _TITLE_CHARACTERS or line[-1] in _CLOSING:
        return 0
    if marked := _MARKED.match(line):
        return len(marked[1])
    if _SECTION.match(line):
        return 1
    if numbered := _NUMBERED.match(line):
        return numbered[1].count(".") + 1
    return 1 if line.isupper() and sum(map(str.isalpha, line)) >= 4 else 0


def _kind(paragraph: str) -> Kind:
    lines = paragraph[:4096].split("\n")
    return "list" if len(lines) > 1 and sum(bool(_ITEM.match(line)) for line in lines) * 2 > len(lines) else "text"


_CUE = re.compile(r"(?:\d+:)?\d{1,2}:\d{2}[.,]\d{3} +--> +(?:\d+:)?\d{1,2}:\d{2}[.,]\d{3}")
_VOICE = re.compile(r"<v(?:\.[^ >]*)? +([^>]+)>")
_TAG = re.compile(r"<[^<>]{0,200}>")
_CUES_PER_BLOCK = 12


def parse_subtitles(file: File) -> Parsed:
    """WebVTT and SubRip: what is said and by whom, without the times."""
    text, encoding, replaced, removed = decode(file.data)
    cues = [cue for paragraph in _BLANK.split(text) if (cue := _cue(paragraph))]
    groups = ("\n".join(cues[at : at + _CUES_PER_BLOCK]) for at in range(0, len(cues), _CUES_PER_BLOCK))
    receipt = Receipt("subtitles", encoding=encoding, replaced_characters=replaced, removed_characters=removed)
    return assemble((Draft("text", group) for group in groups), receipt)


def _cue(paragraph: str) -> str:
    lines = paragraph.strip().split("\n")
    for at, line in enumerate(lines[:2]):  # an optional identifier comes before the times
        if _CUE.match(line.strip()):
            said = _VOICE.sub(r"\1: ", " ".join(lines[at + 1 :]))
            return html.unescape(_TAG.sub("", said)).strip()
    return ""
