"""A run from Python: every stage is a method that makes what is missing and returns its result."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthboot import config, loading, recipes
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.model import Model
from synthboot.artifacts.pairs import TRAIN, Pairs
from synthboot.data import tokenizer as tokenizers
from synthboot.errors import MissingArtifact
from synthboot.report import page
from synthboot.rng import rng
from synthboot.runner import executor
from synthboot.runner.state import State, states
from synthboot.studies.study import Grid, Study, collect

if TYPE_CHECKING:
    from synthboot.lm.pointer import Weights

__all__ = [
    "Report",
    "Run",
    "Study",
    "Synthesizer",
    "TextPairs",
    "Texts",
    "collect",
    "study",
]


class Run:
    """An experiment in its run folder. Methods run the stages they need and reuse what is done."""

    def __init__(
        self,
        source: str | Path | Mapping[str, Any],
        set: Mapping[str, Any] | None = None,
        progress: executor.Event | None = None,
    ) -> None:
        self.config = loading.load(source, set=set)
        self._tell = progress or (lambda *_: None)
        self._plan: dict[str, recipes.Unit] = {}  # of what was run last

    def run(self, stage: str = "report") -> None:
        """Make every artifact up to `stage`."""
        self._plan = executor.run(self.config, stage, self._tell)

    def plan(self) -> dict[str, State]:
        """How every artifact stands: done, missing, partial, or stale and why."""
        return states(self.config, recipes.units(self.config))

    def corpus(self) -> Texts:
        """D_pretrain."""
        self.run("corpus")
        return Texts(Corpus.open(self._folder("corpus")))

    def pair(self) -> TextPairs:
        """The related pairs."""
        self.run("pair")
        return TextPairs(Pairs.load(self._folder("pair/related")), self.corpus())

    def tune(self, kind: str = "related") -> Synthesizer:
        """The synthesizer p(d2|d1)."""
        self.run("tune")
        tuned = Model.open(self._folder(f"tune/{kind}"))
        return Synthesizer(tuned.best, self.config, tuned.tuning)

    def evaluate(self) -> Evaluation:
        """The scores of every arm."""
        self.run("evaluate")
        return Evaluation.open(self._folder("evaluate"))

    def report(self) -> Report:
        """The report page."""
        self.run("report")
        return Report(self._folder("report") / page.FILE)

    def _folder(self, name: str) -> Path:
        if name not in self._plan:
            raise MissingArtifact(f"{name}: no arm of this configuration needs it")
        return self._plan[name].folder(self.config.folder)


class Texts:
    """D_pretrain by number, as text."""

    def __init__(self, corpus: Corpus) -> None:
        self.tokenizer = corpus.tokenizer
        self.summary = corpus.summary
        self.tokens = corpus.pretrain

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, doc: int) -> str:
        # The last token is the end of the document.
        return self.tokenizer.decode(self.tokens[doc][:-1])


class TextPairs:
    """Pairs as text; `pairs` holds the numbers."""

    def __init__(self, pairs: Pairs, texts: Texts) -> None:
        self.pairs = pairs
        self.texts = texts

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, n: int, seed: int = 0) -> list[tuple[str, str, float]]:
        """`n` training pairs drawn at random: (d1, d2, similarity)."""
        train = self.pairs.only(TRAIN)
        chosen = rng(seed, "api.pairs").permutation(len(train))[:n]

        sampled = []
        for i in chosen:
            d1 = self.texts[int(train.d1[i])]
            d2 = self.texts[int(train.d2[i])]
            sampled.append((d1, d2, float(train.similarity[i])))
        return sampled


class Synthesizer:
    """A tuned synthesizer that samples and scores text; `tuning` is the record of how it was tuned,
    with the weights of its pointer, if it has one."""

    def __init__(
        self,
        folder: Path,
        cfg: config.Config,
        tuning: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.config = cfg
        self.tokenizer = tokenizers.load(folder)
        self.weights: Weights | None = tuning.get("pointer")
        self.is_prompted: bool = tuning.get("is_prompted", True)

    @cached_property
    def model(self) -> Any:
        """The model behind it."""
        from synthboot.lm import model as models

        return models.moved(models.load(self.folder), models.device(self.config.engine.device))

    def sample(self, given: str, n: int = 1, seed: int = 0) -> list[str]:
        """`n` documents d2 ~ p(d2|d1 = given)."""
        from synthboot.lm.batches import d1_room
        from synthboot.lm.sampling.engines import sampler
        from synthboot.lm.sampling.protocol import Request

        seq_len = self.config.tune_seq_len
        settings = self.config.synthesize
        [document] = self.tokenizer.documents([given])
        source = tuple(document[:seq_len]) if self.weights is not None else ()
        prompt: tuple[int, ...] = (self.tokenizer.end,)
        if self.is_prompted:
            d1 = document[:-1][: d1_room(seq_len, self.config.tune.d1_share)]
            prompt += (*d1, self.tokenizer.separator)
        room = min(seq_len - len(prompt), settings.max_tokens or seq_len)

        # Every sample has a seed of its own, far from those of other values of `seed`.
        alone = (self.tokenizer.end, self.tokenizer.separator) if self.is_prompted else ()
        requests = [Request(prompt, seed * 1_000_003 + i, room, alone, source) for i in range(n)]
        engine = sampler(
            self.model,
            self.tokenizer.end,
            temperature=settings.temperature,
            top_p=settings.top_p,
            batch=self.config.engine.sample_batch,
            absent=self.tokenizer.absent(self.model.config.get_text_config().vocab_size),
            contrast=settings.contrast,
            weights=self.weights,
        )
        return [self.tokenizer.decode(result.tokens) for result in engine.sample(requests)]

    def logprob(self, text: str, given: str) -> float:
        """log p(text | given) in nats, over as much of the text as the window holds."""
        from synthboot.lm import pointer, score

        seq_len = self.config.tune_seq_len
        d1, d2 = map(np.array, self.tokenizer.documents([given, text]))
        [losses] = score.pair_tokens(
            self.model,
            [d1],
            [d2],
            seq_len,
            self.config.tune.d1_share,
            self.tokenizer.end,
            self.tokenizer.separator if self.is_prompted else None,
        )
        if self.weights is None:
            return -float(losses.sum())
        reading = pointer.read(d1[:seq_len], d2[: len(losses)])
        return -float(pointer.losses([reading], [np.exp(-losses)], self.weights)[0])


def study(
    source: str | Path | Mapping[str, Any],
    vary: Mapping[str, Sequence[Any]],
    *,
    set: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    together: bool = False,
    until: str = "report",
    out: str | Path | None = None,
    progress: executor.Event | None = None,
) -> Study:
    """A configuration run over every combination of some settings' values (`together`: over the
    first values of all, then the second ones, and so on), each up to the stage `until`.

    What is finished is not made again. The study's folder, `out` or NAME-study beside the run,
    holds the runs, `study.json`, `study.csv` and `study.html`.
    """
    points = Grid(
        source,
        vary,
        set=set,
        seeds=seeds,
        together=together,
        target=until,
        out=out,
    )
    return points.run(progress or (lambda *_: None))


@dataclass(frozen=True)
class Report:
    """The report page."""

    path: Path

    def open(self) -> None:
        """Show it in a browser."""
        webbrowser.open(self.path.resolve().as_uri())
