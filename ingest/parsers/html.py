"""Web pages: what a reader sees, without scripts, styles and hidden parts; of an article, its main text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.metadata import version
from typing import Any

from lxml import etree, html

from ingest.parsers.article import main_text
from ingest.parsers.decode import Decoded, decode
from ingest.parsers.parsed import Draft, File, Kind, Parsed, Receipt, assemble, table_text

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]{0,200}\?>")
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_HUGE_TAG = re.compile(r"<(\w+)\s[^<>]{50000,}>")
"""Inline images, or a flood of attributes, which libxml2 reads in quadratic time."""
_TEMPLATE = re.compile(r"<(/?)template\b[^<>]*>", re.IGNORECASE)
_UNSEEN = frozenset({"script", "style", "noscript", "template", "iframe", "head", "title"})
_INLINE_TAGS = (
    "a abbr acronym b bdi bdo big button cite code data del dfn em font i img input ins kbd label mark nobr output picture q "
    "rp rt ruby s samp small span strike strong sub sup time tspan tt u var wbr"
)
_INLINE = frozenset(_INLINE_TAGS.split())
_ROWS = frozenset({"tr", "thead", "tbody", "tfoot"})
_CELLS = frozenset({"td", "th"})
_TITLES = {f"h{depth}": depth for depth in range(1, 7)}
_LISTS = frozenset({"ul", "ol", "menu", "dl", "select", "datalist"})
_ITEMS = frozenset({"li", "dt", "option"})
_LIST_CHARACTERS = 4000
"""After that a new list begins at the next item, so that no block grows without bound."""
_CELL_CHARACTERS = 2000
"""A longer cell is no datum: its table lays out a page."""
_DEEPEST = 2000
"""Elements inside one another; libxml2 drops what is deeper than 2048."""
_TOO_DEEP = "The page nests too deeply for its structure to be kept; its text is complete."


def parse_html(file: File) -> Parsed:
    """A page of HTML."""
    declared = _CHARSET.search(file.data[:4096])
    return page(decode(file.data, declared[1].decode("ascii") if declared else None), main=file.options.html == "main")


def page(decoded: Decoded, *, main: bool = False) -> Parsed:
    """A decoded page of HTML; `main` leaves out what frames an article."""
    found, images, notes = html_drafts(decoded.text)
    if main and found and not notes:
        found, note = main_text(tree(decoded.text), found)
        notes = [note] if note else []
    receipt = Receipt(f"lxml {version('lxml')}", encoding=decoded.encoding, replaced_characters=decoded.replaced,
                      removed_characters=decoded.removed, images_skipped=images, notes=tuple(notes))  # fmt: skip
    return assemble(found, receipt)


def html_drafts(text: str) -> tuple[list[Draft], int, list[str]]:
    """Drafts, the number of images passed over, and notes for the receipt."""
    root = tree(text)
    if root is None:
        return [], 0, []
    images = sum(1 for _ in root.iter("img", "picture"))
    if _depth_exceeds(root, _DEEPEST):
        return _flat(text), images, [_TOO_DEEP]
    title = " ".join((root.findtext(".//head/title") or "").split())
    found = _Reader().read(root)
    if title and not any(draft.text == title for draft in found):
        found.insert(0, Draft("title", title, None, 1))
    return found, images, []


def tree(text: str) -> Any:
    """The page's root element; None if nothing in it is markup or text."""
    text = _without_open_templates(_HUGE_TAG.sub(r"<\1>", _XML_DECLARATION.sub("", text)))
    parser = html.HTMLParser(remove_comments=True, remove_pis=True, huge_tree=True)
    try:
        return etree.fromstring(text, parser)
    except etree.XMLSyntaxError:
        return None


def _without_open_templates(text: str) -> str:
    """A template that never ends would hide the rest of the page: where one is open, none is taken for a template."""
    slashes = _TEMPLATE.findall(text)
    return text if slashes.count("/") >= slashes.count("") else _TEMPLATE.sub("", text)


def _depth_exceeds(root: Any, limit: int) -> bool:
    depth = 0
    for event, _ in etree.iterwalk(root, events=("start", "end")):
        depth += 1 if event == "start" else -1
        if depth > limit:
            return True
    return False


def _tag(element: Any) -> str:
    """Its name without a prefix: `svg:script` is a script; empty for what is no element."""
    return element.tag.rpartition(":")[2].lower() if isinstance(element.tag, str) else ""


def _unseen(element: Any) -> bool:
    return _tag(element) in _UNSEEN or "hidden" in element.attrib or bool(_HIDDEN_STYLE.search(element.get("style", "")))


@dataclass
class _List:
    """A list that is being read."""

    ordered: bool
    number: int = 0


class _Reader:
    """Walks a tree once, in document order and without recursion, and parts its text at block elements."""

    def __init__(self) -> None:
        self._drafts: list[Draft] = []
        self._line: list[str] = []
        self._lists: list[_List] = []
        self._items: list[str] = []
        self._marker = ""

    def read(self, root: Any) -> list[Draft]:
        walk = etree.iterwalk(root, events=("start", "end"))
        for event, element in walk:
            seen = not _unseen(element)
            if event == "end":
                if seen:
                    self._end(element)
                self._line.append(element.tail or "")
            elif not seen or self._whole(element):
                walk.skip_subtree()
            else:
                self._start(element)
                self._line.append(element.text or "")
        self._close_list()
        return self._drafts

    def _whole(self, element: Any) -> bool:
        """Read an element that is one block whatever is in it; False if it is none."""
        tag = _tag(element)
        if tag == "pre":
            self._emit("code", _seen(element))
        elif tag in _TITLES:
            self._emit("title", _text(element), _TITLES[tag])
        elif tag == "table" and (rows := _rows(element)):
            self._emit("text", _caption(element))
            self._emit("table", table_text(rows))
        else:
            return False
        return True

    def _emit(self, kind: Kind, text: str, depth: int = 0) -> None:
        if text.strip():
            self._close_list()
            self._drafts.append(Draft(kind, text, None, depth))

    def _start(self, element: Any) -> None:
        tag = _tag(element)
        if tag == "br":
            self._line.append("\n")
        elif tag not in _INLINE:
            self._close_line()
        if tag in _LISTS:
            if not self._lists:
                self._close_list()
            self._lists.append(_List(ordered=tag == "ol"))
        elif tag in _ITEMS and self._lists:
            self._begin_item(self._lists[-1])

    def _end(self, element: Any) -> None:
        tag = _tag(element)
        if tag not in _INLINE and tag != "br":
            self._close_line()
        if tag in _LISTS and self._lists:
            self._lists.pop()
            if not self._lists:
                self._close_list()

    def _begin_item(self, current: _List) -> None:
        current.number += 1
        if len(self._lists) == 1 and sum(map(len, self._items)) > _LIST_CHARACTERS:
            self._close_list()
        sign = f"{current.number}." if current.ordered else "-"
        self._marker = "  " * (len(self._lists) - 1) + f"{sign} "

    def _close_line(self) -> None:
        """What was gathered is a paragraph, or a line of the list that is open."""
        lines = [_words(line) for line in "".join(self._line).split("\n")]
        text = "\n".join(line for line in lines if line)
        self._line = []
        if not text:
            return
        if self._lists:
            blank = " " * len(self._marker)
            self._items.append(self._marker + text.replace("\n", f"\n{blank}"))
            self._marker = blank
        else:
            self._drafts.append(Draft("text", text))

    def _close_list(self) -> None:
        self._close_line()
        if self._items:
            self._drafts.append(Draft("list", "\n".join(self._items)))
        self._items = []


def _seen(element: Any) -> str:
    """The text of an element that is seen, with line ends where blocks meet."""
    pieces = [""]
    walk = etree.iterwalk(element, events=("start", "end"))
    for event, each in walk:
        tag = _tag(each)
        inside = each is not element
        if event == "start" and _unseen(each) and inside:
            walk.skip_subtree()
            continue
        if inside and _breaks(tag, event, pieces[-1]):
            pieces.append("\n")
        text = each.text if event == "start" else each.tail if inside else None
        if text:
            pieces.append(text)
    return "".join(pieces)


def _breaks(tag: str, event: str, before: str) -> bool:
    if tag == "br":
        return event == "end"
    return tag not in _INLINE and not before.endswith("\n")


def _text(element: Any) -> str:
    return _words(_seen(element))


def _words(text: str) -> str:
    """Without soft hyphens, which only say where a word may be parted, and which no question contains."""
    return " ".join(text.replace("\xad", "").split())


def _rows(table: Any) -> list[list[str]]:
    """The cells of a table that holds data; none if it lays out a page, or shows text outside of its cells."""
    if table.find(".//table") is not None or any(table.find(f".//{tag}") is not None for tag in (*_TITLES, "pre")):
        return []
    rows: list[list[str]] = [[]]
    walk = etree.iterwalk(table, events=("start", "end"))
    for event, element in walk:
        tag = _tag(element)
        if tag in _ROWS:
            rows.append([])
        if event == "start" and (tag in _CELLS or _unseen(element)):
            walk.skip_subtree()
            if not _unseen(element):
                rows[-1].append(_text(element))
    cells = [cell for row in rows for cell in row]
    if max(map(len, rows)) < 2 or any(len(cell) > _CELL_CHARACTERS for cell in cells):
        return []
    return rows if _size(_text(table)) == _size("".join(cells) + _caption(table)) else []


def _caption(table: Any) -> str:
    caption = table.find("caption")
    return "" if caption is None or _unseen(caption) else _text(caption)


def _size(text: str) -> int:
    return sum(map(len, text.split()))


def _flat(text: str) -> list[Draft]:
    flat = _Flat()
    flat.feed(_without_open_templates(text))
    flat.close()
    return [Draft("text", " ".join("".join(pieces).split())) for pieces in flat.paragraphs]


class _Flat(HTMLParser):
    """The text alone, parted at block elements; knows no depth, so none is too much."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[list[str]] = [[]]
        self._unseen = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if not self._unseen and tag in _UNSEEN - {"head"}:  # whose end may be left out, and which has no text of its own
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
