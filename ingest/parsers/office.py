"""Word and PowerPoint, by `unstructured`, with the parts that it passes over: footnotes, text boxes, comments."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from lxml import etree

from ingest.parsers.elements import VERSION, drafts
from ingest.parsers.parsed import Draft, File, Parsed, Receipt, assemble
from retrieval.errors import UnreadableDocument

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_NOTES = (("Footnotes", "word/footnotes.xml"), ("Endnotes", "word/endnotes.xml"), ("Comments", "word/comments.xml"))
_MAX_PART_BYTES = 100 * 1024 * 1024


def parse_docx(file: File) -> Parsed:
    """A Word document."""
    from unstructured.partition.docx import partition_docx

    with _archive(file.data, file.name) as archive:
        images = sum(part.startswith("word/media/") for part in archive.namelist())
        extra = [*_text_boxes(archive), *_notes(archive)]
    found = list(drafts(partition_docx(file=io.BytesIO(file.data), languages=[""])))
    body = "\n".join(draft.text for draft in found)
    found += [draft for draft in extra if draft.text and (draft.kind == "title" or draft.text not in body)]
    while found and found[-1].kind == "title" and found[-1] in extra:
        found.pop()
    return assemble(found, Receipt(VERSION, images_skipped=images))


def parse_pptx(file: File) -> Parsed:
    """A PowerPoint deck with its speaker notes; `page` is the slide."""
    from unstructured.partition.pptx import partition_pptx

    with _archive(file.data, file.name) as archive:
        parts = archive.namelist()
    images = sum(part.startswith("ppt/media/") for part in parts)
    slides = sum(part.startswith("ppt/slides/slide") for part in parts)
    elements = partition_pptx(file=io.BytesIO(file.data), languages=[""], include_slide_notes=True)
    found = [draft for _, slide in groupby(drafts(elements), key=lambda draft: draft.page) for draft in _title_first(slide)]
    return assemble(found, Receipt(VERSION, pages=slides, images_skipped=images))


def _title_first(slide: Iterable[Draft]) -> list[Draft]:
    """What comes before a slide's title (its notes do) belongs below it; other "titles" are guesses from the wording."""
    found = [draft._replace(kind="text", depth=0) if draft.kind == "title" and draft.depth > 1 else draft for draft in slide]
    title = next((at for at, draft in enumerate(found) if draft.kind == "title"), 0)
    return found[title:] + found[:title]


def _archive(data: bytes, name: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise UnreadableDocument(f"{name} is damaged or cut short. Open and save it again, then upload it.") from error


def _part(archive: zipfile.ZipFile, path: str) -> Any:
    try:
        info = archive.getinfo(path)
    except KeyError:
        return None
    if info.file_size > _MAX_PART_BYTES:
        return None
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    return etree.fromstring(archive.read(path), parser)


def _paragraph_texts(root: Any) -> Iterator[str]:
    for paragraph in root.iter(f"{_W}p"):
        pieces = (node.text or "" if node.tag == f"{_W}t" else " " for node in paragraph.iter(f"{_W}t", f"{_W}tab", f"{_W}br"))
        text = "".join(pieces).strip()
        if text:
            yield text


def _text_boxes(archive: zipfile.ZipFile) -> Iterator[Draft]:
    """Text boxes float beside the body; Word stores each twice, for old and for new readers."""
    root = _part(archive, "word/document.xml")
    seen: set[str] = set()
    for box in root.iter(f"{_W}txbxContent") if root is not None else ():
        text = "\n".join(_paragraph_texts(box))
        if text not in seen:
            seen.add(text)
            yield Draft("text", text)


def _notes(archive: zipfile.ZipFile) -> Iterator[Draft]:
    for title, path in _NOTES:
        root = _part(archive, path)
        texts = [text for note in root if (text := "\n".join(_paragraph_texts(note)))] if root is not None else []
        if texts:
            yield Draft("title", title, None, 1)
            yield from (Draft("text", text) for text in texts)
