"""The corpora that configs/ names and the repository does not hold, written into data/ (`make data`).

Each is linked from a folder that has it ready (--shared), else made of a file that you have, else
skipped with a line that says where such a file is to be had. What is there already stays.
"""

import argparse
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from synthboot.config import Corpus
from synthboot.data import documents

Row = dict[str, str]

ABSTRACTS = "abstracts.jsonl.zst"
ENCYCLOPEDIA = "encyclopedia.jsonl.zst"
ARTICLES = "articles.jsonl.zst"
PACKAGES = "packages.jsonl.zst"
QUESTIONS = "eval"

SHARED_AS = {ABSTRACTS: "arxiv_cs.jsonl.zst", ENCYCLOPEDIA: "enwiki_short.jsonl.zst", QUESTIONS: "eval"}
"""What each is called in the folder that has it ready."""

READY = Path("../shared/data")

WHERE = {
    ABSTRACTS: "arXiv's metadata (CC0) at kaggle.com/datasets/Cornell-University/arxiv; then --arxiv FILE",
    ENCYCLOPEDIA: "articles at huggingface.co/datasets/wikimedia/wikipedia (CC BY-SA); then --wikipedia FILE...",
    ARTICLES: f"made of {ENCYCLOPEDIA}",
    PACKAGES: "needs apt-cache, on Debian or Ubuntu, after apt-get update",
    QUESTIONS: "question files of your own, with the fields of docs/arms.md (Questions); or drop evaluate.tasks",
}

LONGEST_ARTICLE = 1_500
PLACES = ("mountain", "river", "commune", "municipality", "settlement")
LIVING_THINGS = ("moth", "genus")
PEOPLE = ("boxer", "canoer", "cricketer", "rower", "swimmer")
KINDS = PLACES + LIVING_THINGS + PEOPLE
"""Of whole kinds, so that an article has others like it beside it; named before anything was measured
on them, and within a kind nothing is chosen."""
_FIRST_SENTENCE = re.compile(r".*?\b(?:is|was|are|were) an? ([^.]*)", re.DOTALL)
_KIND = re.compile(rf"\b({'|'.join(KINDS)})\b")


def kind_of(text: str) -> str | None:
    """The first of KINDS after "is a" in the first sentence that has it; None where there is none."""
    sentence = _FIRST_SENTENCE.match(text)
    kind = _KIND.search(sentence[1]) if sentence else None
    return kind[1] if kind else None


def articles(encyclopedia: Iterable[Row]) -> Iterator[Row]:
    """The articles of KINDS, each with its kind."""
    for article in encyclopedia:
        kind = kind_of(article["text"])
        if kind is not None:
            yield {"id": article["id"], "title": article["title"], "kind": kind, "text": article["text"]}


def encyclopedia(files: list[str]) -> Iterator[Row]:
    """The articles of a Wikipedia dump (`id`, `title`, `text`) that are short enough to be read whole."""
    for row in _rows(Corpus(source=files)):
        if len(row["text"]) <= LONGEST_ARTICLE:
            yield row


def abstracts(files: list[str]) -> Iterator[Row]:
    """The abstracts of computer-science papers among arXiv's metadata."""
    for row in _rows(Corpus(source=files, text_field="abstract")):
        label = row.get("categories", "").partition(" ")[0]
        if label.startswith("cs."):
            text = " ".join(row["text"].split())  # the metadata breaks lines
            yield {"id": row["id"], "title": row["title"], "label": label, "text": text}


FEWEST_PACKAGES = 1_000
"""A listing of fewer was never fetched: it has those that were installed by hand."""


def packages(listing: str) -> Iterator[Row]:
    """What Debian says of its packages, each source package's first: `apt-cache dumpavail`."""
    sources = set()
    for paragraph in listing.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): *(.*(?:\n .*)*)", paragraph, re.M))
        name = fields.get("Package", "")
        source = fields.get("Source", name).partition(" ")[0]
        described = fields.get("Description") or fields.get("Description-en", "")
        if described.count("\n") and source not in sources:
            sources.add(source)
            # Debian's format: a dot stands for an empty line
            text = re.sub(r"^ (\.$)?", "", described, flags=re.M)
            yield {"id": name, "section": fields.get("Section", ""), "text": text}


def _rows(corpus: Corpus) -> Iterator[Row]:
    for record in documents.records(corpus):
        document = documents.parse(record, corpus)
        if isinstance(document, documents.Document):
            fields = {name: value for name, value in document.metadata.items() if isinstance(value, str)}
            yield {"id": document.id, **fields, "text": document.text}


def write(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines, all of them or nothing; returns how many."""
    count = 0
    unfinished = path.with_name("unfinished-" + path.name)
    with pa.output_stream(str(unfinished), compression="zstd") as stream:
        for row in rows:
            stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            count += 1
    unfinished.replace(path)
    return count


def main() -> None:
    """Make what can be made, and say of the rest where it is to be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shared", type=Path, help=f"a folder that has them ready (default: {READY}, where it is there)")
    parser.add_argument("--arxiv", nargs="+", help="arXiv's metadata")
    parser.add_argument("--wikipedia", nargs="+", help="files of Wikipedia articles")
    parser.add_argument("--out", type=Path, default=Path("data"))
    options = parser.parse_args()
    if options.shared and not any((options.shared / shared).exists() for shared in SHARED_AS.values()):
        parser.error(f"--shared {options.shared}: has none of {', '.join(SHARED_AS.values())}")
    options.out.mkdir(parents=True, exist_ok=True)

    for name, shared in SHARED_AS.items():
        ready = ((options.shared or READY) / shared).resolve()
        if ready.exists() and not (options.out / name).exists():
            (options.out / name).symlink_to(ready)

    made: dict[str, Callable[[], Iterable[Row]]] = {}
    if options.arxiv:
        made[ABSTRACTS] = lambda: abstracts(options.arxiv)
    if options.wikipedia:
        made[ENCYCLOPEDIA] = lambda: encyclopedia(options.wikipedia)
    if options.wikipedia or (options.out / ENCYCLOPEDIA).exists():
        made[ARTICLES] = lambda: articles(_rows(Corpus(source=str(options.out / ENCYCLOPEDIA))))
    if shutil.which("apt-cache"):
        described = list(packages(subprocess.check_output(["apt-cache", "dumpavail"], text=True)))
        if len(described) >= FEWEST_PACKAGES:
            made[PACKAGES] = lambda: described

    for name, where in WHERE.items():
        path = options.out / name
        if path.exists():
            print(f"{path}: is there")
        elif name in made:
            print(f"{path}: {write(path, made[name]()):,} documents")
        else:
            print(f"{path}: not made: {where}")


if __name__ == "__main__":
    main()
