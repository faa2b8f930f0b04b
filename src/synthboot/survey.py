"""What the user's files hold: fields, documents, tokens, scripts, by the first 64 MiB of text."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Int64

from synthboot.config import Corpus
from synthboot.data import documents, tokenizer
from synthboot.data.documents import Ignored, Reject
from synthboot.data.files import counted
from synthboot.errors import DataError

MOST_BYTES = 64 << 20
"""Text that is looked at; of what is longer, the head."""
_HEAD_RECORDS = 500
_TOKENIZED_BYTES = 2 << 20
_SCRIPT_CHARACTERS = 200_000
_LEAST_SCRIPT = 0.005
_VOCABULARIES = ((8 << 20, 2_048), (48 << 20, 4_096))
"""Below so many bytes of text; all of the bounds lie below what is looked at."""
_LARGEST_VOCABULARY = 16_384
_DATE = re.compile(r"\d{4}-\d\d(-\d\d)?\b")
_ID_FIELDS = ("id", "docid", "documentid", "uid", "uuid", "guid", "key", "doi", "url")
"""By letters and digits alone: `Doc-ID`, `doc_id` and `docId` are one."""
_DEEPEST = 6
"""Levels of a record in which text is looked for."""
_MOST = 0.9  # of the records have a field that counts as one of theirs

Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Survey:
    """What is there.

    `corpus` has the source and the fields that were found. `lengths` are of the documents that were
    read, each text once, in tokens of a vocabulary of `vocab_size`, as estimated from
    `bytes_per_token`. `label_field` and `dates` (field, first, last) are None where there are none;
    `is_whole` says that nothing was left unread; `advice` what to do about bad records, and about
    text that lies deeper than a field.
    """

    corpus: Corpus
    fields: tuple[str, ...]
    label_field: str | None
    dates: tuple[str, str, str] | None
    records: int
    rejects: Counter[str]
    duplicates: int
    ignored: Ignored
    is_whole: bool
    lengths: Int64[np.ndarray, " doc"]
    vocab_size: int
    bytes_per_token: float
    scripts: dict[str, float]
    advice: str = ""

    @property
    def tokens(self) -> int:
        """Tokens of the documents that were read."""
        return int(self.lengths.sum())

    @property
    def bad_share(self) -> float:
        """The share of records that are no documents."""
        return self.rejects.total() / max(1, self.records)

    @property
    def is_too_bad(self) -> bool:
        """Whether more records are bad than a run takes without being told."""
        return self.bad_share > self.corpus.max_quarantine

    def lines(self) -> list[str]:
        """The same in words."""
        least = "" if self.is_whole else "more than "
        ids = self.corpus.id_field
        others = [field for field in self.fields if field not in (self.corpus.text_field, ids)]
        lines = [
            f"documents: {least}{len(self.lengths):,}"
            f" of {self.records:,} records ({self._losses()})",
            f'text: field "{self.corpus.text_field}"; '
            + (f'ids: field "{ids}"' if ids in self.fields else "ids: made of file and line"),
            f"other fields: {', '.join(others) or 'none'}",
            f"tokens: {least}{self.tokens:,} at a vocabulary of {self.vocab_size:,} "
            f"({self.bytes_per_token:.1f} bytes each)",
            f"length: half have {np.median(self.lengths):,.0f} tokens or more, "
            f"a tenth {np.quantile(self.lengths, 0.9):,.0f}",
            "scripts: " + ", ".join(f"{name} {part:.0%}" for name, part in self.scripts.items()),
        ]
        if self.dates is not None:
            lines.append('dates: field "{}", {} to {}'.format(*self.dates))
        if self.label_field is not None:
            lines.append(f'labels: field "{self.label_field}"')
        if self.advice:
            lines.append(f"note: {self.advice}")
        return lines

    def _losses(self) -> str:
        parts = [f"{self.duplicates / max(1, self.records):.1%} exact duplicates"]
        if self.rejects:
            parts.append(f"{self.rejects.total():,} bad: {counted(self.rejects)}")
        if self.ignored.files:
            parts.append(f"files ignored: {counted(self.ignored.files)}")
        return "; ".join(parts)


def survey(source: str | list[str], most_bytes: int = MOST_BYTES) -> Survey:
    """Look at the files of a source.

    Raises DataError where the reader does, and where no record is a document.
    """
    head, corpus = _head(source)
    fields = tuple(dict.fromkeys(name for row in head for name in row))
    ignored = Ignored()
    rejects: Counter[str] = Counter()
    seen: set[bytes] = set()
    sizes: list[int] = []
    sample: list[str] = []
    records = 0
    total = 0
    sampled = 0
    is_whole = True
    for record in documents.records(corpus, ignored=ignored):
        if total >= most_bytes:
            is_whole = False
            break
        records += 1
        document = documents.parse(record, corpus)
        if isinstance(document, Reject):
            rejects[document.reason] += 1
            continue
        raw = document.text.encode()
        total += len(raw)
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        if digest in seen:
            continue
        seen.add(digest)
        sizes.append(len(raw))
        if sampled < _TOKENIZED_BYTES:
            sample.append(document.text)
            sampled += len(raw)
    advice = _advice(head, corpus, rejects)
    if not sizes:
        said = [counted(rejects) or "there are none"]
        said += [f"fields: {', '.join(fields)}"] if fields else []
        said += [advice] if advice else []
        raise DataError(f"{_named(source)}: no record is a document: {'; '.join(said)}")

    vocab_size = next((v for size, v in _VOCABULARIES if total < size), _LARGEST_VOCABULARY)
    rate = sampled / _tokens(sample, vocab_size)
    others = [name for name in fields if name not in (corpus.text_field, corpus.id_field)]
    return Survey(
        corpus=corpus,
        fields=fields,
        label_field=next((name for name in others if _is_label(head, name)), None),
        dates=next((dates for name in others if (dates := _dates(head, name))), None),
        records=records,
        rejects=rejects,
        duplicates=records - rejects.total() - len(sizes),
        ignored=ignored,
        is_whole=is_whole,
        lengths=np.maximum(1, np.array(sizes) / rate).astype(np.int64),
        vocab_size=vocab_size,
        bytes_per_token=rate,
        scripts=_scripts(sample),
        advice=advice,
    )


def _tokens(texts: Sequence[str], vocab_size: int) -> int:
    """How many tokens the texts have in a tokenizer of so many, trained on them."""
    fitted = tokenizer.train(iter(texts), vocab_size)
    return sum(len(ids) for ids in fitted.documents(texts))


def _head(source: str | list[str]) -> tuple[Rows, Corpus]:
    """The first records, and the source with the fields that they have for text and id."""
    plain = Corpus(source=source)
    head = []
    for record in islice(documents.records(plain), _HEAD_RECORDS):
        row = documents.fields(record, plain)
        if not isinstance(row, str):
            named = filter(_can_be_named, row)
            head.append({name: _decoded(row[name]) for name in named})

    names = dict.fromkeys(name for row in head for name in row)
    text_field = _text_field(head, list(names))
    ids = [name for name in names if name != text_field and _plainly(name) in _ID_FIELDS]
    # what is called as the setting is by itself comes before other spellings of it
    ids.sort(key=lambda name: (_ID_FIELDS.index(_plainly(name)), name != plain.id_field))
    id_field = next((name for name in ids if _is_id(head, name)), plain.id_field)
    return head, Corpus(source=source, text_field=text_field, id_field=id_field)


def _can_be_named(field: str) -> bool:
    """Whether a configuration can name a field: JSON may spell half a surrogate pair."""
    return not any("\ud800" <= letter <= "\udfff" for letter in field)


def _named(source: str | list[str]) -> str:
    return source if isinstance(source, str) else ", ".join(source)


def _decoded(value: object) -> object:
    """Columns of text come as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _values(rows: Rows, name: str) -> list[object]:
    return [row[name] for row in rows if row.get(name) is not None]


def _text_field(rows: Rows, names: Sequence[str]) -> str:
    """`text` where there is one, else the field with most text in it that is no id."""
    letters = {"text": 0}
    for name in [name for name in names if _plainly(name) not in _ID_FIELDS]:
        texts = [value for value in _values(rows, name) if isinstance(value, str)]
        letters[name] = sum(map(len, texts))
    return "text" if letters["text"] else max(letters, key=lambda name: letters[name])


def _plainly(name: str) -> str:
    """The letters and digits of a field's name."""
    return "".join(filter(str.isalnum, name.lower()))


def _advice(rows: Rows, corpus: Corpus, reasons: Iterable[str]) -> str:
    """What to do about records that are no documents, and about text below a field."""
    if deeper := _deeper(rows, corpus.text_field):
        return deeper
    return documents.advice(reasons, corpus)


def _deeper(rows: Rows, text_field: str) -> str:
    """How to bring up text that lies below a field, where more of it does than in `text_field`,
    which is the record's own; empty where it does not."""
    letters: Counter[str] = Counter()
    for row in rows:
        _weigh(row, "", letters, _DEEPEST)
    if letters[".text"] or not letters:
        return ""
    [(path, most)] = letters.most_common(1)
    is_own = path in {f".{_key(name)}" for row in rows for name in row}
    if is_own or most <= letters[f".{_key(text_field)}"]:
        return ""
    program = shlex.quote(f". + {{text: ({_lifted(path)})}}")  # a key may have a quote in it
    return (
        f"most text lies in {path}, and corpus.text_field names a field of the record itself; "
        f"of JSON lines jq -c {program} brings it up"
    )


def _lifted(path: str) -> str:
    """The text at a path as a program of jq, which loses no record that has none there.

    An error would lose it, and `?` gives nothing instead of one: null, or one text fewer in a list.
    """
    *lists, last = path.split("[]")
    if not lists:
        return f"{path}? // null"
    steps = [f"{step or '.'}[]?" for step in lists]
    if last:
        steps.append(f"{last}?")
    return f'[{" | ".join(steps)} | strings] | join("\\n\\n")'


def _weigh(value: object, path: str, letters: Counter[str], deepest: int) -> None:
    """Count the letters of every text in a value by its path, as jq writes it."""
    if isinstance(value, str):
        letters[path] += len(value)
    elif isinstance(value, Mapping) and deepest:
        for name, inner in value.items():
            _weigh(inner, f"{path}.{_key(str(name))}", letters, deepest - 1)
    elif isinstance(value, list | tuple) and deepest:
        for inner in value:
            _weigh(inner, f"{path}[]", letters, deepest - 1)


def _key(name: str) -> str:
    """A key as jq writes it."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) else json.dumps(name)


def _is_id(rows: Rows, name: str) -> bool:
    """Whether every record has it, and another one each."""
    values = [str(value) for value in _values(rows, name)]
    return len(values) == len(rows) > 0 and len(set(values)) == len(rows)


def _is_label(rows: Rows, name: str) -> bool:
    """Whether most records have a short text that others have too, and that is no date."""
    values = [v for v in _values(rows, name) if isinstance(v, str) and 0 < len(v) <= 40]
    kinds = len(set(values))
    if _dates(rows, name) is not None:
        return False
    return len(values) >= _MOST * len(rows) and 2 <= kinds <= len(values) / 4


def _dates(rows: Rows, name: str) -> tuple[str, str, str] | None:
    values = [str(value)[:10] for value in _values(rows, name)]
    dates = sorted(value for value in values if _DATE.match(value))
    if not rows or len(dates) < _MOST * len(rows):
        return None
    return name, dates[0], dates[-1]


def _scripts(texts: Iterable[str]) -> dict[str, float]:
    """The three scripts that most letters are of, each with its share."""
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(character for character in text if character.isalpha())
        if letters.total() >= _SCRIPT_CHARACTERS:
            break
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        # a letter's name begins with its script's, but for Chinese characters
        script = unicodedata.name(letter, "UNKNOWN").partition(" ")[0]
        scripts["Han" if script == "CJK" else script.capitalize()] += count
    total = max(1, scripts.total())
    shares = {name: count / total for name, count in scripts.most_common(3)}
    return {name: share for name, share in shares.items() if share >= _LEAST_SCRIPT}
