"""The page in a real browser: no errors, every chart drawn, examples page, corpus text is inert."""

import copy
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from synthboot import loading, recipes, steps
from synthboot.report.charts import count_model
from synthboot.report.page import report
from synthboot.stages.ceiling import Band, Ceiling
from tests.conftest import run_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """
<script>
window.problems = [];
addEventListener("error", e => problems.push(String(e.message || e.type)), true);
addEventListener("securitypolicyviolation", e => problems.push("policy " + e.blockedURI));
const complain = console.error; console.error = (...a) => { problems.push(a.join(" ")); complain(...a); };
addEventListener("load", () => setTimeout(() => {
  const cards = () => [...document.querySelectorAll("#cards .card p")].map(p => p.textContent).join("|");
  const before = cards(); document.getElementById("next").click(); const after = cards();
  document.getElementById("previous").click();
  const near = document.getElementById("near"), pair = () => document.getElementById("pair").textContent;
  const least = [document.getElementById("similarity").textContent, pair()];
  near.value = near.max; near.dispatchEvent(new Event("input"));
  const most = [document.getElementById("similarity").textContent, pair()];
  const charts = [...document.querySelectorAll(".js-plotly-plot")].map(c => [c.id, c.querySelectorAll("svg .trace").length]);
  const out = document.createElement("pre"); out.id = "probe";
  out.textContent = JSON.stringify({problems, charts, least, most, turned: before !== after, back: cards() === before,
    marks: document.querySelectorAll(".card mark").length, pwned: !!window.pwned,
    images: document.querySelectorAll(".card img").length,
    verdict: document.getElementById("verdict").textContent, wide: document.documentElement.scrollWidth - innerWidth});
  document.body.append(out);
}, 500));
</script>
"""


def gathered(settings: dict[str, Any]) -> dict[str, Any]:
    cfg = loading.load(settings)
    plan = recipes.units(cfg)
    return steps.gather(cfg, {role: plan[name].folder(cfg.folder) for role, name in plan["report"].parents.items()})


def probe(page: str, folder: Path) -> dict[str, Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    path = folder / "probed.html"
    path.write_text(page.replace("<head>", "<head>" + PROBE, 1), "utf-8")
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
        "--window-size=1200,900",
        "--virtual-time-budget=10000",
        "--dump-dom",
        path.as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout, re.S)
    assert found, result.stdout[-2_000:]
    import html

    return dict(json.loads(html.unescape(found[1])))


def test_the_page_works_in_a_browser(finished: dict[str, Any], tmp_path: Path) -> None:
    page = (run_folder(finished) / "11-report" / "report.html").read_text("utf-8")
    found = probe(page, tmp_path)
    assert found["problems"] == []
    drawn = {"scores", "differences", "curves", "similarities", "tuning", "copying", "lengths", "efficiency", "flops"}
    assert {name for name, traces in found["charts"] if traces} == drawn
    assert found["turned"]
    assert found["back"]
    assert float(found["least"][0]) < float(found["most"][0])
    assert found["least"][1] != found["most"][1]
    assert "anecdote" in found["verdict"]
    assert found["wide"] <= 0


def test_corpus_text_is_inert(finished: dict[str, Any], tmp_path: Path) -> None:
    results = copy.deepcopy(gathered(finished))
    attack = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'><b>&amp;"
    for example in results["examples"]:
        example["d1"] = example["d2"] = attack
        example["sampled"] = [{"segments": [[attack, 1]], "mean_logprob": -1.0, "finish": "end"}]
    for pair in results["pair_examples"]:
        pair["d1"], pair["d2"] = attack, [[attack, 1]]
    results["name"] = attack
    results["pairs"]["pair/related"]["why"] = attack
    found = probe(report(results), tmp_path)
    assert not found["pwned"]
    assert found["images"] == 0
    assert found["problems"] == []
    assert found["marks"] == 2


def test_what_d1_could_tell_stands_beside_what_was_learned(finished: dict[str, Any], tmp_path: Path) -> None:
    results = copy.deepcopy(gathered(finished))
    found = Ceiling(
        docs=50, tokens=900, d1=2.5, loss=3.25, worth={"1": (0.0421, 0.001), "2": (0.06, 0.001), "4": (0.1012, 0.001)},
        random=(-0.0003, 0.0002), bands=[Band(0.2, 0.9, 50, (0.0421, 0.001), (0.1012, 0.001))], floor=3.3456,
    )  # fmt: skip
    results["pairs"]["pair/related"]["ceiling"] = json.loads(json.dumps(asdict(found)))
    page = report(results)
    for figure in ("0.0421", "0.1012", "-0.0003", "3.2500", "3.3456"):
        assert figure in page
    assert count_model(results) == 3.3456
    assert probe(page, tmp_path)["problems"] == []


def test_the_page_asks_nothing_of_the_network(finished: dict[str, Any]) -> None:
    page = report(gathered(finished))
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)[^"'#]""", markup)
    assert "default-src 'none'" in page


def test_the_figures_on_the_page_are_those_of_evaluate(finished: dict[str, Any]) -> None:
    results = gathered(finished)
    page = report(results)
    for scores in results["evaluate"]["best"]["arms"].values():
        assert f"{scores['loss'][0]:.4f}" in page
    assert results["evaluate"]["verdict"].split("(")[0] in page


def test_a_run_without_synthetic_text_has_a_page_too(finished: dict[str, Any]) -> None:
    results = gathered(finished) | {
        "analyze": None,
        "examples": [],
        "pair_examples": [],
        "pairs": {},
        "tune": {},
        "synthesize": {},
    }
    assert "Arms" in report(results)


def test_what_a_sweep_of_tuning_reached_is_shown(finished: dict[str, Any]) -> None:
    results = gathered(finished)
    assert "loss on held-out pairs" not in report(results)
    sweep = {"losses": {"lr=0.01": 1.5, "lr=0.001": 2.5}, "settings": {}, "chosen": "lr=0.01"}
    page = report(results | {"sweeps": {"tune/related": sweep}})
    assert "tune/related</th><th>best validation loss on held-out pairs</th>" in page
    assert re.search(r"lr=0\.01 <b>chosen</b></td><td>1\.5000<.*lr=0\.001</td><td>2\.5000<", page, re.DOTALL)


def test_a_search_by_clusters_says_how_many_and_what_it_finds(finished: dict[str, Any]) -> None:
    results = copy.deepcopy(gathered(finished))
    results["pairs"]["pair/related"] |= {"search": "ivf", "clusters": 1_234, "recall": [0.97, 0.961, 0.982]}
    page = report(results)
    assert "Neighbours by 1,234 clusters; 97.0 % of the exact ones were found (96.1 to 98.2 %" in page
