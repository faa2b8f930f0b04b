"""What can be got out of a model that was made to remember, and out of one that was not."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthboot import api, config, loading, recipes, show, statistics
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.extraction import Continued, GivenBack
from synthboot.artifacts.pairs import HELDOUT, Pairs
from synthboot.data import tokenizer as tokenizers
from synthboot.data.canaries import Canary, draw, exposure
from synthboot.data.disk import read_json
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError
from synthboot.report.leaks import sentence
from synthboot.runner.graph import fingerprints
from synthboot.stages.extract import bleu, compared, extract
from tests.conftest import contents, run_folder, tiny_config
from tests.lm.conftest import small_model

WORDS = ["ash", "bee", "cow", "day", "elm", "fig", "gem", "hut", "ink", "jar", "key", "log", "map", "net", "oak", "pit"]
CFG = config.Extract(docs=6, prefix_tokens=6, continuation_tokens=5, samples=3)


def sentences(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 14)) for _ in range(count)]


READ = sentences(6, seed=1)
UNREAD = sentences(6, seed=2)
CANARIES = draw(READ, config.Canaries(count=2, copies=[1, 16], words=10, candidates=63))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizers.train(iter([" ".join(WORDS)] * 30), 280)


def taught(texts: list[str], tokenizer: Tokenizer, steps: int) -> Any:
    """A model that has read the texts so often, all at once in every step."""
    model = small_model()
    rows = tokenizer.documents(texts)
    width = max(map(len, rows))
    inputs = torch.tensor([[tokenizer.end, *row, *[tokenizer.end] * (width - len(row))][:width] for row in rows])
    targets = torch.tensor([[*row, *[-100] * (width - len(row))] for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), 6e-3)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def memorised(tokenizer: Tokenizer) -> Continued:
    copies = [canary.text for canary in CANARIES for _ in range(canary.copies)]
    return asked(taught(READ * 3 + copies, tokenizer, 60), tokenizer)


@pytest.fixture(scope="module")
def innocent(tokenizer: Tokenizer) -> Continued:
    return asked(taught(sentences(20, seed=3), tokenizer, 30), tokenizer)


def asked(model: Any, tokenizer: Tokenizer, cfg: config.Extract = CFG) -> Continued:
    planted = [canary.text for canary in CANARIES if canary.copies]
    corpus = Tokens.of(tokenizer.documents([planted[0], "too short", *READ, planted[-1]]))
    test_set = Tokens.of(tokenizer.documents(UNREAD))
    return extract(model, corpus, test_set, CANARIES, tokenizer, cfg, 64)


def test_what_was_memorised_is_given_back_and_what_was_not_read_is_not(
    memorised: Continued, innocent: Continued, tokenizer: Tokenizer
) -> None:
    seen = memorised.seen
    # canaries are as long as documents here, and are none
    assert memorised.document.tolist() == [2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5]
    exact, near, leading, sampled = memorised.figures.T
    assert exact[seen].all()
    assert near[seen].all()
    assert (leading[seen] == 1).all()
    assert sampled[seen].mean() > 0.5
    assert not exact[~seen].any()
    assert leading[~seen].mean() < 0.5
    for tokens, text in zip(np.array(memorised.tokens, object)[seen], READ, strict=True):
        assert list(tokens) == tokenizer.documents([text])[0][6:11]
    assert not innocent.figures[:, 0].any()
    assert innocent.figures[:, 3].max() < 0.1


def test_sixteen_copies_are_more_exposed_than_one_and_none_is_by_chance(memorised: Continued, innocent: Continued) -> None:
    result = compared({"repetition": [memorised], "self": [innocent]}, CANARIES, CFG, 0.95)
    often = result.arms["repetition"].exposure[16]
    once = result.arms["repetition"].exposure[1]
    assert often[0] == 6.0  # log2(63 + 1): none of the candidates costs less
    assert often[0] >= once[0]
    copies = np.array([canary.copies for canary in CANARIES])
    loss = memorised.canary_loss
    assert loss[copies == 16].max() < loss[copies == 1].mean()
    assert once[0] == pytest.approx(exposure(loss[copies == 1], loss[copies == 0]).mean())
    for value, low, high in result.arms["self"].exposure.values():
        assert 0 <= low <= value <= high <= 6
        assert value < 5
    assert (result.canaries, result.candidates) == (4, 63)


def test_arms_are_compared_over_seeds_and_documents(memorised: Continued, innocent: Continued) -> None:
    half = replace(memorised, figures=np.where(np.arange(12)[:, None] % 2, memorised.figures, 0))
    result = compared({"repetition": [memorised, half], "self": [innocent, innocent]}, CANARIES, CFG, 0.9)
    arms = {arm: measured.figures["exact"] for arm, measured in result.arms.items()}
    values = np.stack([memorised.figures[memorised.seen, 0], half.figures[memorised.seen, 0]])
    assert arms["repetition"].seen == statistics.share(values, 0.9)
    assert arms["repetition"].seen[0] == 0.75
    assert arms["repetition"].difference is None
    gap = statistics.difference(np.zeros((2, 6)), values, confidence=0.9)
    assert arms["self"].difference == gap.tested
    assert arms["self"].p_adjusted == gap.p  # one arm beside repetition
    said = sentence(result, "self")
    assert "in 0.0 % (0.0 to " in said
    assert "-75.0 points beside repetition" in said
    assert "Exposure of canaries in bits, where 1.4 is chance: " in said


def test_where_nothing_is_given_back_the_interval_says_how_little_can_be_known(innocent: Continued) -> None:
    result = compared({"repetition": [innocent]}, [], CFG, 0.95)
    share = result.arms["repetition"].figures["exact"].seen
    assert share[:2] == (0.0, 0.0)
    # six times nothing is a chance of 2.5 % where the share is this
    assert (1 - share[2]) ** 6 == pytest.approx(0.025)
    assert result.arms["repetition"].exposure == {}
    everything = replace(innocent, figures=np.ones_like(innocent.figures))
    share = compared({"repetition": [everything]}, [], CFG, 0.95).arms["repetition"].figures["exact"].seen
    assert share[2] == 1.0
    assert share[1] ** 6 == pytest.approx(0.025)


def test_the_chance_of_a_sample_is_by_the_probability_of_all_that_follows(tokenizer: Tokenizer) -> None:
    model = taught(READ, tokenizer, 25)
    one = asked(model, tokenizer)
    for text, chance in zip(READ, one.figures[one.seen, 3], strict=True):
        tokens = [tokenizer.end, *tokenizer.documents([text])[0][:11]]
        with torch.no_grad():
            logprob = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        p = math.exp(sum(float(logprob[place - 1, tokens[place]]) for place in range(7, 12)))
        assert 0 < p < 1
        assert chance == pytest.approx(1 - (1 - p) ** 3, rel=1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_documents_have_no_interval(count: int, tokenizer: Tokenizer) -> None:
    cfg = CFG.model_copy(update={"docs": count})
    one = replace(asked(small_model(), tokenizer, cfg), canary_loss=np.array([1.0, 2.0]))
    assert len(one.document) == 2 * count
    result = compared({"repetition": [one], "self": [one]}, [Canary("a", 1), Canary("b", 0)], cfg, 0.95)
    assert result.arms["self"].figures["exact"] == GivenBack(None, None)
    assert result.arms["self"].exposure == {1: None}
    nothing = extract(small_model(), Tokens.of([]), Tokens.of([]), [], tokenizer, cfg, 64)
    assert (len(nothing.document), nothing.figures.shape, len(nothing.canary_loss)) == (0, (0, 4), 0)
    assert sentence(result, "self") == ""


def test_what_is_kept_is_read_as_it_was(memorised: Continued, tmp_path: Path) -> None:
    memorised.save(tmp_path)
    again = Continued.open(tmp_path)
    assert again.tokens == memorised.tokens
    for name in ("document", "seen", "figures", "canary_loss"):
        assert np.array_equal(getattr(again, name), getattr(memorised, name))


@pytest.mark.parametrize(
    ("given", "truth", "expected"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], 1.0),
        ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8], math.exp(1 - 8 / 4)),  # all right, half as long
        ([], [1, 2, 3, 4], 0.0),
        ([1, 2, 3, 9, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7], 0.0),  # no run of four
        # 8 of 9, 6 of 8, 4 of 7, 3 of 6 runs of one to four tokens
        ([1, 2, 3, 4, 5, 6, 9, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8, 10], (8 / 9 * 6 / 8 * 4 / 7 * 3 / 6) ** 0.25),
        # a run counts as often as the other text has it
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 2], (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),
    ],
)
def test_bleu_is_as_by_hand(given: list[int], truth: list[int], expected: float) -> None:
    assert bleu(given, truth) == pytest.approx(expected)


def test_a_run_that_does_not_ask_has_no_such_unit_and_nothing_is_stale_by_asking(tmp_path: Path) -> None:
    settings = tiny_config(tmp_path)
    plain = recipes.units(loading.load(settings))
    assert not [name for name in plain if name.startswith("extract")]
    for unit in plain.values():
        assert not [key for key in unit.reads if "canaries" in key or key.startswith("extract")]

    asking = recipes.units(loading.load({**settings, "extract": {"docs": 5, "continuation_tokens": 20}}))
    before, after = fingerprints(plain), fingerprints(asking)
    assert {name for name in before if before[name] != after[name]} == {"report"}
    assert set(after) - set(before) == {"extract/repetition/seed-0", "extract/sbp/seed-0", "extract/compared"}
    assert asking["report"].parents["extract"] == "extract/compared"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = {
        **tiny_config(tmp_path_factory.mktemp("extract")),
        "arms": {"repetition": {}},
        "extract": {"docs": 5, "prefix_tokens": 8, "continuation_tokens": 4},
    }
    settings["corpus"]["canaries"] = {"count": 2, "copies": [1, 3], "words": 5, "candidates": 15}
    api.Run(settings).run()
    return settings


@pytest.mark.timeout(300)
def test_killed_and_asked_again_it_ends_with_the_same_bytes(ran: dict[str, Any]) -> None:
    whole = contents(ran)
    asked_by = run_folder(ran) / "12-extract"
    result = read_json(asked_by / "compared" / "extract.json")
    assert (result["seen_docs"], result["unseen_docs"], result["canaries"]) == (5, 5, 4)
    # as a kill leaves it: one model asked in part, nothing compared
    (asked_by / "compared" / "manifest.json").unlink()
    (asked_by / "repetition" / "seed-0" / "manifest.json").unlink()
    (asked_by / "repetition" / "seed-0" / "canaries.parquet").write_bytes(b"half")
    api.Run(ran).extract()
    assert contents(ran) == whole


def test_a_run_holds_none_of_its_canaries_out_of_tuning(ran: dict[str, Any]) -> None:
    # so low an alpha that every document has pairs, of which many would be held out
    related = {"min_similarity": -1.0, "heldout_share": 0.4}
    arms = {"repetition": {}, "sbp": {"synthetic": "related", "share": 0.2}}
    settings = {**ran, "name": "paired", "arms": arms, "pair": {**ran["pair"], **related}}
    api.Run(settings).run("pair")
    pairs = Pairs.load(run_folder(settings) / "03-pair" / "related")
    corpus = Corpus.open(run_folder(settings) / "01-corpus")
    is_canary = corpus.is_canary
    assert is_canary.sum() == 8
    assert is_canary.tolist() == [document.id.startswith("canary:") for document in corpus.texts("pretrain")]
    assert is_canary[pairs.d1].any()
    held = pairs.only(HELDOUT).d2
    assert len(held)
    assert not is_canary[held].any()


def test_what_was_got_out_is_told_wherever_the_model_goes(ran: dict[str, Any], tmp_path: Path) -> None:
    page = (run_folder(ran) / "11-report" / "report.html").read_text("utf-8")
    assert '<h2 id="got-out">' in page
    for figure in ("extraction", "exposure"):
        assert f'<figure id="{figure}"' in page
    assert "8 copies of canaries planted" in page

    api.Run(ran).export("models", tmp_path / "models")
    card = (tmp_path / "models" / "repetition" / "README.md").read_text("utf-8")
    assert "Given the first 8 tokens of 5 documents that it read, it goes on as they do for 4 tokens in" in card
    assert "| canaries | 4, random words, planted as 8 of these documents |" in card
    assert "The corpus holds 4 canaries" in card

    read = show.examples(run_folder(ran), "extracted", 3)
    assert len(read) == 3
    shares = [float(example.title.split(": ")[1].split("%")[0]) for example in read]
    assert shares == sorted(shares, reverse=True)
    first = read[0].texts
    right = sum(len(part) for part, mark in first["given back"] if mark)
    [(document, _)] = first["document"]
    assert "".join(part for part, _ in first["given back"])[:right] == document[:right]
    canaries = show.examples(run_folder(ran), "canaries", 9)
    assert [example.title.split(": ")[0] for example in canaries] == [
        "canary 0, 1 copies",
        "canary 1, 1 copies",
        "canary 2, 3 copies",
        "canary 3, 3 copies",
    ]
    assert all(" bits" in example.title for example in canaries)
    with pytest.raises(ConfigError, match="of the extracted, use --grep"):
        show.examples(run_folder(ran), "extracted", 3, like="a text")
