"""The main text of a page that is an article: those of its blocks that trafilatura keeps, in the structure that we found."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from ingest.parsers.parsed import Draft

_LEAST_SHARE = 0.1
"""Of the visible characters: below it, what trafilatura found is not what the page is about."""
_LEAST_CHARACTERS = 100
_LONG = 25
"""Characters of a line that are found by chance nowhere else; a shorter one must stand where it is expected."""
_GAP = 20
"""Characters of the main text that may be passed over on the way to a short line."""
_PART = 20
_SAME = 0.7
"""Share of the parts of a line that the main text has, if the line is in it but for a footnote or a link."""
_PARAGRAPH = 60
"""Characters of the shortest lead between a headline and the article."""
_PROSE = 150
"""Characters of a paragraph that is no menu and no caption."""
_WIDEST = 1000
"""Cells of a row; trafilatura's time grows with their square."""
_LONGEST = 1_000_000
"""Characters of a page whose main text is looked for; that takes about a hundred bytes of memory for each."""
_MARKER = re.compile(r"^\s*(?:-|\d+\.) ")

WHOLE = "No main text could be told from its frame; the whole page is kept."


def main_text(tree: Any, drafts: Sequence[Draft]) -> tuple[list[Draft], str]:
    """The drafts of the main text and a note on what was left out; all of them if the page is no article.

    A forum, a table or an index page is none: what trafilatura would drop there is running text, rows or code.
    `tree` is the page, and is consumed.
    """
    long = sum(len(draft.text) for draft in drafts) > _LONGEST
    if long or tree.xpath("boolean(//tr[count(td | th) > $widest])", widest=_WIDEST):
        return list(drafts), WHOLE
    kept = _kept(drafts, _Text(_extracted(tree)))
    before, after = _characters(drafts), _characters(kept)
    dropped = _substance(drafts) - _substance(kept)
    if after < max(_LEAST_CHARACTERS, _LEAST_SHARE * before) or dropped > 2 * after:
        return list(drafts), WHOLE
    if after == before:
        return list(drafts), ""
    return kept, f"{before - after:,} characters around the main text were left out; FOOTNOTE_HTML=full keeps them."


def _extracted(tree: Any) -> str:
    """The visible characters of the main text, as trafilatura finds it."""
    import trafilatura

    document = trafilatura.bare_extraction(tree, include_comments=False, include_tables=True)
    body = getattr(document, "body", None)
    return "" if body is None else _visible("".join(body.itertext()))


def _visible(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).replace("\xad", "").split())


def _characters(drafts: Sequence[Draft]) -> int:
    return sum(len(_visible(draft.text)) for draft in drafts)


def _substance(drafts: Sequence[Draft]) -> int:
    """Characters of what is no menu, button or caption; of the comments below an article only those that are no list."""
    texts = (
        draft.text
        for draft in drafts
        if draft.kind in {"table", "code"} or (draft.kind == "text" and len(draft.text) >= _PROSE)
    )
    return sum(len(_visible(text)) for text in texts)


class _Text:
    """The main text, asked line by line in the order of the page."""

    def __init__(self, visible: str) -> None:
        self._visible = visible
        self._parts = {visible[at : at + _PART] for at in range(len(visible) - _PART + 1)}
        self._position = 0

    def holds(self, line: str) -> bool:
        wanted = _visible(_MARKER.sub("", line).replace(" | ", ""))
        if not wanted:
            return False
        if len(wanted) < _LONG:
            at = self._visible.find(wanted, self._position, self._position + _GAP + len(wanted))
            return self._reached(at, wanted)
        parts = [wanted[at : at + _PART] for at in range(0, len(wanted) - _PART + 1, _PART)]
        found = [part for part in parts if part in self._parts]
        if len(found) == len(parts) and self._reached(self._find(wanted), wanted):
            return True
        return len(parts) > 1 and len(found) >= _SAME * len(parts) and self._reached(self._find(found[-1]), found[-1])

    def _find(self, wanted: str) -> int:
        """After what was found last, if it is there: then only so much is searched as lies between."""
        at = self._visible.find(wanted, self._position)
        return at if at >= 0 else self._visible.find(wanted)

    def _reached(self, at: int, found: str) -> bool:
        if at >= 0:
            self._position = at + len(found)
        return at >= 0


def _kept(drafts: Sequence[Draft], main: _Text) -> list[Draft]:
    kept = {at: part for at, draft in enumerate(drafts) if (part := _part(draft, main))}
    body = [at for at, part in kept.items() if part.kind != "title"]
    if not body:
        return []
    within = range(body[0], body[-1])
    kept.update({at: drafts[at] for at in within if drafts[at].kind in {"table", "code"}})
    kept.update({at: drafts[at] for at in _lead(drafts, body[0])})
    if drafts[0].kind == "title":  # the page's own
        kept[0] = drafts[0]
    return [kept[at] for at in sorted(kept)]


def _part(draft: Draft, main: _Text) -> Draft | None:
    """The draft from its first to its last line of the main text; rows and code are kept whole."""
    lines = draft.text.split("\n")
    held = [at for at, line in enumerate(lines) if main.holds(line)]
    if not held:
        return None
    return draft if draft.kind in {"table", "code"} else draft._replace(text="\n".join(lines[held[0] : held[-1] + 1]))


def _lead(drafts: Sequence[Draft], first: int) -> list[int]:
    """The headline and the paragraphs between it and the first block of the article, which trafilatura often drops."""
    headline = next((at for at in range(first - 1, 0, -1) if drafts[at].kind == "title" and drafts[at].depth == 1), None)
    if headline is None:
        return []
    between = range(headline + 1, first)
    return [headline, *(at for at in between if drafts[at].kind == "text" and len(drafts[at].text) >= _PARAGRAPH)]
