"""A run whose judge is a server: what was judged when it fails is not asked again."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from synthboot import api
from synthboot.errors import SamplingError
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
    judged = {verdict["question"]: verdict for verdict in analysis.result["judged"]}
    assert judged["repetition"]["rates"]["related"]["items"] == 3
    assert judged["repetition"]["identity"]["repetition-1"]
    assert sum(verdict["requests"] for verdict in judged.values()) >= len(set(asked))
