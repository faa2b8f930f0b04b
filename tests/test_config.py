import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from synthboot import config, loading
from synthboot.errors import ConfigError
from tests.conftest import small_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_loads_under_its_own_name(path: Path) -> None:
    assert loading.load(path).name == path.stem


def broken(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loading.load(small_config(Path("x.jsonl"), Path("runs"), **changes))
    return str(caught.value)


def test_unknown_key_names_the_nearest_known_one() -> None:
    assert "pair.min_simlarity: unknown key; did you mean min_similarity?" in broken(pair={"min_simlarity": 0.5})
    assert "buget: unknown key; did you mean budget?" in broken(buget={})
    assert "arms.sbp.sahre: unknown key; did you mean share?" in broken(arms={"repetition": {}, "sbp": {"sahre": 0.5}})


def test_wrong_type_and_range_name_the_key_and_the_value() -> None:
    assert "model.layers" in broken(model__layers="many")
    assert "'many'" in broken(model__layers="many")
    assert "synthesize.top_p" in broken(synthesize__top_p=1.5)


def test_required_sections_are_asked_for() -> None:
    settings = small_config(Path("x.jsonl"), Path("runs"))
    del settings["budget"]
    with pytest.raises(ConfigError, match="budget: required, and not given"):
        loading.load(settings)


def test_text_to_replay_needs_a_share_and_a_model_that_knows_something() -> None:
    assert "go together" in broken(corpus__replay="old.jsonl")
    assert "go together" in broken(budget__replay_share=0.1)
    assert "starts from nothing; drop it" in broken(corpus__replay="old.jsonl", budget__replay_share=0.1)


def test_an_arm_needs_both_a_share_and_a_source() -> None:
    assert "go together" in broken(arms={"repetition": {}, "sbp": {"share": 0.5}})


def test_repetition_cannot_be_left_out_or_changed() -> None:
    assert "repetition" in broken(arms={"oracle": {"unique_tokens": "all"}})
    assert "repetition" in broken(arms={"repetition": {"unique_tokens": 5}})


def test_equal_seeds_are_refused() -> None:
    assert "twice" in broken(pretrain={"seeds": [1, 1]})


def test_set_overrides_and_parses_yaml(tmp_path: Path) -> None:
    settings = small_config(Path("x.jsonl"), tmp_path)
    loaded = loading.load(settings, set=loading.parse_set(["pretrain.seeds=[3, 4]", "pair.min_similarity=0.5"]))
    assert loaded.pretrain.seeds == [3, 4]
    assert loaded.pair.min_similarity == 0.5
    assert settings == small_config(Path("x.jsonl"), tmp_path)  # the caller's mapping stays as it was


def test_set_without_value_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        loading.parse_set(["pair.num_neighbors"])


def test_missing_file_and_bad_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        loading.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not YAML"):
        loading.load(tmp_path / "bad.yaml")


def test_every_field_has_a_help_text() -> None:
    for section in config.Config.model_fields.values():
        model = section.annotation
        if isinstance(model, type) and issubclass(model, config.Section):
            missing = [name for name, field in model.model_fields.items() if not field.description]
            assert not missing, f"{model.__name__}: {missing}"


def test_judges_are_named_as_they_are_asked_for() -> None:
    base = {
        "name": "a",
        "budget": {"unique_tokens": 9, "train_tokens": 9_000},
        "corpus": {"source": "x"},
        "arms": {"repetition": {}},
    }
    good = ["rules", "embedding", "local:a/folder", "server:some-model"]
    assert loading.load({**base, "analyze": {"judges": good}}).analyze.judges == good
    for judges, message in [
        (["someone"], "`rules`, `embedding`, `likelihood`, `local:FOLDER` or `server:NAME`"),
        (["local:"], "`local:FOLDER`"),
        (["rules", "rules"], "names a judge twice"),
        (["likelihood"], "asks the synthesizer; add an arm"),
    ]:
        with pytest.raises(ConfigError, match=message):
            loading.load({**base, "analyze": {"judges": judges}})
    vectors = {"embed": {"model": "file", "path": "v.npy"}, "analyze": {"judges": ["embedding"]}}
    with pytest.raises(ConfigError, match="has to embed synthetic text"):
        loading.load({**base, **vectors})


def test_a_filter_by_facts_needs_a_d1_or_an_embedding() -> None:
    """It ended in a ValueError once all was sampled."""
    for synthetic, model, is_refused in [
        ("unconditional", "file", True),
        ("unconditional", "self", False),
        ("related", "file", False),
    ]:
        arm = {"synthetic": synthetic, "share": 0.5, "filter": {"judged": {"nonfactual": "rules"}}}
        settings = {
            "name": "a",
            "budget": {"unique_tokens": 9, "train_tokens": 9_000},
            "corpus": {"source": "x"},
            "embed": {"model": model, **({"path": "v.npy"} if model == "file" else {})},
            "arms": {"repetition": {}, "clean": arm},
        }
        if is_refused:
            with pytest.raises(ConfigError, match=r"arms\.clean\.filter: .* have no d1 to hold .*; drop `nonfactual`"):
                loading.load(settings)
        else:
            loading.load(settings)


RELATED = {"synthetic": "related", "share": 0.5}
DIGITS = [0.1234567890123456, 0.9876543210987654]
LONG = {**RELATED, "filter": {"loss": DIGITS, "similarity": DIGITS, "novelty": DIGITS}}
VECTORS = {"model": "file", "path": "v.npy"}
APART: dict[str, dict[str, Any]] = {
    "`arms` needs `repetition: {}`": {"arms": {"repetition": {"noise": 0.1}}},
    "and `rounds: 1` to go on from": {"arms": {"sbp-2": {**RELATED, "rounds": 2, "noise": 0.1}}},
    "a `budget.replay_share` above 0 go together": {"budget": {"replay_share": 0.1}},
    "`likelihood` asks the synthesizer": {"arms": {"sbp": {}}, "analyze": {"judges": ["likelihood"]}},
    "arms.sbp.filter: has to embed": {"arms": {"sbp": {**RELATED, "filter": {"similarity": [0, 1]}}}, "embed": VECTORS},
    "root: ~: the shell alone knows": {"root": "~"},
    "the folder that is named after it": {"arms": {"s" * 99: LONG, "later": {**LONG, "rounds": 2}}},
    "vectors from a file have none": {"corpus": {"canaries": {"count": 1}}, "embed": VECTORS},
    "tune.pointer: the built-in engine alone": {"tune": {"pointer": True}, "synthesize": {"sampler": "server"}},
    "the pointer alone reads d1": {"synthesize": {"contrast": 1.0}, "tune": {"base_share": 1.0, "pointer": True}},
    "do not go with tune.init_from": {"arms": {"scratch": {**RELATED, "synthetic": "scratch"}}, "tune": {"init_from": "a"}},
    "adapters are for a model to continue from": {"optim": {"lora": {"rank": 1}}},
    "is less than one step": {"budget": {"train_tokens": 1}},
}
"""What no section can know by itself: a case of each rule, by what is said of it."""


@pytest.mark.parametrize("message", APART)
def test_sections_that_do_not_go_together_make_no_configuration_in_python_either(message: str) -> None:
    settings = small_config(Path("x.jsonl"), Path("runs"))
    config.Config(**settings)
    for name, change in APART[message].items():
        settings[name] = {**settings[name], **change} if isinstance(change, dict) else change
    for make in (config.Config.model_validate, lambda given: config.Config(**given)):
        with pytest.raises(ValidationError, match=re.escape(message)):
            make(settings)
    with pytest.raises(ConfigError, match=re.escape(message)):
        loading.load(settings)
