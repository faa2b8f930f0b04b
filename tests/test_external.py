"""A synthesizer of another model and tokenizer than the arms: from its folder to the verdict."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from synthboot import api, recipes, show
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.external import External
from synthboot.artifacts.synthetic import Synthetic
from synthboot.data import disk
from synthboot.errors import ConfigError, SynthbootError
from synthboot.lm import model as our_models
from synthboot.lm import score
from synthboot.lm.batches import PairForm
from synthboot.runner.state import State, states
from tests.conftest import run_folder, small_config, tiny_config

ARMS = {
    "repetition": {},
    "sbp": {"synthetic": "related", "share": 0.2},
    "self": {"synthetic": "unconditional", "share": 0.2},
    "random": {"synthetic": "random_pairs", "share": 0.1},
}
RAN = {name: arm for name, arm in ARMS.items() if name != "random"}
KINDS = ("related", "unconditional")


def outsider(folder: Path, rows: int = 330, positions: int = 128) -> Path:
    """A Llama with grouped heads, and a tokenizer made as GPT-2's is, of other text than the tests' corpora."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["whatever else was written elsewhere in other words"] * 20, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(0)
    layout = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(layout).save_pretrained(folder)
    return folder


def standing(settings: dict[str, Any]) -> dict[str, State]:
    cfg = api.Run(settings).config
    return states(cfg, recipes.units(cfg))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a run whose synthetic text an outsider wrote, tuned by adapters and averaged with what it was."""
    root = tmp_path_factory.mktemp("external")
    settings = tiny_config(root)
    settings["arms"] = RAN
    settings["tune"] |= {
        "init_from": str(outsider(root / "model")),
        "seq_len": 128,
        "max_tokens": 3_000,
        "lr": 1e-2,
        "base_share": "auto",
        "lora": {"rank": 4},
    }
    settings["synthesize"] |= {"max_tokens": 60}
    api.Run(settings).run()
    return settings


def test_the_same_model_writes_for_the_method_and_its_controls(written: dict[str, Any]) -> None:
    units = recipes.units(api.Run({**written, "arms": ARMS}).config)
    for kind in (*KINDS, "random_pairs"):
        assert units[f"tune/{kind}"].parents["external"] == "corpus/external"
        assert units[f"synthesize/{kind}"].parents["synthesizer"] == f"tune/{kind}"
    assert "base" in units  # which the arms are compared with, and no synthesizer starts from


def test_what_was_sampled_is_what_the_arms_read_in_their_own_tokens(written: dict[str, Any]) -> None:
    run = run_folder(written)
    arms = Corpus.open(run / "01-corpus").tokenizer
    own = External.open(run / "01-corpus" / "external").tokenizer
    units = recipes.units(api.Run(written).config)
    for kind in KINDS:
        synthetic = Synthetic.open(run / "06-synthesize" / kind)
        rows = [row for chunk in synthetic.chunks for row in pq.read_table(chunk / "synthetic.parquet").to_pylist()]
        kept = [row for row in rows if row["verdict"] == "kept"]
        assert len(kept) == len(synthetic) > 0
        assert all(row["tokens"] == len(row["sampled"]) <= 60 for row in rows)
        for row, sample in zip(kept, synthetic, strict=True):
            assert sample.text == own.decode(row["sampled"])
            assert sample.tokens.tolist() == arms.encode([sample.text])[0]
            assert sample.sampled == len(row["sampled"])
        assert synthetic.tokens.num_tokens >= units[f"synthesize/{kind}"].synthesis.budget_tokens  # of the arms' tokens


def test_its_worth_is_measured_in_its_own_tokens_and_by_the_byte(written: dict[str, Any]) -> None:
    run = run_folder(written)
    external = External.open(run / "01-corpus" / "external")
    texts = [document.text for document in Corpus.open(run / "01-corpus").texts("validation")]
    untouched = our_models.load(external.model)
    for kind in KINDS:
        record = disk.read_json(run / "05-tune" / kind / "tune.json")
        unseen = record["conditioning"]["unseen"]
        room = 127 - 42  # what a third of the window leaves for d2
        d2 = [external.validation[doc][:room] for _, doc, _ in record["stopped_by"]]
        alone = score.pairs(untouched, d2, d2, PairForm(128, 1 / 3, external.tokenizer.end, None)).mean
        assert unseen["base"] == pytest.approx(alone, abs=1e-5)
        size = sum(len(external.tokenizer.decode(document).encode()) for document in d2)
        assert unseen["tokens_per_byte"] == pytest.approx(sum(map(len, d2)) / size)
        assert ("d1_worth" in unseen) == ("given_d1" in unseen) == (kind != "unconditional")
        assert unseen["net_worth"] > 0  # it had never seen such text
    [first] = external.tokenizer.documents(texts[:1])
    assert external.validation[0].tolist() == first


def test_an_outsider_is_named_wherever_results_are(written: dict[str, Any]) -> None:
    name = written["tune"]["init_from"]
    run = run_folder(written)
    verdict = Evaluation.open(run / "09-evaluate").verdict
    assert f"external: {name}, a model from outside the corpus, wrote the synthetic text" in verdict
    [example] = show.examples(run, "synthetic", 1)
    assert example.title.endswith(f"external ({name})")
    accounts = {row.unit: row.account for row in show.status(run)}
    assert accounts["05-tune/related"].endswith(" a byte); external")
    page = (run / "11-report" / "report.html").read_text("utf-8")
    assert "A model from outside the corpus" in page


def test_only_what_an_outsider_touches_is_stale_when_it_changes(written: dict[str, Any]) -> None:
    assert {state.status for state in standing(written).values()} == {"done"}
    layout = Path(written["tune"]["init_from"]) / "config.json"
    before = layout.read_text()
    layout.write_text(before + "\n")
    try:
        found = standing(written)
    finally:
        layout.write_text(before)
    assert found["corpus/external"].reasons[0].startswith("tune.init_from_files")
    stale = {name for name, state in found.items() if state.status == "stale"}
    assert {f"tune/{kind}" for kind in KINDS} <= stale
    assert not stale & {"corpus", "embed", "pair/related", "base"}


def refused(settings: dict[str, Any]) -> str:
    with pytest.raises(SynthbootError) as caught:
        api.Run(settings).run("tune")
    assert not (run_folder(settings) / "05-tune").exists()
    return str(caught.value)


def test_what_cannot_write_is_refused_before_anything_is_trained(tmp_path: Path, world_file: Path) -> None:
    fitting = str(outsider(tmp_path / "fitting"))
    few_rows = str(outsider(tmp_path / "few", rows=260))
    gpt2 = outsider(tmp_path / "gpt2")
    (gpt2 / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 330}))

    def of(**tune: Any) -> dict[str, Any]:
        return small_config(world_file, tmp_path, tune=tune)

    message = refused(of(init_from=few_rows))
    assert message.startswith(f"tune.init_from: {few_rows}: its tokenizer spells text in ")
    assert message.endswith("its model knows 260; they do not belong together")
    contrast = small_config(world_file, tmp_path, tune={"init_from": str(gpt2)}, synthesize={"contrast": 0.5})
    assert "does not know the layout of" in refused(contrast)
    message = refused(of(init_from=fitting, seq_len=64, contexts=4))
    assert message.startswith("tune.contexts: 4 documents have 4 tokens each of what d1 gets of tune.seq_len 64")
    message = refused(of(init_from=fitting, seq_len=4_096))
    assert message == f"tune.seq_len: 4096 is more than the 128 positions of {fitting}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": {"seq_len": 64}}, "`seq_len` is that of a model named by `init_from`"),
        ({"tune": {"init_from": "m"}, "arms": {"repetition": {}, "s": {"synthetic": "scratch", "share": 0.1}}}, "arms.s: "),
        ({"tune": {"lora": {"rank": 4}}, "arms": {"repetition": {}, "s": {"synthetic": "scratch", "share": 0.1}}}, "rank=0"),
        ({"optim": {"batch_tokens": 384, "lora": {"rank": 4}}}, "optim.lora: adapters are for a model to continue from"),
        ({"tune": {"lora": {"rank": 4}}, "engine": {"shard": True}}, "engine.shard: adapters are trained whole"),
    ],
)
def test_settings_that_exclude_each_other(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        api.Run({**small_config(tmp_path / "none", tmp_path), **changes})
