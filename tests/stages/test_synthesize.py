import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from synthboot import config, loading
from synthboot.artifacts.pairs import HELDOUT, TRAIN, VALIDATION, Pairs
from synthboot.artifacts.parts import Part
from synthboot.artifacts.store import Shards
from synthboot.data import lock, tokens
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError, CorruptArtifact, SamplingError
from synthboot.lm import model as models
from synthboot.lm.sampling import embedded
from synthboot.lm.sampling.protocol import Result
from synthboot.stages import synthesize as stage
from synthboot.stages.synthesize import Job, related_of, requests_of, synthesize, synthesize_part, verdict
from synthboot.steps.synthesize import at_once
from tests.conftest import files
from tests.lm.conftest import small_model


def job(folder: Path, tokenizer: Tokenizer, **changes: Any) -> Job:
    if not (folder / "corpus").exists():
        (folder / "corpus").mkdir(parents=True)
        documents = [[*np.random.default_rng(i).integers(2, 270, 10 + i).tolist(), tokenizer.end] for i in range(12)]
        tokens.write(folder / "corpus", documents, 280)
        models.save(small_model(), folder / "model", tokenizer)
        tokenizer.save(folder / "tokenizer")
    settings = {"chunk": 10, "max_tokens": 20, "min_tokens": 2, "keep_unfinished": True} | changes
    cfg = config.Synthesize(**settings)
    return Job(
        cfg,
        folder / "model",
        folder / "tokenizer",
        (folder / "corpus",),
        12,
        64,
        1 / 3,
        0,
        True,
        config.Engine(device="cpu", sample_batch=8),
    )


def test_the_budget_is_met_by_the_shortest_run_of_chunks(tmp_path: Path, tokenizer: Tokenizer) -> None:
    counts = synthesize(job(tmp_path, tokenizer), 500, tmp_path / "out")
    found = Tokens.open(Shards(tmp_path / "out" / "chunks"))
    assert found.num_tokens == counts["tokens"] >= 500
    last = Shards(tmp_path / "out" / "chunks").counts(counts["chunks"] - 1)
    assert counts["tokens"] - last["tokens"] < 500
    assert counts["requests"] == counts["kept"] + sum(counts["dropped"].values())
    rows = [r for s in Shards(tmp_path / "out" / "chunks") for r in pq.read_table(s / "synthetic.parquet").to_pylist()]
    assert len(rows) == counts["requests"]
    assert all(r["finish"] in ("end", "length") and r["mean_logprob"] < 0 for r in rows)


def test_workers_and_interruptions_change_no_byte(tmp_path: Path, tokenizer: Tokenizer) -> None:
    one = synthesize(job(tmp_path, tokenizer), 800, tmp_path / "one")
    assert synthesize(job(tmp_path, tokenizer), 800, tmp_path / "three", workers=3) == one
    chunks = iter(range(99))

    def killed(*_: Any) -> None:
        if next(chunks) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(job(tmp_path, tokenizer), 800, tmp_path / "killed", progress=killed)
    assert len(list((tmp_path / "killed" / "chunks").iterdir())) < one["chunks"]
    synthesize(job(tmp_path, tokenizer), 800, tmp_path / "killed")
    assert files(tmp_path / "one") == files(tmp_path / "three") == files(tmp_path / "killed")


def test_chunks_that_are_sampled_together_are_those_sampled_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    alone = synthesize(job(tmp_path, tokenizer), 3_000, tmp_path / "alone")
    together = replace(job(tmp_path, tokenizer), at_once=25)  # two chunks of ten, as far as the budget surely needs them
    assert synthesize(together, 3_000, tmp_path / "together") == alone
    assert synthesize(together, 3_000, tmp_path / "workers", workers=2) == alone
    same = files(tmp_path / "together")
    assert files(tmp_path / "workers") == same
    drawn = [[path.read_bytes() for path in sorted((tmp_path / name).rglob("tokens.bin"))] for name in ("alone", "together")]
    assert drawn[0] == drawn[1]  # the likelihoods of other batches are rounded otherwise

    for number in (1, 2, 3):  # each asks for its share, and what is over is left out in the end
        synthesize_part(together, 3_000, tmp_path / "parts", Part(number, 3))
    assert synthesize(together, 3_000, tmp_path / "parts") == alone
    assert files(tmp_path / "parts") == same

    shutil.rmtree(tmp_path / "together" / "chunks" / "000001")  # as a kill between the two leaves them
    untouched = (tmp_path / "together" / "chunks" / "000000" / "part.json").stat().st_mtime_ns
    synthesize(together, 3_000, tmp_path / "together")
    assert files(tmp_path / "together") == same
    assert (tmp_path / "together" / "chunks" / "000000" / "part.json").stat().st_mtime_ns == untouched


def test_a_full_device_is_asked_for_several_chunks_in_one_call(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Counting:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def sample(self, requests: Any) -> Any:
            calls.append(len(requests))
            return self.inner.sample(requests)

    opened = stage.open_sampler
    monkeypatch.setattr(stage, "open_sampler", lambda *args: Counting(opened(*args)))
    for number, (fills, budget, wanted) in enumerate([(1, 100, 10), (45, 6_000, 40), (45, 2_600, 20), (45, 100, 10)]):
        calls.clear()
        synthesize(replace(job(tmp_path, tokenizer), at_once=fills), budget, tmp_path / str(number))
        assert set(calls) == {wanted}


@pytest.mark.parametrize(
    ("sampler", "device", "wanted"),
    [("embedded", "cpu", 1), ("embedded", "cuda", 8_192), ("server", "cuda", 1), ("vllm", "cpu", 8_192)],
)
def test_a_gpu_is_given_thousands_of_requests(sampler: str, device: str, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = {
        "name": "many",
        "model": {"seq_len": 512},
        "budget": {"unique_tokens": 10_000, "train_tokens": 20_000},
        "corpus": {"source": "text.jsonl"},
        "arms": {"repetition": {}},
        "synthesize": {"sampler": sampler},
        "engine": {"device": device},
    }
    assert at_once(loading.load(settings)) == wanted


def test_every_document_is_drawn_equally_often_and_seeded_by_d1_and_sample(tmp_path: Path, tokenizer: Tokenizer) -> None:
    j = job(tmp_path, tokenizer)
    corpus = Tokens.open(j.corpus)
    asked = [r for chunk in range(6) for r in requests_of(j, corpus, tokenizer, chunk)]  # 60 requests, 12 documents
    assert sorted((d1, sample) for d1, sample, _ in asked) == [(d, s) for d in range(12) for s in range(5)]
    assert len({r.seed for *_, r in asked}) == 60
    for d1, _, request in asked:
        assert request.prompt == (tokenizer.end, *corpus[d1][:-1][:21].tolist(), tokenizer.separator)
        assert len(request.prompt) + request.max_tokens <= 64


def test_several_d1_stand_in_the_prompt_as_they_do_in_tuning(tmp_path: Path, tokenizer: Tokenizer) -> None:
    # d2 3 has the d1 4, 5 and 6; the third pair is of validation document 3, which is another
    pairs = Pairs(
        np.array([4, 5, 7, 6]),
        np.array([3, 3, 3, 3]),
        np.array([0.9, 0.8, 0.7, 0.6], np.float32),
        np.array([TRAIN, HELDOUT, VALIDATION, TRAIN]),
    )
    pairs.save(tmp_path)
    j = replace(job(tmp_path, tokenizer), contexts=3, pairs=tmp_path)
    corpus = Tokens.open(j.corpus)
    asked = [r for chunk in range(2) for r in requests_of(j, corpus, tokenizer, chunk, related_of(j))]
    prompts = {d1: r.prompt for d1, _, r in asked}
    room = (21 - 2) // 3  # a third of 63, less two separators
    of_three = [corpus[doc][:-1][:room].tolist() for doc in (5, 4, 3)]
    given = [token for text in of_three for token in (*text, tokenizer.separator)]
    assert prompts[3] == (tokenizer.end, *given)
    alone = {d1: r.prompt for d1, _, r in requests_of(job(tmp_path, tokenizer), corpus, tokenizer, 0)}
    for d1 in set(alone) - {3}:
        assert prompts[d1] == alone[d1]  # nobody's d2: it has no other


def test_a_contrast_asks_with_and_without_d1(tmp_path: Path, tokenizer: Tokenizer) -> None:
    j = job(tmp_path, tokenizer, contrast=0.5)
    corpus = Tokens.open(j.corpus)
    nothing = (tokenizer.end, tokenizer.separator)
    assert {r.alone for *_, r in requests_of(j, corpus, tokenizer, 0)} == {nothing}
    assert {r.alone for *_, r in requests_of(replace(j, conditional=False), corpus, tokenizer, 0)} == {()}
    assert {r.alone for *_, r in requests_of(job(tmp_path, tokenizer), corpus, tokenizer, 0)} == {()}
    synthesize(j, 200, tmp_path / "with")
    synthesize(job(tmp_path, tokenizer), 200, tmp_path / "without")
    assert files(tmp_path / "with") != files(tmp_path / "without")


def test_unconditional_requests_have_no_d1(tmp_path: Path, tokenizer: Tokenizer) -> None:
    j = Job(**{**vars(job(tmp_path, tokenizer)), "conditional": False})
    assert {r.prompt for *_, r in requests_of(j, Tokens.open(j.corpus), tokenizer, 0)} == {(tokenizer.end,)}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Result((5,), "end", -1.0), "empty"),
        (Result(tuple(range(5, 30)), "end", -1.0), "kept"),
        (Result(tuple(range(5, 30)), "length", -1.0), "unfinished"),
        (Result((5, 6, 7) * 20, "end", -1.0), "looping"),
    ],
)
def test_why_an_output_is_dropped(result: Result, expected: str) -> None:
    assert verdict(result, config.Synthesize()) == expected


@pytest.mark.parametrize(("most", "expected"), [(0.3, "looping"), (0.5, "kept")])
def test_how_much_of_an_output_may_loop_is_set(most: float, expected: str) -> None:
    tokens = (*range(5, 65), *range(5, 55))  # 43 of its 103 runs of eight are there already
    assert verdict(Result(tokens, "end", -1.0), config.Synthesize(max_loop_share=most)) == expected


def test_a_synthesizer_that_never_finishes_is_an_error_not_an_endless_run(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(BudgetError, match=r"0 of 20 outputs kept .*keep_unfinished"):
        synthesize(job(tmp_path, tokenizer, keep_unfinished=False, max_tokens=3), 500, tmp_path / "out")


def test_a_synthesizer_that_says_nothing_at_all_is_an_error_too(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        def sample(self, requests: Any) -> list[Result]:
            return [Result((), "end", 0.0) for _ in requests]

    monkeypatch.setattr(stage, "open_sampler", lambda *_: Silent())
    with pytest.raises(BudgetError, match="0 of 20 outputs kept"):
        synthesize(job(tmp_path, tokenizer, min_tokens=1), 500, tmp_path / "out")


@pytest.mark.parametrize("strange", [0, 5_000, -1])
def test_what_cannot_stand_in_a_document_is_not_committed(
    strange: int, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Confused:
        def sample(self, requests: Any) -> list[Result]:
            return [Result((5, 6, strange), "length", -1.0) for _ in requests]

    monkeypatch.setattr(stage, "open_sampler", lambda *_: Confused())
    with pytest.raises(SamplingError, match=f"the sampler gave token {strange}, which cannot stand in a document"):
        synthesize(job(tmp_path, tokenizer), 100, tmp_path / "out")
    assert not list(tmp_path.glob("out/chunks/0*"))


def test_a_synthesis_keeps_the_batch_that_was_timed_first(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = replace(job(tmp_path, tokenizer), engine=config.Engine(device="cpu"))
    used: list[int] = []
    batch = embedded.ContinuousBatch

    def counting(sampler: Any, requests: Any, max_len: int, rows: int) -> Any:
        used.append(rows)
        return batch(sampler, requests, max_len, rows)

    def timing(*_: Any) -> int:
        # the other processes wait for it, also where the file system has no hard links
        assert any(lock.is_held(path) for path in tmp_path.rglob(".batch.json.lock"))
        return 4

    monkeypatch.setattr(embedded, "ContinuousBatch", counting)
    monkeypatch.setattr(embedded, "best_batch", timing)
    whole = synthesize(timed, 800, tmp_path / "whole")
    chunks = iter(range(99))

    def killed(*_: Any) -> None:
        if next(chunks) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(timed, 800, tmp_path / "killed", progress=killed)
    monkeypatch.setattr(embedded, "best_batch", lambda *_: 16)  # the machine does something else meanwhile
    assert synthesize(timed, 800, tmp_path / "killed") == whole
    assert set(used) == {4}
    assert files(tmp_path / "whole") == files(tmp_path / "killed")
    used.clear()
    synthesize(timed, 100, tmp_path / "anew")
    assert set(used) == {16}


@pytest.mark.parametrize("kept", ["[]", "null", '"4"', "0", "true", '{"a": 1}'])
def test_a_batch_that_is_none_is_named(kept: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "out" / "work" / "batch.json"
    path.parent.mkdir(parents=True)
    path.write_text(kept)
    timed = replace(job(tmp_path, tokenizer), engine=config.Engine(device="cpu"))
    with pytest.raises(CorruptArtifact, match=r"batch\.json: no size of a batch; delete .*work and run again"):
        synthesize(timed, 100, tmp_path / "out")
