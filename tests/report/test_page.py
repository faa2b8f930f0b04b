"""The page in a real browser: no errors, every figure drawn, examples page, corpus text is inert, everybody can read it."""

import base64
import hashlib
import html
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from synthboot import loading, recipes, steps
from synthboot.artifacts.analysis import Examples, FactShares, SampledText, WorldMeasures
from synthboot.artifacts.model import Sweep
from synthboot.artifacts.pairs import Band, Ceiling, Searched
from synthboot.report.charts import count_model
from synthboot.report.page import by_stage, palette, report
from synthboot.report.results import COST, Results
from tests.conftest import run_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """
window.problems = [];
addEventListener("error", (e) => problems.push(String(e.message || e.type)), true);
addEventListener("securitypolicyviolation", (e) => problems.push("policy " + e.blockedURI));
const complain = console.error;
console.error = (...a) => { problems.push(a.join(" ")); complain(...a); };
const all = (selector) => [...document.querySelectorAll(selector)];

function used(id) {  // what a reader sees who turns pages and searches
  const root = document.getElementById(id), find = (selector) => root.querySelector(selector), seen = {};
  if (!root) return seen;
  const cards = () => [...root.querySelectorAll(".card p")].map((p) => p.textContent).join("|");
  const put = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
  seen.first = cards();
  find(".next").click(); seen.next = cards();
  find(".previous").click(); seen.back = cards();
  put(find("[type=range]"), find("[type=range]").max); seen.last = cards();
  put(find("[type=search]"), seen.last.split("|")[0]); seen.found = cards();
  put(find("[type=search]"), "\u2603 in no document"); seen.none = cards() + find("output").textContent;
  put(find("[type=search]"), ""); seen.all = find("output").textContent;
  return seen;
}

addEventListener("load", () => setTimeout(() => {
  const result = {
    problems,
    pwned: !!window.pwned,
    figures: Object.fromEntries(all("figure").map((f) => [f.id, f.querySelectorAll("svg g").length])),
    pairs: used("pair-browser"),
    examples: used("example-browser"),
    marks: all(".card mark").length,
    images: all("main img").length,
    here: all("#similarities .here").length,
    verdict: document.getElementById("verdict").textContent,
    wide: document.documentElement.scrollWidth - innerWidth,
    headings: all("h1, h2, h3").map((h) => Number(h.tagName[1])),
    unnamed: all("svg:not([aria-label]), button:empty, input:not([aria-label]), .scroll:not([aria-label])").length,
    dangling: all("nav a").filter((a) => !document.getElementById(a.hash.slice(1))).length,
    unscoped: all("th:not([scope])").length,
    twice: all("[id]").length - new Set(all("[id]").map((e) => e.id)).size,
    unread: all("figure").filter((f) => !f.querySelector("figcaption p").textContent).map((f) => f.id),
    untold: all("figure").filter((f) => !f.querySelector("details td")).map((f) => f.id),
  };
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(result);
  document.body.append(out);
}, 500));
"""


def gathered(settings: dict[str, Any]) -> Results:
    cfg = loading.load(settings)
    plan = recipes.units(cfg)
    return steps.gather(cfg, {role: plan[name].folder(cfg.folder) for role, name in plan["report"].parents.items()})


def with_pairs(results: Results, **changes: object) -> Results:
    """The results with another report of the related pairs."""
    return replace(results, pairs={"pair/related": replace(results.pairs["pair/related"], **changes)})


def probe(page: str, folder: Path, width: int = 1200) -> dict[str, Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    path = folder / "probed.html"
    # the page's policy runs its own script alone: the probe is let in by its hash, and nothing else is
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    path.write_text(page.replace("</title>", f"</title><script>{PROBE}</script>", 1), "utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
        "--virtual-time-budget=10000",
        "--dump-dom",
        path.as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout, re.S)
    assert found, result.stdout[-2_000:]
    return dict(json.loads(html.unescape(found[1])))


@pytest.mark.parametrize("width", [1400, 500])
def test_the_page_works_in_a_browser(finished: dict[str, Any], tmp_path: Path, width: int) -> None:
    page = (run_folder(finished) / "11-report" / "report.html").read_text("utf-8")
    assert len(page) < 1_000_000
    found = probe(page, tmp_path, width)
    assert found["problems"] == []
    drawn = {
        "chain",
        "scores",
        "differences",
        "curves",
        "similarities",
        "tuning",
        "copying",
        "lengths",
        "flops",
        "spans",
        "topics",
    }
    assert {name for name, shapes in found["figures"].items() if shapes} >= drawn
    assert found["here"] == 1  # the pair that is shown, among all
    assert "anecdote" in found["verdict"]
    assert found["wide"] <= 0
    for seen in (found["pairs"], found["examples"]):
        assert seen["first"] == seen["back"] != seen["next"]
        assert seen["found"].split("|")[0] == seen["last"].split("|")[0] != ""
        assert seen["none"] == "nothing found"
        assert seen["all"].startswith("1 of ")


def test_the_page_can_be_read_without_seeing_it(finished: dict[str, Any], tmp_path: Path) -> None:
    found = probe(report(gathered(finished)), tmp_path)
    for what in ("unnamed", "dangling", "unscoped", "twice"):
        assert found[what] == 0, what
    assert found["unread"] == []  # every figure says how to read it,
    assert found["untold"] == []  # and has its numbers in a table
    levels = found["headings"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_all_text_stands_out(theme: int) -> None:
    style = resources.files("synthboot.report").joinpath("report.css").read_text("utf-8")
    named = [dict(re.findall(r"--(\w+): (#\w{6})", root)) for root in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]
    color = named[theme]
    texts = {name: color[name] for name in ("ink", "soft", "accent", "faint")} | {n: c[theme] for n, c in palette().items()}
    for name, value in texts.items():
        assert contrast(value, color["paper"]) >= 4.5, name
    for text, ground in itertools.product(("ink", "soft"), ("raised", "copied", "known")):
        assert contrast(color[text], color[ground]) >= 4.5, (text, ground)


def contrast(first: str, second: str) -> float:
    """Of WCAG 2.2: relative luminances of sRGB colours."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted([luminance(first), luminance(second)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_corpus_text_is_inert(finished: dict[str, Any], tmp_path: Path) -> None:
    results = gathered(finished)
    attack = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'><b>&amp;"
    marked = ((attack, 1),)
    sampled = (SampledText(marked, mean_logprob=-1.0, finish="end"),)
    examples = Examples(
        sampled=tuple(replace(e, d1=attack, d2=marked, sampled=sampled) for e in results.examples.sampled),
        spread=tuple(replace(e, d1=attack, d2=marked) for e in results.examples.spread),
    )
    results = replace(with_pairs(results, why=attack), name=attack, examples=examples)
    found = probe(report(results), tmp_path)
    assert not found["pwned"]
    assert found["images"] == 0
    assert found["problems"] == []
    assert found["marks"] == 3
    assert found["examples"]["first"] == "|".join([attack] * 3)


def test_what_d1_could_tell_stands_beside_what_was_learned(finished: dict[str, Any], tmp_path: Path) -> None:
    found = Ceiling(
        docs=50, tokens=900, d1=2.5, loss=3.25, worth={"1": (0.0421, 0.001), "2": (0.06, 0.001), "4": (0.1012, 0.001)},
        random=(-0.0003, 0.0002), bands=[Band(0.2, 0.9, 50, (0.0421, 0.001), (0.1012, 0.001))], floor=3.3456,
    )  # fmt: skip
    results = with_pairs(gathered(finished), ceiling=found)
    page = report(results)
    for figure in ("0.0421", "0.1012", "-0.0003", "3.2500", "3.3456"):
        assert figure in page
    assert count_model(results) == 3.3456
    assert probe(page, tmp_path)["problems"] == []


def test_the_page_asks_nothing_of_the_network(finished: dict[str, Any]) -> None:
    page = report(gathered(finished))
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    # folders of the run are links, and nothing else is
    assert not re.findall(r"""(?:src|href)=["'](?!data:|\.\./\d\d-)[^"'#]""", markup)
    assert "default-src 'none'" in page
    assert "unsafe-inline" not in page.partition("script-src")[2].partition(";")[0]


def test_the_figures_on_the_page_are_those_of_evaluate(finished: dict[str, Any]) -> None:
    results = gathered(finished)
    page = report(results)
    for arm in results.evaluate.best.arms.values():
        assert f"{arm.loss.value:.4f}" in page
    assert results.evaluate.verdict.split("(")[0] in page


def test_how_like_its_d1_a_sample_is_stands_beside_what_was_learned(finished: dict[str, Any]) -> None:
    results = gathered(finished)
    assert results.analyze is not None
    alike = results.analyze.relevance
    page = report(results)
    said = page[page.index("And what was sampled?") :][:400]
    for kind in ("related", "real pairs", "random pairs"):
        assert f"{alike[kind].mean:.3f}" in said


def test_a_run_without_synthetic_text_has_a_page_too(finished: dict[str, Any]) -> None:
    results = replace(
        gathered(finished),
        analyze=None,
        examples=Examples(),
        pairs={},
        tune={},
        synthesize={},
    )
    assert "Arms" in report(results)


def test_what_a_sweep_of_tuning_reached_is_shown(finished: dict[str, Any]) -> None:
    results = gathered(finished)
    assert "best validation loss on held-out pairs" not in report(results)
    sweep = Sweep({"lr=0.01": 1.5, "lr=0.001": 2.5}, {}, "lr=0.01")
    page = report(replace(results, sweeps={"tune/related": sweep}))
    assert 'tune/related</th><th scope="col">best validation loss on held-out pairs</th>' in page
    assert re.search(r"lr=0\.01 <b>chosen</b></th><td>1\.5000<.*lr=0\.001</th><td>2\.5000<", page, re.DOTALL)
    assert "diverged" not in page
    lost = replace(sweep, diverged={"lr=9": "loss nan at step 3 of 8"})
    page = report(replace(results, sweeps={"tune/related": lost}))
    assert 'lr=9</th><td class="words">diverged: loss nan at step 3 of 8<' in page


def test_what_is_read_for_its_cost_alone_is_paid_for_and_shown_nowhere_else(finished: dict[str, Any]) -> None:
    cfg = loading.load(finished)
    plan = recipes.units(cfg)
    roles = {role: plan[name].folder(cfg.folder) for role, name in plan["report"].parents.items()}
    trial = roles.pop("tune/related")
    results = steps.gather(cfg, roles | {f"{COST}tune/related,lr=0.01": trial})
    assert not results.tune
    assert "tune/related,lr=0.01" in [cost.unit for cost in results.costs]


def test_every_artifact_is_linked_and_paid_for_once(finished: dict[str, Any]) -> None:
    results = gathered(finished)
    page = report(results)
    links = re.findall(r'href="\.\./([^"]*)"', page)
    assert len(links) == len(set(links)) == len(results.costs)
    assert all((run_folder(finished) / link / "manifest.json").exists() for link in links)
    stages = by_stage(results.costs)
    assert next(iter(stages)) == "corpus"
    assert sum(stage.hours for stage in stages.values()) * 3600 == pytest.approx(sum(c.seconds for c in results.costs))


def test_what_is_not_known_has_its_reason(finished: dict[str, Any]) -> None:
    results = gathered(finished)
    found = results.evaluate
    arms = {**found.best.arms, "sbp": replace(found.best.arms["sbp"], oracle_share=None)}
    evaluation = replace(
        found,
        best=replace(found.best, arms=arms),
        efficiency=replace(found.efficiency, worth={"sbp": None}),
    )
    page = report(replace(results, evaluate=evaluation))
    assert "the oracle&#39;s own gain is not shown" in page or "the oracle's own gain is not shown" in page
    assert 'id="efficiency"' not in page
    assert re.search(r"Not known for\s+sbp: their loss lies beyond", page)
    assert "<small>anecdote</small>" in page  # two seeds, beside p


def test_a_name_of_an_arm_is_text_in_figures_too(finished: dict[str, Any]) -> None:
    results = gathered(finished)
    page = report(replace(results, tune={"tune/<script>&": results.tune["tune/related"]}))
    assert "tune/<script>" not in page
    assert "<text" in page
    assert "&lt;script&gt;&amp;</text>" in page


def test_the_key_of_an_address_stays_at_home(tiny: dict[str, Any]) -> None:
    results = gathered(tiny)
    sources = ["https://me:key1@host/a.jsonl?sig=key2", "s3://key3@bucket/what?.jsonl"]
    corpus = results.config.corpus.model_copy(update={"source": sources})
    page = report(replace(results, config=results.config.model_copy(update={"corpus": corpus})))
    assert not {f"key{number}" for number in (1, 2, 3) if f"key{number}" in page}
    shown = html.escape(str(["https://host/a.jsonl", "s3://bucket/what?.jsonl"])).replace("&#x27;", "&#39;")
    assert page.count(shown) == 2  # above, and among the settings


def test_a_search_by_clusters_says_how_many_and_what_it_finds(finished: dict[str, Any]) -> None:
    page = report(with_pairs(gathered(finished), search=Searched("ivf", (0.97, 0.961, 0.982), 1_234)))
    assert "Neighbours by 1,234 clusters; 97.0 % of the exact ones were found (96.1 to 98.2 %" in page


def test_without_a_synthesizer_there_is_no_figure_of_one(finished: dict[str, Any]) -> None:
    results = gathered(finished)
    nothing = FactShares(0.0, *[None] * (len(fields(FactShares)) - 1))
    world = WorldMeasures(excess={}, facts={"unconditional,loss=1..2": {"many": nothing}})
    assert results.analyze is not None
    page = report(replace(results, analyze=replace(results.analyze, world=world)))
    assert 'id="fact-table"' in page
    assert 'id="excess"' not in page
    assert "unconditional,<wbr>loss=<wbr>1..2, many" in page


def test_the_page_holds_nothing_that_acts_on_a_terminal(finished: dict[str, Any]) -> None:
    results = gathered(finished)
    examples = results.examples.sampled
    odd = "red \x1b[31m and \x9b and \u202e turned"
    page = report(
        replace(results, name=odd, examples=Examples(tuple(replace(e, d1=odd, d2=((odd, 1),)) for e in examples))),
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)
    assert page.count("\\u001b") >= 2  # in the title, and among the examples
