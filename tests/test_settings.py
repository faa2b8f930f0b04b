"""Every setting either decides what artifacts hold, and then they are known by it, or it says where and how work runs."""

from pathlib import Path
from typing import Any

import pytest

from synthboot import config, loading, recipes, settings
from synthboot.artifacts import store
from synthboot.config.texts import text_of
from synthboot.errors import UndeclaredSetting
from synthboot.runner.graph import fingerprints
from synthboot.runner.state import State, states
from tests.test_recipes import ARMS, world_config

FEW = {name: ARMS[name] for name in ("repetition", "sbp", "sbp-25", "sbp-2", "self", "random_pairs", "scratch")}

NOT_OF_ONE_ARTIFACT = {
    "pretrain.seeds": "which models there are",
    "corpus.source": "a path that has to be there; its files are hashed",
    "arms.*.epochs": "set by a sweep alone",
    "corpus.replay": "a path that has to be there; its files are hashed",
}


ARM = "sbp-25"
"""An arm of the method that no other goes on from."""


def replaced(section: Any, path: str, value: Any) -> Any:
    """A copy of a configuration with one setting changed, unchecked; `arms.*` stands for ARM."""
    name, _, rest = path.partition(".")
    if name == "arms":
        arm = replaced(section.arms[ARM], rest.removeprefix("*."), value)
        return section.model_copy(update={"arms": {**section.arms, ARM: arm}})
    if rest:
        value = replaced(getattr(section, name), rest, value)
    return section.model_copy(update={name: value})


def another(path: str) -> Any:
    """A value that the setting does not have, and that recipes can work with."""
    given: dict[str, Any] = {
        "budget.train_tokens": 61_000,
        "tune.sweep": {"lr": [0.1, 0.2]},
        "tune.contexts": 2,
        "arms.*.sweep": {"share": [0.1, 0.2]},
        "arms.*.synthetic": "scratch",
        "arms.*.share": 0.3,
        "arms.*.filter.times": 3.0,
        "arms.*.filter.loss": [1.0, 2.0],
        "arms.*.filter.similarity": [0.1, 0.9],
        "arms.*.filter.novelty": [0.1, 0.9],
        "arms.*.filter.novelty_tokens": 7,
        "arms.*.filter.judged": {"irrelevance": "likelihood"},
        "arms.*.filter.near_duplicates": ["corpus"],
        "arms.*.order": "synthetic_first",
        "arms.*.layout": "megadoc",
        "arms.*.noise": 0.2,
        "arms.*.rounds": 3,
        "arms.*.match": "flops",
        "arms.*.unique_tokens": 5_000,
        "arms.*.distill": "repetition",
        "arms.*.weight_decay": 0.5,
        "arms.*.lr": 0.5,
        "evaluate.tasks": [],
        "embed.model": "another",
        "model.seq_len": 192,
        "synthesize.sampler": "server",
    }
    return given.get(path, "another")


@pytest.fixture(scope="module")
def plain() -> tuple[config.Config, dict[str, recipes.Unit], dict[str, str]]:
    """A configuration, its artifacts, and their fingerprints."""
    asked = {"docs": 5, "prefix_tokens": 20}
    cfg = loading.load(world_config(Path("nowhere"), arms=FEW, extract=asked))
    before = recipes.units(cfg)
    return cfg, before, fingerprints(before)


@pytest.mark.parametrize("path", [path for path in settings.leaves() if path not in NOT_OF_ONE_ARTIFACT])
def test_a_setting_that_changes_makes_stale_what_declares_it_and_all_that_is_made_from_it(
    path: str, plain: tuple[config.Config, dict[str, recipes.Unit], dict[str, str]]
) -> None:
    cfg, before, marks = plain
    after = recipes.units(replaced(cfg, path, another(path)))
    later = fingerprints(after)
    stale = {name for name in before if later.get(name) != marks[name]}
    if path.startswith(settings.RUNTIME):
        assert stale <= ({"report"} if path == "name" else set())
        return
    if path in settings.WATCHING:  # what stopped goes on once it is raised
        assert not stale
        return
    declared = {n for n, u in before.items() if _reads(u, path)}
    assert declared, "no stage reads it"
    own = {n for n in before if n not in after or after[n].reads != before[n].reads}
    assert declared <= own
    by_budget = {n for n in own if before[n].stage == "synthesize"}  # how much to sample follows from budget and shares
    assert own <= declared | by_budget
    children = {n for n in before if set(before[n].parents.values()) & stale}
    parents = {n for n in before if n in after and after[n].parents != before[n].parents}
    assert stale == own | children | parents


def _reads(unit: recipes.Unit, path: str) -> bool:
    """Whether a unit's settings or recipe hold a setting."""
    if path.startswith("arms.*.") and unit.training is not None:
        return unit.training.arm == ARM
    section: Any = unit.settings
    for name in path.replace("*", ARM).split("."):
        held = section if isinstance(section, dict) else section.__dict__
        if name not in held:
            return False
        section = held[name]
    return True


def test_a_stage_cannot_read_what_it_does_not_declare(tmp_path: Path) -> None:
    units = recipes.units(loading.load(world_config(tmp_path)))
    tuning = units["tune/related"].settings
    assert tuning.model.seq_len == 128
    assert tuning.engine.jobs == 2
    with pytest.raises(UndeclaredSetting, match=r"config\.pair: read by a stage that does not declare it"):
        _ = tuning.pair
    with pytest.raises(UndeclaredSetting, match=r"model\.width"):
        _ = tuning.model.width
    assert units["tune/scratch"].settings.model.width == 32  # fresh weights need it


def test_precision_is_part_of_what_tuning_makes(tmp_path: Path) -> None:
    """It was read and not declared: a synthesizer of another precision passed as done."""
    cfg = loading.load(world_config(tmp_path))
    marks = fingerprints(recipes.units(cfg))
    later = fingerprints(recipes.units(replaced(cfg, "optim.precision", "bfloat16")))
    assert marks["tune/related"] != later["tune/related"]


def test_without_questions_scores_do_not_depend_on_how_they_are_asked(tmp_path: Path) -> None:
    asking, silent = ({"evaluate": {"tasks": given, "checkpoint": "last"}, "seed": 7} for given in (["world"], []))
    for changes, stays in ((asking, False), (silent, True)):
        plain = {**changes, "evaluate": {"tasks": changes["evaluate"]["tasks"]}}
        units = [recipes.units(loading.load(world_config(tmp_path, **given))) for given in (changes, plain)]
        before, after = (found["score/sbp/seed-0"].reads for found in units)
        assert (before == after) == stays


@pytest.mark.parametrize("stage", ["evaluate", "analyze"])
def test_other_text_is_embedded_by_all_the_settings_that_d_pretrain_was(tmp_path: Path, stage: str) -> None:
    """`embed.model` alone was declared, and a sentence-transformers model is asked for more."""
    units = recipes.units(loading.load(world_config(tmp_path)))
    for name in config.Embed.model_fields:
        assert getattr(units[stage].settings.embed, name) == getattr(units["embed"].settings.embed, name)


def test_how_pairs_are_read_matters_to_a_judge_by_likelihood_alone(tmp_path: Path) -> None:
    for judges, is_read in ((["rules"], False), (["rules", "likelihood"], True)):
        cfg = loading.load(world_config(tmp_path, analyze={"judges": judges}))
        assert _reads(recipes.units(cfg)["analyze"], "tune.d1_share") == is_read


def test_a_filter_reads_what_its_judge_by_likelihood_does(tmp_path: Path) -> None:
    """`tune.pointer` was not declared: every filter by likelihood ended in an error."""
    for judge, is_read in (("rules", False), ("likelihood", True)):
        chosen = {"judged": {"irrelevance": judge}}
        arms = {**FEW, "clean": {"synthetic": "related", "share": 0.1, "filter": chosen}}
        cfg = loading.load(world_config(tmp_path, arms=arms))
        text = text_of(cfg.arms["clean"], cfg.pretrain.seeds[0], cfg.arms, cfg.pretrain)
        unit = recipes.units(cfg)[f"synthesize/{text.name}"]
        assert _reads(unit, "tune.pointer") == is_read


def test_a_judge_in_a_folder_is_known_by_its_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    cfg = loading.load(world_config(tmp_path, analyze={"judges": [f"local:{model}", "server:one"]}))
    before = fingerprints(recipes.units(cfg))
    (model / "config.json").write_text("[]")
    after = fingerprints(recipes.units(cfg))
    assert {name for name in before if before[name] != after[name]} == {"analyze", "report"}


def test_pairs_with_canaries_are_known_from_those_that_canaries_had_a_part_in(tmp_path: Path) -> None:
    plain = loading.load(world_config(tmp_path))
    for count, known in ((0, {}), (3, {"corpus.canaries.count": 3})):
        reads = recipes.units(replaced(plain, "corpus.canaries.count", count))["pair/related"].reads
        assert {name: value for name, value in reads.items() if "canaries" in name} == known


def test_models_and_texts_are_known_by_the_words_that_finished_folders_have() -> None:
    """By another word, or one more, all that users have made would be stale."""
    recipe = config.Arm(synthetic="related", share=0.5)
    trained = settings.Training("any-name", recipe, seed=3, ready=True)
    assert trained.reads == {"arm": {"synthetic": "related", "share": 0.5}, "unit.seed": 3}
    assert settings.Synthesis(100).reads == {"unit.budget_tokens": 100}
    chosen = config.Filter(loss=[1.0, 2.0], times=4.0)
    left = settings.Synthesis(100, text_of_seed=0, filter=chosen)
    assert left.reads == {"unit.budget_tokens": 100, "unit.text_of_seed": 0, "filter": {"loss": [1.0, 2.0]}}


class NewerOptim(config.Optim):
    """Optimization with a knob more."""

    knob: float = 0.5
    """A new one."""


class NewerArm(config.Arm):
    """A recipe with a knob more."""

    knob: float = 0.5
    """A new one."""


def newer(cfg: config.Config, **knobs: float) -> config.Config:
    """The same configuration by a schema that has two settings more; `knobs` sets that of sections by name, `arms` of all."""
    turned = {name: {"knob": value} for name, value in knobs.items()}
    optim = NewerOptim(**cfg.optim.model_dump(), **turned.get("optim", {}))
    arms = {name: NewerArm(**arm.model_dump(), **turned.get("arms", {})) for name, arm in cfg.arms.items()}
    return cfg.model_copy(update={"optim": optim, "arms": arms})


def standing(cfg: config.Config) -> dict[str, State]:
    return states(cfg, recipes.units(cfg))


def test_a_folder_made_before_a_setting_was_added_stays_done(tmp_path: Path) -> None:
    cfg = loading.load(world_config(tmp_path, arms=FEW))
    plan = recipes.units(cfg)
    marks = fingerprints(plan)
    for name, unit in plan.items():  # manifests that have never heard of the knobs
        folder = unit.folder(cfg.folder)
        folder.mkdir(parents=True, exist_ok=True)
        parents = {role: marks[parent] for role, parent in unit.parents.items()}
        store.commit(folder, store.Manifest(unit.stage, recipes.VERSIONS[unit.stage], marks[name], unit.reads, parents))

    assert {state.status for state in standing(newer(cfg)).values()} == {"done"}
    turned = standing(newer(cfg, optim=0.6))
    assert turned["pretrain/sbp/seed-0"].reasons[0] == "optim.knob unset -> 0.6"
    assert turned["embed"].status == turned["pair/related"].status == "done"
    assert "arm.knob unset -> 0.7" in standing(newer(cfg, arms=0.7))["pretrain/sbp/seed-0"].reasons


def test_a_default_given_by_hand_is_a_default(tmp_path: Path) -> None:
    plain = recipes.units(loading.load(world_config(tmp_path)))
    spelled = recipes.units(loading.load(world_config(tmp_path, analyze={"docs": 60, "examples": 5, "copy_tokens": 13})))
    assert fingerprints(plain) == fingerprints(spelled)
