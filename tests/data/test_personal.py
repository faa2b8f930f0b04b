"""What looks like personal data is found, what does not is left, and no text takes long."""

import time
from collections import Counter

import pytest

from synthboot.data.personal import KINDS, Found, find, times

SAID = [
    ("write to Jane.Doe+x@mail.example.org, or not.", [("e-mail", "Jane.Doe+x@mail.example.org")]),
    ("john@example.com,mary@example.co.uk", [("e-mail", "john@example.com"), ("e-mail", "mary@example.co.uk")]),
    ("call +44 20 7946 0958 today", [("phone", "+44 20 7946 0958")]),
    ("(555) 123-4567 or 555-123-4567", [("phone", "(555) 123-4567"), ("phone", "555-123-4567")]),
    ("0049 30 901820", [("phone", "0049 30 901820")]),
    ("see https://user:pw@host.example.com/x", [("URL with a name", "https://user:pw@host.example.com")]),
    ("http://www.example.edu/~smith/page", [("URL with a name", "http://www.example.edu/~smith")]),
    ("https://medium.com/@jane", [("URL with a name", "https://medium.com/@jane")]),
    ("from 192.168.10.12.", [("IP address", "192.168.10.12")]),
    ("host 2001:db8::ff00:42:8329 answers", [("IP address", "2001:db8::ff00:42:8329")]),
    ("IBAN DE89 3704 0044 0532 0130 00, please", [("IBAN", "DE89 3704 0044 0532 0130 00")]),
    ("GB29NWBK60161331926819", [("IBAN", "GB29NWBK60161331926819")]),
    ("4111 1111 1111 1111 2030", [("card number", "4111 1111 1111 1111")]),
    ("5500000000000004 378282246310005", [("card number", "5500000000000004"), ("card number", "378282246310005")]),
]
NOTHING = [
    "from 2010-2015, arXiv:2202.07646, pi is 3.14159265358979, doi 10.1103/PhysRevLett.116.061102",
    "256.1.1.1 and v1.2.3.4 at 12:30:45, std::vector, a::b, ::1, 127.0.0.1, 0.0.0.0",
    "DE88 3704 0044 0532 0130 00 has a wrong check, and so has 4111 1111 1111 1112",
    "0000000000000000 and 4444444444444444",
    "user@localhost, @name, a@b, https://example.org/a/b?q=1",
    "",
]
LONG = 30_000
PIECES = ["a", "1", "1 ", "a.", "a@", "a.a@a.", "::", "+1-", "+1(", "(1)", "http://", "http://a/", "http://a:", "AA11 "]
PIECES += ["AAAA", "a-", "4-", "4111 ", ".", "f:", "1.1.1.1.", "%", "x://~/", "00", "+", "(", "/~", "\u0661", "a@b.cd "]
HEADS = ["", "+1 ", "a@", "http://", "http://a.aa/", "AA11", "4"]


@pytest.mark.parametrize(("text", "found"), SAID)
def test_what_looks_like_personal_data_is_found_once(text: str, found: list[tuple[str, str]]) -> None:
    assert [tuple(item) for item in find(text)] == found


@pytest.mark.parametrize("text", NOTHING)
def test_what_does_not_is_left(text: str) -> None:
    assert list(find(text)) == []


def test_every_kind_is_tried() -> None:
    assert {kind for _, found in SAID for kind, _ in found} == set(KINDS)


def test_it_is_counted_over_all_texts() -> None:
    assert times(["a@example.com b@example.com", "a@example.com"]) == Counter(
        {Found("e-mail", "a@example.com"): 2, Found("e-mail", "b@example.com"): 1}
    )


def seconds(text: str) -> float:
    start = time.process_time()
    for _ in find(text):
        pass
    return time.process_time() - start


@pytest.mark.parametrize("head", HEADS)
def test_no_text_takes_longer_than_its_length(head: str) -> None:
    """A pattern that goes back and forth would take hours for as many characters."""
    for piece in PIECES:
        text = head + piece * (LONG // len(piece))
        assert seconds(text) < 2, piece
