"""What is told of a stage's progress goes from its beginning to its end, and never back."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from synthboot import loading, recipes
from synthboot.runner.step import run_step
from tests.conftest import run_folder


@pytest.mark.parametrize("name", ["corpus", "embed", "pair/related", "analyze"])
def test_progress_never_goes_back(tiny: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Of stages whose work is of several kinds, or of several sets."""
    settings = {**tiny, "root": str(tmp_path), "analyze": {**tiny["analyze"], "judges": ["rules"], "judge_items": 8}}
    shutil.copytree(run_folder(tiny), run_folder(settings))
    cfg = loading.load(settings)
    plan = recipes.units(cfg)
    folder = plan[name].folder(cfg.folder)
    shutil.rmtree(folder)
    folder.mkdir()

    shares: list[float] = []
    run_step(cfg, plan, plan[name], 1, lambda done, _: shares.append(done))
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert shares[-1] <= 1
