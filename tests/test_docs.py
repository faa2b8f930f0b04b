"""What the documents say is so: generated pages are current, commands exist, files in the map exist, examples run."""

import itertools
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pytest
import yaml
from benchmarks import coverage
from click.testing import CliRunner
from scipy import special

from synthboot import config, loading
from synthboot.cli import main
from synthboot.data import documents
from synthboot.lm import blocks, loss, precision
from synthboot.lm.sampling import embedded
from synthboot.neighbors import join

ROOT = Path(__file__).parent.parent
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "experiments/*.md", "experiments/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
]
GENERATED = runpy.run_path(str(ROOT / "docs" / "generate.py"))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_generated_pages_are_current() -> None:
    """The README's figures too: they are generated from the result files of the experiments."""
    for page, make in GENERATED["pages"]():
        assert page.read_text("utf-8") == make(), f"{name(page)} is old: make docs"


def test_every_experiment_says_what_it_asked_what_came_out_and_whether_it_stands() -> None:
    for folder in GENERATED["folders"]():
        page = (folder / "README.md").read_text("utf-8")
        for word in ("Question", "Answer", "Status"):
            assert re.search(rf"^\*\*{word}\.\*\* \S", page, re.M), f"{folder.name}: {word}"
        status = re.search(r"^\*\*Status\.\*\* (.*)$", page, re.M)[1]
        assert status.startswith(("Stands", "Taken back")), folder.name
        # What is taken back says by what, where it stands
        assert status.startswith("Stands") or "](../" in status, folder.name


def test_p_values_of_resampled_seeds_are_marked() -> None:
    """Before 2026-11-25 they were too sure: each carries the mark, or is what its seeds say."""
    for folder in GENERATED["folders"]():
        if folder.name >= GENERATED["RESTATED"]:
            continue
        found = [claim.recomputed() for claim in GENERATED["claims"](folder)]
        by_seed = {f"{f.p:.{digits}f}" for f in found if f for digits in (2, 3)}
        page = (folder / "README.md").read_text("utf-8")
        for p in re.findall(r"p = ([01]\.\d+)(?!\d| †| and [01]\.\d+ †| then)", page):
            assert p in by_seed, f"{folder.name}: p = {p}"
        assert "| p |" not in page, folder.name


def test_a_restated_p_value_is_a_paired_t_test_over_seeds() -> None:
    folder = ROOT / "experiments" / "2026-11-23-learning-rate"
    claim = next(c for c in GENERATED["claims"](folder) if c.name == "sbp-25 against repetition")
    gaps = np.array([4.112, 4.141, 4.116]) - np.array([4.116, 4.150, 4.160])
    error = gaps.std(ddof=1) / np.sqrt(3)
    p = 2 * special.stdtr(2, -abs(gaps.mean()) / error)
    assert claim.recomputed().p == pytest.approx(p, rel=1e-4)
    half = -special.stdtrit(2, 0.025) * error
    assert claim.recomputed().high == pytest.approx(gaps.mean() + half)
    assert claim.standing() == "**not shown**"


def test_a_bound_reads_the_ends_of_an_interval_as_the_extreme_seeds() -> None:
    claim = GENERATED["Claim"]
    gaps = np.array([-0.0669, -0.0455, 3 * -0.0565 + 0.0669 + 0.0455])
    p = 2 * special.stdtr(2, -abs(gaps.mean()) / (gaps.std(ddof=1) / np.sqrt(3)))
    read = claim("three seeds", -0.0565, -0.0669, -0.0455, 0.001)
    assert read.bound() == pytest.approx(p, rel=1e-4)
    assert read.standing() == "suggestive †"
    # Of two seeds the ends say nothing, nor does a p-value without an interval
    assert claim("two seeds", -0.0565, -0.0669, -0.0455, 0.001, seeds=2).bound() is None
    assert claim("p alone", -0.0565, p=0.001).standing() == "cannot be recomputed †"
    # What the old rule did not show, nothing does
    assert claim("zero inside", 0.01, -0.01, 0.03, 0.2).standing() == "not shown"


def commands(text: str) -> Iterator[list[str]]:
    """The words of every line of a code block that runs something, continued lines as one."""
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.S | re.M):
        if language == "python":
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"\s*(\$ )?(\w+=\S+ )*(synthboot|make) ", line):
                yield shlex.split(line.removeprefix("$ "), comments=True)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_the_documents_exist(page: Path) -> None:
    """Parsed by the command line itself, not run: verbs, options, how many arguments, and configurations."""
    text = page.read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in commands(text):
        words = list(itertools.dropwhile(lambda word: "=" in word, words))
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
            continue
        _, verb, *arguments = words
        assert verb in main.commands, words
        try:
            main.commands[verb].make_context(verb, arguments)
        except click.exceptions.Exit:
            assert "--help" in arguments
        for path in re.findall(r"configs/[a-z]+\.yaml", " ".join(arguments)):
            assert (ROOT / path).exists(), path
    for verb, rest in re.findall(r"`synthboot ([a-z]+)([^`]*)`", text):  # in a sentence not all is said
        known = [option for parameter in main.commands[verb].params for option in parameter.opts]
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= {*known, "--help"}, f"{verb}{rest}"


def test_the_forge_runs_what_is_there_on_what_is_claimed() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))["jobs"]
    said = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"lint", "test", "site", "demo-small"} <= set(re.findall(r"make ([a-z-]+)", said)) <= targets
    tried = jobs["test"]["strategy"]["matrix"]["include"]
    claimed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    versions = [c.rpartition(" :: ")[2] for c in claimed if re.search(r"Python :: 3\.\d+$", c)]
    assert {one["python"] for one in tried} == set(versions)
    assert {one["kernels"] for one in tried} == {0, 1}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_every_page_has_its_place_on_the_site() -> None:
    """Without mkdocs; `make site` also holds that no link is dead, headings included."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))

    def places(nav: list[dict[str, Any]]) -> Iterator[str]:
        for entry in nav:
            (place,) = entry.values()
            yield from [place] if isinstance(place, str) else places(place)

    there = list(places(site["nav"]))
    assert len(there) == len(set(there))
    assert all((ROOT / place).is_file() for place in there)
    assert {name(page) for page in ROOT.glob("docs/*.md")} <= set(there)
    assert site["strict"]
    assert site["theme"]["font"] is False  # nothing from elsewhere


def test_links_into_a_page_name_a_heading() -> None:
    headings = {}
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
        titles = [re.sub(r"[*`]|\]\([^)]*\)", "", title).strip() for title in re.findall(r"^#+ (.*)$", text, re.M)]
        headings[page] = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    for page in PAGES:
        for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text("utf-8")):
            there = (page.parent / target).resolve() if target else page
            assert heading in headings[there], f"{name(page)}: {target}#{heading}"


def test_the_file_map_is_the_tree() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
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


@pytest.fixture
def cells() -> list[str]:
    """The code of the notebook; outputs are not kept, so that none can be old."""
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text("utf-8"))
    found = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in found)
    return ["".join(cell["source"]) for cell in found]


def test_the_notebook_configures_a_run(cells: list[str]) -> None:
    names: dict[str, Any] = {}
    exec(cells[0], names)
    assert all(state.status == "missing" for state in names["run"].plan().values())
    for cell in cells:
        compile(cell, "quickstart.ipynb", "exec")


@pytest.mark.slow
def test_the_notebook_runs(cells: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in cells:
        exec(cell, names)  # a kernel would do the same, in twenty packages
    printed = capsys.readouterr().out
    for word in ("300 documents", "similarity 0.9", "sampled d2: ", "sbp: test loss", "anecdote"):
        assert word in printed, word


@pytest.fixture(scope="module")
def make_data() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / "make_data.py"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_configuration_reads_what_the_repository_has_or_makes(path: Path, make_data: dict[str, Any]) -> None:
    made = make_data["WHERE"]
    cfg = loading.load(path)
    sources = [cfg.corpus.source] if isinstance(cfg.corpus.source, str) else cfg.corpus.source
    if cfg.evaluate.task_folder != ".":
        sources = [*sources, cfg.evaluate.task_folder]
    for source in sources:
        is_there = (ROOT / source).exists() and source.startswith("examples/data/")
        is_made = source.startswith("data/") and source.removeprefix("data/") in made
        is_not_to_be_had = path.stem == "paper"
        assert is_there or is_made or source == "world" or is_not_to_be_had, source
    assert "../" not in path.read_text("utf-8")


def test_data_is_made_of_the_files_that_one_has(
    make_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    articles = [
        {"id": 1, "title": "Ob", "text": "The Ob is a major river in Russia."},
        {"id": 2, "title": "A", "text": "Long is a moth. " * 200},
        {"id": 3, "title": "B", "text": "B was an album by a rower. It is a river."},
        {"id": 4, "title": "C", "text": "C (born 1950) was a Finnish boxer, like his father."},
    ]
    papers = [
        {"id": "9901.1", "title": "P", "categories": "cs.CL stat.ML", "abstract": "  We train\n a model. "},
        {"id": "9901.2", "title": "Q", "categories": "math.AG cs.CL", "abstract": "We prove it."},
    ]
    for name, rows in (("wiki", articles), ("arxiv", papers)):
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "data"
    apt = tmp_path / "bin" / "apt-cache"  # whose listing was never fetched
    apt.parent.mkdir()
    apt.write_text("#!/bin/sh\nprintf 'Package: tool\\nDescription: a tool\\n It does things.\\n'\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(apt.parent))
    given = ["--arxiv", str(tmp_path / "arxiv.json"), "--wikipedia", str(tmp_path / "wiki.json")]
    monkeypatch.setattr(sys, "argv", ["make_data.py", "--out", str(out), "--shared", str(tmp_path / "none"), *given])
    with pytest.raises(SystemExit):
        make_data["main"]()
    assert f"--shared {tmp_path / 'none'}: has none of arxiv_cs.jsonl.zst, " in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["make_data.py", "--out", str(out), *given])
    monkeypatch.chdir(tmp_path)  # nothing is ready beside it
    make_data["main"]()
    told = capsys.readouterr().out.splitlines()

    def texts(name: str) -> list[Any]:
        return [json.loads(line.content) for line in documents.lines(out / name)]

    assert [(row["id"], row["kind"]) for row in texts("articles.jsonl.zst")] == [("1", "river"), ("3", "rower"), ("4", "boxer")]
    assert [row["id"] for row in texts("encyclopedia.jsonl.zst")] == ["1", "3", "4"]
    assert texts("abstracts.jsonl.zst") == [{"id": "9901.1", "title": "P", "label": "cs.CL", "text": "We train a model."}]
    assert f"{out / 'packages.jsonl.zst'}: not made: needs apt-cache, on Debian or Ubuntu, after apt-get update" in told
    assert f"{out / 'articles.jsonl.zst'}: 3 documents" in told
    make_data["main"]()  # what is there stays
    assert capsys.readouterr().out.count("is there") == 3


def test_data_that_a_folder_has_ready_is_linked(
    make_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ready = tmp_path / "shared" / "arxiv_cs.jsonl.zst"
    ready.parent.mkdir()
    ready.write_bytes(b"as it is")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["make_data.py", "--out", str(tmp_path / "data"), "--shared", str(ready.parent)])
    make_data["main"]()
    assert (tmp_path / "data" / "abstracts.jsonl.zst").resolve() == ready
    assert capsys.readouterr().out.count("not made: ") == 4


def test_packages_are_told_of_once_for_each_source(make_data: dict[str, Any]) -> None:
    listing = (
        "Package: tool\nSection: web\nDescription: a tool\n It does things.\n .\n Many.\n\n"
        "Package: tool-doc\nSource: tool (1.2)\nDescription: its pages\n Pages.\n\n"
        "Package: bare\nDescription: nothing more\n"
    )
    assert list(make_data["packages"](listing)) == [
        {"id": "tool", "section": "web", "text": "a tool\nIt does things.\n\nMany."}
    ]


def test_the_shipped_text_is_small_and_names_its_origin() -> None:
    data = ROOT / "examples" / "data"
    assert sum(p.stat().st_size for p in data.iterdir()) < 3_000_000
    assert "CC0" in (data / "README.md").read_text()


def test_the_plans_of_the_scaling_page_are_those_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "scaling-out.md").read_text("utf-8")
    sets = ["budget.unique_tokens=482_000_000_000", "pair.search=exact"]
    assert all(f"`--set {item}`" in page for item in sets)
    asked = ["plan", str(ROOT / "configs" / "paper.yaml"), "--hardware", "h100", "--json"]
    found = CliRunner().invoke(main, [*asked, *(word for item in sets for word in ("--set", item))])
    rows = {row["stage"]: row for row in json.loads(found.stdout)["plan"]["rows"]}
    for stage, words in (("embed", "all 582M documents"), ("pair", "each with all, exactly"), ("base", "200B tokens, 3B")):
        hours = f"{rows[stage]['device_hours']:,.0f}"
        assert re.search(rf"^\| {stage}: {words} \| [0-9.e+]+ \| {hours} \|", page, re.M), stage


def test_the_figures_of_the_statistics_page_are_those_that_were_simulated() -> None:
    page = (ROOT / "docs" / "statistics.md").read_text("utf-8")
    results = json.loads((ROOT / "docs" / "statistics.json").read_text("utf-8"))
    assert coverage.filled(page, results) == page


@pytest.mark.parametrize("page", [p for p in PAGES if "experiments" not in p.parts], ids=name)
def test_files_that_the_documents_name_exist(page: Path) -> None:
    """Experiments are dated: they may name what was there then."""
    there = {
        path.name for folder in ("src", "tests", "benchmarks", "docs", "experiments") for path in (ROOT / folder).rglob("*.py")
    }
    for path in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)\b", page.read_text("utf-8")):
        tried = [ROOT / path, ROOT / "src" / "synthboot" / path]
        assert any(p.exists() for p in tried) or path in there, path


def test_sizes_in_the_decisions_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "decisions.md").read_text("utf-8")
    assert f"block of {join.QUERY_BLOCK:,} queries" in page
    assert f"Chunks of {loss.CHUNK:,} targets" in page
    assert f"Blocks of {blocks.ROWS} rows" in page
    assert f"At least {embedded.LEAST_ROWS} rows are decoded" in page
    assert f"where it is {precision.MARGIN['cpu']} times as fast" in page
    assert f"up to {config.Pair().exact_docs:,} documents" in (ROOT / "docs" / "paper-map.md").read_text("utf-8")


def test_the_arms_page_names_all_that_can_be_swept() -> None:
    page = (ROOT / "docs" / "arms.md").read_text("utf-8")
    sentence = re.search(r"^`sweep` takes any of (.*)\.$", page, re.M)
    assert sentence
    swept, _ = get_args(config.Arm.model_fields["sweep"].annotation)
    assert re.findall(r"`(\w+)`", sentence[1]) == list(get_args(swept))
