"""Inputs nobody would write, made by rule: every one is read, or refused by one of the project's own errors.

A `Fuzzer` is a hypothesis strategy and what is done with each input. The suite runs a few dozen inputs of
each (`test_fuzz.py`), `make fuzz` ten thousand (`__main__.py`), both within limits of time and memory an input.
"""

from tests.fuzz import answers, configurations, corpora, manifests, questions

FUZZERS = {
    "configuration": configurations.fuzzer,
    "corpora": corpora.fuzzer,
    "questions": questions.fuzzer,
    "manifests": manifests.fuzzer,
    "answers": answers.fuzzer,
}
