"""A run whose judge is a server: what was judged when it fails is not asked again."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from synthboot import api
from synthboot.artifacts.judged import NOTHING, judged_texts
from synthboot.errors import SamplingError
from synthboot.report import quality
from tests.conftest import run_folder
from tests.judges.test_reader import Server, said


def test_a_run_goes_on_where_its_judge_fell_silent(tiny: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(tiny), tmp_path / tiny["name"])
    server = Server(lambda _: said("no"))
    place = {"url": f"http://127.0.0.1:{server.server_port}/v1", "retries": 0, "concurrency": 1}
    settings = {
        **tiny,
        "root": str(tmp_path),
        "engine": {**tiny["engine"], "judge": place},
        "analyze": {**tiny["analyze"], "judges": ["server:judge-1"], "judge_items": 3, "judge_cases": 2},
    }

    def tired(_: object) -> tuple[int, object]:
        return said("no") if len(server.seen) <= 7 else (400, {"error": "tired"})

    server.answer = tired
    with pytest.raises(SamplingError, match=r"engine\.judge: .*400 .*tired"):
        api.Run(settings).run("analyze")
    server.answer = lambda _: said("yes")
    analysis = api.Run(settings).analyze()
    server.shutdown()
    server.server_close()

    asked = [body["messages"][0]["content"] for _, body, _ in server.seen]
    # the one that failed is asked a second time, and no other
    assert len(asked) == len(set(asked)) + 1
    # this server does not say what it took
    assert analysis.judged[0].spent.untold > 0
    assert analysis.judged[0].dollars is None
    judged = {verdict.question: verdict for verdict in analysis.judged}
    assert judged["repetition"].rates["related"].items == 3
    assert judged["repetition"].identity["repetition-1"]
    assert sum(verdict.requests for verdict in judged.values()) >= len(set(asked))


def test_tokens_money_and_texts_that_a_server_called_faulty(tiny: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(tiny), tmp_path / tiny["name"])
    status, answer = said("yes", yes=-0.1, no=-3.0)
    assert isinstance(answer, dict)
    server = Server(lambda _: (status, {**answer, "usage": {"prompt_tokens": 400, "completion_tokens": 2}}))
    place = {"url": f"http://127.0.0.1:{server.server_port}/v1", "prices": {"judge-1": [0.5, 2]}}
    settings = {
        **tiny,
        "root": str(tmp_path),
        "engine": {**tiny["engine"], "judge": place},
        "analyze": {**tiny["analyze"], "judges": ["server:judge-1", "rules"], "judge_tokens": 402 * 40},
    }
    run = api.Run(settings)
    judged = run.analyze().judged
    server.shutdown()
    server.server_close()

    of_server = [verdict for verdict in judged if verdict.judge == "server:judge-1"]
    requests = sum(verdict.requests for verdict in of_server)
    spent = sum(verdict.spent.tokens for verdict in of_server)
    assert spent == 402 * len({body["messages"][0]["content"] for _, body, _ in server.seen}) <= 402 * requests
    assert sum(verdict.unasked for verdict in of_server) > 0
    for verdict in of_server:
        dollars = (verdict.spent.prompt * 0.5 + verdict.spent.completion * 2) / 1e6
        assert verdict.dollars == pytest.approx(dollars)
    assert all(v.spent == NOTHING and v.unasked == 0 for v in judged if v.judge == "rules")
    notes = quality.table(run.analyze()).notes
    assert any(note.startswith("server:judge-1 took ") and "of answers, $" in note for note in notes)
    assert any("stopped at analyze.judge_tokens" in note for note in notes)

    texts = judged_texts(tmp_path / tiny["name"] / "10-analyze")
    assert {row.judge for row in texts} == {"server:judge-1", "rules"}
    assert all(row.score == pytest.approx(2.9) for row in texts if row.judge == "server:judge-1")
    # a price is no part of what was judged
    free = {**settings, "engine": {**tiny["engine"], "judge": {**place, "prices": {}}}}
    assert api.Run(free).plan()["analyze"].status == "done"
