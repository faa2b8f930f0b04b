"""What is taken away can be used where it goes, says what it is, and takes nobody's folder."""

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from synthboot import api, config, loading
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.model import Model
from synthboot.artifacts.synthetic import Synthetic
from synthboot.cli import main
from synthboot.errors import ConfigError, CorruptArtifact, MissingArtifact, StorageError
from synthboot.export import cards
from synthboot.export.export import Exported, What, export
from synthboot.rng import rng
from tests.conftest import run_folder, tiny_config, world_documents, write_jsonl

NASTY = "</table>|`x`\n---\n# A <script>alert(1)</script> [here](http://e.vil) ``` \u202e{{7*7}}"


def untrusted_config(root: Path) -> dict[str, Any]:
    """Texts, ids and titles that mean something to Markdown, HTML and YAML."""
    rows = []
    for number, row in enumerate(world_documents(entities=24, each=5)):
        row["text"] += f" {NASTY} {number}"
        rows.append({**row, "id": f"{row['id']}{NASTY}", "title": f"{NASTY}{number}", "half": "\ud800"})
    settings = {**tiny_config(root), "name": "untrusted"}
    settings["corpus"] = {
        **settings["corpus"],
        "source": str(write_jsonl(root / "`a|<b>`.jsonl", rows)),
        "near_duplicates": "off",
    }
    settings["arms"] = {**settings["arms"], "self": {"synthetic": "unconditional", "share": 0.2}}
    return settings


def run_to_synthesis(root: Path) -> dict[str, Any]:
    settings = untrusted_config(root)
    api.Run(settings).run("synthesize")
    return settings


@pytest.fixture(scope="module")
def untrusted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run as far as its synthetic text: no arm is trained, nothing is evaluated."""
    return run_to_synthesis(tmp_path_factory.mktemp("untrusted"))


def made(settings: dict[str, Any], what: Any, out: Path, **options: Any) -> Exported:
    return export(loading.load(settings), what, out, **options)


def read(folder: Path, *name: str, cache: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), *name, cache_dir=str(cache))


def header(card: Path) -> dict[str, Any]:
    _, first, _ = card.read_text("utf-8").split("---\n", 2)
    return dict(yaml.safe_load(first))


def test_synthetic_text_is_a_data_set_that_says_where_each_text_is_from(untrusted: dict[str, Any], tmp_path: Path) -> None:
    exported = made(untrusted, "synthetic", tmp_path / "out")
    corpus = list(Corpus.open(run_folder(untrusted) / "01-corpus").texts("pretrain"))
    for kind in ("related", "unconditional"):
        samples = list(Synthetic.open(run_folder(untrusted) / "06-synthesize" / kind))
        found = read(tmp_path / "out", kind, cache=tmp_path / "cache")["train"]
        assert len(found) == len(samples) == exported.parts[kind]["documents"] > 8
        manifest = json.loads((run_folder(untrusted) / "06-synthesize" / kind / "manifest.json").read_text())
        for row, sample in zip(found, samples, strict=True):
            assert row["text"] == sample.text
            assert (row["sample"], row["finish"], row["mean_logprob"]) == (sample.sample, sample.finish, sample.mean_logprob)
            assert row["tokens"] == len(sample.tokens)
            assert (row["run"], row["kind"], row["fingerprint"]) == ("untrusted", kind, manifest["fingerprint"])
            if kind == "related":
                assert row["synthesizer"] == "tune/related"
                assert (row["seed_doc"], row["seed_id"]) == (sample.d1, corpus[sample.d1].id)
                assert row["seed_title"] == corpus[sample.d1].metadata["title"]
            else:  # a sample of base was written from nothing
                assert (row["synthesizer"], row["seed_doc"], row["seed_id"], row["seed_title"]) == ("base", None, None, None)
        assert sum(len(sample.tokens) + 1 for sample in samples) == exported.parts[kind]["tokens"]
    assert len(read(tmp_path / "out", cache=tmp_path / "cache")["train"]) == exported.parts["related"]["documents"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "related", "unconditional", "README.md", "synthboot-export.json"
    }  # fmt: skip
    assert list(made(untrusted, "synthetic", tmp_path / "self", arm="self").parts) == ["unconditional"]


def test_text_ids_and_file_names_mean_nothing_to_markdown_html_or_yaml(untrusted: dict[str, Any], tmp_path: Path) -> None:
    made(untrusted, "real", tmp_path / "out", license=f"mine: {NASTY}")
    found = read(tmp_path / "out", cache=tmp_path / "cache")
    corpus = Corpus.open(run_folder(untrusted) / "01-corpus")
    for split, name in {"train": "pretrain", "validation": "validation", "test": "test"}.items():
        documents = list(corpus.texts(name))
        assert [(row["id"], row["text"]) for row in found[split]] == [(doc.id, doc.text) for doc in documents]
        assert [json.loads(row["metadata"]) for row in found[split]] == [doc.metadata for doc in documents]
    card = tmp_path / "out" / "README.md"
    text = card.read_text("utf-8")
    assert header(card)["license_name"] == " ".join(f"mine: {NASTY}".split())
    body = text.split("---\n", 2)[2]
    assert "\u202e" not in body
    assert "| sources | `` `a\\|<b>`.jsonl `` |" in body
    shown = cards.code(NASTY)
    assert "\n" not in shown
    assert shown.startswith("````")  # longer than any run of backticks inside
    assert shown.endswith("````")
    assert cards.plain("a <b> *c* [d](e) `f`") == r"a &lt;b&gt; \*c\* \[d\](e) \`f\`"
    assert cards.code("plain") == "`plain`"
    assert cards.code("") == "`-`"


def test_a_card_says_whose_a_text_of_the_hub_is_and_what_was_replayed() -> None:
    corpus = config.Corpus(source="hub:owner/name:train", replay=["/home/me/wiki/en.jsonl", "hub:other/web:all"])
    assert cards.origins(corpus) == [["sources", "`hub:owner/name:train`"], ["replayed", "`en.jsonl`, `hub:other/web:all`"]]
    local = config.Corpus(source=["/home/me/a.jsonl", "b/", "hf://datasets/owner/name/c.parquet", "https://key@host/d.jsonl"])
    assert cards.origins(local) == [["sources", "`a.jsonl`, `b`, `hf://datasets/owner/name/c.parquet`, `d.jsonl`"]]
    keys = config.Corpus(source=["https://host/d.jsonl?sig=key", "https://me:key@host", "s3://key:key@host/e.jsonl", "/"])
    assert cards.origins(keys) == [["sources", "`d.jsonl`, `host`, `e.jsonl`, `/`"]]


def test_models_load_with_their_tokenizer_and_a_card_of_what_was_measured(finished: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = made(finished, "models", tmp_path / "out", license="cc0-1.0")
    assert set(exported.parts) == {"repetition", "sbp", "oracle"}
    losses = {arm: part["validation_loss"] for arm, part in exported.parts.items()}
    assert losses[str(exported.best)] == min(losses.values())
    run = run_folder(finished)
    by_seed = {seed: Model.open(run / f"07-pretrain/sbp/seed-{seed}").curve.best_loss for seed in (0, 1)}
    assert exported.parts["sbp"]["seed"] == min(by_seed, key=lambda seed: by_seed[seed])

    place = tmp_path / "out" / "sbp"
    best = run / f"07-pretrain/sbp/seed-{exported.parts['sbp']['seed']}/best"
    assert not (place / "part.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(place)
    ids = torch.tensor([tokenizer("by trade a miller")["input_ids"]])
    logits = [AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (place, best)]
    assert torch.equal(*logits)

    card = (place / "README.md").read_text("utf-8")
    assert header(place / "README.md")["license"] == "cc0-1.0"
    evaluation = Evaluation.open(run / "09-evaluate")
    assert cards.plain(evaluation.verdict) in card
    for scores in evaluation.arms.values():
        assert "{:.4f} ({:.4f} to {:.4f})".format(*scores.loss) in card
    assert f"{evaluation.arms['sbp'].p_adjusted:.2g} |" in card
    for words in ("small research model", "2 seeds an arm", "unseen real", "left out: near duplicate"):
        assert words in card
    assert "## Quality" not in (tmp_path / "out" / "repetition" / "README.md").read_text()
    chosen = made(finished, "models", tmp_path / "one", arm="repetition", seed=1)
    assert chosen.parts["repetition"]["seed"] == 1


def test_a_licence_that_nobody_stated_is_asked_for(finished: dict[str, Any], tmp_path: Path) -> None:
    for what in ("real", "models"):
        out = tmp_path / what
        made(finished, what, out, license="  ")
        card = next(out.rglob("README.md"))
        assert "license" not in header(card)
        assert "**Not known.**" in card.read_text()


def test_the_tokens_of_an_arm_are_those_it_trains_on(finished: dict[str, Any], tmp_path: Path) -> None:
    """Against its streams laid end to end by hand."""
    exported = made(finished, "tokens", tmp_path / "out", arm="sbp", seed=1)
    part = exported.parts["sbp"]
    rows = np.fromfile(tmp_path / "out" / "tokens.ds", part["dtype"]).reshape(-1, part["row_tokens"])
    sources = np.load(tmp_path / "out" / "sources.npy")
    counts = Model.open(run_folder(finished) / "07-pretrain/sbp/seed-1").token_counts
    assert len(rows) == len(sources) == part["rows"] == counts.train_tokens // 96
    assert (sources == 1).sum() * 96 == counts.synthetic_tokens == part["synthetic_tokens"]

    corpus = Corpus.open(run_folder(finished) / "01-corpus")
    for number, (tokens, stream) in enumerate(
        [
            (corpus.pretrain, "plan.real"),
            (Synthetic.open(run_folder(finished) / "06-synthesize/related").tokens, "plan.synthetic"),
        ]
    ):
        end_to_end = [corpus.tokenizer.end]
        for epoch in range(5):
            for doc in rng(1, stream, epoch).permutation(len(tokens)):
                end_to_end += tokens[doc].tolist()
        of_stream = rows[sources == number]
        for at, row in enumerate(of_stream):
            assert row.tolist() == end_to_end[at * 96 : at * 96 + 97]
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "out").decode(rows[0])


def test_what_is_not_finished_or_damaged_is_refused(untrusted: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match=r"pretrain/sbp/seed-0 is missing; run `synthboot pretrain CONFIG` first"):
        made(untrusted, "models", tmp_path / "out", arm="sbp")
    changed = {**untrusted, "synthesize": {**untrusted["synthesize"], "top_p": 0.8}}
    with pytest.raises(MissingArtifact, match=r"synthesize/related is stale \(synthesize.top_p unset -> 0.8\); run"):
        made(changed, "synthetic", tmp_path / "out")
    # what the arm reads is there, so that its tokens are
    assert made(untrusted, "tokens", tmp_path / "tokens", arm="sbp").parts["sbp"]["rows"] > 20
    assert "**Not evaluated**" in _card(made(untrusted, "models", tmp_path / "base", arm="repetition").folder / "repetition")

    shutil.copytree(run_folder(untrusted), tmp_path / untrusted["name"])
    damaged = next((tmp_path / untrusted["name"] / "06-synthesize/related").rglob("tokens.bin"))
    damaged.write_bytes(b"\0" + damaged.read_bytes()[1:])
    with pytest.raises(CorruptArtifact, match=r"tokens.bin: does not match its hash"):
        made({**untrusted, "root": str(tmp_path)}, "synthetic", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tokens", untrusted["name"]]


def _card(folder: Path) -> str:
    return (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("synthetic", {"arm": "spb"}, "no arm spb; there are repetition, sbp, oracle"),
        ("synthetic", {"arm": "oracle"}, "arm oracle reads no synthetic text"),
        ("models", {"arm": "spb"}, "no arm spb"),
        ("models", {"seed": 7}, "no model of seed 7; there are 0, 1"),
        ("real", {"seed": 0}, "--seed is about models and tokens"),
        ("tokens", {}, r"name it by --arm \(repetition, sbp, oracle\)"),
    ],
)
def test_what_there_is_not_is_one_line(
    finished: dict[str, Any], tmp_path: Path, what: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        made(finished, what, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_but_an_export(finished: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for force, message in [(False, "is there already"), (True, "is no export of synthboot")]:
        with pytest.raises(ConfigError, match=message):
            made(finished, "real", mine, force=force)
    assert list(mine.iterdir()) == []

    out = tmp_path / "out"
    made(finished, "models", out, arm="sbp")
    with pytest.raises(ConfigError, match="is there already"):
        made(finished, "real", out)
    with pytest.raises(ConfigError, match="no arm"):  # what fails leaves what was there
        made(finished, "real", out, force=True, arm="none")
    assert (out / "sbp" / "model.safetensors").exists()
    made(finished, "real", out, force=True)
    assert not (out / "sbp").exists()
    for inside in (run_folder(finished) / "out", run_folder(finished) / "07-pretrain", run_folder(finished).parent):
        with pytest.raises(ConfigError, match="would lie in each other"):
            made(finished, "real", inside, force=True)
    monkeypatch.chdir(out)
    made(finished, "real", Path("."), force=True)
    assert (out / "README.md").exists()
    monkeypatch.chdir(tmp_path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match="is there already"):
        made(finished, "real", loop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", "mine", "out"]


def test_a_disk_that_is_full_leaves_nothing(finished: dict[str, Any], tmp_path: Path) -> None:
    """A limit on the size of files stops every library in the middle of one, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for what, options in {"synthetic": {}, "models": {}, "tokens": {"arm": "sbp"}}.items():
        made(finished, what, tmp_path / "warm", force=True, **options)  # what is imported first must not meet the limit
        shutil.rmtree(tmp_path / "warm")
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        try:
            with pytest.raises(StorageError, match=r"larger than may be|the disk is full"):
                made(finished, what, tmp_path / "out", **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote(finished: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(finished))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["export", str(path), *arguments])

    text = call()
    assert text.exit_code == 0, text.output
    assert re_line(text.stdout, "related ")
    assert "licence of the sources: not known" in text.stdout
    assert os.listdir(tmp_path / "small-synthetic" / "related") == ["00000.parquet"]

    models = call("out", "--what", "models", "--license", "mit")
    verdict = Evaluation.open(run_folder(finished) / "09-evaluate").verdict
    assert models.stdout.splitlines()[-1] == verdict
    assert "best by validation loss: out/" in models.stdout
    told = json.loads(call("more", "--what", "models", "--json").stdout)
    assert told["best"] in told["parts"]
    assert told["folder"] == "more"
    [what] = [option for option in main.commands["export"].params if option.name == "what"]
    assert tuple(what.type.choices) == get_args(What)
    again = call("out")
    assert again.exit_code == 2
    assert again.stderr.strip().endswith("name another folder, or --force to replace it")


def re_line(text: str, start: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith(start)]
    return line
