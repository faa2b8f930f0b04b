"""An arm's text as the rows of tokens that it trains on, in order, for other trainers.

`tokens.ds` is flat, little-endian uint16 (uint32 above 65,536 entries): row after row of
seq_len + 1 tokens, of which all but the last are a row's inputs and all but the first its targets.
datatrove and nanotron read files of tokens like that, a window of seq_len + 1 after the other.
`sources.npy` says which text each row is from, by its place in `SOURCES`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config
from synthboot.artifacts.model import Model
from synthboot.data.disk import save_array
from synthboot.data.tokens import token_dtype
from synthboot.errors import ConfigError
from synthboot.export.finished import Finished
from synthboot.lm import model as models
from synthboot.lm.arm import affordable
from synthboot.lm.batches import Plan
from synthboot.recipes import Unit
from synthboot.runner.step import context_of
from synthboot.steps.pretrain import sources

FILE = "tokens.ds"
SOURCES = ("real", "synthetic", "replayed")
"""What the numbers in `sources.npy` stand for."""


def mixture(run: Finished, arm: str | None, seed: int | None, folder: Path) -> dict[str, Any]:
    """Write the rows of one arm and seed, by default the first seed; returns what they are.

    What the arm reads has to be finished, the arm itself only where a sweep chooses its recipe.

    Raises ConfigError where no arm is named and for an ensemble, MissingArtifact for what is not
    finished.
    """
    if arm is None:
        arms = ", ".join(run.cfg.arms)
        raise ConfigError(f"export: --what tokens is about one arm: name it by --arm ({arms})")
    [name] = run.arms(arm)
    [number] = run.seeds(run.cfg.pretrain.seeds[0] if seed is None else seed)
    unit = run.plan[run.model(name, number)]
    recipe = _recipe(run, unit)
    if recipe.ensemble > 1:
        raise ConfigError(
            f"export: arms.{name} is {recipe.ensemble} models, each with an order of its own; "
            f"export an arm of one model"
        )

    plan = _plan(run, unit, recipe, number)
    tokenizer = run.corpus.tokenizer
    dtype = token_dtype(tokenizer.vocab_size)
    _write(plan, dtype, folder)
    tokenizer.save(folder)
    return {
        "arm": name,
        "seed": number,
        "dtype": dtype.name,
        "rows": plan.rows * plan.steps,
        "row_tokens": plan.seq_len + 1,
        "rows_a_step": plan.rows,
        "end": plan.end,
        "vocab_size": tokenizer.vocab_size,
        "documents_see_each_other": not plan.packed,
        "noise": plan.noise,
        "taught_by": recipe.distill,
        **asdict(plan.token_counts()),
    }


def _write(plan: Plan, dtype: np.dtype[Any], folder: Path) -> None:
    """Write the rows of every step, and where each is from."""
    kinds = []
    with open(folder / FILE, "wb") as file:
        for step in range(plan.steps):
            file.write(plan.read(step).astype(dtype).tobytes())
            for row in range(step * plan.rows, (step + 1) * plan.rows):
                source, _ = plan.source(row)
                kinds.append(SOURCES.index(source))
    save_array(folder / "sources.npy", np.array(kinds, np.uint8))


def _recipe(run: Finished, unit: Unit) -> config.Arm:
    """The recipe of an arm's model: of a sweep the one that it chose."""
    assert unit.training is not None  # as every model has
    if not unit.training.recipe.sweep:
        return unit.training.recipe
    return Model.open(run.made(unit.name).folder).token_counts.recipe


def _plan(run: Finished, unit: Unit, recipe: config.Arm, seed: int) -> Plan:
    """The batches of an arm, as its training has them."""
    # The first seed of a sweep is one of its trials, and that trial read the text; a later seed
    # read it itself.
    readers = run.readers(unit)
    trials = [trial for trial in readers if trial.training and trial.training.recipe == recipe]
    reader = trials[0] if trials else unit
    for parent in reader.parents.values():
        run.made(parent)  # raises unless it is finished

    text = sources(context_of(run.cfg, run.plan, reader), recipe)
    tokenizer = run.corpus.tokenizer
    flops_per_token = 0.0
    if recipe.match == "flops":  # nothing else asks for it, and it takes a whole model to tell
        built = models.build(run.cfg.model, tokenizer.vocab_size, seed)
        flops_per_token = models.flops_per_token(built, run.cfg.model.seq_len)
    return affordable(run.cfg, recipe, seed, tokenizer, text, flops_per_token)
