"""The letters of rich text in UTF-8: pandoc takes all of them for Western European ones."""

from __future__ import annotations

import re
from typing import NamedTuple

_CHARSETS = {
    0: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gbk", 136: "big5", 161: "cp1253",
    162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250",
}  # fmt: skip
_PAGES = {*_CHARSETS.values(), "cp437", "cp850", "cp852", "cp866"}
_PAGE = re.compile(rb"\\ansicpg(\d{3,5})")
_FONT = re.compile(rb"\\f(\d{1,6})\b(?:\\[a-z]{1,30}-?\d{0,6} ?){0,10}?\\fcharset(\d{1,3})")
_ESCAPE = rb"\\'[0-9a-fA-F]{2}"
_TOKEN = re.compile(
    rb"(?P<open>\{)|(?P<close>\})|(?P<literal>\\[\\{}])|\\f(?P<font>\d{1,6})|\\uc(?P<stand_ins>\d)"
    rb"|\\u(?P<number>-?\d{1,6}) ?(?P<after>(?:" + _ESCAPE + rb"|[^\\{}\r\n])*)"
    rb"|(?P<escapes>(?:" + _ESCAPE + rb"|[\x80-\xff])+)"
)
_UNIT = re.compile(_ESCAPE + rb"|.", re.DOTALL)
_SPECIAL = re.compile(r"[\\{}]")


class _State(NamedTuple):
    """What a group inherits and may change for itself."""

    encoding: str
    stand_ins: int = 1
    """Characters after one that is written as its number, for programs that do not know numbers."""


def in_utf8(data: bytes) -> bytes:
    """The same document with its letters in UTF-8, read by the encoding of the font that they are in."""
    page = _PAGE.search(data)
    default = f"cp{page[1].decode()}" if page else "cp1252"
    fonts = {number: _CHARSETS[int(charset)] for number, charset in _FONT.findall(data) if int(charset) in _CHARSETS}
    state = _State(default if default in _PAGES else "cp1252")
    ordinary = state.encoding
    outer: list[_State] = []

    def rewritten(match: re.Match[bytes]) -> bytes:
        nonlocal state
        match match.lastgroup:
            case "open":
                outer.append(state)
            case "close":
                state = outer.pop() if outer else state
            case "font":
                state = state._replace(encoding=fonts.get(match["font"], ordinary))
            case "stand_ins":
                state = state._replace(stand_ins=int(match["stand_ins"]))
            case "after":  # what stands in for the number is dropped here: pandoc drops a character too many
                units = _UNIT.findall(match["after"])
                letter = chr(int(match["number"]) % 0x10000)
                return _utf8(letter) + _utf8(_decoded(units[state.stand_ins :], state.encoding))
            case "escapes":
                return _utf8(_decoded(_UNIT.findall(match["escapes"]), state.encoding))
        return match[0]

    return _whole_letters(_TOKEN.sub(rewritten, data))


def _decoded(units: list[bytes], encoding: str) -> str:
    return b"".join(bytes.fromhex(each[2:].decode()) if len(each) > 1 else each for each in units).decode(encoding, "replace")


def _utf8(text: str) -> bytes:
    return _SPECIAL.sub(r"\\\g<0>", text).encode("utf-8", "surrogatepass")


def _whole_letters(data: bytes) -> bytes:
    """Letters that were written as two numbers put together."""
    text = data.decode("utf-8", "surrogatepass")
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
