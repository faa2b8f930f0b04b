# ruff: noqa: RUF001
"""Near-copies, copied questions and neighbours in many scripts, by `data/words.py` and by the `\\w+` that was there before.

    for l in de ru ja zh_CN ko uk; do
      curl -o text/$l.bz2 http://deb.debian.org/debian/dists/bookworm/main/i18n/Translation-$l.bz2; done
    apt-get download libreoffice-help-{hi,km,dz} libreoffice-l10n-{th,ta,he,ar,am,ka} manpages-el
    for f in *.deb; do n=${f%%_*}; dpkg-deb -x $f text/${n##*-}; done
    python benchmarks/languages.py text

Free text by language: `XX.bz2` is a Debian index of translated package descriptions; under a folder `XX` the paragraphs of
HTML pages and manual pages and the messages of gettext files are read, those in the language's own script. Into at most 200
documents of a language are planted:

- a near-copy of every third, one word in 80 replaced by another of the same text (one letter in 80 where there are no
  spaces): recall, and of what is joined the share that is alike by runs of eight characters (half of them shared at least);
- a hundred sentences as questions, each in the middle of another document, and a hundred that are in none: recall,
  precision, and the share that is called too short;
- the decomposed (NFD) twin of each document: the share whose nearest is their own composed text;
- and halves: the share of first halves whose nearest among all second halves is their own.
"""

from __future__ import annotations

import argparse
import bz2
import gettext
import gzip
import html
import json
import os
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import regex

from synthboot import config
from synthboot.data import items, near_duplicates, tasks, words
from synthboot.stages import embed

NAMES = {
    "de": ("German", "Latin"),
    "vi": ("Vietnamese", "Latin"),
    "tr": ("Turkish", "Latin"),
    "hu": ("Hungarian", "Latin"),
    "ru": ("Russian", "Cyrillic"),
    "uk": ("Ukrainian", "Cyrillic"),
    "el": ("Greek", "Greek"),
    "ka": ("Georgian", "Georgian"),
    "ar": ("Arabic", "Arabic"),
    "he": ("Hebrew", "Hebrew"),
    "am": ("Amharic", "Ethiopic"),
    "hi": ("Hindi", "Devanagari"),
    "ta": ("Tamil", "Tamil"),
    "th": ("Thai", "Thai"),
    "km": ("Khmer", "Khmer"),
    "dz": ("Dzongkha", "Tibetan"),
    "ja": ("Japanese", "Hiragana"),
    "zh_CN": ("Chinese", "Han"),
    "ko": ("Korean", "Hangul"),
}


def described(path: Path) -> Iterator[str]:
    """The long descriptions of a Debian translation index."""
    for entry in bz2.decompress(path.read_bytes()).decode("utf-8", "replace").split("\n\n"):
        yield re.sub(r"\n ?\.?", "\n", entry.partition("\nDescription-")[2].partition("\n")[2])


def paragraphs(folder: Path) -> Iterator[str]:
    """Paragraphs of the pages and messages in a folder."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            yield from html.unescape(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", path.read_text("utf-8"))).split("\n")
        elif path.suffix == ".gz" and "/man/" in str(path):
            page = re.sub(r"(?m)^[.'].*$|\\f.|\\", "", gzip.decompress(path.read_bytes()).decode("utf-8", "replace"))
            yield from (" ".join(part.split()) for part in page.split("\n\n"))
        elif path.suffix == ".mo":
            with path.open("rb") as file:
                yield from map(str, gettext.GNUTranslations(file)._catalog.values())  # type: ignore[attr-defined]


def documents(place: Path, script: str, rng: random.Random) -> list[str]:
    """At most 200 documents of 1,000 to 3,000 characters, mostly in the script."""
    own = regex.compile(rf"\p{{Script={script}}}")
    parts = described(place) if place.suffix == ".bz2" else paragraphs(place)
    share = 0.5 if script == "Latin" else 0.25
    parts = (" ".join(p.split()) for p in parts if len(own.findall(p)) > share * len(p) > 5)
    found, text = [], ""
    for part in dict.fromkeys(parts):
        text = f"{text} {part}".strip()
        if len(text) >= 1_000:
            found.append(text[:3_000])
            text = ""
    rng.shuffle(found)
    return found[:200]


def changed(text: str, rng: random.Random) -> str:
    """The text with one word in 80 replaced by another of its own, or one letter where it has few spaces."""
    gap = next((g for g in " ་" if len(text) < 20 * text.count(g)), "")
    parts = text.split(" ") if gap else regex.findall(r"\X", text)
    for place in rng.sample(range(len(parts)), max(1, len(parts) // 80)):
        parts[place] = rng.choice(parts)
    return gap.join(parts)


def copies(texts: list[str], rng: random.Random) -> dict[str, float]:
    """Recall of planted near-copies, and precision."""
    planted = list(range(0, len(texts), 3))
    corpus = texts + [changed(texts[i], rng) for i in planted]
    group = near_duplicates.groups(near_duplicates.signatures(corpus), corpus, 0.8)
    found = [group[i] == group[len(texts) + n] for n, i in enumerate(planted)]
    runs = [{t[i : i + 8] for i in range(len(t) - 7)} for t in corpus]
    joined = [(i, j) for j in range(len(corpus)) for i in np.flatnonzero(group[:j] == group[j]).tolist()]
    alike = [near_duplicates.jaccard(runs[i], runs[j]) >= 0.5 for i, j in joined]
    return {"copies, recall": float(np.mean(found)), "copies, precision": float(np.mean(alike)) if alike else 1.0}


def questions(texts: list[str], rng: random.Random) -> dict[str, float]:
    """Recall and precision of the search for questions, and the share that is too short."""
    sentences = [s.strip() for t in texts for s in regex.split(r"[.!?。！？।۔؟։።།។\n]+", t)]
    sentences = list(dict.fromkeys(s for s in sentences if len(s) >= 12 and len(s.encode()) >= 36 and len(s) <= 150))
    sentences = [s for s in sentences if sum(s in t for t in texts) == 1]
    rng.shuffle(sentences)
    count = min(100, len(sentences) // 2)
    asked = [items.Item(str(n), "open", ("",), (), 0, ("?",), bare=(s, "?")) for n, s in enumerate(sentences[: 2 * count])]
    hidden = {s: n for n, s in enumerate(sentences[: 2 * count])}
    training = [t for t in texts if not any(s in t for s in hidden)]
    for n in range(count):
        host = training[n % len(training)] if training else ""
        middle = host.find(" ", len(host) // 2)
        training.append(f"{host[:middle]} {sentences[n]} {host[middle:]}")
    seen, short = tasks.seen(asked, training)
    hits = seen[:count].sum()
    return {
        "questions, recall": float(hits / count),
        "questions, precision": float(hits / max(1, seen.sum())),
        "too short": float(short.mean()),
    }


def neighbours(texts: list[str]) -> dict[str, float]:
    """How many find their decomposed twin, and the other half of their document."""
    made = embed.fit(texts, config.Embed(dim=64, hash_features=1 << 16), 0)
    halves = [list(part) for part in zip(*map(embed.cut_in_half, texts), strict=True)]

    def agreement(a: list[str], b: list[str]) -> float:
        scores = made(a) @ made(b).T
        return float(np.mean((scores.argmax(1) == np.arange(len(a))) & (scores.max(1) > 0)))

    twins = [unicodedata.normalize("NFD", t) for t in texts]
    return {"twins": agreement(twins, [unicodedata.normalize("NFC", t) for t in texts]), "halves": agreement(*halves)}


def plain(text: str, symbols: bool = False) -> list[str]:
    """The words there were before."""
    return re.findall(r"\w+", text.lower())


def plain_shingles(text: str, symbols: bool | None = None) -> list[str]:
    """The shingles there were before."""
    found = plain(text)
    if found and sum(map(len, found)) > 15 * len(found):
        found = list("".join(found))
    return [" ".join(found[i : i + 5]) for i in range(max(1, len(found) - 4))]


def plain_terms(text: str) -> list[str]:
    """The embedder's words there were before."""
    solid = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    return re.findall(rf"[{solid}]|[^\W{solid}]+", text.lower())


@contextmanager
def before() -> Iterator[None]:
    """Everything cuts words as it did."""
    with (
        mock.patch.object(words, "words", plain),
        mock.patch.object(words, "with_symbols", return_value=False),
        mock.patch.object(near_duplicates, "shingles", plain_shingles),
        mock.patch.object(embed, "terms", plain_terms),
        mock.patch.object(words, "weight", return_value=1.0),
        mock.patch.object(tasks, "LEAST_LETTERS", 1 << 30),
    ):
        yield


def measured(texts: list[str], seed: int) -> dict[str, float]:
    """All figures of a language."""
    parts: list[Callable[[], dict[str, float]]] = [
        lambda: copies(texts, random.Random(seed)),
        lambda: questions(texts, random.Random(seed)),
        lambda: neighbours(texts),
    ]
    return {name: value for part in parts for name, value in part().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in args.only:
        language, script = NAMES[name]
        place = args.folder / f"{name}.bz2"
        place = place if place.exists() else args.folder / name
        texts = documents(place, script, random.Random(args.seed)) if place.exists() else []
        if len(texts) < 20:
            continue
        with before():
            was = measured(texts, args.seed)
        now = measured(texts, args.seed)
        if not table:
            print("| language | documents | " + " | ".join(now) + " |\n|" + "---|" * (len(now) + 2))
        table[name] = {"before": was, "now": now}
        cells = " | ".join(f"{was[key]:.2f} → {now[key]:.2f}" for key in now)
        print(f"| {language} | {len(texts)} | {cells} |", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
