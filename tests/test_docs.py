"""What the documents say is so: generated pages are current, commands exist, files in the map exist, examples run."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks import coverage

from synthboot.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [p for p in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")] if p.name != "CHANGELOG.md"]


def test_generated_pages_are_current() -> None:
    for page, make in runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"].items():
        assert (ROOT / "docs" / page).read_text("utf-8") == make(), f"docs/{page} is old: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_the_documents_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for verb, rest in re.findall(r"^\s*(?:\$ )?synthboot ([a-z]+)(.*)$", text, re.M):
        assert verb in main.commands, verb
        for option in re.findall(r"(?<=\s)--[a-z-]+", rest):
            known = [o for p in main.commands[verb].params for o in p.opts]
            assert option in [*known, "--help"], f"{verb} {option}"
        for path in re.findall(r"configs/[a-z]+\.yaml", rest):
            assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^\s*(?:\$ )?make ([a-z-]+)", text, re.M)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_the_file_map_of_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"<!-- map -->.*?```text\n(.*?)```", text, re.S)
    assert block
    mapped = set(re.findall(r"([a-z_]+\.py)", block[1]))
    there = {p.name for p in (ROOT / "src").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert mapped == there


def test_examples_api_runs(finished: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(finished))
    monkeypatch.setattr(sys, "argv", ["api.py", str(path)])
    runpy.run_path(str(ROOT / "examples" / "api.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "similarity" in printed
    assert "log p(d2|d1): -" in printed
    assert "report.html" in printed
    assert printed.count("(0, 1, 0.9") == 1


def test_the_shipped_text_is_small_and_names_its_origin() -> None:
    data = ROOT / "examples" / "data"
    assert sum(p.stat().st_size for p in data.iterdir()) < 3_000_000
    assert "CC0" in (data / "README.md").read_text()


def test_the_figures_of_the_statistics_page_are_those_that_were_simulated() -> None:
    page = (ROOT / "docs" / "statistics.md").read_text("utf-8")
    results = json.loads((ROOT / "docs" / "statistics.json").read_text("utf-8"))
    assert coverage.filled(page, results) == page
