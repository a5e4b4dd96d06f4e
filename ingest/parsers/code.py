"""Source code and configuration: blocks begin where a function, a class or, after a blank line, anything else begins.

The rules know lines and indentation, no grammar, so that they serve every language that is written the usual way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ingest.parsers.decode import decode
from ingest.parsers.parsed import Draft, File, Parsed, Receipt, assemble

_CONTINUES = re.compile(
    r"[\])}]|(?:end|else|elif|except|finally|catch|rescue|ensure|when|then|fi|done|esac)\b|(?:public|private|protected)\s*:"
)
"""A line that belongs to what came before."""
_LEADS = re.compile(
    r"@|//|/\*|--|;;|#(?!\s*(?:include|define|if|el|endif|pragma|undef|import)\b)|\[\w[^\]]*\]$"
    r"|(?!(?:package|import|use|using|from|require|return|pass|break|continue)\b)[A-Za-z_][\w*&<>: ]*$"
)
"""A comment, a decorator or a type on a line of its own, which belongs to the definition below it."""
_MODIFIERS = (
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|pub(?:\([^)]*\))?|unsafe|extern|virtual"
    r"|override|open|sealed|data|partial|suspend|declare|inline)\s+)*"
)
_CONTAINER = re.compile(
    _MODIFIERS + r"(?:class|interface|struct|enum|trait|impl|module|namespace|object|record|extension|protocol)\b[\s<]*[\w$]"
)
_FUNCTION = re.compile(
    _MODIFIERS + r"(?:(?:def|func|fun|fn|function|sub|proc|type)\b\*?\s*[(\w$~]"
    r"|(?:const|let|var)\s+[\w$]+\s*(?::[^=]{0,100})?=\s*(?:async\s*)?(?:function\b|\(|[\w$]+\s*=>))"
)
_CONTROL = (
    r"(?:if|for|foreach|while|switch|return|do|throw|new|case|await|with|using|lock|assert|yield|delete|super|synchronized)\b"
)
_CALLED = re.compile(rf"(?!{_CONTROL})[\w$<>\[\],*&:~?. ]{{0,150}}[\w$>\])]\s*\([^;]{{0,200}}$")
"""`int main(void)`, `render() {`: a definition without a keyword, if a brace follows."""
_LONG = 300
"""Characters of a class beyond which its members are blocks of their own, so that each can be found as part of it."""
_DEEPEST = 4
_LINE_CHARACTERS = 200


def parse_code(file: File) -> Parsed:
    """Code in any language, verbatim but for the blank lines between blocks."""
    text, encoding, replaced, removed = decode(file.data)
    receipt = Receipt("code", encoding=encoding, replaced_characters=replaced, removed_characters=removed)
    return assemble(code_drafts(text), receipt)


def code_drafts(text: str) -> Iterator[Draft]:
    """One block for each function, class, section or run of imports; one for each member of a long class."""
    return _drafts(text.split("\n"), 0, ())


def _drafts(lines: Sequence[str], margin: int, within: tuple[str, ...]) -> Iterator[Draft]:
    for piece in _pieces(lines, margin):
        opening = _opening(piece, margin) if sum(map(len, piece)) > _LONG and len(within) < _DEEPEST else None
        inner = margin if opening is None else _inner_margin(piece[opening + 1 :], margin)
        if opening is None or inner == margin:
            yield Draft("code", "\n".join(piece), within=within)
            continue
        name = piece[opening].strip()[:_LINE_CHARACTERS].rstrip("{: ")
        head, *members = _pieces(piece, inner)
        yield Draft("code", "\n".join(head), within=within)
        for member in members:
            yield from _drafts(member, inner, (*within, name))


def _pieces(lines: Sequence[str], margin: int) -> list[Sequence[str]]:
    """The lines parted where something begins at this margin, comments and decorators with what they belong to."""
    starts = [0]
    blank = False
    lead: int | None = None
    for at, line in enumerate(lines):
        body = line.strip()
        if not body:
            blank, lead = True, None
            continue
        if _indent(line) == margin and not _CONTINUES.match(body):
            begins = _defines(lines, at)
            leads = not begins and bool(_LEADS.match(body))
            if begins or blank:
                starts.append(at if lead is None else lead)
            lead = (at if lead is None else lead) if leads else None
        blank = False
    cuts = sorted({*starts, len(lines)})
    return [lines[start:end] for start, end in pairwise(cuts)]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _defines(lines: Sequence[str], at: int) -> bool:
    line = lines[at].strip()[:_LINE_CHARACTERS]
    if _CONTAINER.match(line) or _FUNCTION.match(line):
        return True
    below = lines[at + 1].strip() if at + 1 < len(lines) else ""
    above = lines[at - 1].strip() if at else ""
    ended = not above.strip(")]}") or above.endswith(("}", ";", "*/", "{", ":")) or bool(_LEADS.match(above))
    return ended and (line.endswith("{") or below.startswith("{")) and bool(_CALLED.match(line))


def _opening(piece: Sequence[str], margin: int) -> int | None:
    """The index of the line that opens a class or the like; None if the piece is none."""
    for at, line in enumerate(piece):
        body = line.strip()
        if not body or _indent(line) != margin:
            continue
        if _CONTAINER.match(body[:_LINE_CHARACTERS]):
            return at
        if not _LEADS.match(body) and not _CONTINUES.match(body):
            return None
    return None


def _inner_margin(lines: Sequence[str], margin: int) -> int:
    """The indentation of members: that of the first line that is indented."""
    return next((_indent(line) for line in lines if line.strip() and _indent(line) > margin), margin)
