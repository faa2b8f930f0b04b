"""Named streams of random numbers: whoever draws says what for.

A stream is known by the seed, its number here, and whatever else its user counts by (an epoch, a
step). Numbers are kept for good: another number is another run. Two streams may have one number
only where no seed is used for both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

STREAMS: Mapping[str, int] = {
    # the order of an arm's text, by epoch
    "plan.real": 1,
    "plan.synthetic": 2,
    "plan.replay": 3,
    "plan.noise": 8,
    "train.dropout": 0xD0,
    # the seeds of an ensemble's members
    "train.member": 0xE5E,
    # tuning: which pairs stand in which row, by epoch (never beside a plan)
    "tune.pairs": 3,
    "tune.rows": 4,
    "tune.random_d1": 5,
    "tune.plain": 0x91A1,
    "ceiling.random_d1": 0xCE12,
    "score.copied": 0xC0B1,
    "corpus.canaries": 0xCA4A,
    "corpus.planted": 0x914E,
    "synthesize.d1": 6,
    "synthesize.text": 0x7E87,
    "tasks.items": 9,
    "tasks.world_items": 10,
    "pair.random_pairs": 0xC0FFEE,
    "pair.random_similarity": 0xA1FA,
    "pair.dry_run": 0xD27,
    "pair.held_out": 0x4E1D,
    "pair.label_agreement": 0xA62E,
    "search.recall": 0x2ECA,
    "join.clusters": 0xCE11,
    "judges.strangers": 0x57A6,
    "judges.others": 0x07E5,
    "judges.planted": 0x91A7,
    "api.pairs": 11,
    # a generated world has a seed of its own
    "world.names": 1,
    "world.values": 2,
    "world.truth": 3,
    "world.documents": 4,
    "world.unseen": 5,
    "world.oracle": 6,
}
"""The number of every stream."""


def rng(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """The generator of `stream` for this seed, from its beginning."""
    return np.random.default_rng([seed, STREAMS[stream], *counters])
