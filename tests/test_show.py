"""Looking into a run's texts: what is searched for is what is shown, in bounded time."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from synthboot import api, show
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.embeddings import Embeddings
from synthboot.artifacts.judged import judged_texts
from synthboot.artifacts.pairs import TRAIN, Pairs
from synthboot.artifacts.synthetic import Synthetic
from synthboot.cli import main
from synthboot.data import lock
from synthboot.errors import ConfigError, MissingArtifact
from synthboot.stages.embed import SelfEmbedder
from tests.conftest import run_folder

ENOUGH = 10_000


def joined(example: show.Example, name: str) -> str:
    return "".join(part for part, _ in example.texts[name])


def test_judged_shows_what_judges_called_faulty_worst_first(finished: dict[str, Any]) -> None:
    run = run_folder(finished)
    faulty = [row for row in judged_texts(run / "10-analyze") if row.score > row.threshold]
    assert len({row.judge for row in faulty}) > 1, "the test needs texts that several judges called faulty"
    found = show.examples(run, "judged", ENOUGH)
    assert sorted(joined(example, "text") for example in found) == sorted(row.text for row in faulty)
    by_group: dict[str, list[float]] = {}
    for example in found:
        group, score = re.fullmatch(r"(.*): score ([^ ]+), faulty above .*", example.title).groups()
        by_group.setdefault(group, []).append(float(score))
    assert all(scores == sorted(scores, reverse=True) for scores in by_group.values())
    # every judge, question and kind of text comes up before any of them twice
    assert len({example.title.split(": score")[0] for example in found[: len(by_group)]}) == len(by_group)

    judge = faulty[0].judge
    only = show.examples(run, "judged", ENOUGH, grep=f"^{judge}, ")
    assert len(only) == sum(row.judge == judge for row in faulty)
    pair = next(row for row in faulty if row.d1)
    [example] = [e for e in found if joined(e, "text") == pair.text and e.title.startswith(f"{pair.judge}, {pair.question}")][
        :1
    ]
    assert joined(example, "d1") == pair.d1


def test_grep_shows_every_document_that_a_pattern_is_found_in_and_no_other(finished: dict[str, Any]) -> None:
    run = run_folder(finished)
    documents = list(Corpus.open(run / "01-corpus").texts("pretrain"))
    wanted = [doc for doc in documents if "miller" in doc.text and "amber" in doc.text]
    assert wanted, "the test needs a document that has both"
    found = show.examples(run, "documents", ENOUGH, grep="miller.*amber|amber.*miller")
    assert [joined(example, "text") for example in found] == [doc.text for doc in wanted]
    assert [example.title.split(", ")[1] for example in found] == [doc.id for doc in wanted]

    pairs = show.examples(run, "pairs", ENOUGH)
    for side in ("d1", "d2"):  # a number that one document alone has
        note = re.search(r"note \d+", joined(pairs[0], side))[0]
        found = show.examples(run, "pairs", ENOUGH, grep=note)
        with_it = [p for p in pairs if note in joined(p, "d1") or note in joined(p, "d2")]
        assert 0 < len(found) == len(with_it) < len(pairs)
        assert any(note not in joined(p, "d1") for p in found)
        assert any(note not in joined(p, "d2") for p in found)

    texts = list(Synthetic.open(run / "06-synthesize/related").texts())
    found = show.examples(run, "synthetic", ENOUGH, grep="[aeiou]{3}")
    assert [joined(example, "sampled d2") for example in found] == [text for text in texts if re.search("[aeiou]{3}", text)]
    assert show.examples(run, "quarantine", 3, grep="x") == []


def test_like_shows_the_nearest_first(finished: dict[str, Any]) -> None:
    run = run_folder(finished)
    documents = list(Corpus.open(run / "01-corpus").texts("pretrain"))
    embeddings = Embeddings.open(run / "02-embed")
    embedder = SelfEmbedder.load(embeddings.embedder)
    [vector] = embedder(["a sailor of the harbor"])
    similar = embeddings.pretrain.astype(np.float32) @ vector
    found = show.examples(run, "documents", 10, like="a sailor of the harbor")
    assert [int(e.title.split()[1].strip(",")) for e in found] == np.argsort(-similar, kind="stable")[:10].tolist()

    texts = list(Synthetic.open(run / "06-synthesize/related").texts())
    by_hand = sorted(texts, key=lambda text: -float((embedder([text]) @ vector)[0]))
    found = show.examples(run, "synthetic", 5, like="a sailor of the harbor")
    assert [joined(example, "sampled d2") for example in found] == by_hand[:5]
    assert all(re.search(r"mean log-probability -\d+\.\d\d nats a token, similarity", example.title) for example in found)

    pairs = Pairs.load(run / "03-pair/related").only(TRAIN)
    best = max((similar[doc], doc) for doc in {*pairs.d1.tolist(), *pairs.d2.tolist()})
    [pair, *_] = show.examples(run, "pairs", 2, like="a sailor of the harbor")
    assert documents[best[1]].text in (joined(pair, "d1"), joined(pair, "d2"))
    both = show.examples(run, "documents", 4, like="a sailor of the harbor", grep="printer")
    assert len(both) == 4
    assert all("printer" in joined(example, "text") for example in both)


def test_a_pattern_that_is_none_or_would_take_for_ever_is_one_line(finished: dict[str, Any], tmp_path: Path) -> None:
    run = run_folder(finished)
    with pytest.raises(ConfigError, match=r"--grep: '\(': no regular expression: missing \)"):
        show.examples(run, "documents", 1, grep="(")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"takes more than 1 s for one text; write it without"):
        show.examples(run, "documents", 1, grep=r"^(([a-z]|\s|.)+)+[0-9]{9}$")
    assert time.monotonic() - started < 60


def test_what_nothing_can_embed_is_one_line(finished: dict[str, Any]) -> None:
    run = run_folder(finished)
    for what, options, message in [
        ("documents", {"like": "zzz qqq"}, "no word of the text is one that the run knows"),
        ("quarantine", {"like": "a"}, "of the quarantine, use --grep"),
        ("pairs", {"like": "a", "near": 0.9}, "two orders; choose one"),
        ("synthetic", {"near": 0.9}, "--near is the similarity of pairs"),
        ("pairs", {"near": float("nan")}, "--near nan is no similarity; give one from -1 to 1"),
        ("pairs", {"near": float("inf")}, "--near inf is no similarity"),
    ]:
        with pytest.raises(ConfigError, match=message):
            show.examples(run, what, 1, **options)


def test_the_command_searches(finished: dict[str, Any]) -> None:
    run = str(run_folder(finished))
    found = json.loads(CliRunner().invoke(main, ["show", run, "documents", "--grep", "miller", "-n", "2", "--json"]).stdout)
    assert len(found) == 2
    nothing = CliRunner().invoke(main, ["show", run, "pairs", "--grep", "no such words"])
    assert nothing.stdout.strip().endswith("nothing matches")
    assert CliRunner().invoke(main, ["show", run, "pairs", "-n", "0"]).exit_code == 2


def test_synthetic_text_is_of_an_arm_or_a_kind(tiny: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(tiny), tmp_path / tiny["name"])
    own = {"synthetic": "unconditional", "share": 0.1}
    settings = {**tiny, "root": str(tmp_path), "arms": {**tiny["arms"], "self": own}}
    api.Run(settings).run("pretrain")
    run = run_folder(settings)

    def texts(name: str, **options: Any) -> list[str]:
        return [joined(example, name) for example in show.examples(run, "synthetic", ENOUGH, **options)]

    related = list(Synthetic.open(run / "06-synthesize/related").texts())
    unconditional = list(Synthetic.open(run / "06-synthesize/unconditional").texts())
    assert texts("sampled d2") == texts("sampled d2", of="sbp") == texts("sampled d2", of="related") == related
    assert texts("sampled", of="self") == texts("sampled", of="unconditional") == unconditional
    with pytest.raises(ConfigError, match=r"copies are from d1, and samples of unconditional have none"):
        show.examples(run, "copies", 1, of="self")
    with pytest.raises(ConfigError, match=r"--of repetition: .* there is related, unconditional, sbp, self$"):
        show.examples(run, "synthetic", 1, of="repetition")
    with pytest.raises(ConfigError, match=r"--of is about synthetic text"):
        show.examples(run, "pairs", 1, of="sbp")

    shutil.rmtree(run / "06-synthesize/related")
    assert texts("sampled") == unconditional


def test_a_run_in_its_first_seconds_is_said_to_be_at_work(tmp_path: Path) -> None:
    with lock.held(tmp_path), pytest.raises(MissingArtifact, match="nothing is made yet, and a process is at work on it"):
        show.status(tmp_path)
    with pytest.raises(MissingArtifact, match="no run folder"):
        show.status(tmp_path)


def test_a_run_that_is_not_there_is_said_to_be_that(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match=r"evl: no such run folder, nor a configuration"):
        show.examples(tmp_path / "evl", "synthetic", 1)
