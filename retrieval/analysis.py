"""Text becomes terms, the same for every store: what the keyword search matches is decided here and nowhere else.

    NFKC, zero-width characters removed
    → runs of letters, digits and marks; a run in a script written without spaces becomes overlapping n-grams
    → casefold, and a Snowball stem where the language is known
    identifiers (snake_case, camelCase, BRCA1) count as a whole and by their parts

The index keeps every word; a question drops English stop words, unless nothing else is left of it ("The Who").
A stem needs the language of its chunk, and a question asks for the stems of all languages of its collection, so nobody
has to guess the language of six words.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Collection, Iterator
from functools import cache, lru_cache
from typing import Any

import Stemmer

ANALYSIS_VERSION = "1"
"""Part of an index's identity: terms of two versions must not meet in one index. Raise it when any output changes."""

MAX_TERM_LENGTH = 64
"""Characters. What is longer is a hash or a broken extraction, and its beginning identifies it well enough."""

LANGUAGE_SAMPLE = 1000
"""Characters of a text that the language guess reads (about 2 ms)."""
MIN_LANGUAGE_LETTERS = 20
MIN_LANGUAGE_PROBABILITY = 0.6
"""From here on a guess is right for 99 of 100 paragraphs and questions of XQuAD's twelve languages."""

# ISO 639-1 code → Snowball algorithm.
STEMMERS = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "eo": "esperanto", "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish", "fr": "french",
    "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian", "it": "italian",
    "lt": "lithuanian", "nb": "norwegian", "ne": "nepali", "nl": "dutch", "nn": "norwegian", "no": "norwegian",
    "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "sv": "swedish", "ta": "tamil",
    "tr": "turkish", "yi": "yiddish",
}  # fmt: skip

# Words of an English question that say nothing about its subject: worth 15 points on questions about code and 0 to 8 on
# prose. Lists for other languages were measured and won nothing (between -0.5 and +0.9 points on XQuAD), so there are none.
_STOP_WORDS_EN = """
a about after again all also am an and any are as at be because been before being between both but by can could did do
does doing don down during each few for from further had has have having he her here hers him his how i if in into is it
its itself just ll me more most my no nor not of off on once only or other our out over own re s same she should so some
such t than that the their theirs them then there these they this those through to too under until up us ve very was we
were what when where which while who whom whose why will with would you your yours
"""
STOP_WORDS = frozenset(_STOP_WORDS_EN.split())


def _mark_ranges() -> str:
    """All combining marks, as regex ranges: `\\w` leaves them out, and would cut a Hindi word at every vowel sign."""
    codes = {code for code in range(0x300, 0x1E950) if unicodedata.category(chr(code)).startswith("M")}
    starts = sorted(code for code in codes if code - 1 not in codes)
    ends = sorted(code for code in codes if code + 1 not in codes)
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


# Han, kana, bopomofo, hangul. Most words have one or two characters.
_CJK = (
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3100-\u312f\u3131-\u318f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U000323af"
)
# Thai, Lao, Burmese, Khmer, without their digits and punctuation. Syllables take several characters: trigrams find Thai
# paragraphs at nDCG@10 .968, bigrams at .940 (XQuAD).
_SPACELESS = "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecf\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3"

_RUN = re.compile(f"(?P<cjk>[{_CJK}]+)|(?P<spaceless>[{_SPACELESS}]+)|(?:(?![{_CJK}{_SPACELESS}])[\\w{_mark_ranges()}])+")
_CJK_RUN = re.compile(f"[{_CJK}]")
_KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa]")

# Where an identifier falls into words: snake_case, camelCase, HTTPServer, BRCA1.
_SEAM = re.compile(r"_+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
_MIN_PART_LENGTH = 2

# Characters that nobody sees, and that would make two equal words differ: soft hyphen, joiners, direction marks,
# variation selectors, the Arabic elongation stroke, and the dot that Turkish İ leaves behind when it is casefolded.
_INVISIBLE = dict.fromkeys(
    (
        *(0xAD, 0x307, 0x34F, 0x61C, 0x640, 0x180E, 0xFEFF),
        *range(0x200B, 0x2010),
        *range(0x202A, 0x202F),
        *range(0x2060, 0x2070),
        *range(0xFE00, 0xFE10),
    )
)


def analyze(text: str, language: str | None) -> list[str]:
    """The terms of a passage in reading order, repetitions included; none of them holds white space.

    `language` is the passage's ISO 639-1 code; without a stemmer for it (or with None) words stay as they are.
    """
    stem = _stemmer(language)
    return [term if is_gram else stem(term)[:MAX_TERM_LENGTH] for term, is_gram in _words(text)]


def analyze_query(text: str, languages: Collection[str]) -> list[str]:
    """The distinct terms to look for in a collection whose chunks are in `languages`.

    Each word counts as it is (for chunks of unknown language) and by its stem in each language. English stop words go if
    the collection holds English or is of unknown language, unless the question has nothing else.
    """
    words = list(_words(text))
    if not languages or "en" in languages:
        words = [word for word in words if word[0] not in STOP_WORDS] or words
    stems = [_stemmer(language) for language in sorted(languages)]
    terms: dict[str, None] = {}
    for word, is_gram in words:
        terms[word[:MAX_TERM_LENGTH]] = None
        if not is_gram:
            terms.update(dict.fromkeys(stem(word)[:MAX_TERM_LENGTH] for stem in stems))
    return list(terms)


def guess_language(text: str) -> str | None:
    """ISO 639-1 code of the language that most of the beginning of `text` is in; None where unsure or too short.

    Blocks for about two seconds when first called, to load its model, and for about 2 ms from then on. Safe from any thread.
    """
    sample = text[:LANGUAGE_SAMPLE]
    letters = sum(map(str.isalpha, sample))
    if letters < (MIN_LANGUAGE_LETTERS // 4 if _CJK_RUN.search(sample) else MIN_LANGUAGE_LETTERS):
        return None
    if _is_han(sample, letters):
        return "zh"  # the model takes one Chinese text in ten for Japanese or one of its own Chinese languages
    with _language_lock:
        identifier = _language_identifier()
    language, probability = identifier.classify(sample)
    return str(language) if probability >= MIN_LANGUAGE_PROBABILITY else None


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Casefolded words and n-grams, unstemmed, with whether each is an n-gram."""
    normal = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
    for run in _RUN.finditer(normal):
        if run["cjk"]:
            yield from ((gram, True) for gram in _grams(run["cjk"], 2))
        elif run["spaceless"]:
            yield from ((gram, True) for gram in _grams(run["spaceless"], 3))
        else:
            yield from ((word, False) for word in _identifier(run[0][:MAX_TERM_LENGTH]))


def _grams(run: str, size: int) -> Iterator[str]:
    """Overlapping pieces of `size` characters; a shorter run is one piece."""
    yield from (run[start : start + size] for start in range(max(len(run) - size, 0) + 1))


@lru_cache(maxsize=50_000)
def _identifier(word: str) -> tuple[str, ...]:
    """The word, and its parts if it has seams: worth 7 points on questions about code and 1 on biomedical claims."""
    whole = word.strip("_")
    if not whole:
        return ()
    parts = _SEAM.split(whole)
    if len(parts) == 1:
        return (_fold(whole),)
    return (_fold(whole), *(_fold(part) for part in parts if len(part) >= _MIN_PART_LENGTH))


def _fold(word: str) -> str:
    return word if word.isascii() and word.islower() else unicodedata.normalize("NFKC", word.casefold()).translate(_INVISIBLE)


class _Stemmers(threading.local):
    """Each thread's own: a PyStemmer object keeps a cache that two threads must not touch at once."""

    def __init__(self) -> None:
        self.by_algorithm: dict[str, Any] = {}

    def get(self, algorithm: str) -> Any:
        if algorithm not in self.by_algorithm:
            self.by_algorithm[algorithm] = Stemmer.Stemmer(algorithm)
        return self.by_algorithm[algorithm]


_stemmers = _Stemmers()
_language_lock = threading.Lock()


def _stemmer(language: str | None) -> Callable[[str], str]:
    """A function from a word to its stem; the identity where there is no stemmer for the language."""
    algorithm = STEMMERS.get(language or "")
    if algorithm is None:
        return lambda word: word
    stem: Callable[[str], str] = _stemmers.get(algorithm).stemWord
    return lambda word: stem(word) or word  # a lone Arabic vowel sign has an empty stem


def _is_han(sample: str, letters: int) -> bool:
    """Whether most letters are Chinese characters, and none is a kana, which a Japanese text of this length would have."""
    return len(re.findall("[\u3400-\u4dbf\u4e00-\u9fff]", sample)) > letters / 2 and not _KANA.search(sample)


@cache
def _language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
