"""Several models as one, and one that learns from them, beside what plain torch says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthboot import config
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.lm import ensemble, score
from synthboot.lm import model as models
from synthboot.lm.batches import IGNORE, Plan
from synthboot.lm.loss import Loss, Teacher
from synthboot.lm.sampling.engines import sampler
from synthboot.lm.sampling.protocol import Request, Sampling
from synthboot.lm.train import Settings, train
from tests.conftest import Killed
from tests.lm.conftest import small_model

TEXTS = Tokens.of([[*[10 + (i * j) % 40 for j in range(12)], 0] for i in range(30)])


def gpt2(seed: int = 0) -> Any:
    """A layout whose logits are taken as they come, not by chunks of the vocabulary's matrix."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=280, tie_word_embeddings=False, initializer_range=0.4, **sizes)).eval()


def mean_probabilities(members: list[Any], inputs: torch.Tensor) -> torch.Tensor:
    """(row, token, vocab), float64."""
    with torch.no_grad():
        each = [member(input_ids=inputs).logits.double().softmax(-1) for member in members]
    return torch.stack(each).mean(0)


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    for number in range(3):
        models.save(small_model(seed=number), tmp_path / "best" / f"member-{number}", tokenizer)
    return tmp_path / "best"


def test_logits_are_the_logarithm_of_the_mean_probability(checkpoint: Path) -> None:
    together = models.load(checkpoint).eval()
    inputs = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        logits = together(input_ids=inputs, use_cache=False).logits
    expected = mean_probabilities([small_model(seed=n) for n in range(3)], inputs)
    assert torch.allclose(logits.double().exp(), expected, atol=1e-6)
    assert sum(p.numel() for p in together.parameters()) == 3 * sum(p.numel() for p in small_model().parameters())


def test_scores_of_the_whole_are_those_of_its_members_in_probability(checkpoint: Path) -> None:
    each = np.stack([score.token_losses(small_model(seed=n), TEXTS, 16, 0) for n in range(3)])
    joined = ensemble.mean_losses(each)
    assert joined[0] == pytest.approx(each[0], rel=1e-6)
    assert joined[1] == pytest.approx(-np.log(np.exp(-each[:2].astype(np.float64)).mean(0)), abs=1e-6)
    whole = score.token_losses(models.load(checkpoint), TEXTS, 16, 0)
    assert joined[2] == pytest.approx(whole, abs=1e-4)
    assert whole.mean() < each.mean()  # the mean of convex losses is above the loss of the mean


def test_an_ensemble_is_sampled_like_any_layout(checkpoint: Path) -> None:
    together = models.load(checkpoint)
    prompt = (5, 6, 7)
    [result] = sampler(together, 0, Sampling(temperature=0.0, top_p=1.0)).sample([Request(prompt, 0, 4)])
    ids = list(prompt)
    for token in result.tokens:
        expected = mean_probabilities([small_model(seed=n) for n in range(3)], torch.tensor([ids]))[0, -1]
        assert token == int(expected.argmax())
        ids.append(token)
    assert result.tokens


def test_no_two_ensembles_share_a_member() -> None:
    drawn = [seed for of_arm in range(200) for seed in ensemble.seeds(of_arm, 8)]
    assert len(set(drawn)) == len(drawn)
    # nor has one the seed of another arm's model
    assert min(drawn) > 2**32
    assert ensemble.seeds(3, 2) == ensemble.seeds(3, 5)[:2]


@pytest.mark.parametrize("build", [small_model, gpt2])
@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("kernels", [True, False])
def test_a_taught_loss_and_its_gradients_are_those_of_mixed_targets(
    build: Any, weight: float, kernels: bool, without_kernels: Any
) -> None:
    if not kernels:
        without_kernels()
    inputs = torch.arange(2 * 20).reshape(2, 20)
    targets = (inputs * 7 + 3) % 280
    targets[0, :6] = IGNORE
    teachers = [build(seed=n) for n in (1, 2)]
    student = build(seed=3)
    module = Loss(student, z_loss=1e-3, teacher=Teacher(teachers, weight))
    loss, text = module(inputs, targets, 8.0)
    loss.backward()
    found = [p.grad.clone() for p in student.parameters()]

    plain = build(seed=3)
    logits = plain(input_ids=inputs).logits.flatten(0, 1)
    counted = targets.flatten() != IGNORE
    log_probs = logits.log_softmax(-1)[counted]
    one_hot = torch.nn.functional.one_hot(targets.flatten()[counted], 280)
    soft = mean_probabilities([build(seed=n) for n in (1, 2)], inputs).flatten(0, 1)[counted].float()
    mixed = (1 - weight) * one_hot + weight * soft
    square = logits.logsumexp(1)[counted].square().sum()
    expected = (-(mixed * log_probs).sum() + 1e-3 * square) / 8
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert text.item() == pytest.approx(-(one_hot * log_probs).sum().item() / 8, rel=1e-5)
    for gradient, parameter in zip(found, plain.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=2e-4, rtol=1e-3)
    assert not any(p.requires_grad or p.grad is not None for teacher in teachers for p in teacher.parameters())
    assert len(list(module.parameters())) == len(list(plain.parameters()))


def test_a_model_that_teaches_itself_pays_its_entropy_and_learns_nothing() -> None:
    inputs = torch.arange(2 * 20).reshape(2, 20)
    student = small_model()
    loss, _ = Loss(student, teacher=Teacher([small_model()], 1.0))(inputs, inputs.flip(1), 40.0)
    loss.backward()
    probabilities = mean_probabilities([small_model()], inputs)
    entropy = -(probabilities * probabilities.log()).sum(-1).mean()
    assert loss.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert max(float(p.grad.abs().max()) for p in student.parameters()) < 1e-6


def test_a_taught_run_that_is_killed_ends_with_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    how = Settings(lr=1e-2, weight_decay=0.1, warmup_steps=2, eval_steps=(2, 4, 6, 8), distill_weight=0.5)
    cfg = config.Model(layers=1, width=16, heads=2, seq_len=16)

    def run(folder: Path, validate: Any, seed: int = 0) -> None:
        plan = Plan(TEXTS, seq_len=16, batch_tokens=64, train_tokens=64 * 8, seed=0, end=0)
        teachers = [models.build(cfg, 280, seed) for seed in (7, 8)]
        train(models.build(cfg, 280, seed), plan, how, validate, folder, tokenizer, teachers=teachers)

    def validate(model: Any) -> float:
        return score.documents(model, TEXTS, 16, 0).mean

    def dying(model: Any) -> float:
        calls.append(validate(model))
        if len(calls) == 3:
            raise Killed
        return calls[-1]

    calls: list[float] = []
    run(tmp_path / "whole", validate)
    with pytest.raises(Killed):
        run(tmp_path / "killed", dying)
    run(tmp_path / "killed", validate, seed=99)
    for name in ("last/model.safetensors", "best/model.safetensors", "curve.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
