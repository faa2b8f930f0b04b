"""Cutting text into words, in every script: the one place that near-duplicates, the search for questions in the training
text, and the `self` embedder go by.

Text is compared in NFKC, case folded, without what nobody sees (joiners, soft hyphens, direction marks, zero-width spaces).
NFC would keep full width, presentation forms, ligatures and mathematical letters apart from the letters that they stand
for: these differ in how a text was set, not in what it says. The text that is stored stays as it is. Normalization is
Python's (`unicodedata.unidata_version`); scripts and kinds of characters are those of the `regex` library.

A word is a run of letters, marks and digits, and of everything that Unicode does not know yet, except that

- a script without spaces between words, and Hangul, whose spaces are a matter of taste, is cut into letters with their marks,
- so is a run of more than `LONGEST` letters: no language has such words, but sequences and encoded bytes do,
- an emoji or another picture is a word, a Braille cell is a letter,
- other symbols and punctuation are words on request, for texts that say something by them: `in_symbols` where there are more
  of them than letters, `with_symbols` where there is one to two words or more, as in code and formulas. Prose with other
  commas stays the same words.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import log, log2

import regex

LONGEST = 40
SHINGLE = 5
"""Words in a run by which texts are compared, where words tell enough."""
_BITS = 3.7  # a word: five have 18.5 bits, more values than most texts have words
_SCRIPTS = [
    "Han",
    "Hira",
    "Kana",
    "Bopo",
    "Hang",
    "Yiii",
    "Nshu",
    "Tang",
    "Thai",
    "Laoo",
    "Khmr",
    "Mymr",
    "Tale",
    "Talu",
    "Lana",
    "Tavt",
    "Java",
    "Bali",
    "Xsux",
    "Egyp",
    "Hluw",
]
_SOLID = "".join(rf"\p{{scx={script}}}" for script in _SCRIPTS)
_CELL = r"\u2801-\u28ff"  # Braille but for its blank
_GAP = r"\u2800\u0f0b\u0f0c\u1361\U00010100\U0001039f\U000103d0\U0001091f"  # what is written for a space, Tibetan's above all
_LETTER = rf"[[^\s\p{{Z}}\p{{P}}\p{{S}}\p{{Cc}}\p{{Cf}}\p{{Cs}}][_{_CELL}]]"
_MARK = rf"[[\p{{P}}\p{{S}}]--[_{_CELL}{_GAP}]]"
_WORD = rf"[{_LETTER}&&[{_SOLID}]]\p{{M}}*|[{_LETTER}--[{_SOLID}]]+"
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_OF_SOLID = regex.compile(rf"(?V1)[{_SOLID}]")
_SYLLABLE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_CLUSTER = regex.compile(r".\p{M}*", regex.DOTALL)
# Each two ways: words, and words and symbols. Most text needs no more than `re`, which is eight times as fast.
_PLAIN = r"\x00-\u02b8\u0370-\u0481\u048a-\u0587\u1e00-\u1fff\u2010-\u2027\u2030-\u205e\u20ac"
_OTHER = re.compile(rf"[^{_PLAIN}]+")
_OF_PLAIN = [re.compile(p) for p in (r"\w+|[\xa6\xa9\xae\xb0]", r"\w+|[^\w\s\x00-\x1f\x7f-\x9f]")]
_PICTURE = rf"[\p{{So}}--[{_CELL}{_GAP}]]"
_OF_ANY = [regex.compile(f"(?V1){p}") for p in (rf"{_WORD}|{_PICTURE}", rf"{_WORD}|{_MARK}")]
_MARKS, _BYTE = regex.compile(f"(?V1){_MARK}"), re.compile(r"[\x00-\x7f]+")
_SYMBOLS = string.punctuation.replace("_", "").encode()


def normal(text: str) -> str:
    """The text as it is compared."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    return unicodedata.normalize("NFKC", text)  # folding can take a letter apart


def words(text: str, symbols: bool = False) -> list[str]:
    """The words of a text as it is compared; all symbols too if so asked."""
    found = _cut(normal(text), symbols)
    if found and max(map(len, found)) > LONGEST:
        found = [
            part for w in found for part in (_CLUSTER.findall(w) if len(w) > LONGEST else (w,))
        ]
    return found


def in_symbols(text: str) -> bool:
    """Whether a text has more symbols than letters."""
    return 2 * _symbols(text) > len(text) - text.count(" ") - text.count("\n")


def with_symbols(text: str) -> bool:
    """Whether a text has a symbol to two words or more."""
    return 2 * _symbols(text) >= len(words(text))


def weight(found: Sequence[str]) -> float:
    """How much of a word each of these is, about: 1; of single letters 2/3 (Han, kana, Hangul), 1/3 in scripts that spell
    words out (Thai, Khmer, strings without spaces)."""
    if 2 * sum(_CLUSTER.fullmatch(w) is not None for w in found) <= len(found):
        return 1.0
    return 2 / 3 if 2 * sum(_SYLLABLE.match(w) is not None for w in found) > len(found) else 1 / 3


def _cut(text: str, symbols: bool) -> list[str]:
    if text.isascii():
        return _OF_PLAIN[symbols].findall(text)
    found: list[str] = []
    end = 0
    for other in _OTHER.finditer(text):
        if (
            other.start() >= end
        ):  # from the space before to the space after, for a word may be of both kinds
            start = text.rfind(" ", end, other.start()) + 1 or end
            found += _OF_PLAIN[symbols].findall(text, end, start)
            end = text.find(" ", other.end())
            end = len(text) if end < 0 else end
            found += _OF_ANY[symbols].findall(text, start, end)
    return found + _OF_PLAIN[symbols].findall(text, end)


def _symbols(text: str) -> int:
    """How many symbols and punctuation marks a text has."""
    ascii_ = text.encode("ascii", "ignore")
    count = len(ascii_) - len(ascii_.translate(None, _SYMBOLS))
    return count if text.isascii() else count + len(_MARKS.findall(_BYTE.sub("", text)))


def terms(text: str) -> list[str]:
    """What a text is about, for a bag of words: its words; neighbouring letters of scripts without spaces as well; and runs
    of words where a word alone says little."""
    found = words(text, in_symbols(text))
    more: list[str] = []
    if not text.isascii():
        solid = [_OF_SOLID.match(w) is not None for w in found]
        more = [
            a + b
            for (a, b), both in zip(pairwise(found), map(all, pairwise(solid)), strict=True)
            if both
        ]
    longer = run_length(found)
    return found + more + (runs(found, longer) if longer > SHINGLE else [])


def runs(found: Sequence[str], n: int) -> list[str]:
    """All runs of n words; of fewer words, all of them as one run; of none, none."""
    n = max(1, min(n, len(found)))
    return list(map(" ".join, zip(*(found[i:] for i in range(n)), strict=False)))


def run_length(found: Sequence[str]) -> int:
    """How many of these words tell texts apart: `SHINGLE` for language, and 2, 4, 8 or 16 times as many for texts of a few
    different words, such as DNA (2) or binary digits (4), where all short runs are in every text.

    It goes by the entropy of a word (with the correction of Miller and Madow for short texts), which halves from step to
    step, so that near-copies hardly ever fall on two sides of one.
    """
    count, kinds = len(found), len(set(found))
    if (
        count <= 2 * kinds or kinds * log2(count) >= _BITS * count
    ):  # most texts: bits cannot be fewer
        return SHINGLE
    bits = sum(c * log2(count / c) for c in Counter(found).values()) / count
    bits += (kinds - 1) / (2 * count * log(2))
    return SHINGLE * next((times for times in (1, 2, 4, 8) if bits * times >= _BITS), 16)
