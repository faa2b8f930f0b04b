"""How much more a sample is like its own d1 than like another: base with a pointer, base alone, and real related documents.

synthboot tune experiments/2026-11-26-pointer/config.yaml && python experiments/2026-11-26-pointer/samples.py
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from synthboot import api, config
from synthboot.artifacts.embeddings import Embeddings
from synthboot.artifacts.model import Model
from synthboot.artifacts.pairs import TRAIN
from synthboot.recipes import folder_of
from synthboot.stages import embed
from synthboot.stages.synthesize import Job, open_sampler, requests_of
from synthboot.statistics import estimate

SAMPLES = 512

if __name__ == "__main__":
    run = api.Run(Path(__file__).with_name("config.yaml"))
    pairs = run.pair()
    texts = run.corpus()
    tuned = Model.open(folder_of(run.config.folder, "tune", "related"))
    job = Job(
        run.config.synthesize.model_copy(update={"chunk": SAMPLES}),
        tuned.best,
        tuned.best,
        (),
        len(texts),
        run.config.model.seq_len,
        run.config.tune.d1_share,
        run.config.seed,
        True,
        config.Engine(),
        pointer=tuned.tuning.pointer,
        is_prompted=tuned.tuning.is_prompted,
    )
    fitted = Embeddings.open(folder_of(run.config.folder, "embed")).embedder
    model = embed.embedder(run.config.embed, fitted, "cpu")
    vectors = np.asarray(Embeddings.open(folder_of(run.config.folder, "embed")).pretrain, np.float32)

    def report(name: str, d1: list[int], written: list[str]) -> None:
        """Cosine to d1 minus cosine to the d1 of the next sample."""
        found = np.asarray(embed.embed(iter(written), model), np.float32)
        own = (found * vectors[d1]).sum(1)
        other = (found * vectors[np.roll(d1, 1)]).sum(1)
        gap = estimate((own - other)[None])
        print(
            f"{name}: {own.mean():.3f} to its d1, {other.mean():.3f} to another, {gap.value:+.4f} +- {gap.standard_error:.4f}"
        )

    for name, weights in (("base and a pointer", job.pointer), ("base alone", None)):
        one = replace(job, pointer=weights)
        d1, _, requests = zip(*requests_of(one, texts.tokens, texts.tokenizer, 0), strict=True)
        engine = open_sampler(one.cfg, one.engine, one.synthesizer, texts.tokenizer.end, weights)
        report(name, list(d1), [texts.tokenizer.decode(result.tokens) for result in engine.sample(list(requests))])
    train = pairs.pairs.only(TRAIN)
    chosen = np.random.default_rng(0).permutation(len(train))[:SAMPLES]
    report("related documents", train.d1[chosen].tolist(), [texts[int(d2)] for d2 in train.d2[chosen]])
