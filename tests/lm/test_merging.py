"""A synthesizer averaged with the base that it was tuned from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from synthboot import config
from synthboot.artifacts.model import Model
from synthboot.artifacts.store import WORK
from synthboot.data.tokenizer import Tokenizer
from synthboot.lm import merging
from synthboot.lm import model as models
from synthboot.steps.sweep import best_trial
from tests.lm.conftest import small_model

SHARES = config.Tune(base_share="auto").base_shares(conditional=True)


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """An artifact after its training: `best` is there, and room for work."""
    (tmp_path / WORK).mkdir()
    models.save(small_model(seed=1), tmp_path / "best", tokenizer)
    return tmp_path


def nearness(share: float) -> Any:
    """A loss that is least at this share of base."""
    target = torch.lerp(flat(small_model(seed=1)), flat(small_model(seed=0)), share)
    return lambda model, _: float((flat(model) - target).square().sum())


def test_best_becomes_the_average_of_least_loss(folder: Path, tokenizer: Tokenizer) -> None:
    losses = merging.average_with_base(folder, small_model(seed=0), SHARES, nearness(0.32), tokenizer)
    assert [share for share, _ in losses] == list(SHARES)
    assert min(losses, key=lambda pair: pair[1])[0] == 0.3
    expected = 0.7 * flat(small_model(seed=1)) + 0.3 * flat(small_model(seed=0))
    torch.testing.assert_close(flat(models.load(folder / "best")), expected)


def test_without_a_gain_best_stays_as_it_was(folder: Path, tokenizer: Tokenizer) -> None:
    before = (folder / "best" / "model.safetensors").read_bytes()
    merging.average_with_base(folder, small_model(seed=0), SHARES, nearness(-0.5), tokenizer)
    assert (folder / "best" / "model.safetensors").read_bytes() == before
    assert not list((folder / WORK).iterdir())


@pytest.mark.parametrize("best_is_there", [True, False])
def test_a_run_killed_afterwards_averages_the_same_models_again(
    folder: Path, tokenizer: Tokenizer, best_is_there: bool
) -> None:
    base = small_model(seed=0)
    merging.average_with_base(folder, base, SHARES, nearness(0.5), tokenizer)
    first = (folder / "best" / "model.safetensors").read_bytes()
    if not best_is_there:  # killed before the average was saved
        for path in sorted((folder / "best").iterdir()):
            path.unlink()
        (folder / "best").rmdir()
    merging.undo(folder)
    torch.testing.assert_close(flat(models.load(folder / "best")), flat(small_model(seed=1)))
    merging.average_with_base(folder, base, SHARES, nearness(0.5), tokenizer)
    assert (folder / "best" / "model.safetensors").read_bytes() == first


def test_the_first_of_several_processes_writes_a_sweep_and_the_others_choose_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"a": SimpleNamespace(loss=3.0, diverged=""), "b": SimpleNamespace(loss=2.0, diverged="")}
    context = SimpleNamespace(folder=tmp_path / "chosen", model=lambda role: models[role.removeprefix("trial/")])
    trials = {name: SimpleNamespace(lr=0.1) for name in models}

    def chosen() -> str:
        return best_trial(context, trials, ["lr"], lambda model: model.loss)  # type: ignore[arg-type, attr-defined]

    monkeypatch.setenv("RANK", "1")
    assert chosen() == "b"
    assert not context.folder.exists()
    monkeypatch.setenv("RANK", "0")
    assert chosen() == "b"
    sweep = Model.open(context.folder).sweep
    assert sweep is not None
    assert sweep.chosen == "b"
