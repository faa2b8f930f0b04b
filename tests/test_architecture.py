"""The house rules that a machine can hold: imports run one way, files and functions stay small, names stay clear."""

import ast
import graphlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from synthboot import recipes

SOURCE = Path(__file__).parent.parent / "src" / "synthboot"
FILES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))
ORDER = [
    "errors",
    "notebook",
    "terminal",
    "rng",
    "kernels",
    "forked",
    "schema",
    "config",
    "strict_yaml",
    "statistics",
    "scaling",
    "settings",
    "loading",
    "worlds",
    "pool",
    "data",
    "artifacts",
    "verdicts",
    "neighbors",
    "lm",
    "judges",
    "stages",
    "report",
    "steps",
    "recipes",
    "preflight",
    "runner",
    "survey",
    "proposal",
    "studies",
    "export",
    "show",
    "comparison",
    "api",
    "cli",
]


@cache
def parsed(path: Path) -> ast.Module:
    """A file as Python reads it."""
    return ast.parse(path.read_text("utf-8"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("synthboot"):
            module = (node.module or "").split(".")
            found += [".".join([*module, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("synthboot")]
    return [name.removeprefix("synthboot.") for name in found]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__", "docs"):
        return
    for name in imports(path):
        there = name.split(".")[0]
        if there in ORDER and there != here:
            assert ORDER.index(there) < ORDER.index(here), f"{here} imports {name}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Also where an import stands inside a function: a hidden circle is one all the same."""
    names = {".".join(p.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    edges = {name: {_file(i, names) for i in imports(path)} - {name, ""} for name, path in names.items()}
    graphlib.TopologicalSorter(edges).prepare()


def _file(imported: str, names: dict[str, Path]) -> str:
    """The file that an import is of: a module, or the module that a name comes from."""
    return imported if imported in names else imported.rpartition(".")[0]


def test_no_stage_imports_another() -> None:
    for path in (SOURCE / "stages").glob("*.py"):
        assert not [n for n in imports(path) if n.startswith("stages")], path.name


def public(of: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """The functions and classes that others may use, and what is public in such classes."""
    for node in of.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_public_names_have_docstrings(path: Path) -> None:
    tree = parsed(path)
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), "module"
    for node in public(tree):
        assert ast.get_docstring(node), node.name


def test_only_the_command_line_prints() -> None:
    for path in FILES:
        if room(path) == "cli":
            continue
        for node in ast.walk(parsed(path)):
            assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"), path


def test_nothing_is_pickled_or_evaluated() -> None:
    for path in FILES:
        text = path.read_text("utf-8")
        for word in ("import pickle", "torch.load", "torch.save", "allow_pickle=True", "joblib", "trust_remote_code=True"):
            assert word not in text, f"{path.name}: {word}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path


def test_no_library_may_run_the_code_that_comes_with_a_model() -> None:
    calls = 0
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in ("from_pretrained", "SentenceTransformer", "load_dataset", "LLM"):
                    calls += 1
                    given = {k.arg: k.value for k in node.keywords}.get("trust_remote_code")
                    assert isinstance(given, ast.Constant), f"{path.name} line {node.lineno}: {name}"
                    assert given.value is False, f"{path.name} line {node.lineno}: {name}"
    assert calls >= 6


def test_a_stage_is_one_word_everywhere() -> None:
    from synthboot.cli import STAGE_HELP, main
    from synthboot.steps import STEPS

    names = list(recipes.STAGES)
    assert list(STEPS) == names
    assert list(STAGE_HELP) == names
    assert set(names) <= set(main.commands)
    for name in names:
        # base is trained as the arm it is: repetition
        file = "pretrain" if name == "base" else name
        place = "report/page.py" if name == "report" else f"stages/{file}.py"
        tree = ast.parse((SOURCE / place).read_text("utf-8"))
        assert file in [n.name for n in tree.body if isinstance(n, ast.FunctionDef)], name


def test_no_vague_file_names() -> None:
    assert not {p.stem for p in FILES} & {"utils", "helpers", "misc", "common", "manager"}


def is_private(name: object) -> bool:
    """Ours to change: not `_repr_html_`, by which a notebook asks."""
    if not isinstance(name, str) or not name.isidentifier():
        return False
    return name.startswith("_") and not name.startswith("__") and not name.endswith("_")


def private_names(trees: Iterable[ast.Module]) -> set[str]:
    """Every private function, class, constant and attribute that is defined."""
    found: set[object] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return {str(name) for name in found if is_private(name)}


def reached(tree: ast.Module) -> set[str]:
    """The private names that a test names and does not define."""
    found: set[object] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # as patching names them
            found.add(node.value)
    return {str(name) for name in found if is_private(name)} - private_names([tree])


def test_no_test_reaches_for_a_private_name() -> None:
    """What a test needs of the inside is a thing of its own, and then it has a name and a docstring."""
    ours = private_names(parsed(p) for p in FILES)
    found = {path.relative_to(TESTS[0].parent).as_posix(): reached(parsed(path)) & ours for path in TESTS}
    assert {name: names for name, names in found.items() if names} == {}
