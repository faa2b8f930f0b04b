import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Container
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from synthboot import config
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError, CorruptArtifact, TrainingError
from synthboot.lm import loss, score, track
from synthboot.lm import model as models
from synthboot.lm import train as training
from synthboot.lm.batches import IGNORE, Batch, PairForm, PairPlan, Plan
from synthboot.lm.loss import Loss
from synthboot.lm.train import Runtime, Settings, train
from tests.conftest import Killed, files
from tests.lm.conftest import small_model

TEXTS = Tokens.of([[*[10 + (i * j) % 40 for j in range(12)], 0] for i in range(30)])


def plan(steps: int = 8) -> Plan:
    return Plan(TEXTS, seq_len=16, batch_tokens=64, train_tokens=64 * steps, seed=0, end=0)


def settings(**changes: Any) -> Settings:
    return Settings(**{"lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 2, "eval_steps": (2, 4, 6, 8), **changes})


def validate(model: Any) -> float:
    return score.documents(model, TEXTS, 16, 0).mean


def killed_after(steps: int, **runtime: Any) -> Runtime:
    """A runtime in which training is killed so many steps after it began, before what follows the last of them."""
    taken = iter(range(steps, 0, -1))

    def watch(_: int, figures: Any) -> None:
        if "loss" in figures and next(taken) == 1:
            raise Killed

    return Runtime(watch=watch, **runtime)


def test_loss_falls_and_the_last_and_best_models_are_left_as_hugging_face_folders(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    curve = train(small_model(), plan(), settings(), validate, tmp_path / "m", tokenizer)
    assert curve.validation[-1][1] < curve.validation[0][1]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["best", "curve.json", "last", "work"]
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "m" / "best")
    assert validate(best) == pytest.approx(curve.best_loss, abs=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "m" / "last").eos_token_id == tokenizer.end


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> dict[str, bytes]:
    """What is left of a run that was never disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "m"
    train(small_model(), plan(), settings(), validate, folder, tokenizer)
    return files(folder)


@pytest.mark.parametrize("point", range(1, 9))
def test_killed_at_any_step_and_resumed_gives_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, point: int, whole: dict[str, bytes]
) -> None:
    with pytest.raises(Killed):
        train(small_model(), plan(), settings(), validate, tmp_path / "m", tokenizer, runtime=killed_after(point))
    seed = 99 if point > 2 else 0  # from the first checkpoint on weights come from disk
    train(small_model(seed=seed), plan(), settings(), validate, tmp_path / "m", tokenizer)
    assert files(tmp_path / "m") == whole


@pytest.mark.parametrize(("point", "checkpoint"), [(4, 3), (5, 4), (6, 5), (17, 16)])
def test_between_evaluations_a_checkpoint_is_written_by_the_clock(
    tmp_path: Path, tokenizer: Tokenizer, point: int, checkpoint: int
) -> None:
    how = settings(eval_steps=(4,))
    at_once = killed_after(point, checkpoint_seconds=0.0)  # after every step
    with pytest.raises(Killed):
        train(small_model(), plan(20), how, validate, tmp_path / "m", tokenizer, runtime=at_once)
    assert [path.name for path in (tmp_path / "m" / "work").glob("checkpoint-*")] == [f"checkpoint-{checkpoint:08d}"]
    train(small_model(seed=99), plan(20), how, validate, tmp_path / "m", tokenizer)
    train(small_model(), plan(20), how, validate, tmp_path / "undisturbed", tokenizer)
    assert files(tmp_path / "m") == files(tmp_path / "undisturbed")


def test_weights_that_are_no_numbers_do_not_take_the_place_of_a_checkpoint(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = small_model()
    taken = iter(range(1, 20))

    def break_at_eight(_: int, figures: Any) -> None:
        if "loss" in figures and next(taken) == 8:
            next(model.parameters()).data.fill_(torch.nan)

    how, runtime = settings(eval_steps=(4,)), Runtime(watch=break_at_eight, checkpoint_seconds=0.0)
    with pytest.raises(TrainingError, match=r"loss nan.* at step 9 of 20.*the last good checkpoint is .*-00000007"):
        train(model, plan(20), how, validate, tmp_path / "m", tokenizer, runtime=runtime)


def test_patience_stops_and_keeps_the_best(tmp_path: Path, tokenizer: Tokenizer) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    curve = train(
        small_model(),
        plan(10),
        settings(eval_steps=(2, 4, 6, 8, 10), patience=2),
        lambda _: next(losses),
        tmp_path / "m",
        tokenizer,
    )
    assert (curve.step, curve.best_step, curve.best_loss) == (8, 4, 2.0)


RANK = """
import math
import sys
from pathlib import Path
import torch
from synthboot.data import tokenizer
from synthboot.lm import parallel
from synthboot.lm.train import Runtime, train
from tests.lm.conftest import small_model
from tests.lm.test_train import plan, settings
group = parallel.join(torch.device("cpu"), shard=False)
losses = iter([3.0, 2.0, 2.5, 2.6, 1.0] if group.main else [3.0, 2.9, 2.8, 2.7, 1.0])
how = settings(eval_steps=(2, 4, 6, 9, 10), patience=2)
runtime = Runtime(group, checkpoint_seconds=0.0 if group.main else math.inf)
curve = train(
    small_model(), plan(10), how, lambda _: next(losses), Path(sys.argv[2]), tokenizer.load(sys.argv[1]), runtime=runtime
)
print(curve.step, curve.best_step, curve.best_loss)
torch.distributed.destroy_process_group()
"""
"""One of two processes whose validation losses are not the same, as processors of two kinds round, nor their clocks."""


def test_processes_that_round_differently_keep_one_best_and_stop_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", RANK, str(tmp_path), str(tmp_path / "m")]
    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **meet, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        assert [rank.communicate(timeout=240)[0] for rank in ranks] == ["9 4 2.0\n"] * 2
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_the_start_is_measured_but_is_never_the_best(tmp_path: Path, tokenizer: Tokenizer) -> None:
    losses = iter([1.0, 3.0, 2.0])
    curve = train(small_model(), plan(), settings(eval_steps=(0, 4, 8)), lambda _: next(losses), tmp_path / "m", tokenizer)
    assert [loss for _, loss in curve.validation] == [1.0, 3.0, 2.0]
    assert (curve.best_step, curve.best_loss) == (8, 2.0)


def test_a_step_equals_plain_pytorch_with_and_without_accumulation(tmp_path: Path, tokenizer: Tokenizer) -> None:
    one = plan(1)
    found = []
    for micro in (None, 16):
        model, how = small_model(), settings(micro_batch_tokens=micro, warmup_steps=0, eval_steps=())
        curve = train(model, one, how, lambda _: 0.0, tmp_path / str(micro), tokenizer)
        found.append((curve.train[0], torch.cat([p.detach().flatten() for p in model.parameters()])))
    model, batch = small_model(), one.batch(0)
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    logits = model(input_ids=torch.from_numpy(batch.inputs)).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    reference.step()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    for row, trained in found:
        assert row == [64, pytest.approx(float(expected.detach()), rel=1e-5), pytest.approx(float(norm), rel=1e-4), 1e-2]
        near = torch.isclose(trained, weights, atol=1e-5)  # Adam's first step is a sign: rounding flips it where it is near 0
        assert float(near.float().mean()) > 0.999


def test_packed_pairs_do_not_see_each_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    form = PairForm(64, 0.5, 0, 1)
    pairs = PairPlan(TEXTS, [0, 1, 2, 3], [4, 5, 6, 7], form, batch_tokens=128, tokens=128, seed=0)
    batch = pairs.batch(0)
    curve = train(small_model(), pairs, settings(eval_steps=()), lambda _: 0.0, tmp_path / "m", tokenizer)
    fresh = small_model()
    rows = [(TEXTS[a], TEXTS[b]) for a, b in ((0, 4), (1, 5), (2, 6), (3, 7))]
    alone = score.pairs(fresh, [a for a, _ in rows], [b for _, b in rows], form)
    assert batch.segments is not None
    assert batch.segments.max() > 1  # several pairs share a row
    assert curve.train[0][1] == pytest.approx(alone.mean, rel=1e-4)


def test_schedule_warms_up_then_falls_to_its_floor() -> None:
    s = settings(warmup_steps=10, min_lr_fraction=0.1)
    rates = [training.learning_rate(i, 100, s) for i in range(101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[9] == rates[10] == pytest.approx(1e-2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(1e-3)
    assert rates[55] == pytest.approx(1e-2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2))))


def test_wsd_is_flat_and_then_falls_in_a_line() -> None:
    s = settings(warmup_steps=10, min_lr_fraction=0.1, schedule="wsd", decay_fraction=0.2)
    rates = np.array([training.learning_rate(i, 100, s) for i in range(101)])
    assert np.allclose(rates[10:81], 1e-2)
    assert np.allclose(np.diff(rates[80:], 2), 0, atol=1e-9)
    assert rates[100] == pytest.approx(1e-3)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("vocab", [280, 37])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_chunked_loss_and_its_gradients_are_plain_pytorchs(
    z_loss: float, vocab: int, compiled: bool, without_kernels: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK", 13)
    if not compiled:
        without_kernels()
    inputs, targets = torch.randint(0, vocab, (4, 16)), torch.randint(0, vocab, (4, 16))
    targets[1, :9] = IGNORE
    found = []
    for kind in ("chunked", "plain"):
        module = Loss(small_model(vocab_size=vocab), z_loss=z_loss)
        assert module.chunked
        module.chunked = kind == "chunked"
        whole, plain = module(inputs, targets, 30.0)
        whole.backward()
        found.append([whole.detach(), plain, *(p.grad for p in module.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
def test_bfloat16_products_leave_float32_weights_and_nearly_the_same_gradients(
    compiled: bool, without_kernels: Callable[[], None]
) -> None:
    if not compiled:
        without_kernels()
    batch = plan().batch(0)
    losses, gradients = [], []
    for precision in (torch.float32, torch.bfloat16):
        model = small_model()
        found, _ = Loss(model, precision)(
            torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), float(batch.targets.size)
        )
        found.backward()
        losses.append(float(found.detach()))
        assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert 0 < abs(losses[0] - losses[1]) < 0.02
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.999


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_is_validated_in_the_precision_that_it_trains_in(tmp_path: Path, tokenizer: Tokenizer, precision: str) -> None:
    losses = []

    def measured(model: Any) -> float:
        assert torch.is_autocast_enabled("cpu") == (precision == "bfloat16")
        losses.append(validate(model))
        return losses[-1]

    train(small_model(), plan(), settings(precision=precision), measured, tmp_path, tokenizer)
    kept = models.load(tmp_path / "last")
    assert losses[-1] == pytest.approx(validate(kept), rel=1e-6 if precision == "float32" else 5e-3)


def test_muon_trains_and_resumes_to_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    how = settings(optimizer="muon")
    curve = train(small_model(), plan(), how, validate, tmp_path / "a", tokenizer)
    assert curve.last_loss < curve.validation[0][1]
    with pytest.raises(Killed):
        train(small_model(), plan(), how, validate, tmp_path / "b", tokenizer, runtime=killed_after(5))
    train(small_model(), plan(), how, validate, tmp_path / "b", tokenizer)
    assert files(tmp_path / "a") == files(tmp_path / "b")


class Leaping(Plan):
    """Some of its steps read tokens that no other has: one of the first, and one when the loss has long been low."""

    at: Container[int] = (20, 60)

    def batch(self, step: int) -> Batch:
        found = super().batch(step)
        return replace(found, targets=found.targets + 200) if step in self.at else found


def test_a_leap_of_the_loss_stops_the_run(tmp_path: Path, tokenizer: Tokenizer) -> None:
    leaping = Leaping(TEXTS, seq_len=16, batch_tokens=64, train_tokens=64 * 80, seed=0, end=0)
    how = settings(eval_steps=(40, 80))
    with pytest.raises(
        TrainingError, match=r"loss \d.*after a mean of .* at step 61 of 80, on real documents .*raise optim.max_spike"
    ):
        train(small_model(), leaping, how, validate, tmp_path / "m", tokenizer)
    with pytest.raises(TrainingError, match=r"; lower tune.lr \(0.01\); "):  # which has no max_spike
        train(small_model(), leaping, how, validate, tmp_path / "tuned", tokenizer, section="tune")


def test_what_has_leapt_leaps_again_when_it_is_run_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    leaping = Leaping(TEXTS, seq_len=16, batch_tokens=64, train_tokens=64 * 100, seed=0, end=0)
    leaping.at = range(58, 100)  # for good: the new loss would be the usual one after a window of it
    how = settings(eval_steps=(55, 57, 70, 90, 100))
    for _ in range(3):
        with pytest.raises(TrainingError, match=r"loss \d.*after a mean of .* at step 59 of 100,"):
            train(small_model(), leaping, how, validate, tmp_path / "m", tokenizer)
    assert (tmp_path / "m" / "work" / "checkpoint-00000057").exists()
    train(small_model(), leaping, replace(how, max_spike=1e6), validate, tmp_path / "m", tokenizer)  # on from step 57
    train(small_model(), leaping, replace(how, max_spike=1e6), validate, tmp_path / "at once", tokenizer)
    assert files(tmp_path / "m") == files(tmp_path / "at once")
    calm = train(small_model(), plan(), settings(), validate, tmp_path / "calm", tokenizer)
    assert not calm.recent
    assert "recent" not in (tmp_path / "calm" / "curve.json").read_text()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_masked_documents_do_not_see_each_other(precision: torch.dtype) -> None:
    masked = Plan(TEXTS, seq_len=16, batch_tokens=64, train_tokens=512, seed=0, end=0, document_mask=True)
    batch, model = masked.batch(3), small_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 3  # what stands before then matters
    inputs, targets = (torch.from_numpy(a.copy()) for a in (batch.inputs, batch.targets))
    assert batch.positions is not None
    positions, module = torch.from_numpy(batch.positions), Loss(model, precision)
    mean, seeing = (float(module(inputs, targets, float(targets.numel()), m)[0].detach()) for m in (positions, None))
    rows = []
    assert batch.segments is not None
    for row in range(len(batch.inputs)):
        for number in np.unique(batch.segments[row]):
            part = batch.segments[row] == number
            rows.append((batch.inputs[row][part], batch.targets[row][part]))
    assert len(rows) > len(batch.inputs)
    apart = score.row_losses(model, rows).sum() / batch.targets.size
    assert mean == pytest.approx(apart, rel=1e-4 if precision == torch.float32 else 1e-2)
    assert abs(mean - apart) < abs(seeing - apart) / 10


def test_what_a_step_reads_is_told() -> None:
    mixed = Plan(TEXTS, TEXTS, 0.5, seq_len=16, batch_tokens=64, train_tokens=256, seed=0, end=0)
    words = mixed.describe(0)
    assert re.fullmatch(r"real documents [\d, ]+ and synthetic documents [\d, ]+", words)
    named = {int(n) for n in re.findall(r"\d+", words)}
    read = {int(n) for row in mixed.batch(0).targets for n in row[row != 0]}
    assert read <= {int(t) for n in named for t in TEXTS[n]}


def test_figures_go_where_they_are_sent(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, float]] = []
    module: Any = ModuleType("trackio")
    module.__spec__ = ModuleSpec("trackio", None)
    module.init = lambda **options: SimpleNamespace(log=lambda values: logged.append({**values, **options}))
    monkeypatch.setitem(sys.modules, "trackio", module)
    watch = track.watch(["trackio"], tmp_path, "run", "base")
    train(small_model(), plan(), settings(), validate, tmp_path / "m", tokenizer, runtime=Runtime(watch=watch))
    assert [v["tokens"] for v in logged if "loss" in v] == [64 * i for i in range(1, 9)]
    assert len([v for v in logged if "validation_loss" in v]) == 4
    assert {"gradient_norm", "lr", "tokens_per_second", "project", "name"} <= logged[0].keys()
    watch = track.watch(["tensorboard"], tmp_path / "track", "run", "base")
    watch(64, {"loss": 1.5})
    assert list((tmp_path / "track" / "base").glob("events.out.tfevents*"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        track.watch(["wandb"], tmp_path, "run", "base")


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ on a CPU")
def test_compiled_blocks_learn_the_same_and_say_that_they_compile(tmp_path: Path, tokenizer: Tokenizer) -> None:
    curves, told = [], []
    for compile in ("off", "auto", "on"):  # auto does not, on a CPU
        words: list[str] = []
        model = small_model()
        curve = train(
            model,
            plan(),
            settings(precision="float32"),
            validate,
            tmp_path / compile,
            tokenizer,
            progress=lambda _, w="", words=words: words.append(w),
            runtime=Runtime(compile=compile),
        )
        curves.append([v for _, v in curve.validation])
        done = [block._compiled_call_impl is not None for block in model.model.layers]
        told.append((any("compiling" in w for w in words), all(done), any(done)))
    assert told == [(False, False, False), (False, False, False), (True, True, True)]
    assert curves[1] == curves[0]
    assert curves[2] == pytest.approx(curves[0], abs=1e-4)
    assert curves[0][0] - curves[0][-1] > 0.05  # it did learn


def test_divergence_names_the_step_and_the_checkpoint(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = small_model()

    def poison(current: Any) -> float:
        if (tmp_path / "m" / "work" / "checkpoint-00000002").exists():
            with torch.no_grad():
                next(iter(current.parameters())).fill_(math.nan)
        return 1.0

    with pytest.raises(
        TrainingError,
        match=r"loss nan.* at step 5 of 8, on real documents \d.*; lower optim.lr \(0\.01\); .*checkpoint-00000002",
    ):
        train(model, plan(), settings(), poison, tmp_path / "m", tokenizer)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_no_number_leaves_the_checkpoint_before_it(
    tmp_path: Path, tokenizer: Tokenizer, loss: float
) -> None:
    losses = iter([2.0, loss])
    with pytest.raises(
        TrainingError,
        match=rf"validation loss {loss} after step 4 of 8; lower optim.lr \(0\.01\); .* is .*checkpoint-00000002$",
    ):
        train(small_model(), plan(), settings(), lambda _: next(losses), tmp_path / "m", tokenizer)
    assert sorted(p.name for p in (tmp_path / "m" / "work").iterdir()) == ["best-00000002", "checkpoint-00000002"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "curve.json"])
def test_an_unreadable_checkpoint_says_which_and_what_to_do(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(Killed):
        train(small_model(), plan(), settings(), validate, tmp_path / "m", tokenizer, runtime=killed_after(3))
    (tmp_path / "m" / "work" / "checkpoint-00000002" / name).write_bytes(b"{garbage")
    with pytest.raises(TrainingError, match=r"checkpoint-00000002.*unreadable checkpoint.*delete"):
        train(small_model(), plan(), settings(), validate, tmp_path / "m", tokenizer)


def test_init_from_continues_any_causal_lm_and_makes_room_for_the_separator(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=270, n_positions=64, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    model = models.build(config.Model(init_from=str(tmp_path), seq_len=64), 271, 0)
    assert model.get_input_embeddings().weight.shape[0] == 271
    with pytest.raises(ConfigError, match=r"model\.seq_len: 128 is more than the 64 positions"):
        models.build(config.Model(init_from=str(tmp_path), seq_len=128), 271, 0)
    with pytest.raises(ConfigError, match=r"model\.init_from: .*cannot be loaded"):
        models.build(config.Model(init_from=str(tmp_path / "none")), 271, 0)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CorruptArtifact, match="cannot be loaded"):
        models.load(tmp_path)


def test_flops_per_token_against_counted_matrix_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = small_model(kv_heads=2)
    model.set_attn_implementation("eager")  # products the counter can see
    with FlopCounterMode(display=False) as forward:
        logits = model(input_ids=torch.zeros(1, 64, dtype=torch.int64), use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    dense = 4 * 2 * 32 * 64  # attention is counted there for all 64 x 64 positions, by us for the causal half
    assert models.flops_per_token(model, 64) == pytest.approx(forward.get_total_flops() / 64 - dense / 2, rel=0.01)
    assert backward.get_total_flops() == pytest.approx(2 * forward.get_total_flops(), rel=0.01)


def test_a_batch_that_does_not_fit_names_the_largest_that_would(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    forward = type(model.model).forward

    def small(self: Any, input_ids: torch.Tensor | None = None, **rest: Any) -> Any:
        if input_ids is not None and input_ids.shape[0] > 3:
            raise torch.OutOfMemoryError("no room")
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(type(model.model), "forward", small)
    with pytest.raises(TrainingError, match=r"64 tokens at once do not fit .* 32 do: set engine\.micro_batch_tokens=32"):
        train(model, plan(), settings(), validate, tmp_path / "m", tokenizer)
    train(model, plan(1), settings(micro_batch_tokens=32, eval_steps=()), lambda m: 0.0, tmp_path / "n", tokenizer)


def small_qwen(seed: int = 0) -> Any:
    """Two blocks of the layout that is trained from scratch."""
    return models.build(config.Model(layers=2, width=32, heads=2, seq_len=16), 64, seed)


REGULARIZED = [
    {"dropout": 0.3},
    {"ema_decay": 0.8},
    {"tail_average": 0.5},
    {"dropout": 0.2, "final_weight_decay": 2.0, "tail_average": 0.75},
]


@pytest.mark.parametrize("changes", REGULARIZED, ids=str)
def test_a_regularized_run_that_is_killed_ends_with_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, changes: dict[str, Any]
) -> None:
    how = settings(**changes)
    train(small_qwen(), plan(), how, validate, tmp_path / "whole", tokenizer)
    with pytest.raises(Killed):
        train(small_qwen(), plan(), how, validate, tmp_path / "killed", tokenizer, runtime=killed_after(6))
    torch.manual_seed(99)  # what others drew in between does not matter
    train(small_qwen(seed=99), plan(), how, validate, tmp_path / "killed", tokenizer)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_model_that_brings_dropout_along_resumes_to_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    def gpt2(seed: int) -> Any:
        torch.manual_seed(seed)
        layout = GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3
        )
        return GPT2LMHeadModel(layout)

    train(gpt2(0), plan(), settings(), validate, tmp_path / "whole", tokenizer)
    with pytest.raises(Killed):
        train(gpt2(0), plan(), settings(), validate, tmp_path / "killed", tokenizer, runtime=killed_after(6))
    train(gpt2(9), plan(), settings(), validate, tmp_path / "killed", tokenizer)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def every_step(tmp_path: Path, tokenizer: Tokenizer) -> list[dict[str, torch.Tensor]]:
    """The weights after 1, 2, ... 8 steps of a run without averages; only the schedule's rates are those of 8 steps."""
    seen: list[dict[str, torch.Tensor]] = []

    def look(model: Any) -> float:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return 0.0

    train(small_qwen(), plan(), settings(eval_steps=tuple(range(1, 9))), look, tmp_path / "plain", tokenizer)
    return seen


def test_the_averages_are_those_of_the_weights_of_every_step(tmp_path: Path, tokenizer: Tokenizer) -> None:
    steps = every_step(tmp_path, tokenizer)

    def mean_of_the_last_four(name: str) -> torch.Tensor:
        return torch.stack([state[name] for state in steps[4:]]).mean(0)

    def moving(name: str) -> torch.Tensor:
        average = dict(small_qwen().named_parameters())[name].detach()
        for step, state in enumerate(steps, 1):
            decay = min(0.5, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * state[name]
        return average

    for how, expected in (({"tail_average": 0.5}, mean_of_the_last_four), ({"ema_decay": 0.5}, moving)):
        folder = tmp_path / str(how)
        train(small_qwen(), plan(), settings(**how), validate, folder, tokenizer)
        for name, value in weights(folder / "last").items():
            torch.testing.assert_close(value, expected(name), msg=f"{how}, {name}")


def test_what_is_validated_and_kept_is_the_average(tmp_path: Path, tokenizer: Tokenizer) -> None:
    curve = train(small_qwen(), plan(), settings(tail_average=1.0), validate, tmp_path / "m", tokenizer)
    for name, expected in (("best", curve.best_loss), ("last", curve.last_loss)):
        assert validate(models.load(tmp_path / "m" / name)) == pytest.approx(expected, abs=1e-6)


def test_dropout_drops_in_training_alone_and_only_what_is_added(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from synthboot.lm import regularizers

    tokens = torch.arange(16)[None] + 3
    model, dropping = small_qwen(), small_qwen()
    regularizers.add_dropout(dropping, 0.5)
    assert torch.equal(dropping.eval()(tokens).logits, model.eval()(tokens).logits)
    assert list(dropping.state_dict()) == list(model.state_dict())

    embedding = dropping.train().get_input_embeddings()
    regularizers.seed_dropout(0, 3, 0)
    kept = embedding(tokens)
    zero = kept == 0
    assert 0.3 < zero.float().mean() < 0.7
    torch.testing.assert_close(kept[~zero], 2 * model.get_input_embeddings()(tokens)[~zero])
    # a function of seed, step and process
    logits = []
    for seed, step, rank in ((0, 3, 0), (0, 3, 0), (1, 3, 0), (0, 4, 0), (0, 3, 1)):
        regularizers.seed_dropout(seed, step, rank)
        logits.append(dropping(tokens).logits)
    assert torch.equal(logits[0], logits[1])
    assert not any(torch.equal(logits[0], other) for other in logits[2:])


def test_weight_decay_goes_to_its_end_in_a_straight_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def decayed(how: Settings) -> float:
        """The squared length of all matrices after training."""
        model = small_qwen()
        train(model, plan(), how, validate, tmp_path / f"{how.weight_decay}-{how.final_weight_decay}", tokenizer)
        return float(sum(p.detach().square().sum() for p in model.parameters() if p.dim() > 1))

    constant = decayed(settings(weight_decay=4.0))
    none = decayed(settings(weight_decay=0.0))
    rising = decayed(settings(weight_decay=0.0, final_weight_decay=8.0))
    assert rising < none
    assert constant < none
    same = decayed(settings(weight_decay=4.0, final_weight_decay=4.0))
    assert same == pytest.approx(constant, rel=1e-6)
