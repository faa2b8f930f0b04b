"""From artifacts to values to artifacts: for every stage, what it reads, how it is called, and what
it leaves.

A step gets a Context, calls the stage's one function and returns (counts, cost). It runs in a
process of its own; steps know artifacts, stages do not know each other. Where a stage is made of
items that are committed one by one, a second step makes those of one part.
"""

from synthboot.steps.analyze import analyze
from synthboot.steps.context import Context, PartStep, Step
from synthboot.steps.corpus import corpus, corpus_part
from synthboot.steps.embed import embed, embed_part
from synthboot.steps.evaluate import evaluate
from synthboot.steps.extract import extract
from synthboot.steps.pair import pair, pair_part
from synthboot.steps.pretrain import base, pretrain
from synthboot.steps.report import gather, report
from synthboot.steps.score import score
from synthboot.steps.synthesize import synthesize, synthesize_part
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
    "extract": extract,
}
PART_STEPS: dict[str, PartStep] = {
    "corpus": corpus_part,
    "embed": embed_part,
    "pair": pair_part,
    "synthesize": synthesize_part,
}

__all__ = ["PART_STEPS", "STEPS", "Context", "gather"]
