"""Corpora: folders of files in forms that are read and some that are not, records sound or odd, then damaged."""

import gzip
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from synthboot import config
from synthboot.artifacts.corpus import Corpus, Counts
from synthboot.artifacts.store import Shards
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokens import Tokens
from synthboot.stages.corpus import corpus
from tests.fuzz.fuzzer import Fault, Fuzzer
from tests.fuzz.mutations import Edit, edited, edits, odd, once_in

PLAIN = [
    "The quick brown fox jumps over the lazy dog near the river bank at noon.",
    "one two three four five six seven eight nine",
    "敏捷的棕色狐狸跳过了懒狗\uff0c然后在河边休息了一会儿。",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है और फिर सो जाती है।",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "if (a <= b) { c += d * 3; }",
    "ACGTACGTTAGCCATGACGT" * 20,
    "🙂🙃🙂🚀",
    "a",
    " \n x",
    "line\u2028separator\x85next",
    "nul \0 inside",
    "e\u0301 is not \u00e9",
    "\ufeffmarked",
    "<|end|> spelled",
    "x" * 2_000,
]
BLANK = ["", " ", "\n\t", "\u3000"]
KINDS = [*[".jsonl"] * 4, ".ndjson", ".json", ".JSONL", ".jsonl.gz", ".jsonl.zst", ".parquet", ".Parquet", ".txt", ".md"]
LAYOUTS = [*["lines"] * 6, "array", "cr", "crlf", "bom", "gaps", "utf-16"]
SPECIAL = [*["none"] * 20, "fifo", "loop", "dangling", "zero", "empty", "bytes"]
STRANGE = [".csv", ".bin", "", ".txt.gz"]
FOLDERS = ["", "a", "b/c", ".hidden", "ü", "__MACOSX", "x y"]


@dataclass(frozen=True)
class File:
    """A file to be: its records, how they are laid out, and what is done to the bytes."""

    folder: str
    stem: str
    suffix: str
    layout: str
    records: list[Any]
    damage: list[Edit]


@dataclass(frozen=True)
class Given:
    """A corpus to be and how it is read."""

    files: list[File]
    special: str
    settings: dict[str, Any]
    unique_tokens: Any


plain = st.sampled_from(PLAIN)
own = st.builds("{} {}".format, plain, st.integers(0, 10**6))  # a text that hardly stands twice
texts = st.one_of(plain, own, own, own, st.text(min_size=1, max_size=40), st.sampled_from(BLANK))
few = st.sampled_from([0, 1, 2, "a", "1", None])  # the same id again and again
identifiers = st.one_of(few, few, few, st.sampled_from([1.0, 2.5, "é", "", True]), odd)


@st.composite
def records(draw: st.DrawFn) -> Any:
    """A record as a JSON value: mostly an object with text."""
    if draw(once_in(12)):
        return draw(odd)
    record: dict[str, Any] = {}
    if not draw(once_in(4)):
        record["id"] = draw(identifiers)
    if not draw(once_in(20)):
        record["text"] = draw(odd) if draw(once_in(12)) else draw(texts)
    if draw(once_in(4)):
        record["more"] = draw(odd)
    return record


@st.composite
def inputs(draw: st.DrawFn) -> Given:
    """A corpus of a few files."""
    stems, suffixes = st.sampled_from(["data", "data", "README", "._x", "é", "a.b"]), st.sampled_from(KINDS * 3 + STRANGE)
    rows, damage = st.lists(records(), max_size=8), st.one_of(st.just([]), edits())
    file = st.builds(File, st.sampled_from(FOLDERS), stems, suffixes, st.sampled_from(LAYOUTS), rows, damage)
    settings = {
        "near_duplicates": draw(st.sampled_from(["remove", "flag", "off"])),
        "validation_docs": draw(st.integers(1, 3)),
        "test_docs": draw(st.integers(2, 4)),
        "shard_docs": draw(st.integers(1, 6)),
        "vocab_size": draw(st.sampled_from([258, 300])),
        "max_quarantine": draw(st.sampled_from([1.0, 1.0, 1.0, 0.0])),
        "max_document_bytes": draw(st.sampled_from([4_000_000] * 5 + [50])),
    }
    sound = [{"id": f"sound-{i}", "text": f"{PLAIN[i]} {i}"} for i in range(draw(st.sampled_from([4, 8, 8])))]
    files = [File("", "base", ".jsonl", "lines", sound, []), *draw(st.lists(file, max_size=4))]
    return Given(files, draw(st.sampled_from(SPECIAL)), settings, draw(st.sampled_from(["all"] * 6 + [20, 10**6])))


def written(file: File) -> bytes:
    """The bytes of a file."""
    dump = json.dumps if len(file.records) % 2 else lambda r: json.dumps(r, ensure_ascii=False)
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return edited(_parquet(file.records), file.damage)
    if suffix.startswith((".json", ".nd")):
        end = {"cr": "\r", "crlf": "\r\n", "gaps": "\n\n \n"}.get(file.layout, "\n")
        text = "".join(dump(r) + end for r in file.records) if file.layout != "array" else dump(file.records)
    else:
        text = next((r["text"] for r in file.records if isinstance(r, dict) and isinstance(r.get("text"), str)), "")
    encoding = {"bom": "utf-8-sig", "utf-16": "utf-16"}.get(file.layout, "utf-8")
    data = text.encode(encoding, "surrogatepass")
    if suffix.endswith(".gz"):
        return edited(gzip.compress(data, 1, mtime=0), file.damage)
    if suffix.endswith(".zst"):
        packed = io.BytesIO()
        with pa.CompressedOutputStream(packed, "zstd") as out:
            out.write(data)
        return edited(packed.getvalue() if not packed.closed else pa.compress(data, "zstd", asbytes=True), file.damage)
    return edited(data, file.damage)


def _parquet(found: list[Any]) -> bytes:
    """The objects among the records as a table; columns of mixed types as text, `more` as timestamps out of any calendar."""
    rows = [r for r in found if isinstance(r, dict)]

    def clean(value: Any) -> str | None:
        return None if value is None else str(value).encode("utf-8", "replace").decode()

    columns: dict[str, Any] = {}
    for name in ("id", "text"):
        values = [r.get(name) for r in rows]
        kinds = {type(v) for v in values if v is not None}
        small = all(not isinstance(v, int) or abs(v) < 2**63 for v in values)
        columns[name] = pa.array(values if len(kinds) == 1 and kinds <= {int, float} and small else map(clean, values))
    if len(rows) % 2:
        columns["more"] = pa.array([2**62 - i for i in range(len(rows))], pa.int64()).cast(pa.timestamp("us"))
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=3)
    return sink.getvalue()


def readable(given: Given) -> Counter[str]:
    """How often each text stands in records that nothing is wrong with: these must all be there in the end."""
    found: Counter[str] = Counter()
    for file in given.files:
        plain = file.suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson") and file.layout in ("lines", "crlf", "gaps")
        if not plain or file.damage or file.folder in (".hidden", "__MACOSX") or file.stem.startswith("."):
            continue
        for record in file.records:
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                continue
            if not record["text"].replace("\0", "").strip():  # empty, and quarantined as that
                continue
            identifier, text = record.get("id"), record["text"].removeprefix("\ufeff")
            fine = identifier is None or (isinstance(identifier, str | int) and not isinstance(identifier, bool))
            try:
                size = len(text.encode()) + 0 * len(str(identifier).encode())
            except UnicodeEncodeError:
                continue
            if fine and size <= given.settings["max_document_bytes"]:
                found[text] += 1
    return found


def laid(given: Given, place: Path) -> Path:
    """The folder of the corpus. Of files of one name the last is there, as on any disk."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for file in given.files:
        (place / file.folder).mkdir(parents=True, exist_ok=True)
        (place / file.folder / (file.stem + file.suffix)).write_bytes(written(file))
    odd_one = place / "zz.jsonl"
    if given.special == "fifo":
        os.mkfifo(odd_one)
    elif given.special == "loop":
        (place / "loop").symlink_to(place, target_is_directory=True)
    elif given.special == "dangling":
        odd_one.symlink_to(place / "nowhere")
    elif given.special == "zero":
        odd_one.symlink_to("/dev/zero")
    elif given.special == "empty":
        odd_one.touch()
    elif given.special == "bytes":
        Path(os.fsdecode(os.fsencode(place) + b"/\xff\xfe.jsonl")).write_text(
            '{"text": "from a file whose name is not UTF-8"}\n'
        )
    return place


@contextmanager
def fuzzer(place: Path) -> Iterator[Fuzzer[Given]]:
    """The corpus stage on each; what it made is read back and counted."""

    def check(given: Given) -> None:
        unique = {(f.folder, f.stem + f.suffix): f for f in given.files}  # the last of a name
        given = Given(list(unique.values()), given.special, given.settings, given.unique_tokens)
        source, out = laid(given, place / "source"), place / "corpus"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        cfg = config.Corpus(source=str(source), **given.settings)
        made = corpus(cfg, given.unique_tokens, out)
        balanced(made, out)
        if cfg.near_duplicates != "remove":
            kept(readable(given), out)

    yield Fuzzer("corpora", inputs(), check)


def balanced(made: Counts, out: Path) -> None:
    """Raise a Fault unless every record is accounted for and every document is in one set, under an id of its own, whole."""
    if made.records != sum(made.documents.values()) + made.quarantined + sum(made.dropped.values()):
        raise Fault("counts do not balance", str(made))
    if made.quarantined != len((out / "quarantine.jsonl").read_bytes().splitlines()):
        raise Fault("the quarantine does not hold what it counts", str(made))
    tokenizer, seen = tokenizers.load(out / "tokenizer"), Counter[str]()
    for name, count in made.documents.items():
        documents = list(Corpus.open(out).texts(name))
        tokens = Tokens.open(Shards(out / name))
        if not len(documents) == len(tokens) == count or tokens.num_tokens != made.tokens[name]:
            raise Fault("a set has not the size it says", f"{name}: {len(documents)}, {len(tokens)}, {count}")
        seen.update(d.id for d in documents)
        for number, document in enumerate(documents):
            if tokenizer.decode(tokens[number][:-1]) != document.text or tokens[number][-1] != tokenizer.end:
                raise Fault("tokens are not those of their text", repr(document.text))
    if seen and max(seen.values()) > 1:
        raise Fault("an id stands twice", str(seen.most_common(1)))
    if not made.documents["validation"] or not made.documents["test"] or not made.pretrain_docs:
        raise Fault("an empty set", str(made))


def kept(wanted: Counter[str], out: Path) -> None:
    """Raise a Fault unless each of the texts is in one set, once."""
    found = Counter(d.text for name in ("validation", "test", "pool") for d in Corpus.open(out).texts(name))
    lost = [text for text in wanted if found[text] != 1]
    if lost:
        raise Fault("a text is lost or doubled", f"{lost[0]!r}: {found[lost[0]]} times")
