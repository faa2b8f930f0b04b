"""A run from Python: every stage is a method that makes what is missing and returns its result."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from jaxtyping import Float16

from synthboot import config, loading, notebook, recipes
from synthboot.artifacts.analysis import Analysis
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.embeddings import Embeddings
from synthboot.artifacts.evaluation import REPETITION, Evaluation
from synthboot.artifacts.extraction import COMPARED, Extraction
from synthboot.artifacts.model import Model, Tuning
from synthboot.artifacts.pairs import HELDOUT, TRAIN, VALIDATION, Pairs
from synthboot.artifacts.synthetic import Sample, Synthetic
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokens import Tokens
from synthboot.errors import MissingArtifact
from synthboot.export.finished import Finished
from synthboot.notebook import pandas
from synthboot.report import page
from synthboot.rng import rng
from synthboot.runner import executor
from synthboot.runner.state import State, states
from synthboot.steps.context import conditional
from synthboot.studies.study import Grid, Study, collect

if TYPE_CHECKING:
    import pandas as pd

    from synthboot.export.export import Exported, What
    from synthboot.lm.batches import PairForm

__all__ = [
    "Report",
    "Run",
    "Study",
    "Synthesizer",
    "SyntheticTexts",
    "TextPairs",
    "Texts",
    "collect",
    "study",
]

_SHOWN = 5
"""Rows that a notebook shows."""
_SPLITS = {TRAIN: "train", HELDOUT: "heldout", VALIDATION: "validation"}


class Run:
    """An experiment in its run folder. Methods run the stages they need and reuse what is done.

    `source` is a YAML file or the same as a mapping, `set` overrides its settings by dotted name
    (`{"pair.num_neighbors": 8}`); relative paths in it are those of the current folder.
    `progress(unit, kind, value)` is called as a run goes on (`runner.executor.Event` says with
    what; `progress=print` shows all of it), and nothing is printed otherwise. Hours of finished
    work that other settings made are made anew only with `replace`.
    """

    def __init__(
        self,
        source: str | Path | Mapping[str, Any],
        set: Mapping[str, Any] | None = None,
        progress: executor.Event | None = None,
        replace: bool = False,
    ) -> None:
        self.config = loading.load(source, set=set)
        self.replace = replace
        self._tell = progress or (lambda *_: None)
        self._plan: dict[str, recipes.Unit] = {}  # of what was run last

    def run(self, stage: str = "report", only: Sequence[str] = ()) -> None:
        """Make every artifact up to `stage`; with shell patterns `only`, such as `sbp/seed-*`, no
        others of that stage than those whose variants match."""
        self._plan = executor.run(
            self.config,
            stage,
            self._tell,
            only=only,
            replace=self.replace,
        )

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

    def base(self) -> Model:
        """The language model on real text alone, that synthesizers start from."""
        self.run("base")
        first = self.config.pretrain.seeds[0]
        return self._model(recipes.units(self.config), REPETITION, first)

    def vectors(self) -> Float16[np.ndarray, "doc dim"]:
        """The vectors of D_pretrain, of length 1."""
        self.run("embed")
        return Embeddings.open(self._folder("embed")).pretrain

    def synthetic(self, of: str = "related") -> SyntheticTexts:
        """The synthetic text that an arm reads, or of a kind: `related`, `random_pairs`, `scratch`,
        `unconditional`.

        With `pretrain.text_per_seed` each seed of an arm has its own: an arm's name stands for that
        of the first seed, and `related,seed-1` for that of seed 1.

        Raises ConfigError for an arm that reads no synthetic text, MissingArtifact for a name that
        is neither an arm nor a kind that one reads.
        """
        units = recipes.units(self.config)
        kinds = [name.partition("/")[2] for name in units if name.startswith("synthesize/")]
        if of not in (*self.config.arms, *kinds):
            there = ", ".join([*self.config.arms, *kinds])
            raise MissingArtifact(f"{of}: no arm here, and no synthetic text; there are {there}")
        self.run("synthesize")
        kind = of
        if of in self.config.arms:
            of_first_seed = Finished(self.config).written(of)[0]
            kind = of_first_seed.partition("/")[2]
        synthetic = Synthetic.open(self._folder(f"synthesize/{kind}"))
        return SyntheticTexts(kind, synthetic, self.corpus())

    def models(self) -> dict[str, dict[int, Model]]:
        """The trained models, by arm and seed."""
        # not "pretrain": base is among the models, and is no unit of that stage
        self.run("score")
        plan = recipes.units(self.config)
        by_arm: dict[str, dict[int, Model]] = {}
        for arm in self.config.arms:
            by_arm[arm] = {}
            for seed in self.config.pretrain.seeds:
                by_arm[arm][seed] = self._model(plan, arm, seed)
        return by_arm

    def analyze(self) -> Analysis:
        """The measures of synthetic text beside real text, and what judges say of both."""
        self.run("analyze")
        return Analysis.open(self._folder("analyze"))

    def extract(self) -> Extraction:
        """What every model gives back of what it read, compared.

        Raises MissingArtifact unless `extract.docs` or `corpus.canaries.count` is set.
        """
        self.run("extract")
        return Extraction.open(self._folder(f"extract/{COMPARED}"))

    def export(
        self,
        what: What = "synthetic",
        out: str | Path | None = None,
        *,
        arm: str | None = None,
        seed: int | None = None,
        license: str | None = None,
        force: bool = False,
    ) -> Exported:
        """Write what is finished to a folder to take away (`export.export`)."""
        # imported here: it imports torch, which this process does without, as workers train
        from synthboot.export.export import export

        place = None if out is None else Path(out)
        return export(self.config, what, place, arm=arm, seed=seed, license=license, force=force)

    def evaluate(self) -> Evaluation:
        """The scores of every arm."""
        self.run("evaluate")
        return Evaluation.open(self._folder("evaluate"))

    def report(self) -> Report:
        """The report page."""
        self.run("report")
        return Report(self._folder("report") / page.FILE)

    def __repr__(self) -> str:
        return f"Run({self.config.name}: {', '.join(self.config.arms)}; {self.config.folder})"

    def _model(self, plan: Mapping[str, recipes.Unit], arm: str, seed: int) -> Model:
        return Model.open(plan[recipes.model_of(plan, arm, seed)].folder(self.config.folder))

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
        self.validation = corpus.validation

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.text(self.tokens, doc) for doc in range(len(self))[index]]
        return self.text(self.tokens, range(len(self))[index])

    def __iter__(self) -> Iterator[str]:
        return (self[doc] for doc in range(len(self)))

    def text(self, tokens: Tokens, doc: int) -> str:
        """Document `doc` of `tokens`, one of the corpus' sets."""
        # The last token is the end of the document.
        return self.tokenizer.decode(tokens[doc][:-1])

    def __repr__(self) -> str:
        return f"Texts({len(self):,} documents, {self.tokens.num_tokens:,} tokens)"

    def _repr_html_(self) -> str:
        rows = [[doc, self[doc]] for doc in range(len(self))[:_SHOWN]]
        return notebook.table(repr(self), ["document", "text"], rows)


class TextPairs:
    """Pairs as text; `pairs` holds the numbers. A slice of it is one too."""

    def __init__(self, pairs: Pairs, texts: Texts) -> None:
        self.pairs = pairs
        self.texts = texts

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str, float]: ...

    @overload
    def __getitem__(self, index: slice) -> TextPairs: ...

    def __getitem__(self, index: int | slice) -> tuple[str, str, float] | TextPairs:
        """A pair as (d1, d2, similarity), or the pairs of a slice."""
        if isinstance(index, slice):
            return TextPairs(self.pairs[index], self.texts)
        chosen = range(len(self))[index]
        # d2 of a validation pair is numbered in the validation set
        is_validation = self.pairs.split[chosen] == VALIDATION
        of_d2 = self.texts.validation if is_validation else self.texts.tokens
        d1 = self.texts[int(self.pairs.d1[chosen])]
        d2 = self.texts.text(of_d2, int(self.pairs.d2[chosen]))
        return d1, d2, float(self.pairs.similarity[chosen])

    def __iter__(self) -> Iterator[tuple[str, str, float]]:
        return (self[number] for number in range(len(self)))

    def sample(self, n: int, seed: int = 0) -> list[tuple[str, str, float]]:
        """`n` training pairs drawn at random: (d1, d2, similarity)."""
        train = TextPairs(self.pairs.only(TRAIN), self.texts)
        chosen = rng(seed, "api.pairs").permutation(len(train))[:n]
        return [train[int(i)] for i in chosen]

    def to_pandas(self) -> pd.DataFrame:
        """A row for every pair: d1, d2, similarity, split (`train`, `heldout`, `validation`).

        All texts at once: take a slice of many pairs first.
        """
        frame = pandas().DataFrame(list(self), columns=["d1", "d2", "similarity"])
        frame["split"] = [_SPLITS[split] for split in self.pairs.split.tolist()]
        return frame

    def __repr__(self) -> str:
        if not len(self):
            return "TextPairs(no pairs)"
        similarity = self.pairs.similarity
        span = f"{similarity.min():.3f} to {similarity.max():.3f}"
        return f"TextPairs({len(self):,} pairs, similarity {span})"

    def _repr_html_(self) -> str:
        return notebook.table(repr(self), ["d1", "d2", "similarity"], list(self[:_SHOWN]))


class SyntheticTexts:
    """An S_pretrain; `synthetic` holds its tokens."""

    def __init__(self, kind: str, synthetic: Synthetic, texts: Texts) -> None:
        self.kind = kind
        self.synthetic = synthetic
        self.texts = texts

    def __len__(self) -> int:
        return len(self.synthetic)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.synthetic)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """A sample: its text and tokens, the number of its d1, and how it was drawn."""
        if isinstance(index, slice):
            return [self.synthetic[number] for number in range(len(self))[index]]
        return self.synthetic[index]

    def to_pandas(self) -> pd.DataFrame:
        """A row for every sample: text, d1, sample, finish, mean_logprob and its tokens' number."""
        rows = []
        for row in self:
            rows.append((row.text, row.d1, row.sample, row.finish, row.mean_logprob, row.sampled))
        columns = ["text", "d1", "sample", "finish", "mean_logprob", "tokens"]
        return pandas().DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        tokens = self.synthetic.tokens.num_tokens
        return f"SyntheticTexts({self.kind}: {len(self):,} documents, {tokens:,} tokens)"

    def _repr_html_(self) -> str:
        rows: list[list[object]] = []
        for row in self[:_SHOWN]:
            given = self.texts[row.d1] if conditional(self.kind) else ""
            rows.append([given, row.text, row.mean_logprob])
        return notebook.table(repr(self), ["d1", "sampled", "mean log-probability"], rows)


class Synthesizer:
    """A tuned synthesizer that samples and scores text.

    `tuning` is the record of how it was tuned, with the weights of its pointer, if it has one.
    """

    def __init__(
        self,
        folder: Path,
        cfg: config.Config,
        tuning: Tuning,
    ) -> None:
        self.folder = folder
        self.config = cfg
        self.tokenizer = tokenizers.load(folder)
        self.weights = tuning.pointer
        self.is_prompted = tuning.is_prompted

    def __repr__(self) -> str:
        return f"Synthesizer({self.folder})"

    @cached_property
    def model(self) -> Any:
        """The model behind it."""
        from synthboot.lm import model as models

        return models.load(self.folder, models.device(self.config.engine.device))

    def sample(self, given: str, n: int = 1, seed: int = 0) -> list[str]:
        """`n` documents d2 ~ p(d2|d1 = given)."""
        from synthboot.lm.batches import pair_prompt
        from synthboot.lm.sampling.engines import sampler
        from synthboot.lm.sampling.protocol import Request, Sampling

        settings = self.config.synthesize
        seq_len = self.config.tune_seq_len
        end = self.tokenizer.end
        [d1] = self.tokenizer.documents([given])
        prompt = pair_prompt(np.array(d1), self._form)
        room = seq_len - len(prompt)

        requests = []
        for number in range(n):
            request = Request(
                prompt=prompt,
                seed=seed * 1_000_003 + number,  # far from those of other values of `seed`
                max_tokens=min(room, settings.max_tokens or room),
                alone=(end, self.tokenizer.separator) if self.is_prompted else (),
                source=tuple(d1[:seq_len]) if self.weights is not None else (),
            )
            requests.append(request)

        how = Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            batch=self.config.engine.sample_batch,
            absent=self.tokenizer.absent(self.model.config.get_text_config().vocab_size),
            contrast=settings.contrast,
            weights=self.weights,
        )
        results = sampler(self.model, end, how).sample(requests)
        return [self.tokenizer.decode(result.tokens) for result in results]

    def logprob(self, text: str, given: str) -> float:
        """log p(text | given) in nats, over as much of the text as the context length holds."""
        from synthboot.lm import pointer, score

        d1, d2 = map(np.array, self.tokenizer.documents([given, text]))
        [losses] = score.pair_tokens(self.model, [d1], [d2], self._form)
        if self.weights is None:
            return -float(losses.sum())
        source = pointer.source([d1], self.config.tune_seq_len)
        reading = pointer.read(source, d2[: len(losses)])
        [loss] = pointer.losses([reading], [np.exp(-losses)], self.weights)
        return -float(loss)

    @property
    def _form(self) -> PairForm:
        """How a pair stands in a row of this model."""
        from synthboot.lm.batches import PairForm

        return PairForm(
            seq_len=self.config.tune_seq_len,
            d1_share=self.config.tune.d1_share,
            end=self.tokenizer.end,
            separator=self.tokenizer.separator if self.is_prompted else None,
        )


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
    replace: bool = False,
) -> Study:
    """Run a configuration over every combination of the values of some settings, each point up to
    the stage `until`. With `together` the first values of all settings are one point, the second
    ones the next, and so on.

    What is finished is not made again; hours of work that other settings made are made anew only
    with `replace`. The study's folder, `out` or NAME-study beside the run, holds the runs,
    `study.json`, `study.csv` and `study.html`.
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
    return points.run(progress or (lambda *_: None), replace)


@dataclass(frozen=True)
class Report:
    """The report page."""

    path: Path

    def open(self) -> None:
        """Show it in a browser."""
        webbrowser.open(self.path.resolve().as_uri())
