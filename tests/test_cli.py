import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from synthboot import api
from synthboot.cli import main
from synthboot.data import disk
from synthboot.judges.protocol import QUESTIONS
from tests.conftest import run_folder, small_config, soon


def call(*arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def config_file(finished: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(finished))
    return str(path)


def test_run_prints_the_comparison_the_verdict_and_where_the_report_lies(config_file: str, finished: dict[str, Any]) -> None:
    result = call("run", config_file)
    assert result.exit_code == 0
    for word in ("repetition", "sbp", "oracle", "test loss", "bits/byte", "an anecdote"):
        assert word in result.stdout
    assert f"report: {run_folder(finished) / '11-report' / 'report.html'}" in result.stdout


def test_run_as_json(config_file: str) -> None:
    result = json.loads(call("run", config_file, "--json").stdout)
    assert set(result["best"]["arms"]) == {"repetition", "sbp", "oracle"}


def test_plan_says_what_is_stale_why_and_what_it_costs(config_file: str) -> None:
    done = call("plan", config_file).stdout
    assert "nothing to train or to sample" in done
    assert "stale" not in done
    stale = call("plan", config_file, "--set", "pair.num_neighbors=4").stdout
    assert "pair/related: stale (pair.num_neighbors 5 -> 4)" in stale
    assert "tokens to train on" in stale
    assert "FLOPs" in stale
    found = json.loads(call("plan", config_file, "--set", "optim.lr=0.02", "--json").stdout)
    assert found["units"]["base"] == {"status": "stale", "reasons": ["optim.lr 0.01 -> 0.02"]}
    assert found["estimate"]["train_tokens"] >= 6 * 12_000


def test_plan_says_what_more_seeds_would_show(config_file: str, finished: dict[str, Any]) -> None:
    result = json.loads(call("evaluate", config_file, "--json").stdout)
    power = result[result["checkpoint"]]["power"]
    line = next(x for x in call("plan", config_file).stdout.splitlines() if x.startswith("power: "))
    assert f"2 seeds show a difference of sbp to repetition of {power['detectable']['2']:.4f} nats" in line
    assert line.endswith(f"5 seeds {power['detectable']['5']:.4f}, 10 seeds {power['detectable']['10']:.4f}")

    more = json.loads(call("plan", config_file, "--set", "pretrain.seeds=[0, 1, 2]", "--json").stdout)["power"]
    smallest = more["detectable"]
    assert list(smallest) == ["3", "5", "10"]
    assert power["detectable"]["2"] > smallest["3"] > smallest["5"] > smallest["10"] > 0

    elsewhere = call("plan", config_file, "--set", "name=not-evaluated").stdout
    assert "power:" not in elsewhere


def test_plan_says_that_an_oracle_asks_for_more_than_there_is(world_file: Path, tmp_path: Path) -> None:
    settings = small_config(world_file, tmp_path)
    api.Run(settings).run("corpus")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(settings))
    result = call("plan", str(path), "--set", "arms.oracle.unique_tokens=900000000")
    assert result.exit_code == 2
    assert "arms.oracle.unique_tokens" in result.stderr


def test_plan_says_where_base_would_begin_to_copy(config_file: str) -> None:
    # 10^5.7 x sqrt(384) = 9.8M tokens, of which 12,000 are 0.1 %
    line = next(x for x in call("plan", config_file).stdout.splitlines() if x.startswith("copying: "))
    assert "at 384 tokens a step" in line
    assert "about 9.8M tokens" in line
    assert "ends at 0.1% of that" in line
    found = json.loads(call("plan", config_file, "--set", "budget.train_tokens=9821000", "--json").stdout)["copying"]
    assert found["share"] == pytest.approx(1, abs=1e-3)
    alone = call("plan", config_file, "--set", "arms={repetition: {}}").stdout
    assert "copying:" not in alone  # nothing is tuned from base


def test_one_verb_per_stage(config_file: str) -> None:
    for stage in ("corpus", "embed", "pair", "base", "tune", "synthesize", "pretrain", "analyze"):
        result = call(stage, config_file)
        assert result.exit_code == 0, result.output
        assert f"{stage}: done, 0 artifacts made" in result.stdout


def test_a_verb_makes_some_of_its_artifacts_alone(finished: dict[str, Any], config_file: str) -> None:
    whole = json.loads(call("score", config_file, "--json").stdout)
    seed = f"seed-{finished['pretrain']['seeds'][0]}"
    some = json.loads(call("score", config_file, "--json", "--only", f"sbp/{seed}", "--only", "score/repetition/*-0").stdout)
    assert [name for name in some if name.startswith("score/")] == [f"score/repetition/{seed}", f"score/sbp/{seed}"]
    assert some.items() < whole.items()
    result = call("score", config_file, "--only", "sbq/*")
    assert result.exit_code == 2
    assert "--only: no variant of score fits 'sbq/*'; there are: oracle/seed-0, " in result.stderr
    for arguments in (("score", "--part", "1/2"), ("pair", "--dry-run")):
        result = call(arguments[0], config_file, *arguments[1:], "--only", "*")
        assert result.exit_code == 2
        assert "drop it, or --" in result.stderr


def test_a_verb_says_first_what_is_stale_and_why(tiny: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(tiny), tmp_path / tiny["name"])
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny, "root": str(tmp_path)}))
    result = call("analyze", str(path), "--set", "analyze.examples=3")
    assert result.exit_code == 0, result.output
    first, made = result.stderr.splitlines()
    assert first == "analyze: stale (analyze.examples 2 -> 3); it and what reads it will be rebuilt"
    assert made.startswith("[1/1] analyze: ")
    assert re.match(r"analyze: done, 1 artifact made, \d+ there before", result.stdout)
    states = json.loads(call("analyze", str(path), "--json").stdout)  # as they were before it ran
    assert states["corpus"] == "done"
    assert states["analyze"] == "stale"


def test_a_verb_gives_up_hours_of_work_only_where_that_is_said(tiny: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(tiny), tmp_path / tiny["name"])
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny, "root": str(tmp_path)}))
    manifest = tmp_path / tiny["name"] / "06-synthesize" / "related" / "manifest.json"
    record = disk.read_record(manifest)
    record["cost"]["seconds"] = 7_200.0
    disk.write_record(manifest, record)

    other = ("--set", "synthesize.top_p=0.8")
    for verb in ("run", "synthesize"):
        result = call(verb, str(path), *other)
        assert result.exit_code == 2
        [line] = result.stderr.splitlines()
        assert "artifacts anew, which took 2.0 hours (synthesize/related: synthesize.top_p unset -> 0.8)" in line
        assert "--replace" in line
    result = call("synthesize", str(path), *other, "--part", "1/2")
    assert result.exit_code == 2
    assert "--replace" in result.stderr
    assert manifest.exists()

    # both are kept, and what they have alike is made once
    result = call("synthesize", str(path), *other, "--set", "name=beside", "--from", str(manifest.parents[2]))
    assert result.exit_code == 0, result.output
    assert "tune/related: taken over from " in result.stderr
    assert re.match(r"synthesize: done, 1 artifact made, 5 there before", result.stdout)
    assert call("synthesize", str(path), "--from", "nowhere").exit_code == 2
    assert call("synthesize", str(path), "--from", str(tmp_path), "--part", "1/2").exit_code == 2

    shutil.rmtree(manifest.parents[2] / "05-tune" / "related")
    result = call("synthesize", str(path))
    assert "synthesize/related: kept, as what it reads came out as it was" in result.stderr
    assert result.stdout.startswith("synthesize: done, 1 artifact made, ")
    assert call("synthesize", str(path), *other, "--replace").exit_code == 0
    assert disk.read_record(manifest)["cost"]["seconds"] < 600


def test_status(finished: dict[str, Any], config_file: str, tmp_path: Path) -> None:
    run = str(run_folder(finished))
    text = call("status", run).stdout
    assert re.search(r"^05-tune/related: d1's worth [-+]0\.\d{4} \+- 0\.\d{4}, net worth [-+]0\.\d{4}", text, re.M)
    assert "04-base" in text
    rows = json.loads(call("status", run, "--json").stdout)
    assert {r["status"] for r in rows} == {"done"}
    assert len(rows) == 20
    assert json.loads(call("status", config_file, "--json").stdout) == rows
    assert call("show", config_file, "pairs", "--json").stdout == call("show", run, "pairs", "--json").stdout
    assert call("status", str(tmp_path)).exit_code == 2


def test_a_log_has_a_line_now_and_then_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, world_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(small_config(world_file, tmp_path)))
    now = [0.0]
    told = [(0.0, "starting"), (0.0, "measuring: 8 rows"), (0.0, "measuring: 9 rows")]
    waits = [0.0, 70.0, 9.0]
    told += [(0.04, "loss 6"), (0.1, "loss 5"), (0.12, "loss 4.9"), (0.3, "loss 4"), (0.31, "loss 3"), (1.0, "averaging")]
    waits += [20.0, 9.0, 20.0, 1_000.0, 700.0, 61.0]

    def run(cfg: Any, target: str, tell: Any, *options: Any, **named: Any) -> dict[str, Any]:
        tell("base", "plan", {})
        tell("base", "start", None)
        for (done, words), wait in zip(told, waits, strict=True):
            now[0] += wait
            tell("base", "progress", (done, words))
        return {}

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("synthboot.runner.executor.run", run)
    result = CliRunner().invoke(main, ["base", str(path)])
    assert result.stderr.splitlines() == [
        "base: measuring: 8 rows",  # no share of the unit is done, and a minute is over
        "base: 10%, loss 5; 4 min left",  # a twentieth is done, and ten seconds are over
        "base: 30%, loss 4; 41 min left",
        "base: 31%, loss 3; 65 min left",  # less than a twentieth, but ten minutes
        "base: averaging",
    ]


@pytest.mark.parametrize("what", ["pairs", "synthetic", "copies", "quarantine"])
def test_show(finished: dict[str, Any], what: str) -> None:
    result = call("show", str(run_folder(finished)), what, "-n", "2")
    assert result.exit_code == 0, result.output
    if what == "quarantine":
        assert result.stdout == f"{run_folder(finished)}: nothing is quarantined\n"
    if what in ("pairs", "synthetic"):
        found = json.loads(call("show", str(run_folder(finished)), what, "-n", "2", "--json").stdout)
        assert len(found) == 2
        assert "".join(part for part, _ in found[0]["texts"]["d1"]).strip()


def test_show_quality(finished: dict[str, Any]) -> None:
    """The paper's five questions, with everybody who answers them."""
    run = str(run_folder(finished))
    shown = call("show", run, "quality").stdout
    for word in ("200B, 3B", "25.6 %", "repetition within a document", "unseen real", "rules", "embedding", "likelihood"):
        assert word in shown
    found = json.loads(call("show", run, "quality", "--json").stdout)
    judged = {(verdict["judge"], verdict["question"]): verdict for verdict in found["judged"]}
    assert {question for judge, question in judged if judge == "rules"} == set(QUESTIONS)
    assert {question for judge, question in judged if judge != "rules"} == {"irrelevance"}
    loops = judged["rules", "repetition"]
    assert not loops["refused"] or min(loops["clean"], loops["faulty"]) < 20
    assert loops["sensitivity"][0] > 0.8
    assert set(loops["rates"]) == {"unseen real", "related"}
    assert loops["rates"]["related"]["items"] == 20


def test_show_pairs_near_a_similarity(finished: dict[str, Any]) -> None:
    found = json.loads(call("show", str(run_folder(finished)), "pairs", "--near", "0.9", "-n", "1", "--json").stdout)
    best = json.loads(call("show", str(run_folder(finished)), "pairs", "-n", "50", "--json").stdout)
    values = [float(e["title"].split()[1]) for e in best]
    assert abs(float(found[0]["title"].split()[1]) - 0.9) <= min(abs(v - 0.9) for v in values) + 1e-3


def test_pair_dry_run_says_what_each_alpha_would_give(finished: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    (tmp_path / "c.yaml").write_text(yaml.safe_dump(finished))
    before = (run_folder(finished) / "03-pair/related/manifest.json").stat().st_mtime_ns
    told = json.loads(call("pair", str(tmp_path / "c.yaml"), "--dry-run", "--json").stdout)
    pairs = [row["pairs"] for row in told["table"]]
    assert pairs == sorted(pairs, reverse=True)
    assert pairs[0] > 100 > pairs[-1]
    text = call("pair", str(tmp_path / "c.yaml"), "--dry-run").stdout
    assert "random pairs above" in text
    assert f"min_similarity now gives {told['alpha']:.3f}" in text
    assert (run_folder(finished) / "03-pair/related/manifest.json").stat().st_mtime_ns == before


def test_compare_shows_scores_and_differences(finished: dict[str, Any]) -> None:
    folder = str(run_folder(finished))
    result = json.loads(call("compare", folder, folder, "--json").stdout)
    assert result["differences"] == {}
    assert "sbp" in call("compare", folder).stdout


def test_user_errors_are_one_line_and_exit_2(config_file: str, tmp_path: Path) -> None:
    for arguments, message in [
        (("run", str(tmp_path / "none.yaml")), "no such file"),
        (("run", config_file, "--set", "pair.min_simlarity=1"), "unknown key; did you mean min_similarity?"),
        (("run", config_file, "--set", "corpus.source=/nowhere.jsonl"), "no such file"),
        (("show", str(tmp_path), "pairs"), "has not been made yet"),
    ]:
        result = call(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert result.stdout == ""


def test_control_characters_of_the_corpus_do_not_reach_the_terminal(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"id": "x\x1b[31m", "body": "b"}) + "\n")
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_config(source, tmp_path)))
    assert "\x1b" not in call("corpus", str(path)).stderr


def test_help_is_quick_and_needs_no_torch() -> None:
    times = []
    for _ in range(5):
        before = os.times()
        result = subprocess.run([sys.executable, "-m", "synthboot", "--help"], capture_output=True, text=True, check=True)
        after = os.times()
        # of the processor: how long it waits for one is no fault of its own
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert "synthesize" in result.stdout
    assert min(times) < 0.3
    code = "import sys, synthboot.cli; sys.exit(any(m in sys.modules for m in ('torch', 'pydantic', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("is_heard", [True, False])
def test_ctrl_c_while_modules_are_imported_says_nothing(is_heard: bool, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    # in the place of a module that the command line imports
    (tmp_path / "click.py").write_text(f"import time\nopen({str(begun)!r}, 'w').close()\ntime.sleep(600)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "synthboot", "--help"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stderr=subprocess.PIPE,
        text=True,
        # in the background of a shell it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL if is_heard else signal.SIG_IGN),
    )
    try:
        soon(begun.exists)
        process.send_signal(signal.SIGINT)
        if is_heard:
            assert process.communicate(timeout=60) == (None, "")
            assert process.returncode == 130
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
    finally:
        process.kill()
        process.communicate()


def test_progress_goes_to_stderr(world_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_config(world_file, tmp_path)))
    result = call("embed", str(path))
    assert "[1/2] corpus:" in result.stderr
    assert " GiB; 360 records: 360 kept, 0 quarantined" in result.stderr
    assert "corpus:" not in result.stdout
