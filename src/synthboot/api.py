"""The Python face of a run: every stage as a method that makes what is missing and returns something to look at."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config, loading, pipeline, recipes
from synthboot.data import tokenizer as tokenizers
from synthboot.data.artifacts import Shards, read_listed
from synthboot.data.pairs import TRAIN, Pairs
from synthboot.data.tokens import Tokens
from synthboot.errors import MissingArtifact


class Run:
    """One experiment in its run folder. Methods run the stages they need, reusing whatever is done."""

    def __init__(
        self,
        source: str | Path | Mapping[str, Any],
        set: Mapping[str, Any] | None = None,
        progress: pipeline.Event | None = None,
    ) -> None:
        self.config = loading.load(source, set=set)
        self._tell = progress or (lambda *_: None)

    def run(self, stage: str = "report") -> None:
        """Make every artifact up to `stage`."""
        pipeline.run(self.config, stage, self._tell)

    def plan(self) -> dict[str, pipeline.State]:
        """How every artifact stands: done, missing, partial, or stale and why."""
        return pipeline.state(self.config, recipes.units(self.config))

    def corpus(self) -> Texts:
        """D_pretrain."""
        self.run("corpus")
        return Texts(self._folder("corpus"))

    def pair(self) -> TextPairs:
        """The related pairs."""
        self.run("pair")
        return TextPairs(Pairs.load(self._folder("pair/related")), Texts(self._folder("corpus")))

    def tune(self, kind: str = "related") -> Synthesizer:
        """The synthesizer p(d2|d1)."""
        self.run("tune")
        return Synthesizer(self._folder(f"tune/{kind}") / "best", self.config)

    def evaluate(self) -> Evaluation:
        """The scores of every arm."""
        self.run("evaluate")
        return Evaluation(read_listed(self._folder("evaluate"), "evaluate.json"))

    def report(self) -> Report:
        """The report page."""
        self.run("report")
        return Report(self._folder("report") / "report.html")

    def _folder(self, name: str) -> Path:
        units = recipes.units(self.config)
        if name not in units:
            raise MissingArtifact(f"{name}: no arm of this configuration needs it")
        return units[name].folder(self.config.folder)


class Texts:
    """D_pretrain by number, as text."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = tokenizers.load(folder / "tokenizer")
        self.summary = read_listed(folder, "corpus.json")
        self.tokens = Tokens.open(Shards(folder / "pool")).head(self.summary["pretrain_docs"])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, doc: int) -> str:
        return self.tokenizer.decode(self.tokens[doc][:-1])


class TextPairs:
    """Pairs as text; `pairs` holds the numbers."""

    def __init__(self, pairs: Pairs, texts: Texts) -> None:
        self.pairs, self.texts = pairs, texts

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, n: int, seed: int = 0) -> list[tuple[str, str, float]]:
        """`n` training pairs drawn at random: (d1, d2, similarity)."""
        train = self.pairs.only(TRAIN)
        chosen = np.random.default_rng(seed).permutation(len(train))[:n]
        return [
            (self.texts[int(train.d1[i])], self.texts[int(train.d2[i])], float(train.similarity[i]))
            for i in chosen
        ]


class Synthesizer:
    """A tuned synthesizer that samples and scores text."""

    def __init__(self, folder: Path, cfg: config.Config) -> None:
        self.folder, self.config = folder, cfg
        self.tokenizer = tokenizers.load(folder)

    @cached_property
    def model(self) -> Any:
        """The model behind it."""
        from synthboot.lm import model as models

        return models.load(self.folder).to(models.device(self.config.engine.device))

    def sample(self, given: str, n: int = 1, seed: int = 0) -> list[str]:
        """`n` documents d2 ~ p(d2|d1 = given)."""
        from synthboot.lm.batches import d1_room
        from synthboot.lm.sample import Request, sampler

        window, settings = self.config.model.seq_len, self.config.synthesize
        d1 = self.tokenizer.encode([given])[0][: d1_room(window, self.config.tune.d1_share)]
        prompt = (self.tokenizer.end, *d1, self.tokenizer.separator)
        engine = sampler(
            self.model,
            self.tokenizer.end,
            temperature=settings.temperature,
            top_p=settings.top_p,
            batch=self.config.engine.sample_batch,
            absent=self.tokenizer.absent(self.model.config.get_text_config().vocab_size),
        )
        room = min(window - len(prompt), settings.max_tokens or window)
        results = engine.sample([Request(prompt, seed * 1_000_003 + i, room) for i in range(n)])
        return [self.tokenizer.decode(r.tokens) for r in results]

    def logprob(self, text: str, given: str) -> float:
        """log p(text | given) in nats, over as much of the text as the window holds."""
        from synthboot.lm import score

        d1, d2 = (np.array(d) for d in self.tokenizer.documents([given, text]))
        special = (self.tokenizer.end, self.tokenizer.separator)
        scores = score.pairs(
            self.model, [d1], [d2], self.config.model.seq_len, self.config.tune.d1_share, *special
        )
        return -float(scores.loss[0])


@dataclass(frozen=True)
class Evaluation:
    """Scores of every arm; `result` is what `evaluate.json` holds."""

    result: dict[str, Any]

    @property
    def arms(self) -> dict[str, Any]:
        """Scores by arm, at the checkpoint the verdict is about."""
        return dict(self.result[self.result["checkpoint"]]["arms"])

    def summary(self) -> str:
        """A line per arm and the verdict."""
        lines = [
            f"{arm}: test loss {s['loss'][0]:.4f} [{s['loss'][1]:.4f}, {s['loss'][2]:.4f}]"
            for arm, s in self.arms.items()
        ]
        return "\n".join([*lines, self.result["verdict"]])


@dataclass(frozen=True)
class Report:
    """The report page."""

    path: Path

    def open(self) -> None:
        """Show it in a browser."""
        webbrowser.open(self.path.resolve().as_uri())
