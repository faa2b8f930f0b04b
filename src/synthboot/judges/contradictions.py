"""Two texts that give different numbers or dates for the same thing, found by rules.

1. A text is cut into sentences, and of each the numbers and dates are read: a date to the year,
   the month or the day, a number with the word that it counts (`12 layers`, `40 %`, `born 1964`).
2. Two sentences speak of the same thing where both texts begin with the same name, or both
   sentences with the same name of two words or more; where the longer one has all other words of
   the shorter one, three at least, and not twice as many; and neither has a name that the other
   lacks.
3. They contradict each other where each has one value of a kind and these are not equal: a date is
   compared as far as both tell it, numbers that are said to be rounded within a tenth. Where two
   kinds differ it is another census or another season, and both may be right.

Rules of English, for text in English or templates; they find few of the contradictions there are,
and are nearly always right about those (tests/judges/test_contradictions.py measures how often).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LEAST_WORDS = 3
_ROUNDED = 0.1
_NEAR = 60  # characters beside a number that say what it is
_CLOSE = 0.005  # numbers this near are one number in two precisions

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            ("january", "jan"),
            ("february", "feb"),
            ("march", "mar"),
            ("april", "apr"),
            ("may",),
            ("june", "jun"),
            ("july", "jul"),
            ("august", "aug"),
            ("september", "sep", "sept"),
            ("october", "oct"),
            ("november", "nov"),
            ("december", "dec"),
        ),
        1,
    )
    for name in names
}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATE = re.compile(
    rf"\b(?:(?P<day>[0-3]?\d)(?:st|nd|rd|th)? (?P<month>{_MONTH})\.?,? (?P<year>[12]\d{{3}})"
    rf"|(?P<month2>{_MONTH})\.? (?P<day2>[0-3]?\d)(?:st|nd|rd|th)?, (?P<year2>[12]\d{{3}})"
    rf"|(?P<month3>{_MONTH})\.?,? (?P<year3>[12]\d{{3}})"
    r"|(?P<year4>1[0-9]\d\d|20\d\d)(?![\d.,]?\d|s\b|-)(?= *(?:$|[^\w %])| (?!\w+s\b)))",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![\w.,/-])(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,15}(?:\.\d{1,15})?)"
    r"(?: (?P<scale>thousand|million|billion|trillion)\b)?"
    r"(?P<unit> ?%| ?percent\b|[-\u2010-\u2013 ][A-Za-z][A-Za-z]*)?"
    r"(?![\w/]|[.,]\d)"
)
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_IN_WORDS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ROUNDING = _set("about around approximately nearly almost roughly circa over some")
# looked at from its first character alone, or a long number takes time in its square
_WORD = re.compile(r"(?<![^\W_])(?=[^\W_]*[^\W\d_])[^\W_]+(?:['\u2019-][^\W_]+)*")
_PIECE = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE = re.compile(r"(?<=[^\W_][.!?]|[)\]\"][.!?])\s+(?=[^\Wa-z])|\n+")
_EMPTY = _set(
    "a an the of in on at by to for from with and or as is are was were be been has have had it "
    "its this that which who his her their also there than into c"
)
_POINTING = _set("he she it they we his her its their our this these those i my")
"""Words that stand for what a text is about."""
_PARTICLES = _set("of the de von van der and la le du")
_NO_CONTENT = _EMPTY | _ROUNDING | _MONTHS.keys()
_VAGUE = _set("more less least most up under between per from range ranging")
"""Beside a number, they make it the end of a range."""


@dataclass(frozen=True)
class Value:
    """A number or a date in a sentence: what it counts, how much, and whether it is rounded.

    Of a date, `parts` are year, month and day as far as the sentence says them.
    """

    kind: str
    parts: tuple[float, ...]
    is_rounded: bool

    def disagrees(self, other: Value) -> bool:
        """Whether both cannot be right of one thing."""
        if self.kind == "date":
            known_of_both = min(len(self.parts), len(other.parts))
            return self.parts[:known_of_both] != other.parts[:known_of_both]
        [first] = self.parts
        [second] = other.parts
        tolerance = _ROUNDED if self.is_rounded or other.is_rounded else _CLOSE
        return abs(first - second) > tolerance * max(abs(first), abs(second))


@dataclass(frozen=True)
class Claim:
    """A sentence: its values, the words that are neither values nor empty, and its names.

    `about` is the name of two words or more that it begins with, if it does.
    """

    sentence: str
    values: tuple[Value, ...]
    words: frozenset[str]
    names: frozenset[str]
    about: frozenset[str]

    @property
    def kinds(self) -> dict[str, Value]:
        """The value of each kind that the sentence has exactly one of."""
        counted: dict[str, list[Value]] = {}
        for value in self.values:
            counted.setdefault(value.kind, []).append(value)
        return {kind: values[0] for kind, values in counted.items() if len(values) == 1}


@dataclass(frozen=True)
class Contradiction:
    """Two sentences that cannot both be right, and what they disagree about."""

    first: str
    second: str
    kind: str


def contradictions(text: str, other: str) -> list[Contradiction]:
    """Where a text and another one give different numbers or dates for the same thing.

    Each sentence of `text` comes up once at the most.
    """
    is_same_subject = bool(subject(text)) and subject(text) == subject(other)
    others = list(claims(other))
    found = []
    for claim in claims(text):
        about = []
        for known in others:
            is_about_same = is_same_subject or (claim.about and claim.about == known.about)
            if is_about_same and _same_thing(claim, known):
                about.append(known)
        # a sentence that one of them confirms is not contradicted by another
        differing = [_differing(claim, known) for known in about]
        if about and all(differing):
            found.append(Contradiction(claim.sentence, about[0].sentence, differing[0]))
    return found


def claims(text: str) -> Iterator[Claim]:
    """The sentences of a text that give a number or a date."""
    for sentence in _SENTENCE.split(text):
        claim = _claim(sentence.strip())
        if claim.values:
            yield claim


def subject(text: str) -> frozenset[str]:
    """The name that a text begins with, its numbers too, in small letters; nothing where it begins
    with none."""
    name = []
    for word in _PIECE.findall(text[:200]):
        low = word.lower()
        if word.islower() and low not in _PARTICLES:
            break
        if low not in _EMPTY | _POINTING:
            name.append(low)
    # a number alone is no name
    return frozenset() if all(word.isdigit() for word in name) else frozenset(name)


def _claim(sentence: str) -> Claim:
    values = [_date(match) for match in _DATE.finditer(sentence)]
    rest = _DATE.sub(_blank, sentence)
    for match in _NUMBER.finditer(rest):
        before = rest[max(0, match.start() - _NEAR) : match.start()].split()[-2:]
        if not _is_end_of_range(before):
            values.append(_number(match, before))
    rest = _NUMBER.sub(_unit_alone, rest)
    for match in _WORD.finditer(rest):
        number = _IN_WORDS.get(match[0].lower())
        following = _WORD.match(rest[match.end() : match.end() + _NEAR].lstrip())
        if number is not None and following is not None:
            values.append(Value(_singular(following[0]), (float(number),), False))
    rest = _WORD.sub(lambda match: "" if match[0].lower() in _IN_WORDS else match[0], rest)

    words = _WORD.findall(rest)
    plain = [_singular(word) for word in words]
    capitals = {low for low, word in zip(plain, words, strict=True) if not word.islower()}
    if words and rest.lstrip().startswith(f"{words[0]},"):
        capitals.discard(plain[0])  # `Specifically, ...`
    names = frozenset(capitals - _NO_CONTENT - _POINTING)
    about = subject(sentence)
    return Claim(
        sentence=sentence,
        values=tuple(values),
        words=frozenset(word for word in plain if word not in _NO_CONTENT),
        names=names,
        about=about if len(about) > 1 else frozenset(),
    )


def _is_end_of_range(before: Sequence[str]) -> bool:
    """Whether the words before a number make it the end of a range."""
    is_second_end = len(before) == 2 and before[1] in ("to", "and") and before[0][:1].isdigit()
    return is_second_end or not _VAGUE.isdisjoint(word.lower() for word in before)


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def _unit_alone(match: re.Match[str]) -> str:
    """A number and its unit without the number."""
    return match[0].removeprefix(match["number"])


def _date(match: re.Match[str]) -> Value:
    found = {name.rstrip("234"): part for name, part in match.groupdict().items() if part}
    parts = [float(found["year"])]
    if "month" in found:
        parts.append(float(_MONTHS[found["month"].lower()]))
    if "day" in found:
        parts.append(float(found["day"]))
    return Value("date", tuple(parts), False)


def _number(match: re.Match[str], before: Sequence[str]) -> Value:
    number = float(match["number"].replace(",", "")) * _SCALES.get(match["scale"], 1.0)
    unit = (match["unit"] or "").strip(" -\u2010\u2011\u2012\u2013")
    kind = "percent" if unit in ("%", "percent") else _singular(unit)
    is_rounded = not _ROUNDING.isdisjoint(word.lower() for word in before)
    return Value(kind, (number,), is_rounded)


def _singular(word: str) -> str:
    low = word.lower()
    return low[:-1] if len(low) > 3 and low.endswith("s") and not low.endswith("ss") else low


def _same_thing(a: Claim, b: Claim) -> bool:
    """Whether two sentences say the same but for their values."""
    shared = len(a.words & b.words)
    shorter, longer = sorted((len(a.words), len(b.words)))
    if shared < shorter or shorter < _LEAST_WORDS or shorter < longer / 2:
        return False
    # a word with a capital at the start of one sentence may have none in the other
    return a.names <= b.words | b.names and b.names <= a.words | a.names


def _differing(a: Claim, b: Claim) -> str:
    """The kind of value by which two claims contradict each other; empty where they do not."""
    known = b.kinds
    differing = []
    for kind, value in a.kinds.items():
        if kind in known and value.disagrees(known[kind]):
            differing.append(kind or "number")
    return differing[0] if len(differing) == 1 else ""
