from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthboot import config, loading
from synthboot.artifacts.model import TokenCounts
from synthboot.data import tokenizer as tokenizers
from synthboot.data.disk import read_json
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError, UnfairComparison
from synthboot.lm import model as models
from synthboot.lm import score
from synthboot.lm.arm import Sources, Trained, tokens_of
from synthboot.stages.evaluate import check_comparable
from synthboot.stages.pretrain import pretrain, real_docs
from tests.conftest import Killed, small_config

POOL = Tokens.of([[1] * 10] * 8)
COUNTS = TokenCounts(
    steps=10,
    batch_tokens=64,
    train_tokens=640,
    real_tokens=640,
    unique_real_tokens=80,
    real_epochs=8.0,
    synthetic_tokens=0,
    synthetic_epochs=0.0,
    replayed_tokens=0,
    replayed_epochs=0.0,
    seed=0,
    parameters=5,
    architecture="qwen3",
    vocab_size=300,
    settings={"lr": 1e-3, "warmup_steps": 1, "eval_steps": [5, 10], "weight_decay": 0.3},
    recipe=config.Arm(),
    best_step=10,
    train_flops=1e6,
    spent_flops=0.0,
)


def counts(**changes: Any) -> TokenCounts:
    return replace(COUNTS, **changes)


def test_arms_that_differ_in_data_alone_are_compared() -> None:
    sbp = counts(real_tokens=320, synthetic_tokens=320, synthetic_epochs=0.9)
    check_comparable({"repetition": {0: counts(), 1: counts()}, "sbp": {0: sbp, 1: sbp}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 11}, r"differ in steps \(10 and 11, seed 0\)"),
        ({"parameters": 6}, "differ in parameters"),
        ({"settings": {"lr": 2e-3, "warmup_steps": 1, "eval_steps": [5, 10], "weight_decay": 0.3}}, "differ in lr"),
        ({"vocab_size": 301}, "differ in vocab_size"),
        ({"real_tokens": 600}, "do not add up"),
        ({"real_tokens": 600, "replayed_tokens": 40}, "differ in replayed_tokens"),
        ({"real_tokens": 320, "synthetic_tokens": 320, "synthetic_epochs": 1.01}, "was read 1.01 times"),
    ],
)
def test_any_other_difference_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnfairComparison, match=message):
        check_comparable({"repetition": {0: counts()}, "sbp": {0: counts(**changes)}})


def recipe(**changes: Any) -> config.Arm:
    return config.Arm().model_copy(update=changes)


def test_when_work_is_given_up_may_differ() -> None:
    later = counts(settings={**COUNTS.settings, "max_spike": 10.0})
    check_comparable({"repetition": {0: counts()}, "sbp": {0: later}})


def test_what_a_sweep_or_a_budget_of_flops_chose_may_differ_and_nothing_else() -> None:
    settings = {**COUNTS.settings, "weight_decay": 1.0}
    tuned = counts(settings=settings, recipe=recipe(weight_decay=1.0))
    check_comparable({"repetition": {0: tuned}, "sbp": {0: counts()}})
    with pytest.raises(UnfairComparison, match="differ in lr"):
        check_comparable({"repetition": {0: tuned}, "sbp": {0: counts(settings={**settings, "lr": 2e-3})}})
    shorter = {"steps": 8, "train_tokens": 512, "real_tokens": 512, "train_flops": 8e5}
    check_comparable({"repetition": {0: counts(**shorter, recipe=recipe(epochs=4.0))}, "sbp": {0: counts()}})
    paid = counts(**shorter, recipe=recipe(match="flops"), spent_flops=2e5)
    check_comparable({"repetition": {0: counts()}, "sbp": {0: paid}})
    with pytest.raises(UnfairComparison, match="FLOPs, the budget is 1e"):
        check_comparable({"repetition": {0: counts()}, "sbp": {0: replace(paid, spent_flops=2.1e5)}})


def test_arms_need_the_same_seeds() -> None:
    with pytest.raises(UnfairComparison, match="different seeds"):
        check_comparable({"repetition": {0: counts()}, "sbp": {0: counts(), 1: counts()}})


def test_real_text_of_an_arm_is_a_head_of_the_pool() -> None:
    assert real_docs(config.Arm(), "a", POOL, 3) == 3
    assert real_docs(config.Arm(unique_tokens="all"), "a", POOL, 3) == 8
    assert real_docs(config.Arm(unique_tokens=35), "a", POOL, 3) == 4
    with pytest.raises(BudgetError, match=r"arms\.oracle\.unique_tokens: 81 asked for, the pool has 80"):
        real_docs(config.Arm(unique_tokens=81), "oracle", POOL, 3)


def test_each_model_of_an_ensemble_is_held_to_what_every_arm_is() -> None:
    member = counts(recipe=recipe(ensemble=2), settings={**COUNTS.settings, "dropout_seed": 7})
    sums = {"steps": 20, "train_tokens": 1_280, "real_tokens": 1_280, "parameters": 10}
    whole = replace(member, **sums, best_step=None, members=(member, member))
    check_comparable({"repetition": {0: counts()}, "ens": {0: whole}})
    check_comparable({"ens": {0: whole}, "repetition": {0: counts()}})
    longer = replace(member, steps=11)
    with pytest.raises(UnfairComparison, match="arms repetition and ens differ in steps"):
        check_comparable({"repetition": {0: counts()}, "ens": {0: replace(whole, members=(member, longer))}})
    # without the recipe it is another arm that had more of everything
    plain = replace(whole, recipe=recipe(), members=())
    with pytest.raises(UnfairComparison, match="differ in"):
        check_comparable({"repetition": {0: counts()}, "ens": {0: plain}})


def test_a_taught_arm_differs_in_its_targets_alone() -> None:
    settings = {**COUNTS.settings, "distill_weight": 0.5}
    taught = counts(recipe=recipe(distill="ens"), settings=settings)
    check_comparable({"repetition": {0: counts()}, "taught": {0: taught}})
    with pytest.raises(UnfairComparison, match="differ in distill_weight"):
        check_comparable({"repetition": {0: counts()}, "sbp": {0: counts(settings=settings)}})


TEXT = Tokens.of([[*[10 + (i * j) % 40 for j in range(20)], 0] for i in range(60)])


def trained(folder: Path, die_at: float = 2.0, **arm: Any) -> Trained:
    """A model of an arm; the process dies once that share of its training is done."""
    tokenizer = tokenizers.train(iter(["the cat sat on the mat and the dog on the log"] * 30), 280)
    cfg = loading.load(
        small_config(
            Path("x.jsonl"),
            folder,
            model={"layers": 1, "width": 16, "heads": 2, "seq_len": 16},
            optim={"lr": 1e-2, "batch_tokens": 64, "evals": 3, "precision": "float32", "dropout": 0.1},
            budget={"unique_tokens": 1_000, "train_tokens": 64 * 12},
        )
    )

    def progress(done: float, words: str) -> None:
        if done >= die_at:
            raise Killed

    return pretrain(cfg, config.Arm(**arm), 0, Sources(TEXT), TEXT, tokenizer, folder, progress)


def kept(folder: Path) -> dict[str, bytes]:
    """Every file of the artifact but those for the making of it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if "work" not in p.parts}


def test_an_ensemble_is_its_members_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", ensemble=2)
    # in the second member, past its first checkpoint
    with pytest.raises(Killed):
        trained(tmp_path / "killed", die_at=0.8, ensemble=2)
    first = tmp_path / "killed" / "work" / "member-0" / "last" / "model.safetensors"
    before = first.stat().st_mtime_ns
    again = trained(tmp_path / "killed", ensemble=2)
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")
    assert (tmp_path / "killed" / "last" / "member-0" / "model.safetensors").stat().st_mtime_ns == before
    assert again.token_counts.as_json() == whole.token_counts.as_json()
    assert (again.curve, again.flops) == (whole.curve, whole.flops)

    both = whole.token_counts
    alone = trained(tmp_path / "alone")
    for key in ("steps", "train_tokens", "real_tokens", "parameters", "train_flops"):
        assert getattr(both, key) == 2 * getattr(alone.token_counts, key)
    assert len({member.seed for member in both.members} | {0}) == 3
    check_comparable({"repetition": {0: alone.token_counts}, "ens": {0: both}})

    curve = read_json(tmp_path / "whole" / "curve.json")
    for name, found in (("last", curve["validation"][-1][1]), ("best", curve["best_loss"])):
        loaded = models.load(tmp_path / "whole" / name)
        assert found == pytest.approx(score.documents(loaded, TEXT, 16, 0).mean, abs=1e-5)
    member = models.load(tmp_path / "whole" / "last" / "member-0")
    assert curve["validation"][0][1] == pytest.approx(score.documents(member, TEXT, 16, 0).mean, abs=1e-5)
    assert [tokens for tokens, _ in curve["validation"]] == [64 * 12, 64 * 24]
    first_weights, second_weights = (
        models.load(tmp_path / "whole" / "last" / f"member-{n}").get_input_embeddings().weight for n in (0, 1)
    )
    assert not np.allclose(first_weights.detach(), second_weights.detach())


def test_what_trains_a_step_is_enough_and_what_does_not_says_why() -> None:
    def spent(tokens: int, **arm: Any) -> int:
        settings = small_config(Path("x.jsonl"), Path("runs"), budget={"unique_tokens": "all", "train_tokens": tokens})
        settings["model"] = {**settings["model"], "seq_len": 512}
        settings["optim"] = {**settings["optim"], "batch_tokens": 700}
        text = Sources(POOL, upstream_flops=1e6, sample_flops=1.0)
        return tokens_of(loading.load(settings), config.Arm(**arm), text, 1.0)

    assert spent(700) == 512
    with pytest.raises(BudgetError, match=r"40 tokens are left .*: 0\.5 passes are too few"):
        spent(700, epochs=0.5)
    with pytest.raises(BudgetError, match="the synthetic text costs more than the budget"):
        spent(700, synthetic="related", share=0.5, match="flops")
