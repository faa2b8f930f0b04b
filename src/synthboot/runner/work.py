"""What each artifact will take to make, counted from the configuration: tokens, FLOPs, bytes.

Nothing here knows how fast a machine is, and nothing needs the text. Sizes come from the finished
corpus; without one, from the size of its files and their first records; without these, from the
budget and an assumed length of a document (`Sizes.source` says which). FLOPs are counted as
manifests count them (`lm.model.flops_per_token`), so that a prediction can be compared with them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from synthboot import config
from synthboot.artifacts.external import EXTERNAL
from synthboot.artifacts.extraction import COMPARED
from synthboot.artifacts.store import read_manifest
from synthboot.data import documents
from synthboot.data.tokens import token_dtype
from synthboot.errors import SynthbootError
from synthboot.lm.batches import d1_room
from synthboot.neighbors.search import clusters
from synthboot.recipes import Unit, folder_of
from synthboot.runner.machines import figures

_SAMPLED_RECORDS = 200
"""First records of the source, by which the length of a document is estimated."""
_COMPRESSED = (".zst", ".gz", ".parquet")

_TRAINED_TARGETS = 1_024
"""Targets whose logits training has in memory at once (`lm.loss`)."""
_GPU_TRAINED_LOGITS = 2**28
"""Logits that training has in a GPU's memory at once, where `_TRAINED_TARGETS` have fewer."""
_SCORED_TOKENS = 8_192
"""Tokens of a batch that is scored (`lm.score`)."""
_SCORED_LOGITS = 2**26
"""Most logits of a batch that is scored."""


@dataclass(frozen=True)
class Sizes:
    """Documents and tokens of a corpus, as far as they are known, and how."""

    documents: float
    tokens: float
    text_bytes: float
    pretrain_documents: float
    pretrain_tokens: float
    validation_tokens: float
    test_tokens: float
    vocab_size: int
    pairs_per_document: float
    source: str

    @property
    def document_tokens(self) -> float:
        """Mean length of a document."""
        return self.tokens / max(1.0, self.documents)


@dataclass(frozen=True)
class ModelSize:
    """A language model as far as it decides what work on it costs."""

    parameters: float
    flops_of_weights: float
    flops_of_position: float
    layers: int
    width: int
    inner: int
    kv_width: float
    vocab_size: int

    def forward(self, seq_len: float) -> float:
        """FLOPs per token in rows of `seq_len`: two for every weight, and attention over half of
        the row on average."""
        return self.flops_of_weights + self.flops_of_position * seq_len


@dataclass(frozen=True)
class Work:
    """What one artifact takes.

    `tokens` are read, trained on, sampled or scored. `flops` are those of matrix products;
    `core_seconds` are for work without such products, on one core; of `serial_seconds` no second
    core takes a share. Sampling has `requests` of `row_tokens` each, d1 and d2. `memory` is that of
    a device, `host_memory` that of the machine, in bytes.
    """

    tokens: float = 0.0
    flops: float = 0.0
    core_seconds: float = 0.0
    serial_seconds: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    kept_bytes: float = 0.0
    exchanged_bytes: float = 0.0
    memory: float = 0.0
    host_memory: float = 0.0
    requests: float = 0.0
    row_tokens: float = 0.0


NOTHING = Work()


def sizes(cfg: config.Config, files: Sequence[str]) -> Sizes:
    """The sizes of a run's corpus; `files` are its source's as a plan has hashed them."""
    corpus = cfg.corpus
    heldout_docs = corpus.validation_docs + corpus.test_docs
    vocab_size = corpus.vocab_size
    per_token = _bytes_per_token(vocab_size)
    counts = _counted(cfg)
    if counts is not None:
        docs = counts.documents
        tokens = counts.tokens
        vocab_size = counts.vocab_size
        source = "the finished corpus"
    else:
        document_bytes, length_source = _document_bytes(corpus, per_token)
        document_tokens = document_bytes / per_token
        stored = _stored_bytes(files)
        if corpus.source == documents.WORLD:
            tokens = (_world_documents(corpus.world) + heldout_docs) * document_tokens
            source = f"the world's documents, {length_source}"
        elif stored is not None:
            tokens = stored / per_token
            source = f"the size of the files, {length_source}"
        else:
            tokens = _needed_tokens(cfg) + heldout_docs * document_tokens
            source = f"what the arms read, {length_source}"
        docs = tokens / document_tokens

    document_tokens = tokens / max(1.0, docs)
    pool = max(document_tokens, tokens - heldout_docs * document_tokens)
    if corpus.source == documents.WORLD:
        pool -= corpus.world.oracle_docs * document_tokens  # which only an oracle reads
    unique = cfg.budget.unique_tokens
    pretrain_tokens = pool if unique == "all" else min(float(unique), pool)
    pretrain_docs = pretrain_tokens / document_tokens
    if counts is not None and counts.unique_tokens == unique:
        pretrain_docs = counts.pretrain_documents
        pretrain_tokens = counts.pretrain_tokens
    return Sizes(
        documents=docs,
        tokens=tokens,
        text_bytes=tokens * per_token,
        pretrain_documents=pretrain_docs,
        pretrain_tokens=pretrain_tokens,
        validation_tokens=corpus.validation_docs * document_tokens,
        test_tokens=corpus.test_docs * document_tokens,
        vocab_size=vocab_size,
        pairs_per_document=_pairs_per_document(cfg, pretrain_docs),
        source=source,
    )


def model_size(cfg: config.Model, vocab_size: int) -> ModelSize:
    """The size of the model that `model` describes, or of `init_from` by its own config.json.

    Raises ConfigError where that cannot be read.
    """
    if cfg.init_from is not None:
        return _given_size(cfg.init_from, "model.init_from")
    kv_width = cfg.width * (cfg.kv_heads or cfg.heads) / cfg.heads
    inner = cfg.ffn or 3 * cfg.width

    # Queries and output, keys and values, and the three matrices of the gated MLP.
    per_block = cfg.width * (2 * cfg.width + 2 * kv_width + 3 * inner)
    parameters = cfg.layers * per_block + vocab_size * cfg.width  # tied: one matrix at both ends
    return ModelSize(
        parameters=parameters,
        flops_of_weights=2 * parameters,
        flops_of_position=2.0 * cfg.layers * cfg.width,
        layers=cfg.layers,
        width=cfg.width,
        inner=inner,
        kv_width=kv_width,
        vocab_size=vocab_size,
    )


class Workload:
    """A configuration and the sizes of its corpus: what each of its artifacts takes."""

    def __init__(self, cfg: config.Config, corpus: Sizes) -> None:
        self.cfg = cfg
        self.corpus = corpus
        self.model = model_size(cfg.model, corpus.vocab_size)
        self.synthesizer = self.model
        # the synthesizer's tokens of what is one token of the arms
        self.own_tokens = 1.0
        if cfg.tune.init_from is not None:
            self.synthesizer = _given_size(cfg.tune.init_from, "tune.init_from")
            self.own_tokens = _own_tokens(cfg, corpus, self.synthesizer.vocab_size)
        self.token_bytes = token_dtype(self.model.vocab_size).itemsize

    def of(self, unit: Unit) -> Work:
        """What one artifact takes."""
        if is_copy(unit):
            return Work(kept_bytes=self._weights(2), written_bytes=self._weights(2))
        if unit.training is not None:
            return self.training(unit.training.recipe)
        is_conditional = not unit.variant.startswith("unconditional")
        text = unit.synthesis
        if text is not None and text.filter is not None:
            return self.filter(text.filter, text.budget_tokens)
        if text is not None:
            return self.synthesize(text.budget_tokens, is_conditional)
        if unit.stage == "tune":
            return self.tune(is_conditional)
        if (unit.stage, unit.variant) == ("corpus", EXTERNAL):
            return self.external()
        # pairs at random, and a comparison of models that have been asked
        if (unit.stage, unit.variant) in (("pair", "random_pairs"), ("extract", COMPARED)):
            return NOTHING
        stages = {
            "corpus": self.read,
            "embed": self.embed,
            "pair": self.pair,
            "score": self.score,
            "extract": self.extract,
        }
        stage = stages.get(unit.stage)
        return NOTHING if stage is None else stage()

    def read(self) -> Work:
        """The corpus: its text once, its tokens kept, and the text itself packed."""
        sizes = self.corpus
        packed = sizes.text_bytes / figures().assumed.expansion.value
        kept = packed + sizes.tokens * self.token_bytes
        rate = figures().core.corpus_bytes_per_second.value
        return Work(
            tokens=sizes.tokens,
            core_seconds=sizes.text_bytes / rate,
            read_bytes=sizes.text_bytes,
            written_bytes=sizes.text_bytes + kept,  # the text is spooled first
            kept_bytes=kept,
        )

    def external(self) -> Work:
        """The external model, and D_pretrain and the validation set in its tokens."""
        sizes = self.corpus
        encoded = sizes.pretrain_tokens + sizes.validation_tokens
        text = sizes.text_bytes * encoded / sizes.tokens
        tokens = self.own_tokens * encoded
        weights = 4 * self.synthesizer.parameters
        kept = weights + tokens * token_dtype(self.synthesizer.vocab_size).itemsize
        return Work(
            tokens=tokens,
            core_seconds=text / figures().core.corpus_bytes_per_second.value,
            read_bytes=weights + text,
            written_bytes=kept,
            kept_bytes=kept,
            host_memory=weights,
        )

    def embed(self) -> Work:
        """Vectors of D_pretrain and the validation set, of two bytes a number."""
        cfg = self.cfg.embed
        sizes = self.corpus
        docs = sizes.pretrain_documents + self.cfg.corpus.validation_docs
        tokens = sizes.pretrain_tokens + sizes.validation_tokens
        vectors = docs * self._dim() * 2
        work = Work(
            tokens=tokens,
            read_bytes=tokens * sizes.text_bytes / sizes.tokens,
            written_bytes=vectors,
            kept_bytes=vectors,
        )
        if cfg.model == "file":
            return work
        if cfg.model == "self":
            from synthboot.stages.embed import fitting_flops, flops

            core = figures().core
            count = flops(cfg, round(docs), round(tokens))
            fitting = fitting_flops(cfg, round(docs), round(tokens))
            return replace(
                work,
                flops=count,
                serial_seconds=fitting / core.self_fitting_flops.value,
                core_seconds=(count - fitting) / core.self_embedding_flops.value,
            )
        parameters = figures().assumed.embedder_parameters.value
        return replace(work, flops=2 * parameters * tokens, memory=2 * parameters)

    def pair(self) -> Work:
        """Everyone's neighbours among D_pretrain, and the pairs that are kept."""
        cfg = self.cfg.pair
        docs = self.corpus.pretrain_documents
        dim = self._dim()
        products = docs
        by_clusters = cfg.search == "ivf" or (cfg.search == "auto" and docs > cfg.exact_docs)
        if by_clusters:
            count = clusters(round(docs))
            products = count + docs * min(1.0, figures().assumed.clusters_probed.value / count)
        vectors = docs * dim * 2
        lists = docs * cfg.num_neighbors * 12  # a number of 8 bytes and a similarity of 4
        considered = docs * cfg.num_neighbors
        kept = docs * self.corpus.pairs_per_document * 24
        return Work(
            tokens=docs,
            flops=2 * docs * dim * products,
            core_seconds=considered / figures().core.pairs_per_second.value,
            read_bytes=vectors,
            written_bytes=2 * lists + kept,
            kept_bytes=kept,
            host_memory=vectors + 2 * lists,
        )

    def training(self, recipe: config.Arm) -> Work:
        """The model of an arm, or all models of its ensemble: they train on `train_tokens` each,
        which teachers read too, and read the validation set at every evaluation."""
        cfg = self.cfg
        optim = cfg.optim
        tokens = float(cfg.budget.train_tokens) * recipe.ensemble
        evaluated = optim.evals * self.corpus.validation_tokens * recipe.ensemble
        teachers = 0 if recipe.distill is None else cfg.arms[recipe.distill].ensemble
        taught = teachers * cfg.budget.train_tokens
        return self._trained(
            self.model,
            cfg.model.seq_len,
            tokens=tokens,
            forward_tokens=optim.lora.passes * tokens + taught + evaluated,
            evals=optim.evals,
            batch_tokens=optim.batch_tokens,
            lora=optim.lora,
        )

    def tune(self, conditional: bool) -> Work:
        """The synthesizer, if it does not stop early. Tuned without d1, it reads each d2 as often
        as with d1."""
        cfg = self.cfg.tune
        window = self.cfg.tune_seq_len
        document = self.own_tokens * self.corpus.document_tokens
        both = min(2 * document, window)
        each = both if conditional else min(document, window)
        pairs = self.corpus.pretrain_documents * self.corpus.pairs_per_document
        tokens = pairs * both * cfg.max_epochs / (1 - cfg.plain_share)
        if cfg.max_tokens is not None:
            tokens = min(tokens, cfg.max_tokens)
        tokens *= each / both
        if cfg.base_share == 1:
            tokens = 0.0  # base as it is

        # Pairs whose d2 base has not read (unseen) are scored at step 0 and every evaluation, for
        # every share of base, and twice before tuning. After tuning both these and the held-out
        # pairs whose d2 it has read (seen) are scored: with their d1, with another one, and twice
        # without, which is as much as once with it.
        paired = min(1.0, self.corpus.pairs_per_document)
        unseen = paired * self.cfg.corpus.validation_docs
        seen = paired * self.cfg.pair.heldout_share * self.corpus.pretrain_documents
        unseen = min(unseen, cfg.eval_pairs)
        seen = min(seen, cfg.eval_pairs)
        times = 1 + cfg.evals + len(cfg.base_shares(conditional)) + 2
        scored = times * unseen + 3 * (unseen + seen)
        return self._trained(
            self.synthesizer,
            window,
            tokens=tokens,
            forward_tokens=cfg.lora.passes * tokens + scored * each,
            evals=cfg.evals,
            batch_tokens=cfg.batch_tokens,
            lora=cfg.lora,
        )

    def synthesize(self, budget_tokens: int, conditional: bool) -> Work:
        """S_pretrain, if no sample is dropped: every d1 is read, every token of d2 decoded."""
        cfg = self.cfg
        # an external model writes all synthetic text; base writes what has no d1
        is_tuned = conditional or cfg.tune.init_from is not None
        model = self.synthesizer if is_tuned else self.model
        window = cfg.tune_seq_len if is_tuned else cfg.model.seq_len
        document = self.own_tokens * self.corpus.document_tokens
        is_prompted = conditional and cfg.tune.base_share != 1
        d1 = min(document, d1_room(window, cfg.tune.d1_share)) if is_prompted else 0.0
        d2 = min(document, window - d1, cfg.synthesize.max_tokens or math.inf)
        sampled = budget_tokens * self.own_tokens
        requests = sampled / d2
        read = sampled + requests * d1
        if cfg.synthesize.contrast and conditional:
            read += sampled  # each once more, without d1
        kept = budget_tokens * (self.token_bytes + 4)  # and its log-probability
        return Work(
            tokens=sampled,
            flops=read * model.forward(read / requests),
            read_bytes=requests * d1 * self.token_bytes,
            written_bytes=kept,
            kept_bytes=kept,
            memory=4 * model.parameters,
            requests=requests,
            row_tokens=d1 + d2,
        )

    def filter(self, chosen: config.Filter, budget_tokens: int) -> Work:
        """What a filter leaves, if that is just enough. Where their loss decides, base reads all
        samples."""
        sampled = chosen.times * budget_tokens
        flops = 0.0
        if chosen.loss is not None:
            flops = sampled * self.model.forward(self.cfg.model.seq_len)
        kept = budget_tokens * (self.token_bytes + 4)
        return Work(
            flops=flops,
            read_bytes=sampled * self.token_bytes,
            written_bytes=kept,
            kept_bytes=kept,
            memory=4 * self.model.parameters,
        )

    def score(self) -> Work:
        """The loss of every token of the test set, by both checkpoints; questions are not
        counted."""
        tokens = 2 * self.corpus.test_tokens
        return Work(
            tokens=tokens,
            flops=tokens * self.model.forward(self.cfg.model.seq_len),
            read_bytes=self._weights(2),
            written_bytes=4 * tokens,
            kept_bytes=4 * tokens,
            memory=self._weights(1),
        )

    def extract(self) -> Work:
        """The documents of D_pretrain and of the test set that are continued, and scored."""
        cfg = self.cfg.extract
        row_tokens = cfg.prefix_tokens + cfg.continuation_tokens
        tokens = 2 * 2 * cfg.docs * row_tokens
        return Work(
            tokens=tokens,
            flops=tokens * self.model.forward(row_tokens),
            read_bytes=self._weights(1),
            memory=self._weights(1),
        )

    def trained(self, unit: Unit) -> tuple[ModelSize, config.Lora]:
        """The model that a unit trains, and its adapters."""
        if unit.stage == "tune":
            return self.synthesizer, self.cfg.tune.lora
        return self.model, self.cfg.optim.lora

    def activation_bytes(
        self,
        model: ModelSize,
        tokens: float,
        dtype_bytes: int,
        recomputed: bool,
        on_gpu: bool,
    ) -> float:
        """What a forward pass over so many tokens keeps for the backward pass, without attention's
        own weights.

        Of each block: its input, queries, keys, values, and the outputs of attention, norms and
        residuals (eight of the model's width), and four of the MLP's inner size. Where activations
        are recomputed: the input of each block, and one whole block. Source: arXiv:2205.05198,
        section 4, for a gated MLP.
        """
        block = dtype_bytes * (8 * model.width + 4 * model.inner) * tokens
        targets: float = _TRAINED_TARGETS
        if on_gpu:
            targets = max(targets, _GPU_TRAINED_LOGITS / model.vocab_size)
        logits = 2 * 4 * min(tokens, targets) * model.vocab_size
        if not recomputed:
            return model.layers * block + logits
        return model.layers * dtype_bytes * model.width * tokens + block + logits

    def scoring_bytes(self, model: ModelSize) -> float:
        """What scoring a batch on a CPU holds (`lm.score`): its logits and one block, in float32,
        since nothing is kept for a backward pass."""
        tokens = min(_SCORED_TOKENS, _SCORED_LOGITS / model.vocab_size)
        return 4 * tokens * (model.vocab_size + 8 * model.width + 4 * model.inner)

    def state_bytes(self, model: ModelSize, lora: config.Lora) -> float:
        """Weights, gradients and both moments of Adam in float32, and a copy of the weights to
        multiply by. With adapters the weights and their copy, and all five for the adapters."""
        averages = 4 if self.cfg.optim.ema_decay or self.cfg.optim.tail_average else 0
        if not lora.rank:
            return (18 + averages) * model.parameters
        # of the seven matrices of a block, unless some are named
        ends = 9 * model.width + 2 * model.kv_width + 3 * model.inner
        adapters = model.layers * lora.rank * ends
        return 6 * model.parameters + (18 + averages) * adapters

    def _trained(
        self,
        model: ModelSize,
        seq_len: int,
        *,
        tokens: float,
        forward_tokens: float,
        evals: int,
        batch_tokens: int,
        lora: config.Lora,
    ) -> Work:
        """What training a model on `tokens` takes: with its evaluations, as many FLOPs as forward
        passes over `forward_tokens`."""
        engine = self.cfg.engine
        exchanged = 0.0
        if engine.processes > 1:
            # Every step sums the gradients; each process sends them and receives the sum. Sharded
            # weights are gathered twice on top.
            passes = 6 if engine.shard else 2
            exchanged = passes * 4 * model.parameters * tokens / batch_tokens
        return Work(
            tokens=tokens,
            flops=model.forward(seq_len) * forward_tokens,
            read_bytes=tokens * self.token_bytes,
            # with the optimizer's two moments; adapters are small, so that of them the best model
            # alone counts
            written_bytes=evals * (4 if lora.rank else 12) * model.parameters,
            kept_bytes=8 * model.parameters,
            exchanged_bytes=exchanged,
        )

    def _weights(self, copies: int) -> float:
        return copies * 4 * self.model.parameters

    def _dim(self) -> float:
        cfg = self.cfg.embed
        return cfg.dim if cfg.model == "self" else figures().assumed.embedder_dim.value


def duration(hours: float) -> str:
    """Hours in words; minutes where it is less than one."""
    if hours < 1:
        minutes = max(1, math.ceil(60 * hours))
        return f"{minutes} minute{'s' * (minutes > 1)}"
    return f"{hours:,.1f} hours" if hours < 100 else f"{hours:,.0f} hours"


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def is_copy(unit: Unit) -> bool:
    """Whether a model is one of its sweep's trials, which has been trained already."""
    if unit.stage == "tune":
        return any(role.startswith("trial/") for role in unit.parents)
    return unit.training is not None and unit.training.ready


@dataclass(frozen=True)
class _Counted:
    """What the finished corpus holds, without replayed text; `unique_tokens` is the budget that its
    D_pretrain was made for."""

    documents: float
    tokens: float
    vocab_size: int
    pretrain_documents: float
    pretrain_tokens: float
    unique_tokens: object


def _counted(cfg: config.Config) -> _Counted | None:
    """The counts of the finished corpus; None where there is none, or not of this version."""
    manifest = read_manifest(folder_of(cfg.folder, "corpus"))
    if manifest is None:
        return None
    try:
        counts = manifest.counts
        found = _Counted(
            documents=_beside_replay(counts["documents"]),
            tokens=_beside_replay(counts["tokens"]),
            vocab_size=int(counts["vocab_size"]),
            pretrain_documents=float(counts["pretrain_docs"]),
            pretrain_tokens=float(counts["pretrain_tokens"]),
            unique_tokens=manifest.reads.get("budget.unique_tokens"),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    least = min(found.documents, found.tokens, found.pretrain_documents, found.pretrain_tokens)
    return found if least > 0 and found.vocab_size > 1 else None


def _beside_replay(by_set: Mapping[str, float]) -> float:
    """The sum over all sets of the corpus but the replayed one."""
    return float(sum(count for name, count in by_set.items() if name != "replay"))


def _own_tokens(cfg: config.Config, corpus: Sizes, vocab_size: int) -> float:
    """How many tokens of an external model make up one token of the arms: as counted on D_pretrain,
    or else by the sizes of both vocabularies."""
    manifest = read_manifest(folder_of(cfg.folder, "corpus", EXTERNAL))
    counted = None if manifest is None else manifest.counts.get("tokens", {}).get("pretrain")
    if isinstance(counted, int):
        return counted / corpus.pretrain_tokens
    return _bytes_per_token(corpus.vocab_size) / _bytes_per_token(vocab_size)


def _world_documents(world: config.World) -> float:
    """Documents of a generated world."""
    per_entity = world.many_share * world.many_docs + (1 - world.many_share)
    return world.entities * per_entity + world.oracle_docs


def _needed_tokens(cfg: config.Config) -> float:
    """The most real tokens that any arm reads; `train_tokens` where no arm says a number."""
    wanted = [cfg.budget.unique_tokens, *(arm.unique_tokens for arm in cfg.arms.values())]
    numbers = [count for count in wanted if isinstance(count, int)]
    return float(max(numbers, default=cfg.budget.train_tokens))


def _pairs_per_document(cfg: config.Config, docs: float) -> float:
    """Pairs to tune on, per document of D_pretrain: as found, or else as many as `auto` keeps, or
    one where alpha is a number."""
    manifest = read_manifest(folder_of(cfg.folder, "pair", "related"))
    pairs = None if manifest is None else manifest.counts.get("train")
    if isinstance(pairs, int):
        return pairs / max(1.0, docs)
    wanted = cfg.pair.auto_pairs_per_doc if cfg.pair.min_similarity == "auto" else 1.0
    return min(wanted, cfg.pair.num_neighbors) * (1 - cfg.pair.heldout_share)


def _bytes_per_token(vocab_size: int) -> float:
    """Bytes of English text to a token of a byte-level BPE.

    3.2 with a vocabulary of 2,048 (short Wikipedia articles), 4.4 with 49,152 (SmolLM2's).
    """
    return 0.3 + 0.265 * math.log2(vocab_size)


def _stored_bytes(files: Sequence[str]) -> float | None:
    """The bytes of text in files, from lines of name, size and hash; None where they tell none."""
    total = 0.0
    for line in files:
        name, _, rest = line.rpartition(" ")[0].rpartition(" ")
        if not rest.isdigit():
            return None
        expansion = figures().assumed.expansion.value if name.endswith(_COMPRESSED) else 1.0
        total += expansion * int(rest)
    return total or None


def _document_bytes(cfg: config.Corpus, bytes_per_token: float) -> tuple[float, str]:
    """The mean length of a document in bytes, and how it is known: from the first records of the
    source, or assumed where these cannot be read here."""
    lengths = []
    is_local = isinstance(cfg.source, list) or not cfg.source.startswith("hub:")
    if is_local:
        try:
            for record in itertools.islice(documents.records(cfg), _SAMPLED_RECORDS):
                document = documents.parse(record, cfg)
                if isinstance(document, documents.Document):
                    lengths.append(len(document.text.encode()))
        except SynthbootError:
            lengths = []  # not here, or damaged: `corpus` says what is wrong
    if not sum(lengths):
        assumed = figures().assumed.document_tokens.value * bytes_per_token
        return assumed, "documents as long as the paper's"
    return sum(lengths) / len(lengths), "documents as long as its first"


def _given_size(source: str, setting: str) -> ModelSize:
    """The size of a Hugging Face model: its layout without weights."""
    from synthboot.lm import layouts
    from synthboot.lm import model as models

    model = models.outline(source, setting)
    layers = int(layouts.setting(model, "num_hidden_layers") or 0)
    heads = int(layouts.setting(model, "num_attention_heads") or 1)
    width = int(layouts.setting(model, "hidden_size") or 0)
    head_dim = int(layouts.setting(model, "head_dim") or width // heads)
    kv_heads = int(layouts.setting(model, "num_key_value_heads") or heads)
    of_weights = models.flops_per_token(model, 0)
    return ModelSize(
        parameters=float(sum(p.numel() for p in model.parameters())),
        flops_of_weights=of_weights,
        flops_of_position=models.flops_per_token(model, 1) - of_weights,
        layers=layers,
        width=width,
        inner=int(layouts.setting(model, "intermediate_size") or 4 * width),
        kv_width=float(kv_heads * head_dim),
        vocab_size=len(layouts.embedding(model)),
    )
