"""From artifacts to values to artifacts: for every stage, what it reads, how it is called, and what
it leaves.

A step gets a Context, calls the stage's one function and returns (counts, cost). It runs in a
process of its own; steps know artifacts, stages do not know each other.
"""

from synthboot.steps.analyze import analyze
from synthboot.steps.context import Context, Step
from synthboot.steps.corpus import corpus
from synthboot.steps.embed import embed
from synthboot.steps.evaluate import evaluate
from synthboot.steps.pair import pair
from synthboot.steps.pretrain import base, pretrain
from synthboot.steps.report import gather, report
from synthboot.steps.score import score
from synthboot.steps.synthesize import synthesize
from synthboot.steps.tune import tune

STEPS: dict[str, Step] = {
    "corpus": corpus,
    "embed": embed,
    "pair": pair,
    "base": base,
    "tune": tune,
    "synthesize": synthesize,
    "pretrain": pretrain,
    "score": score,
    "evaluate": evaluate,
    "analyze": analyze,
    "report": report,
}

__all__ = ["STEPS", "Context", "gather"]
