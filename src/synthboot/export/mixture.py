"""An arm's text as the rows of tokens that it trains on, in order, for other trainers.

`tokens.ds` is flat: rows of seq_len + 1 tokens one after the other, little-endian uint16 (uint32
above 65,536 entries), the token before a row's first target and its targets. So datatrove and
nanotron read files of tokens, a window of seq_len + 1 after the other. `sources.npy` says of each
row which text it is from.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config
from synthboot.artifacts.model import Model
from synthboot.data.disk import save_array
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
"""What the numbers of `sources.npy` stand for."""


def mixture(run: Finished, arm: str | None, seed: int | None, folder: Path) -> dict[str, Any]:
    """Write the rows of one arm and seed (the first unless it is given), and return what they are.

    Only what the arm reads has to be finished, and where a sweep chooses its recipe, the arm
    itself. Raises ConfigError without an arm and for an ensemble, MissingArtifact for what is not
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
    vocab_size = run.corpus.tokenizer.vocab_size
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    kinds = []
    with open(folder / FILE, "wb") as file:
        for step in range(plan.steps):
            file.write(plan.read(step).astype(dtype).tobytes())
            rows = range(step * plan.rows, (step + 1) * plan.rows)
            kinds += [SOURCES.index(plan.source(row)[0]) for row in rows]
    save_array(folder / "sources.npy", np.array(kinds, np.uint8))
    run.corpus.tokenizer.save(folder)
    return {
        "arm": name,
        "seed": number,
        "dtype": dtype.name,
        "rows": plan.rows * plan.steps,
        "row_tokens": plan.seq_len + 1,
        "rows_a_step": plan.rows,
        "end": plan.end,
        "vocab_size": vocab_size,
        "documents_see_each_other": not plan.packed,
        "noise": plan.noise,
        "taught_by": recipe.distill,
        **asdict(plan.token_counts()),
    }


def _recipe(run: Finished, unit: Unit) -> config.Arm:
    """The recipe of an arm's model; of a sweep, the one that was chosen."""
    assert unit.recipe is not None  # every model has one
    if not unit.recipe.sweep:
        return unit.recipe
    return Model.open(run.made(unit.name).folder).token_counts.recipe


def _plan(run: Finished, unit: Unit, recipe: config.Arm, seed: int) -> Plan:
    """The batches of an arm, as its training has them."""
    # a later seed of a sweep has no trial, and read the text itself
    reader = next((one for one in run.readers(unit) if one.recipe == recipe), unit)
    for parent in reader.parents.values():
        run.made(parent)

    text = sources(context_of(run.cfg, run.plan, reader), recipe)
    tokenizer = run.corpus.tokenizer
    flops_per_token = 0.0
    if recipe.match == "flops":  # nothing else asks for it, and it takes a whole model to tell
        built = models.build(run.cfg.model, tokenizer.vocab_size, seed)
        flops_per_token = models.flops_per_token(built, run.cfg.model.seq_len)
    return affordable(run.cfg, recipe, seed, tokenizer, text, flops_per_token)
