import math

import numpy as np
import pytest

from synthboot import config
from synthboot.errors import ConfigError
from synthboot.stages.evaluate import evaluate, verdict

TOKENS = np.full(400, 50)
BYTES = np.full(400, 200)
CFG = config.Evaluate(bootstrap=2_000)


def losses(mean: float, seeds: int = 3, spread: float = 0.02, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    documents = np.random.default_rng(99).normal(0, 0.5, 400)  # hard and easy documents, the same for every arm
    return 50 * (mean + documents + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.05, (seeds, 400)))


def scored(sbp: float, seeds: int = 3) -> dict:
    arms = {"repetition": losses(3.0, seeds, seed=1), "sbp": losses(sbp, seeds, seed=2), "oracle": losses(2.6, seeds, seed=3)}
    return evaluate(arms, TOKENS, BYTES, CFG)


def test_loss_perplexity_and_bits_per_byte() -> None:
    result = evaluate({"repetition": np.full((1, 400), 100.0)}, TOKENS, BYTES, CFG)["arms"]["repetition"]
    assert result["loss"] == pytest.approx([2.0] * 3)
    assert result["perplexity"][0] == pytest.approx(math.exp(2))
    assert result["bits_per_byte"][0] == pytest.approx(100 / math.log(2) / 200)


def test_loss_is_per_token_not_per_document() -> None:
    tokens = np.array([1, 99])
    result = evaluate({"repetition": np.array([[10.0, 99.0]])}, tokens, np.array([4, 400]), CFG)
    assert result["arms"]["repetition"]["loss"][0] == pytest.approx(109 / 100)


def test_long_documents_weigh_more_in_every_resample() -> None:
    tokens = np.random.default_rng(0).integers(5, 500, 300)
    result = evaluate({"repetition": 2.0 * tokens[None]}, tokens, 4 * tokens, CFG)  # 2 nats per token in each document
    assert result["arms"]["repetition"]["loss"] == pytest.approx([2.0] * 3)


def test_oracle_share_and_its_interval() -> None:
    share = scored(2.8)["arms"]["sbp"]["oracle_share"]
    assert share[1] < share[0] < share[2]
    assert share[0] == pytest.approx(0.5, abs=0.1)


def test_pairing_by_document_makes_intervals_of_differences_narrow() -> None:
    entry = scored(2.8)["arms"]["sbp"]
    width = entry["difference"][2] - entry["difference"][1]
    assert width < 0.6 * (entry["loss"][2] - entry["loss"][1])


def test_no_share_of_an_oracle_that_gains_nothing() -> None:
    arms = {"repetition": losses(3.0, seed=1), "sbp": losses(2.9, seed=2), "oracle": losses(3.0, seed=3)}
    assert evaluate(arms, TOKENS, BYTES, CFG)["arms"]["sbp"]["oracle_share"] is None


def test_intervals_cover_the_truth() -> None:
    """Of repeated experiments with no difference, about one in twenty shows one at 95 %, and seeds are part of that."""
    false_alarms = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        arms = {name: 50 * (3 + rng.normal(0, 0.3, (8, 400))) for name in ("repetition", "sbp")}
        _, low, high = evaluate(arms, TOKENS, BYTES, config.Evaluate(bootstrap=400), trial)["arms"]["sbp"]["difference"]
        false_alarms += not low <= 0 <= high
    assert false_alarms <= 15


@pytest.mark.parametrize(
    ("sbp", "seeds", "expected"),
    [
        (2.8, 3, "Synthetic text helped"),
        (3.2, 3, "Synthetic text hurt"),
        (3.0, 3, "No difference shown"),
        (2.8, 1, "1 seed: an anecdote"),
    ],
)
def test_the_verdict_says_what_the_figures_show(sbp: float, seeds: int, expected: str) -> None:
    assert expected in scored(sbp, seeds)["verdict"]


def test_three_seeds_need_no_caution_and_one_does() -> None:
    assert "anecdote" not in scored(2.8)["verdict"]
    assert "No sbp arm" in verdict({"repetition": {}}, 3, 0.95)


def test_without_repetition_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(ConfigError, match="repetition is missing"):
        evaluate({"sbp": losses(2.8)}, TOKENS, BYTES, CFG)
