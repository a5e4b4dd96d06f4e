"""Web pages: what a reader sees, without scripts, styles and hidden parts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from lxml import etree

from ingest.parsers.decode import Decoded, decode
from ingest.parsers.elements import VERSION, drafts
from ingest.parsers.parsed import Draft, File, Parsed, Receipt, assemble

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]{0,200}\?>")
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_HUGE_TAG = re.compile(r"<(\w+)\s[^<>]{50000,}>")
"""Inline images, or a flood of attributes, which libxml2 reads in quadratic time."""
_UNSEEN = ("script", "style", "noscript", "template", "iframe", "head")
_INLINE_TAGS = "a abbr b bdi bdo cite code data del dfn em font i ins kbd mark q s samp small span strong sub sup u var"
_INLINE = frozenset(_INLINE_TAGS.split())
_DEEPEST = 150
"""Elements inside one another; beyond this the structure is noise and the partitioner's recursion a risk."""
_TOO_DEEP = "The page nests too deeply for its structure to be kept; its text is complete."


def parse_html(file: File) -> Parsed:
    """A page of HTML."""
    declared = _CHARSET.search(file.data[:4096])
    return page(decode(file.data, declared[1].decode("ascii") if declared else None))


def page(decoded: Decoded) -> Parsed:
    """A decoded page of HTML."""
    text, encoding, replaced, removed = decoded
    found, images, notes = html_drafts(text)
    return assemble(found, Receipt(VERSION, encoding=encoding, replaced_characters=replaced, removed_characters=removed,
                                   images_skipped=images, notes=tuple(notes)))  # fmt: skip


def html_drafts(text: str) -> tuple[list[Draft], int, list[str]]:
    """Drafts, the number of images passed over, and notes for the receipt."""
    text = _HUGE_TAG.sub(r"<\1>", _XML_DECLARATION.sub("", text))
    parser = etree.HTMLParser(remove_comments=True, remove_pis=True, huge_tree=True)
    try:
        root = etree.fromstring(text, parser)
    except etree.XMLSyntaxError:  # nothing in it that is markup or text
        root = None
    if root is None:
        return [], 0, []
    images = sum(1 for _ in root.iter("img", "picture"))
    title = " ".join((root.findtext(".//head/title") or "").split())
    _remove_unseen(root)
    if _depth_exceeds(root, _DEEPEST):  # libxml2 itself drops what is deeper than 2048
        return _flat(text), images, [_TOO_DEEP]
    found = _partition(etree.tostring(root, encoding="unicode", method="html"))
    if title and not any(draft.text == title for draft in found):
        found.insert(0, Draft("title", title, None, 1))
    return found, images, []


def _remove_unseen(root: Any) -> None:
    etree.strip_elements(root, *_UNSEEN, with_tail=False)
    etree.strip_tags(root, "svg")  # an unclosed one would hide the rest of the page
    for element in root.xpath("//*[@hidden or contains(@style, ':')]"):
        parent = element.getparent()
        if parent is None or ("hidden" not in element.attrib and not _HIDDEN_STYLE.search(element.get("style", ""))):
            continue
        previous = element.getprevious()
        if previous is not None:
            previous.tail = (previous.tail or "") + (element.tail or "")
        else:
            parent.text = (parent.text or "") + (element.tail or "")
        parent.remove(element)


def _depth_exceeds(root: Any, limit: int) -> bool:
    depth = 0
    for event, _ in etree.iterwalk(root, events=("start", "end")):
        depth += 1 if event == "start" else -1
        if depth > limit:
            return True
    return False


def _flat(text: str) -> list[Draft]:
    flat = _Flat()
    flat.feed(text)
    flat.close()
    return [Draft("text", " ".join("".join(pieces).split())) for pieces in flat.paragraphs]


class _Flat(HTMLParser):
    """The text alone, parted at block elements; knows no depth, so none is too much."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[list[str]] = [[]]
        self._unseen = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if not self._unseen and tag in _UNSEEN:
            self._unseen = tag
        self._part(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == self._unseen:
            self._unseen = ""
        self._part(tag)

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.paragraphs[-1].append(data)

    def _part(self, tag: str) -> None:
        if tag not in _INLINE and self.paragraphs[-1]:
            self.paragraphs.append([])


def _partition(text: str) -> list[Draft]:
    from unstructured.partition.html import partition_html

    return list(drafts(partition_html(text=text, languages=[""])))
