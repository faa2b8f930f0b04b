"""What holds for every input, on inputs that hypothesis makes up: streams, cuts, token shards, records, configurations."""

import itertools
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from synthboot import config, loading
from synthboot.artifacts import store
from synthboot.artifacts.pairs import Related
from synthboot.data import documents, tokenizer, tokens
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError
from synthboot.lm.batches import IGNORE, PairForm, PairPlan, Plan, cut_pair, d1_room, joined_contexts, pair_row
from synthboot.lm.streams import Stream, packed_pairs, shuffled
from synthboot.terminal import one_line, safe
from tests.fuzz.configurations import section
from tests.fuzz.corpora import records

settings.register_profile("property", settings.get_profile("small"), max_examples=60)
every = settings(settings.get_profile("property"))
corpus = st.lists(st.lists(st.integers(1, 70_000), min_size=1, max_size=9), min_size=1, max_size=9)
shares = st.floats(0.01, 0.99)


@every
@given(corpus, st.integers(0, 9), st.integers(0, 99), st.integers(1, 40), st.booleans())
def test_a_stream_is_its_documents_end_to_end(docs: list[list[int]], seed: int, start: int, count: int, related: bool) -> None:
    """Whatever the place it is read from: pass after pass, every document of a pass once."""
    if related:
        d1 = np.arange(len(docs))
        order = packed_pairs(d1, np.roll(d1, 1), len(docs), seed, "plan.real")
    else:
        order = shuffled(len(docs), seed, "plan.real")
    stream = Stream(Tokens.of(docs), order)

    passes = 1 + (start + count) // stream.num_tokens
    numbers = np.concatenate([order(number) for number in range(passes)]).tolist()
    assert sorted(numbers[: len(docs)]) == list(range(len(docs)))

    # every token that is read, with the place in the order of the document that it is of
    end_to_end = [(token, place) for place, doc in enumerate(numbers) for token in docs[doc]]
    window = end_to_end[start : start + count]
    assert stream.read(start, count).tolist() == [token for token, _ in window]
    places = dict.fromkeys(place for _, place in window)  # each once, in order
    assert stream.documents(start, count) == [numbers[place] for place in places]
    assert stream.of(range(len(docs)), start) == min(start, stream.num_tokens)


@every
@given(st.integers(0, 200), st.integers(1, 200), st.integers(2, 150), shares)
def test_a_pair_is_cut_to_its_row_and_no_further(d1: int, d2: int, seq_len: int, share: float) -> None:
    first, second = cut_pair(d1, d2, PairForm(seq_len, share, 0, 1))
    assert 0 <= first <= d1
    assert 0 <= second <= d2
    assert first + second == min(d1 + d2, seq_len - 1)  # nothing is cut where there is room
    assert first >= min(d1, d1_room(seq_len, share))
    assert second >= min(d2, seq_len - 1 - d1_room(seq_len, share))


@every
@given(st.lists(st.integers(2, 99), max_size=30), st.lists(st.integers(2, 99), max_size=30), st.integers(2, 40), shares)
def test_a_pair_s_row_learns_d2_and_nothing_else(d1: list[int], d2: list[int], seq_len: int, share: float) -> None:
    form = PairForm(seq_len, share, 0, 1)
    closed = [*d2, 0]
    inputs, targets = pair_row(np.array([*d1, 0]), np.array(closed), form)
    first, second = cut_pair(len(d1), len(closed), form)
    row = [0, *d1[:first], 1, *closed[:second]]
    assert len(inputs) == len(targets) <= seq_len
    assert inputs.tolist() == row[: len(inputs)]
    assert targets[targets != IGNORE].tolist() == closed[:second]


@every
@given(corpus, st.integers(1, 4), st.integers(0, 60))
def test_token_shards_hold_what_was_written(docs: list[list[int]], each: int, asked: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folders = []
        for start in range(0, len(docs), each):
            folder = Path(place, str(start))
            folder.mkdir()
            tokens.write(folder, docs[start : start + each], 70_001)
            folders.append(folder)
        found = Tokens.open(folders)
        assert [found[i].tolist() for i in range(len(found))] == docs
        assert found.num_tokens == sum(map(len, docs))
        assert found.lengths.tolist() == list(map(len, docs))

        both = found.head(len(docs) - 1).joined(found)
        assert [both[i].tolist() for i in range(len(both))] == docs[:-1] + docs

        if asked > found.num_tokens:
            with pytest.raises(BudgetError, match="here: "):
                found.docs_holding(asked, "here")
        else:
            enough = found.docs_holding(asked, "here")
            assert found.head(enough).num_tokens >= asked
            assert enough == 0 or found.head(enough - 1).num_tokens < asked


@every
@given(corpus, corpus, st.floats(0, 0.9), st.integers(2, 7), st.integers(1, 4), st.integers(1, 9))
def test_a_plan_reads_every_token_of_its_streams_in_turn(
    real: list[list[int]], written: list[list[int]], share: float, seq_len: int, rows: int, steps: int
) -> None:
    batch_tokens = rows * seq_len
    plan = Plan(
        Tokens.of(real),
        Tokens.of(written),
        share,
        seed=0,
        end=0,
        seq_len=seq_len,
        batch_tokens=batch_tokens,
        train_tokens=batch_tokens * steps,
    )
    targets = np.concatenate([plan.batch(step).targets for step in range(steps)])
    kinds = np.array([plan.source(row)[0] for row in range(rows * steps)])
    for kind, stream in (("real", plan.real), ("synthetic", plan.synthetic)):
        own = targets[kinds == kind].ravel().tolist()
        assert own == (stream.read(0, len(own)).tolist() if own else [])

    synthetic_rows = int((kinds == "synthetic").sum())
    assert synthetic_rows == plan.synthetic_rows == round(share * rows * steps)
    sources = plan.sources(steps)
    token_counts = plan.token_counts()
    assert sources["synthetic_tokens"] == token_counts.synthetic_tokens == synthetic_rows * seq_len
    assert sum(sources.values()) == token_counts.train_tokens == targets.size


@every
@given(corpus, st.data(), st.integers(4, 20), shares)
def test_a_pass_of_packed_pairs_has_each_pair_once(
    docs: list[list[int]], data: st.DataObject, seq_len: int, share: float
) -> None:
    pick = st.integers(0, len(docs) - 1)
    pairs = data.draw(st.lists(st.tuples(pick, pick), min_size=1, max_size=12))
    d1, d2 = zip(*pairs, strict=True)
    closed = Tokens.of([[*d, 0] for d in docs])
    plan = PairPlan(closed, d1, d2, PairForm(seq_len, share, 0, 1), batch_tokens=seq_len, tokens=9, seed=0)
    laid = plan.row_pairs(0)
    assert sorted(pair for row in laid for pair in row) == list(range(len(pairs)))
    assert all(sum(int(plan.lengths[pair]) for pair in row) <= seq_len for row in laid)
    for step in range(len(laid)):
        batch = plan.batch(step)
        assert batch.segments is not None
        assert batch.segments.max() == len(laid[step])
        assert (batch.targets[batch.segments == 0] == IGNORE).all()


@every
@given(records())
def test_a_record_is_a_document_or_says_why_not(record: Any) -> None:
    content = json.dumps(record).encode()
    found = documents.parse(documents.Record("a.jsonl", 7, content), config.Corpus(source="a.jsonl"))
    if isinstance(found, documents.Document):
        assert found.text == record["text"].removeprefix("\ufeff")
        assert found.text.strip()
        assert isinstance(found.id, str)
        rest = {key: value for key, value in record.items() if key not in ("id", "text")}
        # as JSON, since not-a-number is not equal to itself
        assert json.dumps(found.metadata, sort_keys=True) == json.dumps(rest, sort_keys=True)
    else:
        assert (found.file, found.line) == ("a.jsonl", 7)
        assert "\n" not in found.reason
        assert len(found.reason) < 200


@every
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_text_survives_the_tokenizer(texts: list[str]) -> None:
    fitted = tokenizer.train(iter(texts), 300)
    assert [fitted.decode(ids) for ids in fitted.encode(texts)] == texts
    assert all(fitted.end not in ids and fitted.separator not in ids for ids in fitted.encode([*texts, "<|end|>"]))


@every
@given(st.sampled_from(["model", "optim", "corpus", "pair", "tune", "synthesize", "evaluate"]), st.data())
def test_a_configuration_is_the_same_when_written_and_read(name: str, data: st.DataObject) -> None:
    base = {"name": "x", "budget": {"unique_tokens": 9, "train_tokens": 9_000}, "corpus": {"source": "world"}}
    given_ = yaml.safe_load(data.draw(section(config.Config.model_fields[name].annotation)))
    raw = {**base, "arms": {"repetition": {}}, name: {**base.get(name, {}), **given_}}
    try:
        cfg = loading.load(raw)
    except loading.ConfigError:
        return
    assert loading.load(yaml.safe_load(yaml.safe_dump(cfg.model_dump(mode="json")))) == cfg
    assert loading.load(json.loads(cfg.model_dump_json())) == cfg


@every
@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3) | st.none(), max_size=4), st.randoms())
def test_a_fingerprint_does_not_depend_on_the_order_of_settings(reads: dict[str, Any], rng: Any) -> None:
    keys = list(reads)
    rng.shuffle(keys)
    mark = store.fingerprint("base", 1, reads, {})
    assert store.fingerprint("base", 1, {k: reads[k] for k in keys}, {}) == mark
    assert store.fingerprint("base", 1, {**reads, "another": 0}, {}) != mark
    assert store.fingerprint("base", 2, reads, {}) != mark


@every
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30, unique=True), st.data())
def test_a_prompt_of_several_d1_holds_the_most_similar_last(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    """Pairs come most similar first, d1 of the pair at hand stands last of all."""
    d1, d2 = data.draw(st.sampled_from(pairs))
    contexts = data.draw(st.integers(1, 5))
    others = [a for a, b in pairs if b == d2 and a != d1][: contexts - 1]
    related = Related.of(*np.array(pairs).T)
    assert related.around(d1, d2, contexts) == [*others[::-1], d1]


@every
@given(st.lists(st.lists(st.integers(2, 99), max_size=30), min_size=2, max_size=4), st.integers(30, 80), st.floats(0.3, 0.9))
def test_several_d1_take_no_more_room_than_one(docs: list[list[int]], window: int, share: float) -> None:
    closed = [np.array([*doc, 0]) for doc in docs]
    *joined, end = joined_contexts(closed, PairForm(window, share, 0, 1)).tolist()
    assert end == 0
    assert len(joined) <= d1_room(window, share)
    assert joined.count(1) == len(docs) - 1

    # the separators taken out, the head of every d1 that has one
    groups = itertools.groupby(joined, lambda token: token == 1)
    heads = [list(group) for is_separator, group in groups if not is_separator]
    not_empty = [doc for doc in docs if doc]
    for doc, head in zip(not_empty, heads, strict=True):
        assert doc[: len(head)] == head


@every
@given(st.text(max_size=60))
def test_text_for_a_terminal_is_one_line_that_acts_on_nothing_and_the_same_json(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1
    assert not {unicodedata.category(c) for c in safe(text)} & {"Cs", "Zl", "Zp"}
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in safe(text))
    assert json.loads(safe(json.dumps(text, ensure_ascii=False))) == text
