"""Whole runs of the small world: what is made, what is stale and why, what is refused."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from synthboot import api, loading, recipes
from synthboot.artifacts import store
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.evaluation import Contamination, Evaluation
from synthboot.artifacts.model import Model
from synthboot.artifacts.scores import Scores
from synthboot.data import disk, lock, words
from synthboot.data.tokens import Tokens
from synthboot.errors import (
    BudgetError,
    ConfigError,
    CorruptArtifact,
    DataError,
    FinishedWork,
    LockedRun,
    MissingArtifact,
    StorageError,
    UnfairComparison,
)
from synthboot.runner import executor
from synthboot.runner.state import State
from synthboot.runner.state import states as states_of
from synthboot.steps.evaluate import FAR, NEAR
from tests.conftest import contents, run_folder, small_config, tiny_config, write_jsonl
from tests.limits import limit


def copy(settings: dict[str, Any], to: Path) -> dict[str, Any]:
    """A finished run of one's own to spoil."""
    shutil.copytree(run_folder(settings), to / "small")
    return {**settings, "root": str(to)}


def states(settings: dict[str, Any], **changes: Any) -> dict[str, State]:
    cfg = loading.load(settings, set=changes)
    return states_of(cfg, recipes.units(cfg))


def run(settings: dict[str, Any], replace: bool = False) -> dict[str, list[str]]:
    """The units that were made, and those that were kept."""
    told: dict[str, list[str]] = {"done": [], "kept": []}
    api.Run(settings, progress=lambda name, kind, _: told.get(kind, []).append(name), replace=replace).run()
    return told


def note(settings: dict[str, Any], name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Have the manifest of a finished artifact say something else."""
    path = recipes.units(loading.load(settings))[name].folder(run_folder(settings)) / store.MANIFEST
    record = disk.read_record(path)
    change(record)
    disk.write_record(path, record)


def not_done(found: dict[str, State]) -> set[str]:
    return {name for name, s in found.items() if s.status != "done"}


MODELS = {f"pretrain/{a}/seed-{s}" for a in ("sbp", "oracle") for s in (0, 1)} | {"pretrain/repetition/seed-1"}
SCORES = {f"score/{a}/seed-{s}" for a in ("repetition", "sbp", "oracle") for s in (0, 1)}
ALL = (
    {
        "corpus",
        "embed",
        "pair/related",
        "base",
        "tune/related",
        "synthesize/related",
        "evaluate",
        "analyze",
        "report",
    }
    | MODELS
    | SCORES
)


def test_every_artifact_is_made_once_and_nothing_is_trained_twice(finished: dict[str, Any]) -> None:
    assert set(states(finished)) == ALL
    assert not not_done(states(finished))
    made = sorted(p.parent.relative_to(run_folder(finished)).as_posix() for p in run_folder(finished).rglob("manifest.json"))
    assert len(made) == len(ALL)
    assert not any("pretrain/repetition/seed-0" in m for m in made)  # that is base


def test_arms_spend_exactly_the_same_and_token_counts_match_what_was_synthesized(finished: dict[str, Any]) -> None:
    result = Evaluation.open(run_folder(finished) / "09-evaluate")
    token_counts = [counts for seeds in result.token_counts.values() for counts in seeds.values()]
    assert len(token_counts) == 6
    assert {counts.train_tokens for counts in token_counts} == {11_904}  # 31 batches of 384
    sbp = result.token_counts["sbp"][0]
    found = Tokens.open(store.Shards(run_folder(finished) / "06-synthesize" / "related" / "chunks"))
    assert sbp.synthetic_tokens == round(0.5 * 31 * 4) * 96
    assert sbp.synthetic_epochs == pytest.approx(sbp.synthetic_tokens / found.num_tokens)
    assert sbp.synthetic_epochs <= 1


def test_seeds_share_initial_weights_and_arms_differ(finished: dict[str, Any]) -> None:
    losses = pq.read_table(run_folder(finished) / "09-evaluate" / "losses.parquet").to_pandas()
    by_model = losses[losses.checkpoint == "last"].groupby(["arm", "seed"]).loss.sum()
    assert len(set(by_model.round(6))) == 6
    assert len(losses) == 3 * 2 * 2 * 30


def test_where_the_loss_lies_adds_up(finished: dict[str, Any]) -> None:
    """By part of a document, and by whether D_pretrain has a neighbour of it."""
    result = Evaluation.open(run_folder(finished) / "09-evaluate")
    rows = pq.read_table(run_folder(finished) / "09-evaluate" / "losses.parquet").to_pandas()
    mean = rows[rows.checkpoint == result.checkpoint].groupby("arm").loss.mean()
    for arm, parts in result.parts["all"].items():
        assert set(parts) == set(words.KINDS)
        assert sum(value for value, _, _ in parts.values()) == pytest.approx(mean[arm])
        assert parts["number"].value > 0  # every document of this world has two

    groups = result.chosen.groups
    assert set(groups) <= {NEAR, FAR}
    assert NEAR in groups  # six documents of an entity: the others are neighbours
    for by_arm in groups.values():
        assert set(by_arm) == set(mean.index)


def test_the_synthesizer_starts_from_the_best_base(finished: dict[str, Any]) -> None:
    tuned = store.read_json(run_folder(finished) / "05-tune" / "related" / "tune.json")
    assert tuned["curve"]["validation"][0][0] == 0
    assert tuned["conditioning"]["unseen"]["given_d1"] == pytest.approx(tuned["curve"]["best_loss"], abs=1e-5)
    unseen = tuned["conditioning"]["unseen"]
    assert unseen["d1_worth"] == pytest.approx(unseen["given_random_d1"] - unseen["given_d1"], abs=1e-5)
    assert unseen["net_worth"] == pytest.approx(unseen["base"] - unseen["given_d1"], abs=1e-5)
    assert unseen["d1_worth_error"] > 0
    assert unseen["net_worth_error"] > 0
    assert f"{unseen['net_worth']:+.4f}" in tuned["account"]


@pytest.fixture(scope="module")
def pointed(world_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run whose synthesizer is base with a pointer over d1."""
    settings = small_config(
        world_file,
        tmp_path_factory.mktemp("pointed"),
        tune__pointer=True,
        tune__base_share=1.0,
        arms={
            "repetition": {},
            "sbp": {"synthetic": "related", "share": 0.5},
            "random": {"synthetic": "random_pairs", "share": 0.5},
        },
        pretrain={"seeds": [0]},
    )
    executor.run(loading.load(settings), "report")
    return settings


def test_base_with_a_pointer_reads_d1_and_forgets_nothing(pointed: dict[str, Any]) -> None:
    folder = run_folder(pointed) / "05-tune"
    tuned = store.read_json(folder / "related" / "tune.json")
    unseen = tuned["conditioning"]["unseen"]
    assert not tuned["is_prompted"]
    assert "by base and a pointer" in tuned["account"]
    assert unseen["given_nothing"] == unseen["base"]  # nothing was trained
    assert unseen["d1_worth"] > 3 * unseen["d1_worth_error"]  # documents of an entity share its name and what is told of it
    assert unseen["net_worth"] > 3 * unseen["net_worth_error"]
    assert len(tuned["curve"]["validation"]) == 1
    base = load_file(run_folder(pointed) / "04-base" / "best" / "model.safetensors")
    kept = load_file(folder / "related" / "best" / "model.safetensors")
    assert all(np.array_equal(base[name], kept[name]) for name in base)
    # of a random d1 nothing is to be copied, and the weights say so
    control = store.read_json(folder / "random_pairs" / "tune.json")
    assert abs(control["conditioning"]["unseen"]["d1_worth"]) < unseen["d1_worth"] / 4


def test_what_a_pointer_writes_shares_more_with_its_d1_than_with_another(pointed: dict[str, Any]) -> None:
    run = api.Run(pointed)
    texts = run.corpus()
    rows = pq.read_table(sorted((run_folder(pointed) / "06-synthesize" / "related").rglob("synthetic.parquet"))[0]).to_pylist()
    counts = store.read_manifest(run_folder(pointed) / "06-synthesize" / "related").counts
    assert counts["prompt_tokens"] == counts["requests"]  # an end token each: d1 is in no prompt

    def shared(text: str, d1: str) -> float:
        words = text.split()
        return sum(word in d1.split() for word in words) / max(1, len(words))

    own = np.mean([shared(row["text"], texts[row["d1"]]) for row in rows])
    other = np.mean([shared(row["text"], texts[(row["d1"] + 7) % len(texts)]) for row in rows])
    assert own > other


def test_a_contrast_without_d1_in_the_prompt_is_said_to_do_nothing(pointed: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(pointed), tmp_path / pointed["name"], symlinks=True)
    plain = loading.load(pointed | {"root": str(tmp_path)})
    # as where `base_share: auto` has chosen base, which shows only once it is tuned
    cfg = plain.model_copy(update={"synthesize": plain.synthesize.model_copy(update={"contrast": 0.5})})
    told: list[str] = []
    executor.run(cfg, "synthesize", lambda _, kind, value: told.append(value) if kind == "note" else None)
    assert sum(note.startswith("synthesize.contrast has nothing to do: tune.base_share") for note in told) == 2


def test_python_reads_by_the_pointer_too(pointed: dict[str, Any]) -> None:
    synthesizer = api.Run(pointed).tune()
    d1 = "Kobari7 wears red clothes. Kobari7 works as a miller."
    given = synthesizer.logprob("Kobari7 wears red clothes", d1)
    assert given > synthesizer.logprob("Kobari7 wears red clothes", "find Tenmar2 in the harbor") + 1
    assert len(synthesizer.sample(d1, 2)) == 2


def test_a_share_of_base_is_chosen_with_the_pointer_beside_it(world_file: Path, tmp_path: Path) -> None:
    settings = small_config(world_file, tmp_path, tune__pointer=True, tune__base_share="auto")
    executor.run(loading.load(settings), "tune")
    tuned = store.read_json(run_folder(settings) / "05-tune" / "related" / "tune.json")
    shares = dict(map(tuple, tuned["base_share"]))
    assert list(shares)[-1] == 1.0
    assert len(shares) == 11
    assert tuned["conditioning"]["unseen"]["given_d1"] == pytest.approx(min(shares.values()), abs=1e-5)
    assert tuned["is_prompted"] == (min(shares, key=lambda share: shares[share]) < 1)


def test_a_look_with_other_seeds_is_a_look_whichever_they_are(finished: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(finished), tmp_path / finished["name"])

    def looks(*seeds: int) -> tuple[int, ...]:
        settings = {**finished, "root": str(tmp_path), "pretrain": {**finished["pretrain"], "seeds": list(seeds)}}
        return tuple(api.Run(settings).evaluate().chosen.looks)

    assert looks(0, 1) == (2,)  # as it was
    assert looks(0) == (2, 1)
    assert looks(0, 1) == (1, 2)  # the same two looks
    path = tmp_path / finished["name"] / "looks.json"
    # by what it holds, where it was kept under a newer version, and by its settings, where it was made again
    content, fingerprint = sorted(disk.read_json(path), key=store.read_manifest(path.parent / "04-base").fingerprint.__eq__)
    for known, seeds, found in ((content, (0,), (2, 1)), (fingerprint, (0, 1), (1, 2))):
        disk.write_json(path, {known: disk.read_json(path)[known]})
        assert looks(*seeds) == found
    for damaged in ("{", "[]", "null", "3", '{"x": null}', '{"x": [["a"]]}'):
        path.write_text(damaged)
        with pytest.raises(CorruptArtifact, match=r"looks\.json: unreadable; delete it, and looks count anew"):
            looks(0)


def test_every_model_says_whether_it_still_gained_at_its_end(finished: dict[str, Any]) -> None:
    for unit in ("04-base", "07-pretrain/sbp/seed-1"):
        folder = run_folder(finished) / unit
        curve = Model.open(folder).curve
        manifest = store.read_manifest(folder)
        assert manifest is not None
        account = manifest.counts["account"]
        (before, at), (end, last) = curve.validation[-2:]
        slope = (at - last) / (end - before)
        assert end - before > end / 10  # so that a tenth lies between the last two
        assert f"the last tenth saved {slope * end / 10:+.4f}" in account
        assert ("at the end; " in account) == (curve.best_step < curve.step)


def test_every_model_trained_from_scratch_has_its_copy_score_over_training(finished: dict[str, Any]) -> None:
    for folder in ("04-base", "07-pretrain/sbp/seed-0"):
        curve = store.read_json(run_folder(finished) / folder / "curve.json")
        assert [tokens for tokens, _ in curve["copying"]] == [tokens for tokens, _ in curve["validation"]]


def test_pairing_says_what_d1_could_tell(world_file: Path, tmp_path: Path) -> None:
    budget = {"unique_tokens": 8_000, "train_tokens": 12_000}
    settings = small_config(world_file, tmp_path, budget=budget, corpus__validation_docs=60, pair__min_similarity=0.4)
    executor.run(loading.load(settings), "pair")
    made = store.read_manifest(run_folder(settings) / "03-pair" / "related")
    found = store.read_json(run_folder(settings) / "03-pair" / "related" / "pairs.json")["ceiling"]
    assert made is not None
    assert found["docs"] >= 20
    assert found["worth"]["1"][0] > 3 * found["worth"]["1"][1]  # documents of an entity share its name and attributes
    assert f"{found['worth']['1'][0]:.3f}" in made.counts["account"]


def test_too_few_held_out_pairs_for_that_are_one_line(finished: dict[str, Any]) -> None:
    assert store.read_json(run_folder(finished) / "03-pair" / "related" / "pairs.json")["ceiling"] is None
    made = store.read_manifest(run_folder(finished) / "03-pair" / "related")
    assert made is not None
    assert "lower pair.min_similarity" in made.counts["account"]


def test_a_synthesizer_of_several_d1_tuned_beside_plain_text(tmp_path: Path) -> None:
    settings = tiny_config(tmp_path)
    settings["tune"] = {**settings["tune"], "contexts": 2, "plain_share": 0.25}
    told: list[tuple[str, str, Any]] = []
    executor.run(loading.load(settings), "synthesize", lambda *event: told.append(event))
    assert any("does not read d1" in str(words) for _, kind, words in told if kind == "note")

    tuned = store.read_manifest(run_folder(settings) / "05-tune" / "related")
    made = store.read_manifest(run_folder(settings) / "06-synthesize" / "related")
    assert tuned is not None
    assert made is not None
    assert set(made.parents) >= {"pair", "synthesizer"}
    # the pairs are paid for once, though both read them
    assert made.counts["upstream_flops"] == tuned.counts["upstream_flops"] + tuned.cost["flops"]

    one = {**settings, "tune": {**settings["tune"], "contexts": 1}}
    assert states(one)["synthesize/related"].status == "stale"


def test_counts_add_up_in_every_manifest(finished: dict[str, Any]) -> None:
    corpus = store.read_manifest(run_folder(finished) / "01-corpus")
    assert corpus is not None
    counts = corpus.counts
    assert counts["records"] == sum(counts["documents"].values()) + sum(counts["dropped"].values()) + counts["quarantined"]
    pairs = store.read_manifest(run_folder(finished) / "03-pair" / "related")
    assert pairs is not None
    kept = pairs.counts["pairs"]["train"] + pairs.counts["pairs"]["heldout"]
    assert pairs.counts["considered"] == kept + sum(pairs.counts["dropped"].values())
    for path in run_folder(finished).rglob("manifest.json"):
        cost = store.read_json(path)["cost"]
        assert cost["seconds"] > 0
        assert cost["peak_memory_bytes"] > 10 << 20


def test_a_second_run_does_nothing(finished: dict[str, Any]) -> None:
    before = {p: p.stat().st_mtime_ns for p in run_folder(finished).rglob("*") if p.is_file() and not p.name.startswith(".")}
    events: list[Any] = []
    api.Run(finished, progress=lambda *event: events.append(event)).run()
    assert [what for _, what, _ in events] == ["plan"]  # how things stand, and nothing begun
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_changing_a_setting_names_what_is_stale_and_why(finished: dict[str, Any]) -> None:
    found = states(finished, **{"pair.num_neighbors": 4})
    assert found["pair/related"].reasons == ("pair.num_neighbors 5 -> 4",)
    assert "pair changed" in found["tune/related"].reasons
    affected = {"pair/related", "tune/related", "synthesize/related", "evaluate", "analyze", "report"}
    assert not_done(found) == affected | {f"{stage}/sbp/seed-{seed}" for stage in ("pretrain", "score") for seed in (0, 1)}


def test_an_arm_that_joins_is_scored_alone_and_other_figures_score_nothing(finished: dict[str, Any]) -> None:
    later = {"evaluate", "report"}
    assert not_done(states(finished, **{"evaluate.confidence": 0.9})) == later
    assert not_done(states(finished, **{"evaluate.checkpoint": "last"})) == later  # both are scored, and nothing was asked
    joined = {**finished, "arms": {**finished["arms"], "self": {"synthetic": "unconditional", "share": 0.5}}}
    of_arm = {f"{stage}/self/seed-{seed}" for stage in ("pretrain", "score") for seed in (0, 1)}
    assert not_done(states(joined)) == {"synthesize/unconditional", "analyze"} | later | of_arm


def test_what_joins_later_is_made_from_the_scores_that_are_there(finished: dict[str, Any], tmp_path: Path) -> None:
    mine = copy(finished, tmp_path)
    shutil.rmtree(run_folder(mine) / "08-score" / "oracle" / "seed-1")
    assert run(mine) == {"done": ["score/oracle/seed-1"], "kept": ["evaluate", "report"]}
    assert contents(mine) == contents(finished)


def test_where_and_how_it_runs_makes_nothing_stale(finished: dict[str, Any]) -> None:
    assert not not_done(states(finished, **{"engine.jobs": 1, "engine.device": "cpu"}))


def test_a_changed_source_file_makes_everything_stale(finished: dict[str, Any], tmp_path: Path) -> None:
    source = Path(finished["corpus"]["source"])
    changed = tmp_path / source.name
    changed.write_text(source.read_text().replace("clothes", "garments", 1))
    found = states(finished, **{"corpus.source": str(changed)})
    assert not_done(found) == ALL
    assert any(reason.startswith("files") for reason in found["corpus"].reasons)


OF_TUNE = {
    "tune/related",
    "synthesize/related",
    "pretrain/sbp/seed-0",
    "pretrain/sbp/seed-1",
    "score/sbp/seed-0",
    "score/sbp/seed-1",
    "evaluate",
    "analyze",
    "report",
}


def test_what_is_deleted_is_made_again_to_the_same_bytes(finished: dict[str, Any], tmp_path: Path) -> None:
    mine = copy(finished, tmp_path)
    plan = recipes.units(loading.load(mine))
    for name in OF_TUNE:
        (plan[name].folder(run_folder(mine)) / "manifest.json").unlink()
    assert not_done(states(mine)) == OF_TUNE
    assert set(run(mine)["done"]) == OF_TUNE
    assert contents(mine) == contents(finished)


@pytest.mark.parametrize("stage", ["corpus", "base", "tune/related"])
def test_what_read_something_that_comes_out_the_same_is_kept(finished: dict[str, Any], tmp_path: Path, stage: str) -> None:
    mine = copy(finished, tmp_path)
    plan = recipes.units(loading.load(mine))
    shutil.rmtree(plan[stage].folder(run_folder(mine)))
    found = states(mine)
    of_it = not_done(found) - {stage}
    assert of_it >= {"synthesize/related", "evaluate", "report"}
    assert all(found[name].may_stand for name in of_it)
    assert found["evaluate"].reasons[-1] == "kept if it comes out as it was"

    ran = run(mine)
    assert ran["done"] == [stage]
    assert set(ran["kept"]) == of_it
    assert contents(mine) == contents(finished)
    assert not not_done(states(mine))


def test_what_read_something_else_is_never_reused(finished: dict[str, Any], tmp_path: Path) -> None:
    """As after a rebuild that came out otherwise, where the run was killed before what reads it was made anew."""
    mine = copy(finished, tmp_path)
    note(mine, "tune/related", lambda record: record["contents"].update(base="of another base"))
    found = states(mine)
    assert found["tune/related"].reasons == ("base holds something else",)
    assert not_done(found) == OF_TUNE
    ran = run(mine)
    assert ran["done"] == ["tune/related"]
    assert set(ran["kept"]) == OF_TUNE - {"tune/related"}


def test_what_was_begun_of_something_else_is_never_gone_on_from(finished: dict[str, Any], tmp_path: Path) -> None:
    """As where a run was killed, and what it read was lost and came out otherwise."""
    mine = copy(finished, tmp_path)
    folder = run_folder(mine) / "06-synthesize" / "related"
    made = store.read_manifest(folder)
    assert made is not None
    (folder / "manifest.json").unlink()
    chunk = folder / "chunks" / "000000"

    def goes_on() -> bool:
        """Whether a chunk that is there was not made again."""
        disk.write_record(folder / "progress.json", {"fingerprint": made.fingerprint, "contents": made.contents})
        before = chunk.stat().st_ino
        api.Run(mine).run("synthesize")
        (folder / "manifest.json").unlink()
        return chunk.stat().st_ino == before

    assert goes_on()
    note(mine, "tune/related", lambda record: record["counts"].update(account="another"))
    assert not goes_on()


def test_hours_of_finished_work_are_given_up_only_where_that_is_said(finished: dict[str, Any], tmp_path: Path) -> None:
    mine = copy(finished, tmp_path)
    for model in MODELS:
        note(mine, model, lambda record: record["cost"].update(seconds=3_600.0))
    before = contents(mine)
    other = {**mine, "optim": {**mine["optim"], "lr": 7e-3}}
    words = r"which took 5\.\d hours \(base: optim\.lr 0\.\d+ -> 0\.007\); .*--set name=NAME.*--replace"
    with pytest.raises(FinishedWork, match=words):
        run(other)
    assert contents(mine) == before
    # an arm that joins gives up nothing, and neither does another level of confidence
    api.Run({**mine, "evaluate": {"confidence": 0.9}}).run()

    # what read a corpus of another text is asked about before, what read one that was lost, once that came out otherwise
    with pytest.raises(FinishedWork, match=r"\(corpus: corpus\.shard_docs .*"):
        run({**mine, "corpus": {**mine["corpus"], "shard_docs": 50}})
    plan = recipes.units(loading.load(mine))
    shutil.rmtree(plan["corpus"].folder(run_folder(mine)))
    note(mine, "pretrain/sbp/seed-0", lambda record: record["contents"].update(corpus="of another corpus"))
    with pytest.raises(FinishedWork, match=r"1\.0 hours \(pretrain/sbp/seed-0: corpus holds something else\)"):
        run(mine)
    assert run(mine, replace=True)["done"][0] == "pretrain/sbp/seed-0"
    assert not not_done(states(mine))


def test_settings_as_they_were_before_bring_back_what_was_made_of_them(finished: dict[str, Any], tmp_path: Path) -> None:
    """As where others were tried with `--replace`, and stopped before what took hours was made anew."""
    mine = copy(finished, tmp_path)
    note(mine, "pretrain/sbp/seed-0", lambda record: record["cost"].update(seconds=3_600.0))
    other = {**mine, "corpus": {**mine["corpus"], "shard_docs": 50}}
    with pytest.raises(FinishedWork, match=r"\(corpus: corpus\.shard_docs"):
        api.Run(other).run()
    api.Run(other, replace=True).run("corpus")
    ran = run(mine)
    assert ran["done"] == ["corpus"]
    assert set(ran["kept"]) == ALL - {"corpus"}
    assert contents(mine) == contents(finished)


def test_hours_of_training_that_is_not_finished_are_not_given_up_either(finished: dict[str, Any], tmp_path: Path) -> None:
    mine = copy(finished, tmp_path)
    plan = recipes.units(loading.load(mine))
    folder = plan["pretrain/sbp/seed-1"].folder(run_folder(mine))
    record = disk.read_record(folder / store.MANIFEST)
    (folder / store.MANIFEST).unlink()
    disk.write_record(folder / store.PROGRESS, {key: record[key] for key in ("fingerprint", "contents")})
    store.spend(folder, 36_000.0)
    assert states(mine)["pretrain/sbp/seed-1"] == State("partial")  # and goes on

    other = {**mine, "arms": {**mine["arms"], "sbp": {"synthetic": "related", "share": 0.25}}}
    with pytest.raises(FinishedWork, match=r"which took 10\.0 hours \(synthesize/related: unit\.budget_tokens "):
        run(other)
    assert (folder / store.PROGRESS).exists()
    assert run(mine)["done"][0] == "pretrain/sbp/seed-1"
    assert contents(mine) == contents(finished)


def test_a_newer_version_leaves_what_reads_it_where_it_makes_the_same(finished: dict[str, Any], tmp_path: Path) -> None:
    mine = copy(finished, tmp_path)
    of_embed = OF_TUNE | {"embed", "pair/related"}
    for name in of_embed:
        note(mine, name, lambda record: record.update(fingerprint="of an older version"))
    note(mine, "embed", lambda record: record.update(version=record["version"] - 1))
    note(mine, "pretrain/sbp/seed-0", lambda record: record["cost"].update(seconds=3_600.0))
    found = states(mine)
    assert found["embed"].reasons[0].startswith("stage version")
    assert not_done(found) == of_embed
    ran = run(mine)  # and asks nothing, as it may all stand
    assert ran["done"] == ["embed"]
    assert set(ran["kept"]) == of_embed - {"embed"}
    assert contents(mine) == contents(finished)


def test_what_an_older_synthboot_made_is_kept_and_says_what_it_read(finished: dict[str, Any], tmp_path: Path) -> None:
    mine = copy(finished, tmp_path)
    for name in ALL - {"corpus"}:
        note(mine, name, lambda record: record.pop("contents"))
    assert not not_done(states(mine))
    assert run(mine) == {"done": [], "kept": []}
    assert contents(mine) == contents(finished)


def test_two_runs_on_one_folder_the_second_is_refused(finished: dict[str, Any]) -> None:
    with lock.held(run_folder(finished)):
        started = time.monotonic()
        code = f"from synthboot import api; api.Run({finished!r}).run()"
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "LockedRun" in second.stderr
        assert "is working on this run" in second.stderr
        assert time.monotonic() - started < limit(30)
        with pytest.raises(LockedRun):
            api.Run(finished).run()
    api.Run(finished).run()


COUNTED = """
import sys
source, wanted, *arguments = sys.argv[1:]
read = []
sys.addaudithook(lambda event, given: read.append(source) if event == "open" and str(given[0]) == source else None)
from synthboot.cli import main
main(arguments, standalone_mode=False)
sys.exit(len(read) != int(wanted) and f"read {len(read)} times")
"""


def test_a_run_that_has_nothing_to_make_reads_its_source_where_it_is_asked_to(finished: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(finished))
    for wanted, more in (("1", ["--verify"]), ("0", [])):
        command = [
            sys.executable,
            "-c",
            COUNTED,
            finished["corpus"]["source"],
            wanted,
            "run",
            str(tmp_path / "run.yaml"),
            *more,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_corrupt_artifact_is_refused_by_name(finished: dict[str, Any], tmp_path: Path) -> None:
    mine = copy(finished, tmp_path)
    path = run_folder(mine) / "05-tune" / "related" / "best" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (run_folder(mine) / "06-synthesize" / "related" / "manifest.json").unlink()
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors: does not match its hash; delete .* and run again"):
        api.Run(mine).run()


def test_a_comparison_that_is_not_fair_is_refused(finished: dict[str, Any], tmp_path: Path) -> None:
    mine = copy(finished, tmp_path)
    path = run_folder(mine) / "07-pretrain" / "sbp" / "seed-1"
    counts = store.read_json(path / "token_counts.json")
    counts["steps"] += 1
    store.write_json(path / "token_counts.json", counts)
    manifest = store.read_manifest(path)
    assert manifest is not None
    store.commit(path, manifest)
    (run_folder(mine) / "09-evaluate" / "manifest.json").unlink()
    with pytest.raises(UnfairComparison, match=r"repetition and sbp differ in steps \(31 and 32, seed 1\)"):
        api.Run(mine).run()


def test_user_errors_stop_early_with_one_line(world_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        api.Run(small_config(tmp_path / "none.jsonl", tmp_path)).run()
    with pytest.raises(BudgetError, match=r"budget\.unique_tokens: 9,000,000"):
        api.Run(small_config(world_file, tmp_path / "a", budget__unique_tokens=9_000_000)).run()
    arms = {"repetition": {}, "oracle": {"unique_tokens": 8_000_000}}
    with pytest.raises(BudgetError, match=r"arms\.oracle\.unique_tokens: 8,000,000 asked for"):
        api.Run(small_config(world_file, tmp_path / "b", arms=arms)).run()
    with pytest.raises(MissingArtifact, match="tune: no arm"):
        api.Run(small_config(world_file, tmp_path / "b", arms={"repetition": {}})).run("tune")
    with pytest.raises(ConfigError, match=r"needs `path`, the file of vectors"):
        api.Run(small_config(world_file, tmp_path / "c", embed={"model": "file"})).run("embed")


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(world_file: Path, small_disk: Path) -> None:
    settings = small_config(world_file, small_disk)
    with pytest.raises(StorageError, match="the disk is full; free some space and run again"):
        api.Run(settings).run()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    api.Run(settings).run("base")
    assert states(settings)["base"].status == "done"


def test_vectors_from_a_file_and_a_model_to_continue_from(finished: dict[str, Any], world_file: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(run_folder(finished) / "01-corpus")
    ids = [document.id for name in ("pretrain", "validation") for document in corpus.texts(name)]
    vectors = np.random.default_rng(0).normal(size=(len(ids), 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "v.ids").write_text("\n".join(ids))
    settings = small_config(
        world_file,
        tmp_path,
        embed={"model": "file", "path": str(tmp_path / "v.npy")},
        pretrain__seeds=[0],
        arms={"repetition": {}, "sbp": {"synthetic": "related", "share": 0.25}},
    )
    api.Run(settings).run("analyze")
    np.save(tmp_path / "v.npy", -vectors)
    assert any(reason.startswith("embed.given_files") for reason in states(settings)["embed"].reasons)
    start = run_folder(settings) / "04-base" / "best"
    told = [f"Before {n} came {7 * n}, and {11 * n} followed after {13 * n} had left for {17 * n}." for n in range(60)]
    old = write_jsonl(tmp_path / "old.jsonl", [{"text": text} for text in told])
    asked = [{"context": text.rpartition(" ")[0], "target": text.rpartition(" ")[2]} for text in (told[8], told[8][::-1])]
    questions = write_jsonl(tmp_path / "questions.jsonl", asked)
    settings = small_config(
        world_file,
        tmp_path,
        name="continued",
        evaluate={"tasks": [str(questions)]},
        model={"init_from": str(start), "seq_len": 64},
        pretrain__seeds=[0],
        arms={"repetition": {}, "oracle": {"unique_tokens": "all"}},
        corpus__replay=str(old),
        budget__replay_share=0.2,
    )
    run = api.Run(settings)
    run.run()
    token_counts = [store.read_json(p) for p in run_folder(settings).rglob("token_counts.json")]
    assert len(token_counts) == 2
    for counts in token_counts:
        assert counts["replayed_tokens"] == pytest.approx(0.2 * counts["train_tokens"], abs=64)
    assert list(run.evaluate().contamination.values()) == [Contamination(items=2, seen=1, short=0, chance=None)]
    answers = Scores.open(run_folder(settings) / "08-score" / "repetition" / "seed-0").answers
    lines = (run_folder(settings) / "09-evaluate" / "questions.jsonl").read_text().splitlines()
    recorded = [json.loads(line) for line in lines]
    assert [record["seen"] for record in recorded] == [True, False]  # what the text holds is asked, and left out of figures
    assert [record["item"] for record in recorded] == list(answers.item)
    assert not run.evaluate().questions  # one question is left, which has no interval
    write_jsonl(old, [{"text": "Another past."}] * 9)
    assert any(reason.startswith("replay_files") for reason in states(settings)["corpus"].reasons)
    first = store.read_json(run_folder(settings) / "04-base" / "curve.json")["validation"][0][1]
    fresh = store.read_json(run_folder(finished) / "04-base" / "curve.json")["validation"][0][1]
    assert first < fresh


def test_questions_are_grouped_by_whether_d_pretrain_has_a_document_that_tells_the_answer(tmp_path: Path) -> None:
    settings = {**tiny_config(tmp_path), "arms": {"repetition": {}}}
    api.Run(settings).run("corpus")
    corpus = Corpus.open(run_folder(settings) / "01-corpus")
    told = [document.id for document in corpus.texts("pretrain")][:3]
    read_by_oracles = [document.id for document in corpus.texts("pool")][-1]
    untold = [next(corpus.texts("test")).id, read_by_oracles]
    rows = [{"query": f"{n}?", "choices": ["a", "b"], "gold": 0, "support": {"id": key}} for n, key in enumerate(told + untold)]
    plain = [{"query": f"who is {n}?", "answers": ["a miller"]} for n in range(2)]
    known = write_jsonl(tmp_path / "known.jsonl", [*rows, *({**row, "group": "color"} for row in rows), *plain])
    strange = write_jsonl(tmp_path / "strange.jsonl", [{**row, "support": [{"id": "elsewhere"}]} for row in rows])

    notes = []
    asking = {**settings, "evaluate": {"tasks": [str(known), str(strange)]}}
    run = api.Run(asking, progress=lambda unit, kind, value: notes.append(value) if kind == "note" else None)
    page = run.report().path.read_text("utf-8")
    assert "Told: D_pretrain has a document that tells the answer" in page
    answered = run.evaluate().questions
    items = {group: by_arm["repetition"].items for group, by_arm in answered[str(known)].groups.items()}
    assert items == {"all": 12, "told": 3, "untold": 2, "color, told": 3, "color, untold": 2}
    assert list(answered[str(strange)].groups) == ["all"]
    [note] = notes
    assert f"{strange}: D_pretrain has none of the documents that tell the answers" in note


def test_an_ensemble_and_who_learns_from_it_run_to_the_end(tmp_path: Path) -> None:
    arms = {"repetition": {}, "ens": {"ensemble": 2}, "taught": {"distill": "ens"}}
    questions = write_jsonl(
        tmp_path / "questions.jsonl",
        [{"query": f"what is {n}?", "choices": ["red", "blue"], "gold": 0} for n in range(4)]
        + [{"query": f"who is {n}?", "answers": ["a miller"]} for n in range(2)],
    )
    settings = {**tiny_config(tmp_path), "arms": arms, "evaluate": {"tasks": [str(questions)]}}
    api.Run(settings).run()
    assert not not_done(states(settings))
    result = Evaluation.open(run_folder(settings) / "09-evaluate")
    chosen = result.best
    assert chosen.kinds == {"repetition": "repetition", "ens": "ensemble", "taught": "control"}
    # more compute is no claim: it is not one of the compared, and it is marked
    assert chosen.arms["ens"].p_adjusted is None
    assert "ens (2 models, 2 times as much), taught (taught by ens, 3.67 times as much)" in chosen.more_compute
    assert chosen.more_compute in (run_folder(settings) / "11-report" / "report.html").read_text("utf-8")

    token_counts = result.counts_by_arm
    assert token_counts["taught"].train_tokens == token_counts["repetition"].train_tokens
    # training two teachers, and asking each for every token
    own = token_counts["taught"].train_flops
    assert token_counts["taught"].spent_flops == pytest.approx(2 * own + 2 * own / 3)

    # another teacher makes stale whoever learned from it
    found = states(settings, **{"arms.ens.ensemble": 3})
    assert {n for n in not_done(found) if n.startswith("pretrain")} == {"pretrain/ens/seed-0", "pretrain/taught/seed-0"}
