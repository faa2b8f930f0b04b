"""What the user's files hold: fields, documents, tokens, scripts, by the first 64 MiB of text."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from jaxtyping import Int64

from synthboot.config import Corpus
from synthboot.data import documents, tables, tokenizer
from synthboot.data.documents import Ignored, Record, Reject
from synthboot.data.files import counted, how_to_read
from synthboot.errors import DataError, brief

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
_NAME_CHARACTERS = 40
"""What is longer may be a text, where a name of a field is looked for."""

Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Survey:
    """What is there.

    `corpus` has the source and the fields that were found. `lengths` are of the documents that were
    read, each text once, in tokens of a vocabulary of `vocab_size`, as estimated from
    `bytes_per_token`. `label_field` and `dates` (field, first, last) are None where there are none;
    `is_whole` says that nothing was left unread; `advice` what to do about bad records, and about
    text that lies deeper than a field; `notes` what is read, but hardly as it was meant.
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
    notes: tuple[str, ...] = ()

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
        others = [brief(field) for field in others]
        lines = [
            f"documents: {least}{len(self.lengths):,}"
            f" of {self.records:,} records ({self._losses()})",
            f'text: field "{brief(self.corpus.text_field)}"; '
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
        lines += [f"note: {note}" for note in (self.advice, *self.notes) if note]
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
    read = _read(corpus, most_bytes)
    advice = _advice(head, corpus, read.rejects)
    if not read.sizes:
        said = [counted(read.rejects) or "there are none"]
        said += [f"fields: {', '.join(fields)}"] if fields else []
        said += [advice] if advice else []
        raise DataError(f"{_named(source)}: no record is a document: {'; '.join(said)}")

    vocab_size = next((v for size, v in _VOCABULARIES if read.size < size), _LARGEST_VOCABULARY)
    rate = read.sampled / _tokens(read.sample, vocab_size)
    others = [name for name in fields if name not in (corpus.text_field, corpus.id_field)]
    return Survey(
        corpus=corpus,
        fields=fields,
        label_field=next((name for name in others if _is_label(head, name)), None),
        dates=next((dates for name in others if (dates := _dates(head, name))), None),
        records=read.records,
        rejects=read.rejects,
        duplicates=read.records - read.rejects.total() - len(read.sizes),
        ignored=read.ignored,
        is_whole=read.is_whole,
        lengths=np.maximum(1, np.array(read.sizes) / rate).astype(np.int64),
        vocab_size=vocab_size,
        bytes_per_token=rate,
        scripts=_scripts(read.sample),
        advice=advice,
        notes=(
            *_textless(read, corpus.text_field),
            *_headless(head, corpus.text_field),
            *_escaped(head),
            *_same_opening(read.sample),
            *_passed_over(read),
        ),
    )


@dataclass
class _Read:
    """What was read: bytes of every text, each text once, and of `size` bytes of text altogether
    the first `sampled` as they are. `having` are the files that have a document, `lacking` those
    with a record that has no text, with the fields of the first."""

    records: int = 0
    size: int = 0
    sampled: int = 0
    is_whole: bool = True
    sizes: list[int] = field(default_factory=list)
    sample: list[str] = field(default_factory=list)
    rejects: Counter[str] = field(default_factory=Counter)
    ignored: Ignored = field(default_factory=Ignored)
    having: set[str] = field(default_factory=set)
    lacking: dict[str, str] = field(default_factory=dict)


def _read(corpus: Corpus, most_bytes: int) -> _Read:
    read = _Read()
    seen: set[bytes] = set()
    for record in documents.records(corpus, ignored=read.ignored):
        if read.size >= most_bytes:
            read.is_whole = False
            break
        read.records += 1
        document = documents.parse(record, corpus)
        if isinstance(document, Reject):
            read.rejects[document.reason] += 1
            if names := _without_text(record, corpus):
                read.lacking.setdefault(record.file, names)
            continue

        read.having.add(record.file)
        raw = document.text.encode()
        read.size += len(raw)
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        if digest in seen:
            continue
        seen.add(digest)
        read.sizes.append(len(raw))
        if read.sampled < _TOKENIZED_BYTES:
            read.sample.append(document.text)
            read.sampled += len(raw)
    return read


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
            # No file can hold a setting that is no UTF-8.
            named = {name: value for name, value in row.items() if tables.encodable(name)}
            head.append({name: _decoded(value) for name, value in named.items()})

    names = dict.fromkeys(name for row in head for name in row)
    text_field = _text_field(head, list(names))
    ids = [name for name in names if name != text_field and _plainly(name) in _ID_FIELDS]
    # what is called as the setting is by itself comes before other spellings of it
    ids.sort(key=lambda name: (_ID_FIELDS.index(_plainly(name)), name != plain.id_field))
    id_field = next((name for name in ids if _is_id(head, name)), plain.id_field)
    return head, Corpus(source=source, text_field=text_field, id_field=id_field)


def _without_text(record: Record, corpus: Corpus) -> str:
    """The fields of a record whose text is missing; empty of another."""
    row = documents.fields(record, corpus)
    if isinstance(row, str) or row.get(corpus.text_field) is not None:
        return ""
    return ", ".join(map(brief, row))


def _textless(read: _Read, text_field: str) -> Iterator[str]:
    """Files none of whose records has the text."""
    files = [file for file in read.lacking if file not in read.having]
    if files:
        more = f" and of {len(files) - 3:,} more" if len(files) > 3 else ""
        yield (
            f'no record of {", ".join(files[:3])}{more} has the field "{brief(text_field)}"; those '
            f"of {files[0]} are {read.lacking[files[0]]}: call what has the text so in each, or "
            f"name the other files alone"
        )


def _headless(rows: Rows, text_field: str) -> Iterator[str]:
    """A field that is called by a text: the first row of a table is one where it has no head."""
    lengths = [len(str(value)) for value in _values(rows, text_field)]
    is_text = len(text_field) > _NAME_CHARACTERS and len(text_field) > np.quantile(lengths, 0.1)
    if is_text:
        yield (
            "the first row of a table names its fields, and here it is a text, which is lost: put "
            "names before it (docs/own-text.md)"
        )


def _escaped(rows: Rows) -> Iterator[str]:
    """What databases write for nothing, beside which line breaks are escapes too."""
    if any(value == r"\N" for row in rows for value in row.values()):
        yield (
            r"values are \N, as databases write it for nothing: it is read as text, and so is \n "
            "for a line break; docs/own-text.md has the command that mends both"
        )


def _same_opening(texts: Sequence[str]) -> Iterator[str]:
    """A line that most texts begin with."""
    lines = Counter(text.lstrip().partition("\n")[0].rstrip() for text in texts)
    line, count = lines.most_common(1)[0]
    if count > 1 and len(texts) <= 2 * count and len(texts[0]) > len(line):
        yield (
            f"{count / len(texts):.0%} of the documents begin with the line {brief(line, 40)!r}: "
            f"all heads are learned as text; take off what is none (docs/own-text.md)"
        )


def _passed_over(read: _Read) -> Iterator[str]:
    """Files that were not read, where they are more than what was."""
    passed_over = read.ignored.files
    if max(passed_over.values(), default=0) > read.records:
        yield f"more files were passed over than read{how_to_read(passed_over)}"


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
        f"of JSON lines jq -c {program} brings it up; "
        f"docs/own-text.md makes them of Parquet"
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
