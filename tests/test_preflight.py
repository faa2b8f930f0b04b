"""What is wrong is said before the first unit starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from synthboot import api, cli, loading, preflight
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.store import read_manifest
from synthboot.errors import BudgetError, ConfigError, DataError, SynthbootError
from synthboot.lm import model as models
from synthboot.recipes import units
from synthboot.runner.state import states
from tests.conftest import run_folder, small_config, tiny_config, world_documents, write_jsonl


def refused(settings: dict[str, Any]) -> str:
    told: list[str] = []
    with pytest.raises(SynthbootError) as caught:
        api.Run(settings, progress=lambda _, kind, __: told.append(kind)).run("corpus")
    assert "start" not in told
    assert not (run_folder(settings) / "01-corpus").exists()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def remote(folder: Path) -> str:
    """A model that brings code along, which would leave a mark."""
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass C: pass\n")
    auto = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C", "AutoTokenizer": ["code.C", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "odd", "auto_map": auto}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto, "tokenizer_class": "Odd"}))
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "code.C"}]))
    return str(folder)


@pytest.mark.parametrize("setting", ["model__init_from", "corpus__tokenizer", "embed__model"])
def test_a_model_that_brings_code_along_is_refused_and_nothing_runs(
    setting: str, world_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    folder = remote(tmp_path / "m")
    message = refused(small_config(world_file, tmp_path, **{setting: folder}))
    assert "it wants to run code of its own, which synthboot never does" in message
    assert not (tmp_path / "m" / "ran").exists()


@pytest.mark.parametrize("setting", ["model__init_from", "corpus__tokenizer", "embed__model"])
def test_a_model_that_is_not_there_is_an_error_at_once(setting: str, world_file: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "modle" / "base")
    assert path in refused(small_config(world_file, tmp_path, **{setting: path}))
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(small_config(world_file, tmp_path, **{setting: str(tmp_path / "empty")}))


def test_other_things_that_are_not_there(world_file: Path, tmp_path: Path) -> None:
    vectors = {"model": "file", "path": str(tmp_path / "none.npy")}
    assert "embed.path" in refused(small_config(world_file, tmp_path, embed=vectors))
    assert "engine.track: wandb: is not installed" in refused(small_config(world_file, tmp_path, engine__track=["wandb"]))
    judge = f"local:{tmp_path / 'none'}"
    assert "analyze.judges: local: " in refused(small_config(world_file, tmp_path, analyze={"judges": [judge]}))
    assert "engine.device: cuda" in refused(small_config(world_file, tmp_path, engine__device="cuda"))


def test_a_path_that_is_not_there_is_told_with_where_it_was_looked_for(
    world_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for change in (
        {"corpus__source": "texts/*.jsonl"},
        {"corpus__tokenizer": "./models/own"},
        {"model__init_from": "./models/own"},
        {"tune__init_from": "./models/own"},
        {"embed": {"model": "file", "path": "own.npy"}},
        {"embed": {"model": "./own"}},
        {"evaluate": {"tasks": ["own.jsonl"]}},
    ):
        assert f" (from {tmp_path / 'here'}): " in refused(small_config(world_file, tmp_path, **change))
    assert "(from" not in refused(small_config(world_file, tmp_path, corpus__source=str(tmp_path / "none.jsonl")))
    with pytest.raises(ConfigError, match=rf" \(from {tmp_path / 'here'}\): "):  # a plan's, which looks at the layout alone
        models.outline("./models/own")


@pytest.mark.parametrize(
    ("variable", "change"),
    [
        ("SYNTHBOOT_API_KEY", {"synthesize__sampler": "server"}),
        ("SYNTHBOOT_JUDGE_API_KEY", {"analyze__judges": ["server:judge"]}),
    ],
)
def test_a_key_that_no_header_holds(
    variable: str, change: dict[str, Any], world_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "sk-secret\u2014and more")
    message = refused(small_config(world_file, tmp_path, **change))
    assert message == f"{variable}: holds characters that no key has; set it again"


def test_more_contexts_than_fit_the_window(world_file: Path, tmp_path: Path) -> None:
    # a third of 95 tokens, less three separators, for four
    message = refused(small_config(world_file, tmp_path, tune__contexts=4))
    assert message.startswith("tune.contexts: 4 documents have 7 tokens each")
    assert "raise tune.d1_share or model.seq_len" in message


def test_a_contrast_needs_the_built_in_sampler(world_file: Path, tmp_path: Path) -> None:
    synthesize = {"contrast": 0.5, "sampler": "server"}
    assert "`contrast` needs `sampler: embedded`" in refused(small_config(world_file, tmp_path, synthesize=synthesize))
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    settings = small_config(world_file, tmp_path, model__init_from=str(tmp_path / "gpt2"), synthesize__contrast=0.5)
    assert "does not know the layout of" in refused(settings)


def test_a_contrast_needs_a_d1_in_the_prompt(world_file: Path, tmp_path: Path) -> None:
    unprompted = {"pointer": True, "base_share": 1.0}
    message = refused(small_config(world_file, tmp_path, synthesize__contrast=0.5, tune=unprompted))
    assert "synthesize.contrast: is what a d1 in the prompt adds" in message
    own = {"repetition": {}, "self": {"synthetic": "unconditional", "share": 0.5}}
    message = refused(small_config(world_file, tmp_path, synthesize__contrast=0.5, arms=own))
    assert "samples of `synthetic: unconditional` have none; set synthesize.contrast=0" in message
    related = own | {"sbp": {"synthetic": "related", "share": 0.5}}
    loading.load(small_config(world_file, tmp_path, synthesize__contrast=0.5, arms=related))


def test_a_pointer_needs_the_built_in_sampler(world_file: Path, tmp_path: Path) -> None:
    settings = small_config(world_file, tmp_path, tune__pointer=True, synthesize__sampler="server")
    assert "tune.pointer: the built-in engine alone has it" in refused(settings)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    settings = small_config(world_file, tmp_path, model__init_from=str(tmp_path / "gpt2"), tune__pointer=True)
    assert "tune.pointer: the built-in sampler" in refused(settings)
    assert "set `pointer: true`" in refused(small_config(world_file, tmp_path, tune__base_share=1.0))


def test_questions_are_read_before_anything_is_made(world_file: Path, tmp_path: Path) -> None:
    rows: list[Any] = [{"query": "q", "choices": ["a", "b"], "gold": 0}, {"query": None, "choices": ["a", "b"], "gold": 0}, "{"]
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    message = refused(small_config(world_file, tmp_path, evaluate={"tasks": [str(path)]}))
    assert message == f'{path} line 2: "query" is null, not text; 2 of 3 are no questions'


def test_a_choice_longer_than_the_window_stops_the_run_before_any_model(finished: dict[str, Any], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", [{"query": "q", "choices": ["river " * 400, "stone"], "gold": 1}])
    begun: list[str] = []

    def tell(name: str, what: str, _: object) -> None:
        if what != "plan":
            begun.append(name)

    with pytest.raises(DataError, match=r"question 0 has a choice of [\d,]+ tokens, and model\.seq_len is 96"):
        api.Run({**finished, "evaluate": {"tasks": [str(path)]}}, progress=tell).run()
    assert not begun


def test_an_unknown_task_names_the_nearest(world_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"blimpp: neither a file nor a known task; .*; did you mean blimp\?"):
        api.Run(small_config(world_file, tmp_path, evaluate={"tasks": ["blimpp"]})).run("corpus")


def test_what_several_models_cannot_do_is_said_at_once(world_file: Path, tmp_path: Path) -> None:
    arms = {"repetition": {}, "ens": {"ensemble": 2}}
    asked = small_config(world_file, tmp_path, arms=arms, evaluate={"tasks": ["lm-eval:piqa"]})
    assert "lm-eval takes a model's folder, and arms.ens is 2 models" in refused(asked)
    taught = small_config(world_file, tmp_path, arms={**arms, "taught": {"distill": "ens"}}, engine={"processes": 2})
    assert "arms.taught.distill: a teacher is asked by one process alone" in refused(taught)


def test_rows_of_tuning_are_dealt_out_too(world_file: Path, tmp_path: Path) -> None:
    settings = small_config(world_file, tmp_path, engine__processes=2)
    cfg = loading.load(settings)
    seq_len = cfg.model.seq_len
    fine = {"optim__batch_tokens": 4 * seq_len, "tune__batch_tokens": 2 * seq_len, "engine__processes": 2}
    preflight.check(loading.load(small_config(world_file, tmp_path, **fine)))
    message = refused(small_config(world_file, tmp_path, **fine | {"tune__batch_tokens": 3 * seq_len}))
    assert "a step of 3 rows cannot be shared by 2 processes; make tune.batch_tokens / model.seq_len a multiple of 2" in message
    untuned = {"repetition": {}, "self": {"synthetic": "unconditional", "share": 0.5}}
    fits = fine | {"tune__batch_tokens": 3 * seq_len, "arms": untuned}
    preflight.check(loading.load(small_config(world_file, tmp_path, **fits)))


def test_a_share_that_rounds_to_none_or_to_all(world_file: Path, tmp_path: Path) -> None:
    # 12,000 tokens are 31 steps of four rows
    def said(share: float | None = None, **changes: Any) -> str:
        arms = {"repetition": {}, **({} if share is None else {"a": {"synthetic": "related", "share": share}})}
        return refused(small_config(world_file, tmp_path, **{"arms": arms, **changes}))

    rows = "of 124 rows of training comes to"
    assert said(0.004) == f"arms.a.share: 0.004 {rows} none; raise it, or raise budget.train_tokens"
    assert said(0.997) == f"arms.a.share: 0.997 {rows} all of them; lower it, or raise budget.train_tokens"
    for share in (0.0041, 0.995):
        arms = {"repetition": {}, "a": {"synthetic": "unconditional", "share": share}}
        preflight.check(loading.load(small_config(world_file, tmp_path, arms=arms)))
    swept = {"repetition": {}, "a": {"synthetic": "related", "sweep": {"share": [0.5, 0.001]}}}
    assert f"arms.a.share: 0.001 {rows} none" in said(arms=swept)
    assert "arms.a.noise: 1e-05 of 11,904 tokens comes to none" in said(arms={"repetition": {}, "a": {"noise": 1e-5}})
    assert "tune.plain_share: 0.001 of 60 rows of training comes to none" in said(0.5, tune__plain_share=0.001)
    assert "tune.plain_share: 0.999 of 60 rows" in said(0.5, tune__plain_share=0.5, tune__sweep={"plain_share": [0.5, 0.999]})


@pytest.mark.parametrize(("share", "comes_to"), [(0.001, "none; raise it"), (0.999, "all of them; lower it")])
def test_a_share_of_replayed_text_that_rounds_to_none_or_to_all(
    share: float, comes_to: str, world_file: Path, tmp_path: Path
) -> None:
    settings = small_config(world_file, tmp_path, corpus__replay=str(world_file), model__init_from=str(tmp_path))
    settings["budget"]["replay_share"] = share
    assert refused(settings).startswith(f"budget.replay_share: {share} of 124 rows of training comes to {comes_to}")


def test_a_share_is_refused_before_a_plan_for_another_machine(world_file: Path, tmp_path: Path) -> None:
    settings = small_config(world_file, tmp_path, arms={"repetition": {}, "a": {"synthetic": "related", "share": 1e-4}})
    (tmp_path / "a.json").write_text(json.dumps(settings))
    for words in ([], ["--hardware", "laptop"]):
        said = CliRunner().invoke(cli.main, ["plan", str(tmp_path / "a.json"), *words])
        assert said.exit_code == 2
        assert said.output.startswith("error: arms.a.share: 0.0001 of 124 rows")


def test_an_oracle_with_the_text_of_all_arms_is_repetition(world_file: Path, tmp_path: Path) -> None:
    tokens = small_config(world_file, tmp_path)["budget"]["unique_tokens"]
    for same in ("all", tokens):
        arms = {"repetition": {}, "oracle": {"unique_tokens": same}}
        settings = small_config(world_file, tmp_path, budget__unique_tokens=same, arms=arms)
        assert refused(settings).startswith(f"arms.oracle.unique_tokens: {same} is what all arms have")
        marked = settings | {"corpus": settings["corpus"] | {"split_field": "split"}}
        if same == "all":  # there may be text for oracles alone
            preflight.check_anywhere(loading.load(marked))
    # as many documents all the same
    arms = {"repetition": {}, "oracle": {"unique_tokens": tokens + 1}}
    settings = small_config(world_file, tmp_path, budget__unique_tokens=tokens, arms=arms)
    begun: list[str] = []
    with pytest.raises(BudgetError, match=rf"^arms\.oracle\.unique_tokens: {tokens + 1} is the [\d,]+ documents of D_pretrain"):
        api.Run(settings, progress=lambda name, kind, _: begun.append(name) if kind == "start" else None).run()
    assert begun == ["corpus"]
    # what is written on top of them makes it another arm
    noisy = {"repetition": {}, "oracle": {"unique_tokens": tokens, "noise": 0.1}}
    cfg = loading.load(settings | {"arms": noisy})
    preflight.check_anywhere(cfg)
    preflight.check_against_corpus(cfg, Corpus.open(cfg.folder / "01-corpus"))


def test_pairs_that_nothing_can_be_tuned_on_are_met_before_base_is(tmp_path: Path) -> None:
    settings = tiny_config(tmp_path)
    rows = world_documents(entities=24, each=5)
    # what is marked as validation has nothing in common with the rest
    for number in range(12):
        rows.append({"id": f"odd-{number}", "text": " ".join(f"{number}{i} {i}%" for i in range(40)), "split": "validation"})
    for number, row in enumerate(rows):
        row.setdefault("split", "test" if number < 8 else "pretrain")
    corpus = {**settings["corpus"], "source": str(write_jsonl(tmp_path / "marked.jsonl", rows)), "split_field": "split"}
    settings |= {"corpus": corpus, "engine": {"jobs": 1}, "pair": settings["pair"] | {"min_similarity": 0.88}}

    def begun(stage: str) -> list[str]:
        names: list[str] = []
        run = api.Run(settings, progress=lambda name, kind, _: names.append(name) if kind == "start" else None)
        with pytest.raises(DataError, match=r"^pair: no validation document has a neighbour above min_similarity"):
            run.run(stage)
        return names

    assert begun("tune") == ["corpus", "embed", "pair/related"]
    assert begun("report") == []  # the pairs are there now, and no better
    # who asks for pairs alone gets them, and is told
    assert len(api.Run(settings).pair())
    manifest = read_manifest(run_folder(settings) / "03-pair" / "related")
    assert manifest is not None
    assert "no validation document has a neighbour" in manifest.counts["account"]


def test_one_document_is_no_test_set(world_file: Path, tmp_path: Path) -> None:
    assert "test_docs" in refused(small_config(world_file, tmp_path, corpus__test_docs=1))


def test_a_misspelt_field_costs_no_finished_corpus(finished: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(run_folder(finished), run / finished["name"], symlinks=True)
    settings = finished | {"root": str(run)}
    assert states(loading.load(settings), units(loading.load(settings)))["corpus"].status == "done"
    odd = settings | {"corpus": settings["corpus"] | {"text_field": "txt"}}
    with pytest.raises(DataError, match=r'none of the first .* records is a document .*no "txt" field'):
        api.Run(odd).run("corpus")
    assert states(loading.load(settings), units(loading.load(settings)))["corpus"].status == "done"


def test_records_that_are_none_before_those_that_are_do_not_stop_a_corpus(finished: dict[str, Any], tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "s.jsonl", [*[{"id": f"i{i}"} for i in range(150)], {"id": "a", "text": "some words"}])
    settings = finished | {"corpus": finished["corpus"] | {"source": str(source)}}
    preflight.check_source(loading.load(settings))
    write_jsonl(source, [{"id": f"i{i}"} for i in range(150)])
    with pytest.raises(DataError, match="none of the first 150 records is a document"):
        preflight.check_source(loading.load(settings))
