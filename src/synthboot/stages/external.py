"""Make a model from outside the corpus ready to be tuned: try its layout, make room for the
separator, and tokenize the documents again with its tokenizer.

Done once for all synthesizers that start from it, and before anything is trained: a model that
cannot be tuned is refused here.

Deviation from arXiv:2509.15248, whose synthesizer starts from the language model pretrained on the
same corpus: what such a model writes may come from whatever it was trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.external import SETS, External
from synthboot.artifacts.store import Progress, Shards, silent, within
from synthboot.data import tokenizer as tokenizers
from synthboot.data import tokens
from synthboot.data.tokenizer import Tokenizer
from synthboot.lm import model as models

SHARD_DOCS = 8_192
"""Documents of a token shard, which bounds memory."""


def external(
    source: str,
    seq_len: int,
    seed: int,
    corpus: Corpus,
    folder: Path,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The model that `source` names and the corpus in its tokens, in `folder`; returns counts.

    `seed` decides the fresh row of the separator. Raises ConfigError where the model or its
    tokenizer cannot be used, or its positions are fewer than `seq_len`.
    """
    made = External.open(folder)
    if not made.model.exists():  # a kill after it was written
        progress(0.0, "trying the model's layout")
        tokenizer = tokenizers.from_hugging_face(source, "tune.init_from")
        torch.manual_seed(seed)
        model = models.continued(source, seq_len, tokenizer.vocab_size, "tune")
        models.save(model, made.model, tokenizer)

    docs = {name: len(getattr(corpus, name)) for name in SETS}
    total = sum(docs.values())
    counts = {}
    done = 0
    for name in SETS:
        texts = (document.text for document in corpus.texts(name))
        own = within(progress, done / total, (done + docs[name]) / total)
        counts[name] = _encode(made.shards(name), texts, docs[name], made.tokenizer, own)
        done += docs[name]
    arms_tokens = corpus.pretrain.num_tokens
    return {
        "tokens": counts,
        "vocab_size": made.tokenizer.vocab_size,
        "account": (
            f"external: {source} will write the synthetic text; D_pretrain, {arms_tokens:,} tokens "
            f"of the arms, is {counts['pretrain']:,} of its"
        ),
    }


def _encode(
    shards: Shards,
    texts: Iterator[str],
    docs: int,
    tokenizer: Tokenizer,
    progress: Progress,
) -> int:
    """Write the documents as shards of tokens, in order; returns how many tokens."""

    def write(part: list[str], out: Path) -> dict[str, Any]:
        ids = tokenizer.documents(part)
        return {"tokens": tokens.write(out, ids, tokenizer.vocab_size)}

    count = max(1, -(-docs // SHARD_DOCS))

    def writers(missing: list[int]) -> Iterator[partial[dict[str, Any]]]:
        for index in range(count):
            # read in any case: texts come one after the other
            part = list(itertools.islice(texts, SHARD_DOCS))
            if index in missing:
                yield partial(write, part)

    for index, _ in shards.fill(count, writers):
        progress((index + 1) / count, f"{shards.folder.name}: shard {index + 1:,} of {count:,}")
    return sum(shards.counts(index)["tokens"] for index in range(count))
