"""Whatever is written in a configuration: the value that it means, or one line that says where and what."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from synthboot import loading, recipes, schema
from synthboot.config import Config
from synthboot.config.texts import text_of
from synthboot.errors import ConfigError
from tests.conftest import small_config
from tests.limits import limit

HEAD = "name: a\ncorpus: {source: x.jsonl}\nbudget: {unique_tokens: 100, train_tokens: 1e4}\n"
ARMS = "arms:\n  repetition: {}\n  v1: {synthetic: related, share: 0.5}\n"
PYDANTIC = ("Input should", "type=", "https://err", "value_error", "pydantic", "valid integer", "valid string", "errors.")


def one_line(message: str) -> None:
    assert len(message.splitlines()) == 1, message
    assert len(message) < 1_000
    assert not [word for word in PYDANTIC if word in message], message


def refused(text: str | bytes, folder: Path) -> str:
    path = folder / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError) as caught:
        loading.load(path)
    message = str(caught.value)
    one_line(message)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def accepted(text: str, folder: Path, encoding: str = "utf-8") -> Config:
    path = folder / "c.yaml"
    path.write_bytes((HEAD + ARMS + text).encode(encoding))
    return loading.load(path)


def settings(model: type[BaseModel] = Config, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting that is no section, with its field."""
    for name, field in model.model_fields.items():
        inner = schema.section(field.annotation)
        if inner is None:
            yield (*place, name), field
        else:
            yield from settings(inner, (*place, name, *(["v1"] if name == "arms" else [])))


SETTINGS = dict(settings())
LEAVES = pytest.mark.parametrize("place", SETTINGS, ids=".".join)


def having(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {"name": "a", "corpus": {"source": "x"}, "budget": {"unique_tokens": 1, "train_tokens": 10**6}}
    raw |= {"arms": {"repetition": {}, "v1": {"synthetic": "related", "share": 0.5}}}
    inner = raw
    for part in place[:-1]:
        inner = inner.setdefault(part, {})
    inner[place[-1]] = value
    return raw


@LEAVES
def test_every_setting_refuses_what_it_cannot_mean_in_one_line(place: tuple[str, ...]) -> None:
    key, field = ".".join(place), SETTINGS[place]
    numeric = "number" in schema.takes(field)
    wrong: list[Any] = [float("nan"), float("inf"), -(10**30), 10**5_000, {"a": 1}, [[]], [{}], b"x", object(), "\0", "\ud800"]
    wrong += ["many", "12:30", "010", "0x10"] if numeric else [12, 1.5]
    wrong += [] if schema.takes(field) == "true or false" else [True, False]
    wrong += [] if "null" in schema.takes(field) else [None]
    for value in wrong:
        if isinstance(value, str) and "text" in schema.takes(field) and value.isprintable():
            continue  # any text may be a file's name
        with pytest.raises(ConfigError) as caught:
            loading.load(having(place, value))
        one_line(str(caught.value))
        assert key in str(caught.value), value
    for value in (-1e12, 1e300, -7) if numeric and "list" not in schema.takes(field) else ():  # every number has a range
        with pytest.raises(ConfigError, match=f"{key}: got .*; it takes .*number"):
            loading.load(having(place, value))


def test_what_is_given_and_what_may_be_are_said_in_words(tmp_path: Path) -> None:
    for text, message in [
        ("pair: {min_similarity: 1.7}", "line 7: pair.min_similarity: got 1.7; it takes a number from -1 to 1, or auto"),
        ("pair:\n  num_neighbours: 3", "line 8: pair.num_neighbours: unknown key; did you mean num_neighbors?"),
        ("corpus:", "line 7: corpus stands twice, first on line 2; keep one"),
        ("optim: {optimizer: sgd}", "line 7: optim.optimizer: got 'sgd'; it takes adamw or muon"),
        ("model: [1, 2]", "line 7: model: got [1, 2]; it takes settings below it"),
        ("engine: {shard: maybe}", "line 7: engine.shard: got 'maybe'; it takes true or false"),
        ("evaluate: {group_field: 7}", "got 7; it takes text that is not empty, or nothing (null); in quotes it is text"),
        ("embed: {model: file}", "line 7: embed: `model: file` needs `path`, the file of vectors"),
        ("engine: {server: {url: 'localhost'}}", "server.url: needs the form http://host:port/v1"),
        ('engine: {launch: "srun \'x"}', "engine.launch: no command line: No closing quotation"),
        ("pair: {min_similarity: 0.5, max_similarity: 0.4}", "pair: min_similarity 0.5 is not below max_similarity 0.4"),
        ("pretrain: {seeds: [1, -2]}", "seeds: got [1, -2]; it takes a list of one at least, each a whole number from 0"),
        ("pretrain: {seeds: 3}", "each a whole number from 0 to 4,294,967,295; a list of one stands in brackets too"),
        ("analyze: {judges: rules}", "`local:FOLDER` or `server:NAME`; a list of one stands in brackets too"),
        ("width: 96", "line 7: width: unknown key; did you mean model.width?"),
        ("model: {lr: 1}", "line 7: model.lr: unknown key; did you mean optim.lr or tune.lr?"),
        ("optim: {batch_tokens: 100}", "optim.batch_tokens 100 is less than one row of model.seq_len 512; raise it"),
        ("optim: {batch_tokens: 10_000_000}", "optim.batch_tokens 10,000,000; raise it, or lower optim.batch_tokens"),
        ("seed: 18446744073709551616", "seed: got 18446744073709551616; it takes a whole number from 0 to 4,294,967,295"),
        ("tune: {sweep: {lr: [1e-3, 0.001]}}", "tune: `sweep` has lr=0.001 twice"),
        ("tune: {sweep: {lr: [-1]}}", "tune: `sweep`: lr=-1: it takes a number above 0 and at most 100"),
    ]:
        assert message in refused(HEAD + ARMS + text, tmp_path), text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": expected sections such as `corpus:` and `budget:`, found nothing"),
        ("# nothing\n---\n", "found nothing"),
        ("- a\n- b\n", 'found ["a", "b"]'),
        ("just words", "found 'just words'"),
        ("name: a\nname: b\n", " line 2: name stands twice, first on line 1; keep one"),
        ("pair:\n  dim: 1\n  search: ivf\n  dim: 1\n", " line 4: pair.dim stands twice, first on line 2"),
        ("a: &x {b: 1}\nc: {<<: *x, d: 1, d: 2}\n", " line 2: c.d stands twice"),
        ("a: !!python/object/apply:os.system [ls]\n", "os.system: tags are not read; write the value itself"),
        ("a: !!binary aGk=\n", " line 1: tag !!binary: tags are not read"),
        ("a:\n  b: !custom 3\n", " line 2: tag !custom"),
        ("a: !!str 3\n", " line 1: tag"),
        ("[" * 50_000, " line 1: nested more than 20 deep"),
        ("- " * 5_000, " line 1: nested more than 20 deep"),
        ("{a: " * 5_000, " line 1: nested more than 20 deep"),
        ("a: &a [*a]\n", " line 1: *a stands for nothing that is complete above it"),
        ("a: *b\n", " line 1: *b stands for nothing"),
        ("a: {<<: 3}\n", "`<<` takes a mapping"),
        ("? [a, b]\n: 3\n", " line 1: a key has to be plain text"),
        ("a: " + "7" * 5_000, " line 1: a number of 5,000 characters"),
        ("a: 1\n---\nb: 1\n", " line 2: a second document begins"),
        ("a:\n\tb: 1\n", " line 2: not YAML: found character '\\t' that cannot start any token; indent by spaces, not by tabs"),
        (
            "a:\n  b: 1\n c: 2\n",
            " line 3: not YAML: expected <block end>, but found '<block mapping start>'; is it indented as",
        ),
        ("a: 1\n  b: 2\n", " line 2: not YAML: mapping values are not allowed here; is it indented as what stands"),
        ("a: b: c\n", " here; is it indented as what stands beside it, and a text with `: ` in it in quotes?"),
        ("a: [1\n", "not YAML"),
        ("a: 1\nb: \0\n", " line 2: holds the character U+0000, which no YAML file may; is it a text file?"),
        ("a: \x1b[2J\n", " line 1: holds the character U+001B"),
        ('a: "\\0"\n', ": a: '\0' holds a character that text cannot"),
        ('"\\ud800": 1\n', "holds a character that text cannot"),
        ('a: "\\U00110000"\n', "not YAML"),
        (b"a: 1\nb: \xff\xfe\n", " line 2: not text in UTF-8; save the file as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not text in UTF-8"),
        ("a: x\n" * 30_000, ": more than 131,072 bytes; a configuration is a page of settings"),
        ("a: .nan\n", ": a: nan is not a number that any setting takes"),
        ("a: -1e999\n", ": a: -inf is not a number"),
        ('"a\\nb\\u2028c": 1\n', "a b c: unknown key"),
        ("".join(f"k{i}: 1\n" for i in range(300)), "; and 299 more"),
    ],
    ids=range(37),
)
def test_yaml_that_is_none_is_one_line(text: str | bytes, message: str, tmp_path: Path) -> None:
    assert message in refused(text, tmp_path)


def test_aliases_that_blow_up_are_refused_at_once(tmp_path: Path) -> None:
    names = "abcdefghi"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join(['*' + old] * 10)}]" for old, new in zip(names, names[1:], strict=False)]
    before = time.perf_counter()
    assert "more than 50,000 values" in refused("\n".join(lines), tmp_path)
    assert time.perf_counter() - before < limit(2)


def test_anchors_and_merge_keys_work_and_share_nothing(tmp_path: Path) -> None:
    arms = "arms:\n  repetition: {}\n  a: &a {synthetic: related, share: 0.5}\n  b: *a\n  c: {<<: *a, share: 0.25}\n"
    path = tmp_path / "c.yaml"
    path.write_text(HEAD + arms)
    found = loading.load(path, set={"arms.a.share": 0.75}).arms
    assert {name: arm.share for name, arm in found.items()} == {"repetition": 0.0, "a": 0.75, "b": 0.5, "c": 0.25}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_values_mean_what_they_say(encoding: str, tmp_path: Path) -> None:
    cfg = accepted(
        "corpus: {source: 2024-13-45, near_duplicates: off, id_field: on, text_field: 010, split_field: 12:30}\n"
        "engine: {compile: on, shard: on, checkpoint_activations: No}\n"
        "optim: {document_mask: yes, lr: 1e-3, batch_tokens: 1_024, weight_decay: 1}\n"
        "pair:\nembed: # nothing\nseed: 4294967295\n".replace("corpus", "#corpus", 1),
        tmp_path,
        encoding,
    )
    assert (cfg.engine.compile, cfg.engine.shard, cfg.engine.checkpoint_activations) == ("on", True, False)
    assert (cfg.optim.document_mask, cfg.optim.lr, cfg.optim.batch_tokens, cfg.optim.weight_decay) == (True, 1e-3, 1_024, 1.0)
    assert (cfg.budget.train_tokens, cfg.seed) == (10_000, 2**32 - 1)
    assert isinstance(cfg.optim.weight_decay, float)
    path = tmp_path / "d.yaml"
    path.write_text(
        "name: no\nbudget: {unique_tokens: all, train_tokens: 1.5e6}\n"
        "arms: {repetition: , on: {synthetic: related, share: .5}}\n"
        "corpus: {source: 2024-13-45, near_duplicates: off, id_field: on, text_field: 010, split_field: 12:30}\n"
    )
    other = loading.load(path)
    corpus = other.corpus
    assert (corpus.source, corpus.near_duplicates, corpus.id_field) == ("2024-13-45", "off", "on")
    assert (corpus.text_field, corpus.split_field, other.name) == ("010", "12:30", "no")
    assert (other.budget.train_tokens, list(other.arms)) == (1_500_000, ["repetition", "on"])


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "a\\b", "-a", ".a", "a b", "a\n", "a\x1b[2J", "é", "x" * 101, 7]
)
def test_names_that_no_folder_should_have_are_refused(name: Any) -> None:
    raw = small_config(Path("x.jsonl"), Path("runs"))
    for changed in ({**raw, "name": name}, {**raw, "arms": {"repetition": {}, name: {"unique_tokens": "all"}}}):
        with pytest.raises(ConfigError, match=r"a name of at most 100 letters|is not text") as caught:
            loading.load(changed)
        one_line(str(caught.value))


@pytest.mark.parametrize("root", ["x" * 256, "r/" + "é" * 128 + "/s"])
def test_roots_that_no_file_system_takes_are_refused(root: str) -> None:
    raw = small_config(Path("x.jsonl"), Path("runs"))
    with pytest.raises(ConfigError, match=r"root: a folder's name has 256 bytes, and 255 are the most; shorten it"):
        loading.load({**raw, "root": root})
    assert loading.load({**raw, "root": root.replace("éé", "é").removeprefix("x")})


def test_a_home_folder_is_no_folder_called_tilde() -> None:
    raw = small_config(Path("x.jsonl"), Path("runs"))
    for root in ("~", "~/runs", "~me/runs"):
        with pytest.raises(ConfigError, match=r"root: ~.*the shell alone knows `~`.*write the path in full, or \./~"):
            loading.load({**raw, "root": root})
    assert loading.load({**raw, "root": "./~/runs"}).root == "./~/runs"


def test_a_folder_that_a_filter_would_name_too_long_is_refused() -> None:
    judged = dict.fromkeys(["repetition", "nonfactual", "irrelevance", "copying"], "rules")
    digits = [0.1234567890123456, 0.9876543210987654]
    window = {"loss": digits, "novelty": digits, "judged": judged}

    def loaded(name: str) -> Config:
        arm = {"synthetic": "related", "share": 0.5, "filter": window}
        arms = {"repetition": {}, name: arm, "b": {**arm, "rounds": 2}}
        return loading.load({**small_config(Path("x.jsonl"), Path("runs")), "arms": arms})

    kept = loaded("a")
    room = 220 - len(text_of(kept.arms["b"], 0, kept.arms, kept.pretrain).name)
    longest = loaded("a" * (1 + room))
    assert max(len(unit.variant) for unit in recipes.units(longest, {"files": []}).values()) == 220
    with pytest.raises(ConfigError, match=r"arms\.b\.filter: the folder .* would have 221 bytes, and 220 are the most"):
        loaded("a" * (2 + room))


MANY = [float(i + 1) for i in range(40)]
SWEEPS: list[Any] = [{"share": [1.5]}, {"share": [0.5, 0.5]}, {"share": []}, {"lr": [float("nan")]}, {"x": [1]}, {"lr": [True]}]
SWEEPS += [{"lr": ["1"]}, {"lr": 3}, {"epochs": [1]}, {"lr": MANY, "weight_decay": MANY}, {"share": [1e-7, 1.0000001e-7]}]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_values_to_sweep_are_checked_as_the_setting_is(sweep: Any) -> None:
    with pytest.raises(ConfigError, match=r"arms\.v1") as caught:
        loading.load(having(("arms", "v1"), {"synthetic": "related", "share": 0.5, "sweep": sweep}))
    one_line(str(caught.value))


@pytest.mark.parametrize(
    "item",
    [
        "",
        "=",
        "=3",
        "a",
        ".=1",
        "pair.=1",
        "a..b=1",
        "pair.reach=[1",
        "pair.reach=!!x 1",
        "pair=5",
        "pair.reach.x=1",
        "name.x=1",
        "seed=-1",
        "pair.reach=" + "9" * 5_000,
        "x" * 9_999,
        "name=\0",
        "seed={a: 1, a: 2}",
        "seed=\x1b",
        "nme=1",
        "seed=1\n---\n2",
        "arms.v1=*a",
    ],
)
def test_set_has_the_same_errors(item: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loading.load(small_config(Path("x.jsonl"), Path("runs")), set=loading.parse_set([item]))
    one_line(str(caught.value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.lrr", 3, "--set optim.lrr: unknown key; did you mean lr?"),
        ("modle.width", 3, "--set modle: unknown key; did you mean model?"),
        ("optim.lr", "abc", "--set optim.lr: got 'abc'"),
        ("pair", {"bogus": 1}, "--set pair.bogus: unknown key"),
        ("seed", -1, "--set seed: got -1"),
    ],
)
def test_what_was_set_is_on_no_line_of_the_file(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("corpus: {source: x.jsonl}\noptim: {evals: 0}\n")
    with pytest.raises(ConfigError) as caught:
        loading.load(path, set={key: value})
    assert message in str(caught.value)
    assert f"line 2: {key}" not in str(caught.value)
    assert "line 2: optim.evals" in str(caught.value)


def test_a_setting_given_twice_on_the_command_line_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--set seed: given twice"):
        loading.parse_set(["seed=1", "seed=2"])


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path, "is a folder, not a file; name a YAML file"),
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path / ("x" * 300), "."),
        ("/dev/zero", "is a device, not a file"),
        ("a\0b", "."),
        ("", "is a folder, not a file"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            loading.load(path)
        one_line(str(caught.value))


def test_no_configuration_of_thousands_raises_anything_else(tmp_path: Path) -> None:
    rng = random.Random(0)
    text = HEAD + ARMS + "optim: {lr: 4.0e-3, precision: bfloat16}   # why\npair:\n  min_similarity: auto\n  search: 'exact'\n"
    pieces = [*"[]{}:,-\"'#&*!|>%@`\t\n\0 ~\u2028\x85é", "<<: ", "1e9", "-1", ".nan", "null", "off", "!!set", "? ", "\ud800"]
    for _ in range(200):
        changed = list(text)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(changed))
            changed[at : at + rng.choice([0, 1, 1, 5])] = rng.choice(pieces)
        path = tmp_path / "c.yaml"
        path.write_bytes("".join(changed).encode("utf-8", "surrogatepass"))
        try:
            loading.load(path)
        except ConfigError as error:
            one_line(str(error))
