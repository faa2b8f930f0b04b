"""Patterns of personal data in text: what looks like an e-mail address, a telephone number, an
address of the web with somebody's name, an IP address, an IBAN or a card number.

What is found looks like personal data; whose it is, or whether it is anybody's, nothing here can
know, and names and street addresses have no pattern. Text is not trusted: every repetition is
bounded and none gives back what it took where it could begin elsewhere, so that the time is linear
in the text, whatever it holds.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Found(NamedTuple):
    """What was found, and what it looks like, one of KINDS."""

    kind: str
    text: str


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"(?:{_LABEL}\.){{1,8}}[A-Za-z]{{2,24}}"

_PATTERNS = {
    # a name and perhaps a password before the host, or a path of ~name or @name
    "URL with a name": (
        r"(?<!\w)[A-Za-z][A-Za-z0-9+]{1,9}://(?:"
        rf"[\w.~%!$&'*+,;=:-]{{1,128}}+@{_HOST}"
        rf"|{_HOST}(?::\d{{1,5}})?(?:/[\w.%-]{{1,64}}+){{0,3}}/[~@][\w.-]{{2,64}}+"
        r")"
    ),
    "e-mail": rf"(?<![\w.+%-])[\w.+%-]{{1,64}}+@{_HOST}(?![\w-])",
    "IBAN": r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)",
    # in one piece, in fours, or as American Express writes them
    "card number": (
        r"(?<![\w.-])(?:"
        r"[2-6]\d{12,18}+"
        r"|[2-6]\d{3}(?:[ -]\d{4}){3}"
        r"|3\d{3}[ -]\d{6}[ -]\d{5}"
        r")(?![\w-])"
    ),
    "IP address": r"(?<![\w.:])(?:\d{1,3}+(?:\.\d{1,3}+){3}|[0-9A-Fa-f:]{3,39}+)(?!\.?\w|:)",
    # with a country, or in the groups of North America
    "phone": (
        r"(?<![\w+.-])(?<!\d )(?:"
        r"(?:\+|00)[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,5}+\)?){2,6}+"
        r"|\(\d{3}\)[ -]?\d{3}[ .-]\d{4}"
        r"|\d{3}-\d{3}-\d{4}"
        r")(?![\w-])"
    ),
}
_COMPILED = {kind: re.compile(pattern) for kind, pattern in _PATTERNS.items()}
KINDS = tuple(_PATTERNS)
"""All kinds, in the order in which they are shown."""

_NEEDED = {"e-mail": "@", "URL with a name": "://"}
"""What a text without which has none of the kind: most texts are done at once."""


def find(text: str) -> Iterator[Found]:
    """Everything in a text that looks like personal data and passes the checks of its kind (digits
    that check, octets below 256, as many digits as a number has), kind by kind, in order.

    Nothing is found twice: what is part of an address of the web is no e-mail address, digits of an
    IBAN are no telephone number.
    """
    for kind, pattern in _COMPILED.items():
        if _NEEDED.get(kind, "") not in text:
            continue
        rest = []
        end = 0
        for match in pattern.finditer(text):
            if _is_valid(kind, match[0]):
                yield Found(kind, match[0])
                rest.append(text[end : match.start()])
                end = match.end()
        text = " ".join([*rest, text[end:]])


def times(texts: Iterable[str]) -> Counter[Found]:
    """How often everything that looks like personal data stands in these texts."""
    counted: Counter[Found] = Counter()
    for text in texts:
        counted.update(find(text))
    return counted


def _is_valid(kind: str, text: str) -> bool:
    digits = "".join(filter(str.isdecimal, text))
    if kind == "phone":
        return 7 <= len(digits.removeprefix("00")) <= 15  # E.164
    if kind == "IP address":
        return _is_address(text)
    if kind == "IBAN":
        return _checks_97(text.replace(" ", ""))
    if kind == "card number":
        return len(set(digits)) > 1 and _checks_luhn(digits)
    return True


def _is_address(text: str) -> bool:
    if not any(map(str.isdecimal, text)):
        return False  # a::b is a name in some languages
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    # 0.0.0.0, :: and 127.0.0.1 are nobody's
    return not (address.is_unspecified or address.is_loopback)


def _checks_97(iban: str) -> bool:
    """Whether the check digits of an IBAN are right. Source: ISO 13616."""
    if not 15 <= len(iban) <= 34:
        return False
    moved = iban[4:] + iban[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def _checks_luhn(digits: str) -> bool:
    """Whether the last digit checks the others. Source: ISO/IEC 7812-1."""
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        doubled = 2 * digit if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0
