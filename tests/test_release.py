"""The release script on a repository of its own, and what wheel and sdist have in them."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "thing"
version = "1.2.3"
[tool.setuptools]
packages = []
"""
CHANGES = "# Changes\n\n## 1.2.3\n\n- It does more.\n- # and 'less'\n\n# of a line of its own\n\n## 1.2.2\n\n- It began.\n"


@pytest.fixture(scope="module")
def quiet_git() -> dict[str, str]:
    """Nobody's own settings."""
    who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "PIP_NO_INDEX": "1"}


@pytest.fixture
def repository(tmp_path: Path, quiet_git: dict[str, str]) -> Path:
    root = tmp_path / "thing"
    root.mkdir()
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "CHANGELOG.md").write_text(CHANGES)
    (root / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run(["git", *words], cwd=root, check=True, env=quiet_git)
    return root


def release(root: Path, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "release.py"), "--root", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def tags(root: Path) -> str:
    return subprocess.run(["git", "tag", "-n9"], cwd=root, check=True, capture_output=True, text=True).stdout


def test_a_release_is_said_before_it_is_made(repository: Path, quiet_git: dict[str, str]) -> None:
    said = release(repository, quiet_git)
    assert said.returncode == 0, said.stderr
    assert "- It does more." in said.stdout
    assert "- It began." not in said.stdout
    assert "-m build" in said.stdout
    assert "git tag --annotate --cleanup=verbatim v1.2.3" in said.stdout
    assert tags(repository) == ""
    assert not (repository / "dist").exists()


BACKEND = """
import tarfile, zipfile

def build_sdist(folder, settings=None):
    with tarfile.open(f"{folder}/thing-1.2.3.tar.gz", "w:gz") as archive:
        for name, place in (("pyproject.toml",) * 2, ("own.py",) * 2, ("own.py", "PKG-INFO")):
            archive.add(name, f"thing-1.2.3/{place}")
    return "thing-1.2.3.tar.gz"

def build_wheel(folder, settings=None, metadata=None):
    zipfile.ZipFile(f"{folder}/thing-1.2.3-py3-none-any.whl", "w").close()
    return "thing-1.2.3-py3-none-any.whl"
"""


def test_a_release_is_built_and_tagged_with_all_of_its_notes(repository: Path, quiet_git: dict[str, str]) -> None:
    # a backend of its own needs nothing from the network
    own = PYPROJECT.replace('["setuptools"]', '[]\nbackend-path = ["."]').replace("setuptools.build_meta", "own")
    (repository / "pyproject.toml").write_text(own)
    (repository / "own.py").write_text(BACKEND)
    (repository / ".gitignore").write_text("dist/\n__pycache__/\n")
    (repository / "dist").mkdir()
    (repository / "dist" / "thing-1.2.2.tar.gz").touch()
    for words in (["add", "-A"], ["commit", "-q", "-m", "own"]):
        subprocess.run(["git", *words], cwd=repository, check=True, env=quiet_git)
    said = release(repository, quiet_git, "--yes")
    assert said.returncode == 0, said.stderr
    assert "# of a line of its own" in tags(repository)
    assert {path.name for path in (repository / "dist").iterdir()} == {"thing-1.2.3.tar.gz", "thing-1.2.3-py3-none-any.whl"}
    again = release(repository, quiet_git, "--yes")
    assert again.stderr == "release: v1.2.3 is there already: raise the version in pyproject.toml\n"


def test_what_stands_against_a_release_is_said_all_at_once(repository: Path, quiet_git: dict[str, str]) -> None:
    subprocess.run(["git", "tag", "v1.2.3"], cwd=repository, check=True)
    subprocess.run(["git", "switch", "-q", "-c", "other"], cwd=repository, check=True)
    (repository / "CHANGELOG.md").write_text(CHANGES.replace("1.2.3", "1.3.0"))
    (repository / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.30\n")
    said = release(repository, quiet_git, "--yes")
    assert said.returncode == 1
    reasons = ["CHANGELOG.md: ", "CITATION.cff: ", "v1.2.3 is there", "there are changes", "not on main"]
    assert [line.removeprefix("release: ").startswith(r) for line, r in zip(said.stderr.splitlines(), reasons, strict=True)]
    for reason in reasons:
        assert f"release: {reason}" in said.stderr
    assert not (repository / "dist").exists()


def test_a_build_that_fails_leaves_no_tag(repository: Path, quiet_git: dict[str, str]) -> None:
    (repository / "pyproject.toml").write_text(PYPROJECT.replace("setuptools.build_meta", "no_such_backend"))
    subprocess.run(["git", "commit", "-q", "-a", "-m", "broken"], cwd=repository, check=True, env=quiet_git)
    assert release(repository, quiet_git, "--yes").returncode != 0
    assert tags(repository) == ""


def test_this_repository_has_what_a_release_asks_for(quiet_git: dict[str, str]) -> None:
    """But for the tree and the branch, which are whoever releases' business."""
    said = release(ROOT, quiet_git).stderr
    assert "CHANGELOG.md" not in said
    assert "CITATION.cff" not in said


def built(folder: Path, limit: float, **env: str) -> tuple[Path, Path]:
    """Wheel and sdist of the package's own files, made without the network."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **env}, timeout=limit)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def holds_the_package(names: set[str]) -> None:
    """All that the sources have beside Python's own files, found by suffix rather than by the list that packs them."""
    data = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "synthboot").rglob("*")
        if path.suffix in (".py", ".j2", ".css", ".js", ".yaml", ".typed")
    }
    assert len(data) > 100
    assert data <= names, data - names


def test_the_package_without_its_compiled_loops(tmp_path: Path) -> None:
    """Built where there is no compiler, installed into a folder of its own, run as its users run it."""
    wheel, sdist = built(tmp_path, 250, CC="false", CXX="false")
    names = set(zipfile.ZipFile(wheel).namelist())
    holds_the_package(names)
    assert not [name for name in names if name.endswith(".so")]
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/src/")[2] for name in archive.getnames()}
        assert {"vectors.h", "topk.h"} <= {Path(name).name for name in packed}
    holds_the_package(packed)

    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, timeout=120)
    env = {**os.environ, "PYTHONPATH": str(target)}
    script = target / "bin" / "synthboot"  # called as the package is: what `uvx` and `pipx run` look for
    said = subprocess.run([script, "--help"], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
    assert said.returncode == 0, said.stderr
    assert "synthesize" in said.stdout

    text = tmp_path / "mine.jsonl"
    reports = [f"Report {n} tells of the river {n % 17} and of mill {n % 31}." for n in range(200)]
    text.write_text("".join(f'{{"text": "{report}"}}\n' for report in reports))
    said = subprocess.run([script, "init", str(text)], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "mine.yaml").exists()
    where = "import synthboot, synthboot.report.page as page; print(synthboot.__file__, len(page.rendered('head.html.j2')))"
    found = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
    assert found.stdout.startswith(str(target)), found.stderr


@pytest.mark.slow
@pytest.mark.timeout(1_000)
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_the_wheel_with_its_compiled_loops_serves_every_python(tmp_path: Path) -> None:
    wheel, _ = built(tmp_path, 900)
    assert re.search(r"-cp311-abi3-linux_\w+\.whl$", wheel.name)
    assert "synthboot/kernels/_loops.abi3.so" in zipfile.ZipFile(wheel).namelist()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    where = "from synthboot.kernels import library; print(library.__file__, library.available())"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "SYNTHBOOT_KERNELS": "1"}
    found = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
    assert found.stdout.split() == [str(tmp_path / "installed" / "synthboot" / "kernels" / "library.py"), "True"], found.stderr
