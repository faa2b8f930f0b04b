"""From artifacts to values to artifacts: for every stage, what it reads, how it is called, and what
it leaves.

A step gets a Context, calls the stage's one function and returns (counts, cost). It runs in a
process of its own; steps know folders, stages do not know each other.
"""

from synthboot.steps import make, measure
from synthboot.steps.context import Context, Step
from synthboot.steps.evaluate import evaluate
from synthboot.steps.measure import gather
from synthboot.steps.score import score

STEPS: dict[str, Step] = {
    "corpus": make.corpus,
    "embed": make.embed,
    "pair": make.pair,
    "base": make.base,
    "tune": make.tune,
    "synthesize": make.synthesize,
    "pretrain": make.pretrain,
    "score": score,
    "evaluate": evaluate,
    "analyze": measure.analyze,
    "report": measure.report,
}

__all__ = ["STEPS", "Context", "gather"]
