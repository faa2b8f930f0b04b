"""base and pretrain: an arm's text in, a model out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from synthboot import config
from synthboot.artifacts.model import Curve, Model, TokenCounts
from synthboot.artifacts.pairs import TRAIN
from synthboot.artifacts.store import read_manifest
from synthboot.artifacts.synthetic import Synthetic, ThrownAway
from synthboot.settings import Training
from synthboot.steps.context import Context, Outcome
from synthboot.steps.sweep import best_loss, best_trial

if TYPE_CHECKING:
    from synthboot.lm.arm import Sources


def base(c: Context) -> Outcome:
    """The LM on real text alone, which is also the repetition arm of its seed, so that nothing is
    trained twice. Its checkpoint of best validation loss is where the synthesizer starts.

    Source: arXiv:2509.15248, the synthesizer starts from an LM pretrained on the same D_pretrain.
    Deviation: from its best validation loss, not from its end; a synthesizer started from an
    over-trained base loses the subject of d1.
    """
    return pretrain(c)


def pretrain(c: Context) -> Outcome:
    """The model of one arm and seed."""
    from synthboot.lm import parallel
    from synthboot.stages.pretrain import pretrain as stage

    training = _training(c)
    recipe, ready = _recipe(c, training)
    model = Model.open(c.folder)
    if ready is not None:
        if parallel.rank() == 0:
            model.copy(ready)
        return _counts(ready.curve, ready.token_counts), {}

    trained = stage(
        cfg=c.cfg,
        arm=recipe,
        seed=training.seed,
        text=sources(c, recipe),
        validation=c.corpus.validation,
        tokenizer=c.corpus.tokenizer,
        folder=c.folder,
        progress=c.progress,
    )
    token_counts = trained.token_counts
    if parallel.rank() == 0:
        model.save_token_counts(token_counts)
    counts = _counts(trained.curve, token_counts)
    return counts, {"tokens": token_counts.train_tokens, "flops": trained.flops}


def _counts(curve: Curve, token_counts: TokenCounts) -> dict[str, Any]:
    """What the manifest says of a trained model."""
    losses = {"best_loss": curve.best_loss, "last_loss": curve.last_loss}
    account = "" if token_counts.members else _account(curve)
    return losses | {"account": account} | token_counts.as_json()


def _account(curve: Curve) -> str:
    """Whether training still gained at its end, in words.

    Not of an ensemble: its curve goes over the number of its members.
    """
    if math.isnan(curve.late_gain):
        return ""
    least = f"validation loss {curve.best_loss:.4f}"
    if curve.best_step < curve.step:
        least += f" after {curve.best_step / curve.step:.0%}, {curve.last_loss:.4f} at the end"
    return f"{least}; the last tenth saved {curve.late_gain:+.4f}"


def _training(c: Context) -> Training:
    """Which model this is."""
    assert c.training is not None  # a unit of these stages has one
    return c.training


def _recipe(c: Context, training: Training) -> tuple[config.Arm, Model | None]:
    """The recipe of this model (of a sweep, the trial of the least validation loss) and, where a
    trial is this model already, that trial."""
    recipe = training.recipe
    if not recipe.sweep:
        return recipe, None
    trials = recipe.trials()
    best = best_trial(c, trials, recipe.sweep, best_loss)
    return trials[best], c.model(f"trial/{best}") if training.ready else None


def sources(c: Context, arm: config.Arm) -> Sources:
    """The text of an arm, and what its synthetic part cost."""
    from synthboot.lm.arm import Sources
    from synthboot.stages.pretrain import real_docs

    pool = c.corpus.pool
    real = pool.head(real_docs(arm, _training(c).arm, pool, c.corpus.pretrain_docs))
    replay = c.corpus.replay if c.cfg.budget.replay_share else None

    if arm.layout == "packed_pairs":
        pairs = c.pairs().only(TRAIN)
        return Sources(real, pairs=(pairs.d1, pairs.d2), replay=replay)
    if "teacher" in c.parents:
        teacher = c.model("teacher")
        flops = teacher.token_counts.total_flops
        return Sources(real, replay=replay, teacher=teacher.best, upstream_flops=flops)
    if "synthesize" not in c.parents:
        return Sources(real, replay=replay)

    folder = c.parents["synthesize"]
    synthetic = Synthetic.open(folder)
    manifest = read_manifest(folder)
    assert manifest is not None  # it was verified before this step began
    # of a filter, what it cost to sample all that it chose from
    flops = manifest.cost["flops"] + manifest.counts.get("sampling_flops", 0.0)
    recorded = manifest.counts.get("thrown_away", {})
    return Sources(
        real,
        synthetic.tokens,
        synthetic.d1(),
        replay=replay,
        upstream_flops=manifest.counts["upstream_flops"],
        # per kept token: what was dropped is paid for, what is not read is not
        sample_flops=flops / synthetic.tokens.num_tokens,
        thrown_away={reason: ThrownAway(*counts) for reason, counts in recorded.items()},
    )
