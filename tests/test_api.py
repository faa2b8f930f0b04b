"""What a run made can be got at from Python, and looked at in a notebook."""

import ast
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mypy import api as mypy

import synthboot as sb
from synthboot import api
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.pairs import VALIDATION, Pairs
from synthboot.artifacts.synthetic import Synthetic
from synthboot.errors import ConfigError, MissingArtifact
from tests.conftest import run_folder

SOURCE = Path(sb.__file__).parent


@pytest.fixture(scope="module")
def run(finished: dict[str, Any]) -> api.Run:
    return api.Run(finished)


def test_pairs_can_be_indexed_and_sliced(run: api.Run, finished: dict[str, Any]) -> None:
    pairs = run.pair()
    stored = Pairs.load(run_folder(finished) / "03-pair/related")
    corpus = Corpus.open(run_folder(finished) / "01-corpus")
    train, validation = (list(corpus.texts(name)) for name in ("pretrain", "validation"))
    assert (stored.split == VALIDATION).any(), "the test needs a pair whose d2 is of the validation set"
    for number, (d1, d2, similarity) in enumerate(pairs):
        of_d2 = validation if stored.split[number] == VALIDATION else train
        assert (d1, d2) == (train[stored.d1[number]].text, of_d2[stored.d2[number]].text)
        assert similarity == stored.similarity[number]
    assert len(pairs) == len(stored) == number + 1
    assert pairs[-1] == pairs[len(pairs) - 1]
    assert list(pairs[3:9:2]) == [pairs[3], pairs[5], pairs[7]]
    with pytest.raises(IndexError):
        pairs[len(pairs)]
    frame = pairs[:4].to_pandas()
    assert next(frame.itertuples(index=False, name=None))[:3] == pairs[0]
    assert list(frame.columns) == ["d1", "d2", "similarity", "split"]
    assert run.corpus()[-1] == train[-1].text
    assert run.corpus()[2:4] == [train[2].text, train[3].text]


def test_synthetic_text_by_arm_or_kind(run: api.Run, finished: dict[str, Any]) -> None:
    samples = list(Synthetic.open(run_folder(finished) / "06-synthesize/related"))
    for of in ("sbp", "related"):
        found = run.synthetic(of)
        assert len(found) == len(samples) > 20
        assert [found[i].text for i in (0, 17, -1)] == [samples[i].text for i in (0, 17, -1)]
        assert found[17].tokens.tolist() == samples[17].tokens.tolist()
        assert [row.text for row in found[15:19]] == [row.text for row in samples[15:19]]
    assert run.synthetic().to_pandas()["text"].tolist() == [row.text for row in samples]
    with pytest.raises(ConfigError, match="arm repetition reads no synthetic text"):
        run.synthetic("repetition")
    with pytest.raises(MissingArtifact, match=r"scratch: no arm here, .* sbp, .*related"):
        run.synthetic("scratch")


def test_models_vectors_and_measures(run: api.Run, finished: dict[str, Any]) -> None:
    models = run.models()
    assert list(models) == ["repetition", "sbp", "oracle"]
    assert all(list(by_seed) == [0, 1] for by_seed in models.values())
    assert run.base().folder == models["repetition"][0].folder == run_folder(finished) / "04-base"
    assert models["sbp"][1].token_counts.synthetic_tokens > 0
    vectors = run.vectors()
    assert vectors.shape[0] == len(run.corpus())
    assert np.linalg.norm(vectors.astype(np.float32), axis=1) == pytest.approx(1, abs=1e-2)
    assert "related" in run.analyze().kinds
    with pytest.raises(MissingArtifact, match=r"set extract\.docs or corpus\.canaries\.count"):
        run.extract()
    scores = run.evaluate().to_pandas().set_index("arm")
    assert scores.loc["sbp", "loss"] == run.evaluate().arms["sbp"].loss.value
    assert scores.loc["sbp", "difference_low"] == run.evaluate().arms["sbp"].difference.low


def test_what_is_shown_says_what_it_is_and_is_escaped(run: api.Run) -> None:
    assert repr(run).startswith("Run(small: repetition, sbp, oracle; ")
    for value, words in [(run.pair(), "pairs, similarity 0."), (run.synthetic(), "related: "), (run.corpus(), "documents")]:
        assert words in repr(value)
        assert words in value._repr_html_()
    assert "repetition" in repr(run.evaluate())
    assert "nats per token" in run.evaluate()._repr_html_()

    texts = run.corpus()
    texts.text = lambda tokens, doc: "<script>alert(1)</script> & more" * 100  # type: ignore[method-assign]
    shown = api.TextPairs(run.pair().pairs, texts)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert len(shown) < 20_000
    assert api.TextPairs(run.pair().pairs[:0], texts).to_pandas().empty
    assert repr(api.TextPairs(run.pair().pairs[:0], texts)) == "TextPairs(no pairs)"


def test_public_names_are_the_same_whatever_was_imported_before() -> None:
    """An import of synthboot.NAME puts that module in the place of what the name stood for."""
    for name in sb.__all__:
        if find_spec(f"synthboot.{name}"):
            import_module(f"synthboot.{name}")
        assert getattr(sb, name) is sb.__getattr__(name), name


def test_the_version_is_that_of_the_package() -> None:
    assert sb.__version__ == metadata.version("synthboot")


def test_type_checkers_see_every_public_name() -> None:
    [declared] = [
        node
        for node in ast.parse((SOURCE / "__init__.py").read_text()).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    ]
    seen = {}
    for node in declared.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.name == alias.asname, "without `as` a type checker takes it for private"
            seen[alias.name] = getattr(import_module(node.module or ""), alias.name)
    assert sorted(seen) == sorted(sb.__all__)
    assert all(seen[name] is getattr(sb, name) for name in seen)


def test_defaults_are_where_type_checkers_look_for_them() -> None:
    """By the rules of dataclass_transform they are in the keyword `default` alone; without it every setting is required."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Field":
                assert not node.args, f"{path.name} line {node.lineno}: Field(default=...)"


USER = """
from pathlib import Path
from typing import assert_type
import numpy as np
import synthboot as sb

run = sb.Run("mine.yaml", set={"tune.lr": 1e-3}, progress=print)
assert_type(run.pair()[0], tuple[str, str, float])
assert_type([text for text in run.corpus()], list[str])
assert_type(run.tune(), sb.Synthesizer)
assert_type(run.tune().sample(given="", n=1), list[str])
assert_type(run.models()["sbp"][0].best, Path)
assert_type(sb.study("mine.yaml", {"model.width": [96]}), sb.Study)
assert_type(sb.pair(np.eye(2), sb.Tokens.of([[1, 0]]), sb.config.Pair(min_similarity=0.8)), sb.Pairs)
sb.rum
"""

SETTINGS = """
[mypy]
[mypy-torch.*,transformers.*,tokenizers.*,safetensors.*]
follow_imports = skip
"""  # they take minutes to read, and nothing public is of their types


@pytest.mark.slow
def test_the_code_of_users_is_type_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our mypy settings, and without the plugin of pydantic."""
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    monkeypatch.setenv("MYPYPATH", str(SOURCE.parent))
    options = ["--strict", f"--config-file={tmp_path / 'mypy.ini'}", f"--cache-dir={tmp_path}"]
    found, _, _ = mypy.run([*options, str(tmp_path / "user.py")])
    ours = [line.partition("user.py:")[2] for line in found.splitlines() if "user.py:" in line]
    assert len(ours) == 1, found
    assert 'has no attribute "rum"' in ours[0]
