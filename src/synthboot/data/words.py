"""Cutting text into words, in every script.

Near-duplicates, the search for questions in the training text, and the `self` embedder all go by
this one place.

Text is compared in NFKC, case folded, without what nobody sees (joiners, soft hyphens, direction
marks, zero-width spaces). NFC would keep full width, presentation forms, ligatures and mathematical
letters apart from the letters that they stand for: these differ in how a text was set, not in what
it says. The text that is stored stays as it is. Normalization is Python's
(`unicodedata.unidata_version`); scripts and kinds of characters are those of the `regex` library.

A word is a run of letters, marks and digits, and of everything that Unicode does not know yet,
except that

- a script without spaces between words, and Hangul, whose spaces are a matter of taste, is cut into
  letters with their marks,
- so is a run of more than `LONGEST` letters: no language has such words, but sequences and encoded
  bytes do,
- an emoji or another picture is a word, a Braille cell is a letter,
- other symbols and punctuation are words on request, for texts that say something by them:
  `in_symbols` where there are more of them than letters, `with_symbols` where there is one to two
  words or more, as in code and formulas. Prose with other commas stays the same words.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from math import log, log2

import numpy as np
import regex
from jaxtyping import UInt8

LONGEST = 40
SHINGLE = 5
"""Words in a run by which texts are compared, where words tell enough."""
_BITS = 3.7
"""Of a word that tells enough: five have 18.5, more values than most texts have words."""
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
"""Letters of scripts without spaces, and of Hangul."""
_CELL = r"\u2801-\u28ff"
"""Braille but for its blank."""
_GAP = r"\u2800\u0f0b\u0f0c\u1361\U00010100\U0001039f\U000103d0\U0001091f"
"""What is written for a space, Tibetan's above all."""
_LETTER = rf"[[^\s\p{{Z}}\p{{P}}\p{{S}}\p{{Cc}}\p{{Cf}}\p{{Cs}}][_{_CELL}]]"
_MARK = rf"[[\p{{P}}\p{{S}}]--[_{_CELL}{_GAP}]]"
_WORD = rf"[{_LETTER}&&[{_SOLID}]]\p{{M}}*|[{_LETTER}--[{_SOLID}]]+"
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_OF_SOLID = regex.compile(rf"(?V1)[{_SOLID}]")
_SYLLABLE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_CLUSTER = regex.compile(r".\p{M}*", regex.DOTALL)
# Plain text, most of what there is, needs no knowledge of scripts.
_PLAIN = r"\x00-\u02b8\u0370-\u0481\u048a-\u0587\u1e00-\u1fff\u2010-\u2027\u2030-\u205e\u20ac"
_OTHER = re.compile(rf"[^{_PLAIN}]+")
_ASCII = bytes(range(128))
_PICTURE = rf"[\p{{So}}--[{_CELL}{_GAP}]]"
_OF_ANY = [
    regex.compile(rf"(?V1){_WORD}|{_PICTURE}"),
    regex.compile(rf"(?V1){_WORD}|{_MARK}"),
]
_MARKS = regex.compile(f"(?V1){_MARK}")
_SYMBOLS = string.punctuation.replace("_", "").encode()


KINDS = ("number", "capitalized", "other words", "form")
"""Of what stands in a text: runs with a digit, words with a capital letter inside a sentence (names
mostly; in German nouns), all other words, and what is between them."""
_RUN = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_ENDS_SENTENCE = regex.compile(r"[\n\p{STerm}:;]")
_OPENS = regex.compile(r"[\s\p{Ps}\p{Pi}\"']")

# Plain characters that are words by themselves: pictures; all symbols.
_ALONE = [re.compile(r"[\xa6\xa9\xae\xb0]"), re.compile(r"[^\s\x00-\x1f\x7f-\x9f]")]


def normal(text: str) -> str:
    """The text as it is compared."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    return unicodedata.normalize("NFKC", text)  # folding can take a letter apart


def words(text: str, symbols: bool = False) -> list[str]:
    """The words of a text as it is compared; all symbols too if so asked."""
    pieces = _cut(normal(text), symbols)
    if not pieces or max(map(len, pieces)) <= LONGEST:
        return pieces

    result = []
    for word in pieces:
        if len(word) > LONGEST:  # no language has such words: letters with their marks
            result += _CLUSTER.findall(word)
        else:
            result.append(word)
    return result


def _ends_sentence(between: str) -> bool:
    """Whether what stands between two words ends a sentence: a mark that does, and after it nothing
    but spaces and what opens a bracket or a quotation."""
    for character in reversed(between):
        if _ENDS_SENTENCE.match(character):
            return True
        if not _OPENS.match(character):
            return False
    return False


def kinds(text: str) -> UInt8[np.ndarray, " character"]:
    """Which of KINDS each character belongs to, by its number there."""
    number, capitalized, other, form = range(len(KINDS))
    result = np.full(len(text), form, np.uint8)
    end = 0
    for run in _RUN.finditer(text):
        word = run[0]
        before = text[end : run.start()]
        opens_sentence = end == 0 or _ends_sentence(before)
        end = run.end()
        if any(character.isnumeric() for character in word):
            kind = number
        elif word[0].isupper() and not opens_sentence:
            kind = capitalized
        else:
            kind = other
        result[run.start() : end] = kind
    return result


def in_symbols(text: str) -> bool:
    """Whether a text has more symbols than letters."""
    characters = len(text) - text.count(" ") - text.count("\n")
    # most text has not even if all that is not ASCII were symbols, which is seen sooner
    others = len(_not_ascii(text))
    if 2 * (_ascii_symbols(text) + others) <= characters:
        return False
    return 2 * _symbols(text) > characters


def with_symbols(text: str) -> bool:
    """Whether a text has a symbol to two words or more."""
    return 2 * _symbols(text) >= len(words(text))


def weight(pieces: Sequence[str]) -> float:
    """About how much of a word each of these is.

    It is 1; of single letters 2/3 (Han, kana, Hangul), 1/3 in scripts that spell words out (Thai,
    Khmer, strings without spaces).
    """
    letters = sum(_CLUSTER.fullmatch(word) is not None for word in pieces)
    if 2 * letters <= len(pieces):
        return 1.0
    syllables = sum(_SYLLABLE.match(word) is not None for word in pieces)
    return 2 / 3 if 2 * syllables > len(pieces) else 1 / 3


def _cut(text: str, symbols: bool) -> list[str]:
    """The words of a normal text: plain stretches by their gaps, the others by `regex`."""
    if not _OTHER.search(_not_ascii(text)):
        return _cut_plain(text, symbols)

    pieces: list[str] = []
    end = 0
    for other in _OTHER.finditer(text):
        if other.start() < end:
            continue
        # From the space before to the space after, for a word may be of both kinds.
        start = text.rfind(" ", end, other.start()) + 1 or end
        pieces += _cut_plain(text[end:start], symbols)
        end = text.find(" ", other.end())
        if end < 0:
            end = len(text)
        pieces += _OF_ANY[symbols].findall(text, start, end)
    return pieces + _cut_plain(text[end:], symbols)


def _cut_plain(text: str, symbols: bool) -> list[str]:
    """The words of plain text: what is left between spaces once other gaps are spaces too.

    A pass over the text for each character that is no part of words takes a third of the time of a
    regular expression for the words.
    """
    for character, gap in _ASCII_GAPS[symbols]:
        text = text.replace(character, gap)
    for character in set(_not_ascii(text)):
        gap = _gap(character, symbols)
        if gap != character:
            text = text.replace(character, gap)
    return text.split()


@cache
def _gap(character: str, symbols: bool) -> str:
    """What to write for a plain character, so that words stand between spaces."""
    if character.isalnum() or character == "_":
        return character
    return f" {character} " if _ALONE[symbols].match(character) else " "


def _ascii_gaps(symbols: bool) -> list[tuple[str, str]]:
    characters = re.findall(r"[^\w\s]", _ASCII.decode())
    return [(character, _gap(character, symbols)) for character in characters]


_ASCII_GAPS = [_ascii_gaps(False), _ascii_gaps(True)]


def _symbols(text: str) -> int:
    """How many symbols and punctuation marks a text has."""
    return _ascii_symbols(text) + len(_MARKS.findall(_not_ascii(text)))


def _ascii_symbols(text: str) -> int:
    ascii_ = text.encode("ascii", "ignore")
    return len(ascii_) - len(ascii_.translate(None, _SYMBOLS))


def _not_ascii(text: str) -> str:
    """The characters of a text that are not ASCII, which are few in Latin text."""
    if text.isascii():
        return ""
    # in UTF-8 all bytes of other characters lie above ASCII's; lone halves of a pair go along
    others = text.encode("utf-8", "surrogatepass").translate(None, _ASCII)
    return others.decode("utf-8", "surrogatepass")


def terms(text: str) -> list[str]:
    """What a text is about, for a bag of words.

    That is its words; neighbouring letters of scripts without spaces as well; and runs of words
    where a word alone says little.
    """
    pieces = words(text, in_symbols(text))
    letters: list[str] = []
    if not text.isascii():
        is_solid = [_OF_SOLID.match(word) is not None for word in pieces]
        for (a, b), both in zip(pairwise(pieces), pairwise(is_solid), strict=True):
            if all(both):
                letters.append(a + b)

    length = run_length(pieces, len(set(pieces)))
    if length <= SHINGLE:
        return pieces + letters
    return pieces + letters + runs(pieces, length)


def runs(pieces: Sequence[str], n: int) -> list[str]:
    """All runs of n words; of fewer words, all of them as one run; of none, none."""
    n = max(1, min(n, len(pieces)))
    # Column i is the words moved by i: a row across the columns is a run.
    columns = [pieces[i:] for i in range(n)]
    return list(map(" ".join, zip(*columns, strict=False)))


def run_length(pieces: Sequence[str], kinds: int) -> int:
    """How many of these words, of so many kinds, in a run tell texts apart.

    `SHINGLE` do for language, and 2, 4, 8 or 16 times as many for texts of a few different words,
    such as DNA (2) or binary digits (4), where all short runs are in every text. It goes by the
    entropy of a word (with the correction of Miller and Madow for short texts), which halves from
    step to step, so that near-copies hardly ever fall on two sides of one.
    """
    count = len(pieces)
    # Most texts: bits cannot be fewer than that.
    if count <= 2 * kinds or kinds * log2(count) >= _BITS * count:
        return SHINGLE

    bits = sum(c * log2(count / c) for c in Counter(pieces).values()) / count
    bits += (kinds - 1) / (2 * count * log(2))  # Miller and Madow's correction
    for times in (1, 2, 4, 8):
        if bits * times >= _BITS:
            return SHINGLE * times
    return SHINGLE * 16
