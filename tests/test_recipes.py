"""Every arm is a recipe: what it shares, what it refuses, and one run of all of them on a tiny world."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthboot import api, loading, recipes, show
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.pairs import Searched
from synthboot.artifacts.store import Manifest, read_manifest
from synthboot.artifacts.synthetic import Synthetic
from synthboot.data.disk import read_json
from synthboot.errors import ConfigError
from synthboot.export.export import export
from synthboot.rng import rng
from synthboot.runner import cost
from synthboot.runner.graph import fingerprints
from synthboot.runner.state import states
from tests.conftest import run_folder, small_config, tiny_config

pytestmark = pytest.mark.timeout(900)  # a run of all arms takes two minutes, longer beside other work

ARMS: dict[str, Any] = {
    "repetition": {"sweep": {"weight_decay": [0.1, 1.0], "epochs": [2, 100]}},
    "sbp": {"synthetic": "related", "share": 0.5},
    "sbp-25": {"synthetic": "related", "share": 0.25},
    "sbp-tuned": {"synthetic": "related", "sweep": {"share": [0.3, 0.4]}},
    "sbp-megadoc": {"synthetic": "related", "share": 0.4, "layout": "megadoc"},
    "sbp-first": {"synthetic": "related", "share": 0.5, "order": "synthetic_first"},
    "sbp-flops": {"synthetic": "related", "share": 0.1, "match": "flops"},
    "sbp-2": {"synthetic": "related", "share": 0.5, "rounds": 2},
    "self": {"synthetic": "unconditional", "share": 0.5},
    "random_pairs": {"synthetic": "random_pairs", "share": 0.5},
    "scratch": {"synthetic": "scratch", "share": 0.5},
    "packed_pairs": {"layout": "packed_pairs"},
    "token_noise": {"noise": 0.15},
    "oracle-half": {"unique_tokens": 6_000},
    "oracle": {"unique_tokens": "all"},
}
WORLD = {
    "source": "world",
    "split_field": "split",
    "near_duplicates": "off",
    "vocab_size": 400,
    "validation_docs": 30,
    "test_docs": 30,
    "shard_docs": 64,
    "world": {"entities": 30, "many_docs": 4, "attributes": 4, "values": 6, "revealed": 3, "oracle_docs": 500},
}


def world_config(root: Path, **changes: Any) -> dict[str, Any]:
    settings = {
        "budget": {"unique_tokens": "all", "train_tokens": 12_000},
        "corpus": WORLD,
        "arms": ARMS,
        "model": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "seq_len": 128},
        "optim": {"lr": 1e-2, "batch_tokens": 1_024, "evals": 3, "precision": "float32"},
        "pretrain": {"seeds": [0]},
        "tune": {"batch_tokens": 1_024, "max_tokens": 6_000},
        "pair": {"num_neighbors": 5, "max_overlap": 1.0},
        "synthesize": {"chunk": 64, "keep_unfinished": True, "dtype": "float32"},
        "engine": {"device": "cpu", "jobs": 2, "sample_batch": 64},
        "evaluate": {"tasks": ["world"], "task_items": 40, "group_field": "group"},
    }
    return small_config(Path("world"), root, **{**settings, **changes})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = world_config(tmp_path_factory.mktemp("world"))
    api.Run(settings).run()
    return settings


@pytest.fixture(scope="module")
def evaluated(ran: dict[str, Any]) -> Evaluation:
    return Evaluation.open(run_folder(ran) / "09-evaluate")


def refused(arms: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        loading.load(small_config(Path("x.jsonl"), Path("runs"), arms={"repetition": {}, **arms}))
    return str(caught.value)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"synthetic": "related", "share": 0.5, "rounds": 2}, "needs an arm with the same recipe and `rounds: 1`"),
        ({"synthetic": "scratch", "share": 0.5, "rounds": 2}, "starts from fresh weights in every round"),
        ({"weight_decay": 0.1}, "arms may differ in their data alone; set optim.weight_decay for all, or `sweep:"),
        ({"lr": 0.1}, "arms may differ in their data alone"),
        ({"epochs": 3}, "arms may differ in their data alone"),
        ({"match": "flops"}, "are about synthetic text, and this arm has none"),
        ({"order": "synthetic_first"}, "are about synthetic text"),
        ({"layout": "megadoc"}, "`layout: megadoc` needs synthetic text that has a d1"),
        ({"layout": "megadoc", "synthetic": "unconditional", "share": 0.5}, "needs synthetic text that has a d1"),
        ({"layout": "packed_pairs", "synthetic": "related", "share": 0.5}, "is about D_pretrain alone"),
        ({"synthetic": "related", "share": 0.5, "sweep": {"epochs": [1]}}, "`epochs` is about real text alone"),
        ({"sweep": {"noise": []}}, "arms.odd.sweep.noise"),
        ({"sweep": {"nois": [1]}}, "arms.odd.sweep.nois"),
        ({"share": 0.5}, "go together"),
        ({"ensemble": 2, "distill": "odd"}, "drop `rounds`, `match: flops` and `distill`"),
        ({"ensemble": 2, "synthetic": "related", "share": 0.5, "rounds": 2}, "`ensemble` is several models"),
        ({"ensemble": 2, "synthetic": "related", "share": 0.5, "match": "flops"}, "`ensemble` is several models"),
        ({"ensemble": 0}, "arms.odd.ensemble: got 0; it takes a whole number from 1 to 100"),
        ({"distill": "repetition"}, "arms.odd.distill: repetition is no arm with `ensemble`; add one"),
        ({"distill": "nobody"}, "nobody is no arm with `ensemble`; add one, for example `nobody: {ensemble: 3}`"),
        ({"distill": "odd"}, "odd is no arm with `ensemble`"),
        ({"distill": "e", "noise": 0.1}, "`distill` is about D_pretrain as it is"),
        ({"distill": "e", "sweep": {"noise": [0.1]}}, "`distill` is about D_pretrain as it is"),
        ({"distill": "e", "unique_tokens": "all"}, "`distill` is about D_pretrain as it is"),
        ({"distill": "e", "synthetic": "related", "share": 0.5}, "`distill` is about D_pretrain as it is"),
        ({"distill_weight": 0.9}, "`distill_weight` needs `distill`"),
        ({"sweep": {"distill_weight": [0.9]}}, "a `sweep` of `distill_weight` needs `distill`"),
        ({"filter": {"loss": [1, 2]}}, "`filter` and `match: flops` are about synthetic text, and this arm has none"),
        ({"synthetic": "related", "share": 0.5, "filter": {"times": 3}}, "and this one throws nothing away; name `loss`"),
        ({"synthetic": "related", "share": 0.5, "filter": {"loss": [2, 1]}}, "[2.0, 1.0] is no window"),
        ({"synthetic": "related", "share": 0.5, "filter": {"loss": [2]}}, "it takes a list of 2, each a number"),
        (
            {"synthetic": "related", "share": 0.5, "filter": {"los": [1, 2]}},
            "arms.odd.filter.los: unknown key; did you mean loss?",
        ),
        (
            {"synthetic": "related", "share": 0.5, "filter": {"judged": {"copying": "likelihood"}}},
            "likelihood judges irrelevance alone, not copying",
        ),
        (
            {"synthetic": "unconditional", "share": 0.5, "filter": {"similarity": [0, 1]}},
            "samples of `synthetic: unconditional` have no d1; drop `similarity`",
        ),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_in_one_line(arm: dict[str, Any], message: str) -> None:
    said = refused({"odd": arm})
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "more",
    [
        {"synthetic": "related", "share": 0.5},
        {"unique_tokens": "all"},
        {"noise": 0.1},
        {"sweep": {"noise": [0.1]}},
        {"layout": "packed_pairs"},
    ],
)
def test_a_teacher_has_read_no_more_than_its_student(more: dict[str, Any]) -> None:
    said = refused({"taught": {"distill": "e"}, "e": {"ensemble": 2, **more}})
    assert "arms.taught.distill: e does not read D_pretrain as it is" in said


def test_world_questions_need_a_world(tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"it needs corpus\.source=world"):
        recipes.units(loading.load(small_config(source, tmp_path, evaluate={"tasks": ["world"]})))


def test_the_report_has_the_cost_of_all_that_was_made(tmp_path: Path) -> None:
    tune = {"sweep": {"lr": [0.1, 0.2]}, "init_from": "someone/model"}
    arms = {name: ARMS[name] for name in ("repetition", "sbp", "self")}
    found = recipes.units(loading.load(world_config(tmp_path, tune=tune, arms=arms, extract={"docs": 8})))
    made = {"base/weight_decay=1,epochs=2", "tune/related,lr=0.1", "extract/sbp/seed-0", "corpus/external"}
    assert made <= found.keys()
    assert set(found["report"].parents.values()) == found.keys() - {"report"}


def test_arms_that_need_the_same_thing_share_it(tmp_path: Path) -> None:
    found = recipes.units(loading.load(world_config(tmp_path)))
    assert [n for n in found if n.startswith("tune")] == [
        "tune/related",
        "tune/random_pairs",
        "tune/scratch",
        "tune/related-after-sbp",
    ]
    assert len([n for n in found if n.startswith("synthesize")]) == 5
    related = {
        a for a in ARMS if found.get(f"pretrain/{a}/seed-0", found["corpus"]).parents.get("synthesize") == "synthesize/related"
    }
    assert related == {"sbp", "sbp-25", "sbp-megadoc", "sbp-first", "sbp-flops"}
    assert found["synthesize/related"].synthesis.budget_tokens == 6_000 + 128  # the largest share
    assert found["tune/related"].parents["base"] == "base/chosen"
    assert found["tune/related-after-sbp"].parents["base"] == "pretrain/sbp/seed-0"
    assert "base" not in found["tune/scratch"].parents
    assert found["synthesize/unconditional"].parents["synthesizer"] == "base/chosen"
    order = list(found)
    assert all(order.index(p) < order.index(n) for n, u in found.items() for p in u.parents.values())


def test_another_recipe_leaves_what_it_does_not_read_alone(tmp_path: Path) -> None:
    plain = recipes.units(loading.load(world_config(tmp_path)))
    more = recipes.units(loading.load(world_config(tmp_path, arms={**ARMS, "noisier": {"noise": 0.3}})))
    before, after = fingerprints(plain), fingerprints(more)
    assert {n for n in before if before[n] != after[n]} == {"evaluate", "report"}
    assert set(after) - set(before) == {"pretrain/noisier/seed-0", "score/noisier/seed-0"}


def test_arms_with_one_filter_share_what_it_leaves(tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text("{}\n")
    sbp = {"synthetic": "related", "share": 0.1}
    chosen = {"loss": [2, 4.5], "near_duplicates": ["corpus"]}

    def found(**arms: Any) -> dict[str, recipes.Unit]:
        arms = {"repetition": {}, "sbp": sbp, **arms}
        return recipes.units(loading.load(small_config(source, tmp_path, arms=arms, pretrain={"seeds": [0]})))

    plain = found()
    plan = found(
        clean={**sbp, "filter": {**chosen, "times": 4}},
        more={**sbp, "share": 0.2, "filter": chosen},
        noisy={**sbp, "noise": 0.1, "filter": {**chosen, "loss": [2, 4]}},
    )
    name = "synthesize/related,loss=2..4.5,near_duplicates=corpus"
    assert [n for n in plan if n.startswith("synthesize/")] == ["synthesize/related", name, name.replace("4.5", "4")]
    assert plan["pretrain/clean/seed-0"].parents["synthesize"] == name
    assert plan["pretrain/more/seed-0"].parents["synthesize"] == name
    assert plan["pretrain/sbp/seed-0"].parents["synthesize"] == "synthesize/related"
    assert plan[name].parents == {"corpus": "corpus", "sampled": "synthesize/related", "base": "base"}
    # four times a tenth of 12,000, twice a fifth; of what is left, what the larger arm reads
    assert plan["synthesize/related"].synthesis.budget_tokens == 4_800 + 96
    assert plan[name].synthesis.budget_tokens == 2_400 + 96
    order = list(plan)
    assert all(order.index(p) < order.index(n) for n, u in plan.items() for p in u.parents.values())

    # how much there is to choose from is known by what was sampled alone
    less = found(clean={**sbp, "share": 0.2, "filter": {**chosen, "times": 3}})
    assert less[name].reads == plan[name].reads
    assert set(plain) <= set(plan)


def test_a_text_for_every_seed_is_drawn_by_one_synthesizer(tmp_path: Path) -> None:
    sbp = {"synthetic": "related", "share": 0.1}
    again = {**sbp, "rounds": 2}
    clean = {**sbp, "filter": {"loss": [2, 4]}}
    arms = {"repetition": {}, "sbp": sbp, "again": again, "clean": clean}

    def found(**pretrain: Any) -> dict[str, recipes.Unit]:
        return recipes.units(loading.load(world_config(tmp_path, arms=arms, pretrain={"seeds": [4, 0, 1], **pretrain})))

    shared, own = found(), found(text_per_seed=True)
    texts = {name.partition("/")[2] for name in own if name.startswith("synthesize/")}
    first = {"related", "related-after-sbp", "related,loss=2..4"}
    assert texts == first | {
        f"{writer},seed-{seed}{rest}"
        for writer, rest in (("related", ""), ("related-after-sbp", ""), ("related", ",loss=2..4"))
        for seed in (0, 1)
    }
    for seed, draw in ((4, ""), (0, ",seed-0"), (1, ",seed-1")):
        read = {arm: own[f"pretrain/{arm}/seed-{seed}"].parents["synthesize"] for arm in ("sbp", "again", "clean")}
        assert read == {
            "sbp": f"synthesize/related{draw}",
            "again": f"synthesize/related-after-sbp{draw}",
            "clean": f"synthesize/related{draw},loss=2..4",
        }
    assert {name for name in own if name.startswith("tune/")} == {"tune/related", "tune/related-after-sbp"}
    assert own["synthesize/related,seed-0,loss=2..4"].parents["sampled"] == "synthesize/related,seed-0"

    # the first seed keeps its text and models; all text is searched for questions, the first of a writer is analysed
    before, after = fingerprints(shared), fingerprints(own)
    kept = {name for name in before if before[name] == after[name]}
    assert kept >= {"pretrain/sbp/seed-4", "synthesize/related", "pretrain/repetition/seed-1"}
    assert before["pretrain/sbp/seed-1"] != after["pretrain/sbp/seed-1"]
    for reader in ("evaluate", "report"):  # what was sampled is in the report's costs too
        assert {f"synthesize/{text}" for text in texts} <= set(own[reader].parents)
    analysed = {name.partition("/")[2] for name in own["analyze"].parents if name.startswith("synthesize/")}
    assert analysed == first


def test_a_run_with_a_text_for_every_seed(tmp_path: Path) -> None:
    settings = tiny_config(tmp_path) | {"pretrain": {"seeds": [4, 1]}}
    swept = {"synthetic": "related", "share": 0.2, "sweep": {"lr": [0.01, 0.005]}}
    settings["arms"] = {**settings["arms"], "swept": swept}
    run = api.Run(settings)
    run.run("evaluate")
    folder = run_folder(settings)
    kept = folder / "07-pretrain" / "sbp" / "seed-4" / "manifest.json"
    shared, was_kept = run.synthetic(), kept.read_bytes()

    own = api.Run(settings | {"pretrain": {"seeds": [4, 1], "text_per_seed": True}})
    own.run()
    assert kept.read_bytes() == was_kept
    assert own.synthetic("sbp").kind == "related"
    assert [sample.text for sample in own.synthetic()] == [sample.text for sample in shared]
    other = [sample.text for sample in own.synthetic("related,seed-1")]
    assert len(other) > 4
    assert not set(other) & {sample.text for sample in shared}
    assert "2 seeds, each with a text of its own" in own.evaluate().verdict
    # other texts are another try, with the same seeds too
    assert own.evaluate().chosen.looks == (2, 2)
    assert run.evaluate().chosen.looks == own.evaluate().chosen.looks  # and the same two looks
    page = (folder / "11-report" / "report.html").read_text("utf-8")
    assert "seeds 4, 1, each with synthetic text of its own (measured here: that of the first)" in page
    assert "synthesize/related,seed-1: " in page

    # the text of an arm is that of the seed that stands first, not of the lowest
    of_arm = show.examples(folder, "synthetic", 1_000, of="sbp")
    assert ["".join(part for part, _ in example.texts["sampled d2"]) for example in of_arm] == [
        sample.text for sample in shared
    ]

    card = own.export("synthetic", tmp_path / "away")
    assert set(card.parts) == {"related", "related,seed-1"}
    assert "that of seed 4 was measured" in (card.folder / "README.md").read_text("utf-8")
    kinds = {4: "related", 1: "related,seed-1"}
    for arm, seed in itertools.product(("sbp", "swept"), kinds):
        exported = own.export("tokens", tmp_path / f"{arm}-{seed}", arm=arm, seed=seed)
        named = re.findall(r"`synthesize/(\S+)`", (exported.folder / "README.md").read_text("utf-8"))
        assert named == [kinds[seed]]
        part = exported.parts[arm]
        rows = np.fromfile(exported.folder / "tokens.ds", part["dtype"]).reshape(-1, part["row_tokens"])
        written = rows[np.load(exported.folder / "sources.npy") == 1, 1:].ravel().tolist()
        texts = Synthetic.open(folder / "06-synthesize" / kinds[seed]).tokens
        first = texts[int(rng(seed, "plan.synthetic", 0).permutation(len(texts))[0])].tolist()
        assert written[: len(first)] == first


def test_whoever_is_taught_waits_for_the_teacher_of_its_seed_and_goes_stale_with_it(tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text("{}\n")
    arms = {"repetition": {}, "taught": {"distill": "ens", "sweep": {"distill_weight": [0.3, 0.9]}}, "ens": {"ensemble": 3}}

    def marks(arms: dict[str, Any]) -> tuple[dict[str, recipes.Unit], dict[str, str]]:
        plan = recipes.units(loading.load(small_config(source, tmp_path, arms=arms)))
        return plan, fingerprints(plan)

    plan, before = marks(arms)
    assert plan["pretrain/taught/seed-1"].parents["teacher"] == "pretrain/ens/seed-1"
    assert plan["pretrain/taught/distill_weight=0.3"].parents["teacher"] == "pretrain/ens/seed-0"
    order = list(plan)
    assert all(order.index(p) < order.index(n) for n, u in plan.items() for p in u.parents.values())

    _, after = marks({**arms, "ens": {"ensemble": 2}})
    changed = {name for name in plan if before[name] != after[name]}
    assert {n.partition("/seed")[0] for n in changed if n.startswith("pretrain")} == {
        "pretrain/ens",
        "pretrain/taught",
        "pretrain/taught/distill_weight=0.3",
        "pretrain/taught/distill_weight=0.9",
    }
    # a setting that nobody uses leaves what is there as it is
    _, without = marks({"repetition": {}})
    assert all(before[name] == mark for name, mark in without.items() if name.startswith(("base", "pretrain", "score")))


def test_members_and_teachers_are_in_the_estimate(tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text("{}\n")

    def estimated(**arms: Any) -> dict[str, float]:
        cfg = loading.load(small_config(source, tmp_path, arms={"repetition": {}, **arms}, pretrain={"seeds": [0]}))
        plan = recipes.units(cfg)
        return cost.estimate(cfg, plan, states(cfg, plan))

    alone = estimated()
    ensemble = estimated(ens={"ensemble": 3})
    assert ensemble["train_tokens"] == 4 * alone["train_tokens"]
    taught = estimated(ens={"ensemble": 3}, taught={"distill": "ens"})
    # one model more, whose teachers each read the text forwards, a third of training
    assert taught["flops"] == pytest.approx(ensemble["flops"] + 2 * alone["flops"], rel=0.01)  # but for being scored


def test_a_model_of_two_arms_is_scored_once(tmp_path: Path) -> None:
    found = recipes.units(loading.load(world_config(tmp_path, arms={"repetition": {}, "again": {}})))
    assert [name for name in found if name.startswith("score/")] == ["score/repetition/seed-0"]
    assert found["evaluate"].parents["score/again/0"] == "score/repetition/seed-0"


def test_all_arms_run_and_are_compared(ran: dict[str, Any], evaluated: Evaluation) -> None:
    arms = evaluated.best.arms
    assert list(arms) == list(ARMS)
    token_counts = evaluated.counts_by_arm
    full = token_counts["sbp"].train_tokens
    assert all(token_counts[a].train_tokens == full for a in ARMS if a not in ("sbp-flops", "repetition"))
    assert token_counts["sbp"].synthetic_tokens == pytest.approx(0.5 * full, abs=128)
    assert token_counts["sbp-25"].synthetic_tokens == pytest.approx(0.25 * full, abs=128)
    assert token_counts["sbp-megadoc"].synthetic_tokens == pytest.approx(0.4 * full, abs=256)
    paid = token_counts["sbp-flops"]
    assert paid.train_tokens < full
    budget = token_counts["token_noise"].train_flops
    one_step = budget / token_counts["token_noise"].steps
    assert budget - 2.2 * one_step < paid.total_flops <= budget
    assert set(arms["sbp"].against) == set(ARMS) - {"sbp"}
    assert arms["self"].against["sbp"].value == pytest.approx(-arms["sbp"].against["self"].value)
    assert "Beside its controls it is" in evaluated.verdict
    unconditional = read_manifest(run_folder(ran) / "06-synthesize" / "unconditional")
    assert unconditional is not None
    assert unconditional.parents.keys() == {"corpus", "synthesizer"}
    analyzed = read_json(run_folder(ran) / "10-analyze" / "analyze.json")
    assert {"related", "unconditional", "random_pairs", "scratch"} <= set(analyzed["kinds"])


def test_a_sweep_takes_the_least_validation_loss_for_every_seed(tmp_path: Path) -> None:
    arms = {"repetition": {"sweep": {"weight_decay": [0.1, 1.0], "epochs": [2, 100]}}}
    settings = world_config(
        tmp_path, arms=arms, pretrain={"seeds": [0, 1]}, budget={"unique_tokens": "all", "train_tokens": 10_000}
    )
    run = api.Run(settings)
    run.run("evaluate")
    base = run_folder(settings) / "04-base"
    sweep = run.evaluate().sweeps["repetition"]
    trials = {trial: read_json(base / trial / "curve.json")["best_loss"] for trial in sweep.losses}
    assert sweep.losses == trials
    assert len(trials) == 4
    assert sweep.chosen == min(trials, key=lambda c: trials[c])
    weights = "best/model.safetensors"
    assert (base / "chosen" / weights).read_bytes() == (base / sweep.chosen / weights).read_bytes()
    chosen = sweep.settings[sweep.chosen]
    other = run.evaluate().token_counts["repetition"][1]
    assert other.settings["weight_decay"] == chosen["weight_decay"]
    assert other.recipe.epochs == chosen["epochs"]


def test_a_sweep_of_tuning_takes_the_synthesizer_of_least_loss_on_held_out_pairs(tmp_path: Path) -> None:
    arms = {"repetition": {}, "sbp": {"synthetic": "related", "share": 0.1}}
    tune = {"batch_tokens": 1_024, "max_tokens": 6_000, "sweep": {"lr": [1e-4, 1e-2]}}
    settings = world_config(tmp_path, arms=arms, tune=tune, budget={"unique_tokens": "all", "train_tokens": 10_000})
    assert list(loading.load(settings).tune.trials()) == ["lr=0.0001", "lr=0.01"]
    api.Run(settings).run("synthesize")
    place = run_folder(settings) / "05-tune"
    sweep = read_json(place / "related" / "sweep.json")
    losses = {trial: read_json(place / f"related,{trial}" / "tune.json")["best_loss"] for trial in sweep["losses"]}
    assert sweep["losses"] == pytest.approx(losses, rel=1e-5)  # the model that was kept, measured once more
    assert sweep["chosen"] == min(losses, key=lambda c: losses[c]) == "lr=0.01"
    weights = "best/model.safetensors"
    assert (place / "related" / weights).read_bytes() == (place / "related,lr=0.01" / weights).read_bytes()
    chosen, made = read_manifest(place / "related,lr=0.01"), read_manifest(run_folder(settings) / "06-synthesize" / "related")
    assert chosen is not None
    assert made is not None
    assert made.counts["upstream_flops"] == chosen.counts["upstream_flops"] + chosen.cost["flops"]


def test_a_known_world_says_how_far_everything_is_from_the_truth(ran: dict[str, Any], evaluated: Evaluation) -> None:
    world = read_json(run_folder(ran) / "10-analyze" / "analyze.json")["world"]
    points = world["excess"]["related"]["points"]
    assert points[-1][2] < points[0][2]  # it falls as tuning goes on
    assert all(read <= knows for _, knows, read in points)  # who has read D_pretrain alone needs more nats himself
    best = evaluated.best
    bounds = evaluated.world
    assert bounds is not None
    for group, losses in best.groups.items():
        least = min(loss.value for loss in losses.values())
        assert bounds[group].knows_world <= bounds[group].read_corpus < least
    whole = {arm: result.loss.value * best.tokens for arm, result in best.arms.items()}
    for arm, parts in evaluated.parts["all"].items():  # the parts of a document make up its loss
        assert sum(part.value for part in parts.values()) * best.docs == pytest.approx(whole[arm], rel=1e-6)
        assert all(low <= value <= high for value, low, high in parts.values())
    assert list(evaluated.parts) == ["all", "many", "one"]
    for kind, groups in world["facts"].items():
        for shares in groups.values():
            told = [shares[k] for k in ("kept", "known", "contradicted", "invented")]
            assert told == [None] * 4 or sum(told) == pytest.approx(1), kind
    questions = evaluated.questions["world"]
    assert questions.items == 40
    assert sum(g["sbp"].items for n, g in questions.groups.items() if n != "all") == 40


def test_the_page_shows_it_all(ran: dict[str, Any]) -> None:
    page = (run_folder(ran) / "11-report" / "report.html").read_text("utf-8")
    for place in ("scores", "curves", "shares", "flops", "rounds", "questions", "parts", "excess", "against"):
        assert f'id="{place}"' in page, place
    worth = Evaluation.open(run_folder(ran) / "09-evaluate").efficiency.worth
    assert ('id="efficiency"' in page) == any(tokens is not None for tokens in worth.values())


def test_every_stage_that_computes_says_its_flops(ran: dict[str, Any]) -> None:
    for name, unit in recipes.units(loading.load(ran)).items():
        manifest = read_manifest(unit.folder(run_folder(ran)))
        assert manifest is not None
        copied = any(role.startswith("trial/") for role in unit.parents) and unit.training and unit.training.seed == 0
        if unit.stage in ("embed", "base", "tune", "synthesize", "pretrain") and not copied:
            assert manifest.cost["flops"] > 0, name


def test_a_later_round_pays_for_the_round_before(ran: dict[str, Any]) -> None:
    def manifest(name: str) -> Manifest:
        found = read_manifest(plan[name].folder(run_folder(ran)))
        assert found is not None
        return found

    plan = recipes.units(loading.load(ran))
    [later] = [name for name in plan if name.startswith("tune/related-after-")]
    started_from = manifest(plan[later].parents["base"])
    spent = started_from.counts["train_flops"] + started_from.counts["spent_flops"]
    assert started_from.stage == "pretrain"
    assert manifest(later).counts["upstream_flops"] == pytest.approx(manifest("tune/related").counts["upstream_flops"] + spent)


def test_samples_without_d1_have_none_in_later_rounds_either(tmp_path: Path) -> None:
    from synthboot.steps.context import conditional

    arms = {
        "repetition": {},
        "unconditional": {"synthetic": "unconditional", "share": 0.5},
        "again": {"synthetic": "unconditional", "share": 0.5, "rounds": 2},
        "sbp": {"synthetic": "related", "share": 0.5},
    }
    found = recipes.units(loading.load(world_config(tmp_path, arms=arms)))
    kinds = {name: conditional(unit.variant) for name, unit in found.items() if unit.stage == "synthesize"}
    assert kinds == {
        "synthesize/unconditional": False,
        "synthesize/unconditional-after-unconditional": False,
        "synthesize/related": True,
    }
    assert conditional("synthesize/related-after-unconditional")


def test_pairing_flops_are_counted_products() -> None:
    from synthboot.neighbors import search

    assert search.flops(None, 100, 8) == 0
    assert search.flops(Searched("exact"), 100, 8) == 2 * 100 * 100 * 8
    found = Searched("ivf", (0.97, 0.96, 0.98), clusters=10, probe_radius=0.1, by_radius=((0.0, 1.0, 0.5), (0.1, 2.5, 0.97)))
    assert search.flops(found, 1_000, 8) == 2 * 8 * (1_000 * 10 + 1_000 * 2.5 * 100)


def test_runs_are_compared_with_p_values_and_answers(ran: dict[str, Any]) -> None:
    from click.testing import CliRunner

    from synthboot.cli import main

    said = CliRunner().invoke(main, ["compare", str(run_folder(ran))]).stdout
    head = said.splitlines()[0]
    assert "against repetition" in head
    assert head.rstrip().endswith("world")
    (row,) = [line for line in said.splitlines() if " sbp " in line]
    assert "(p = " in row
    assert row.count("%") >= 3


def test_text_that_was_made_up_may_be_used_by_anyone(ran: dict[str, Any], tmp_path: Path) -> None:
    exported = export(loading.load(ran), "real", tmp_path / "out")
    assert exported.license == "cc0-1.0"
    assert "license: cc0-1.0" in (tmp_path / "out" / "README.md").read_text()


def test_another_tokenizer_in_the_same_folder_is_another_corpus(world_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    cfg = small_config(world_file, tmp_path, corpus__tokenizer=str(folder))
    before = fingerprints(recipes.units(loading.load(cfg)))
    assert fingerprints(recipes.units(loading.load(cfg))) == before
    (folder / "tokenizer.json").write_text('{"version": "2"}')
    after = fingerprints(recipes.units(loading.load(cfg)))
    assert after["corpus"] != before["corpus"]
    (folder / "model.safetensors").write_bytes(b"weights of a model beside it")
    assert fingerprints(recipes.units(loading.load(cfg))) == after


def test_the_current_folder_may_be_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_file: Path) -> None:
    settings = small_config(world_file, tmp_path, embed__model=".")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    monkeypatch.chdir(model)
    [file] = recipes.units(loading.load(settings))["embed"].outside["embed.given_files"]
    assert "config.json 2 " in file
