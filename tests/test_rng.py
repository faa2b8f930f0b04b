"""Random streams are known by name, and their numbers are kept for good."""

import ast
from collections import Counter
from pathlib import Path

import numpy as np

from synthboot.rng import STREAMS, rng

SOURCE = Path(__file__).parent.parent / "src" / "synthboot"


def test_a_stream_is_the_generator_of_its_number() -> None:
    expected = np.random.default_rng([7, 8, 2]).random(4)
    assert (rng(7, "plan.noise", 2).random(4) == expected).all()


def test_every_name_has_one_use_and_nobody_draws_without_one() -> None:
    used: Counter[str] = Counter()
    for path in SOURCE.rglob("*.py"):
        text = path.read_text("utf-8")
        if path.name != "rng.py":
            assert "default_rng" not in text, f"{path}: draws without a name"
            strings = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)]
            used.update(s for s in strings if s in STREAMS)
    assert set(used) == set(STREAMS)


def test_streams_of_one_seed_are_different() -> None:
    # replay and tuning never use one seed: a model is an arm's or a synthesizer
    shared = {name: number for name, number in STREAMS.items() if not name.startswith("world.") and name != "tune.pairs"}
    assert len(set(shared.values())) == len(shared)
    worlds = [number for name, number in STREAMS.items() if name.startswith("world.")]
    assert len(set(worlds)) == len(worlds)
