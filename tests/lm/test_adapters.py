"""Adapters train in place of weights, are merged where a model is written, and go on after a kill to the same bytes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from synthboot import config, loading
from synthboot.artifacts import store
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError, TrainingError
from synthboot.lm import adapters
from synthboot.lm import model as models
from synthboot.lm.arm import Sources, train_arm
from synthboot.lm.batches import PairForm, PairPlan
from synthboot.lm.train import Settings, train
from tests.conftest import small_config

VOCAB = 280
LORA = config.Lora(rank=4, dropout=0.1)


def llama() -> Any:
    """Grouped heads, as small open models have them."""
    torch.manual_seed(0)
    layout = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(layout)


def gpt2() -> Any:
    torch.manual_seed(0)
    layout = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return GPT2LMHeadModel(layout)


def tuned(model: Any, folder: Path, tokenizer: Tokenizer, kill_at: int = 0, tail_average: float = 0.0) -> Any:
    """Eight steps on pairs, with an evaluation every two; killed in the middle of step `kill_at`."""
    documents = [[*range(3 + i, 20 + 2 * i), tokenizer.end] for i in range(12)]
    plan = PairPlan(
        Tokens.of(documents),
        list(range(12)),
        [*range(1, 12), 0],
        PairForm(64, 0.4, tokenizer.end, tokenizer.separator),
        batch_tokens=128,
        tokens=1_024,
        seed=0,
    )
    calls = 0

    def validate(current: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise KeyboardInterrupt
        return -sum(float(p.detach().abs().sum()) for p in current.parameters() if p.requires_grad)  # a state of its own

    settings = Settings(
        lr=1e-2,
        weight_decay=0.1,
        warmup_steps=1,
        eval_steps=(2, 4, 6, 8),
        precision="float32",
        tail_average=tail_average,
    )
    return train(model, plan, settings, validate, folder, tokenizer)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("kernels", [True, False])
def test_what_is_written_is_an_ordinary_model_that_scores_as_the_adapters_do(
    build: Any, kernels: bool, tmp_path: Path, tokenizer: Tokenizer, without_kernels: Any
) -> None:
    if not kernels:
        without_kernels()
    model = build()
    before = copy.deepcopy(model.state_dict())
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        untrained = model.eval()(ids).logits
        adapters.add(model, LORA, 0, "tune", tokenizer.separator)
        assert torch.equal(model(ids).logits, untrained)  # they add nothing yet
    tuned(model, tmp_path, tokenizer)
    with torch.no_grad():
        adapted = model.eval()(ids).logits
        written = models.load(tmp_path / "last").eval()(ids).logits
    assert (adapted - untrained).abs().max() > 0.05
    torch.testing.assert_close(written, adapted, atol=1e-4, rtol=1e-4)
    found = models.load(tmp_path / "last").state_dict()
    assert found.keys() == before.keys()
    table = model.get_input_embeddings().weight
    tables = {name for name, weight in model.state_dict().items() if weight.data_ptr() == table.data_ptr()}
    for name, weight in found.items():  # matrices of the blocks moved, the separator's row did, and nothing else
        in_a_block = weight.dim() == 2 and (".layers." in name or ".h." in name)
        moved = (weight != before[name]).reshape(len(weight), -1).any(1)
        if name in tables:
            assert moved.nonzero().flatten().tolist() == [tokenizer.separator]
        else:
            assert moved.any() == in_a_block, name


@pytest.mark.parametrize("tail_average", [0.0, 1.0])
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer, tail_average: float) -> None:
    def start() -> Any:
        model = llama()
        adapters.add(model, LORA, 0, "tune", tokenizer.separator)
        return model

    tuned(start(), tmp_path / "whole", tokenizer, tail_average=tail_average)
    with pytest.raises(KeyboardInterrupt):
        tuned(start(), tmp_path / "killed", tokenizer, kill_at=3, tail_average=tail_average)
    checkpoint = next((tmp_path / "killed" / "work").glob("checkpoint-*"))
    whole = (tmp_path / "whole" / "last" / "model.safetensors").stat().st_size
    for part in checkpoint.glob("*.safetensors"):
        assert part.stat().st_size < whole / 2, part  # of the adapters alone
    tuned(start(), tmp_path / "killed", tokenizer, tail_average=tail_average)
    kept = {name: data for name, data in files(tmp_path / "whole").items() if not name.startswith("work")}
    again = {name: data for name, data in files(tmp_path / "killed").items() if not name.startswith("work")}
    assert kept == again
    assert kept


def test_a_damaged_checkpoint_of_adapters_is_an_error_and_no_part_to_make_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store.begin(tmp_path, "mine")

    def start() -> Any:
        model = llama()
        adapters.add(model, LORA, 0, "tune")
        return model

    with pytest.raises(KeyboardInterrupt):
        tuned(start(), tmp_path, tokenizer, kill_at=3)
    checkpoint = next((tmp_path / "work").glob("checkpoint-*"))
    (checkpoint / "adapters.safetensors").write_bytes(b"damaged")
    assert store.begin(tmp_path, "mine") == []
    with pytest.raises(TrainingError, match=rf"{checkpoint}: unreadable checkpoint .*adapters.safetensors"):
        tuned(start(), tmp_path, tokenizer)


def test_the_layers_may_be_named_and_others_are_refused() -> None:
    model = llama()
    adapters.add(model, config.Lora(rank=2, targets=["q_proj"]), 0, "tune")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 4  # two layers, two matrices
    assert all("q_proj" in name for name in trained)
    with pytest.raises(ConfigError, match=r"optim\.lora: llama: .*nowhere"):
        adapters.add(llama(), config.Lora(rank=2, targets=["nowhere"]), 0, "optim")


def test_arms_may_be_continued_by_adapters(tmp_path: Path, tokenizer: Tokenizer) -> None:
    llama().save_pretrained(tmp_path / "start")
    text = Tokens.of([[*range(2, 60), tokenizer.end]] * 8)
    trained = {}
    for rank in (0, 4):
        changes = {"optim": {"batch_tokens": 128, "evals": 1, "lora": {"rank": rank}, "precision": "float32"}}
        settings = small_config(
            tmp_path / "none", tmp_path, model={"init_from": str(tmp_path / "start"), "seq_len": 64}, **changes
        )
        settings["budget"] = {"unique_tokens": 100, "train_tokens": 512}
        cfg = loading.load(settings)
        folder = tmp_path / str(rank)
        trained[rank] = train_arm(cfg, cfg.arms["repetition"], 0, Sources(text), text, tokenizer, folder)
    before = models.load(tmp_path / "start").state_dict()
    after = models.load(tmp_path / "4" / "last").state_dict()
    assert after.keys() == before.keys()
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved
    assert all("_proj" in name for name in moved)
    # a backward pass without the gradients of weights, and the adapters' own matmuls
    flops = [trained[rank].token_counts.train_flops for rank in (4, 0)]
    assert 2 / 3 < flops[0] / flops[1] < 0.85
