"""Every knob on one page.

Sections stand in pipeline order. The text under a field is its help text. All models are frozen, and an unknown key is
an error that names the nearest known one (`loading.py`). Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from synthboot.errors import UndeclaredSetting
from synthboot.schema import (
    Command,
    Count,
    Name,
    Seed,
    Size,
    Sources,
    Switch,
    Text,
    Url,
    given,
    trials,
)


class Section(BaseModel):
    """Base of all sections: frozen, documented, no unknown keys, nothing taken for what it is not (`true` for 1)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )
    _given = model_validator(mode="before")(given)

    def holding(self, values: Mapping[str, Any]) -> Any:
        """A section of this kind with these settings alone; to read another one is an UndeclaredSetting."""
        partial = type(self).model_construct()
        partial.__dict__.clear()
        partial.__dict__.update(values)
        return partial

    if not TYPE_CHECKING:  # a type checker would take this for leave to read any name

        def __getattr__(self, name: str) -> Any:
            if name in type(self).model_fields:
                raise UndeclaredSetting(
                    f"{type(self).__name__.lower()}.{name}: read by a stage that does not declare it"
                )
            return super().__getattr__(name)


class Model(Section):
    """The language model. Source: arXiv:2509.15248, Llama 3 layout with QK-norm (`Qwen3Config` in transformers)."""

    layers: int = Field(4, ge=1, le=1_000)
    """Transformer blocks."""
    width: Size = 256
    """Hidden size."""
    heads: Size = 4
    """Query heads."""
    kv_heads: Size | None = None
    """Key/value heads; as many as query heads unless set."""
    ffn: Size | None = None
    """Inner size of the gated MLP; three times the width unless set."""
    seq_len: int = Field(512, ge=8, le=1_000_000)
    """Tokens in one training row, and the window that d1 and d2 share. Deviation: the paper tunes at twice its
    pretraining length; here one length serves both, so that no position is met for the first time in tuning."""
    rope_theta: float = Field(10_000.0, gt=1, le=1e12)
    """Base of the rotary position embedding (the paper: 5e5 at 4,096 tokens)."""
    init_scale: float = Field(0.6, gt=0, le=100)
    """Initial weights have standard deviation init_scale / sqrt(width); the usual 0.02 starves narrow models."""
    init_from: Text | None = None
    """A Hugging Face folder or name to continue from; the sizes above are then ignored and its tokenizer is used."""

    @model_validator(mode="after")
    def _divisible(self) -> Model:
        if self.init_from is None and self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of twice the heads ({2 * self.heads})"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


class Budget(Section):
    """What every arm may spend. Compute-matched: all arms train on exactly `train_tokens`."""

    unique_tokens: Count | Literal["all"]
    """Size of D_pretrain: the unique real tokens that everything but the oracle may use. `all`: whatever is not held out, and
    with `corpus.split_field` what is marked `pretrain`."""
    replay_share: float = Field(0.0, ge=0, lt=1)
    """Share of `train_tokens` that every arm reads from `corpus.replay`; what an arm says of shares is about the rest."""
    train_tokens: Count
    """Tokens every arm trains on, rounded down to whole batches; repetition makes train/unique passes."""


class Optim(Section):
    """AdamW with decoupled weight decay; a schedule in tokens."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` updates the matrices of the blocks by Muon (torch's, its rate scaled to AdamW's), the rest by AdamW."""
    lr: float = Field(3e-3, gt=0, le=100)
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After warm-up: a cosine down to the final rate, or constant (`wsd`) and down to it in a line at the end."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """`wsd`: share of `train_tokens` spent going down."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of products and activations; weights and gradients stay float32. `auto`: bfloat16 where a measurement of a second
    at this model's sizes finds it clearly faster (on a GPU: not slower), else float32. Decided once for a run, before its
    first model is trained."""
    z_loss: float = Field(0.0, ge=0, le=1)
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting."""
    max_spike: float = Field(3.0, gt=0, le=1e9)
    """Stop where the loss is this many nats above its mean over the 50 steps before."""
    document_mask: Switch = False
    """Keep a row's documents from seeing each other, but in layouts that set related ones side by side. Better by 0.07 nats
    after two passes, worse by 0.06 after eight (EXPERIMENTS.md): try both. It costs no time on a CPU; on a GPU it gives up
    flash attention."""
    min_lr_fraction: float = Field(0.05, ge=0, le=1)
    """Final learning rate as a fraction of the peak."""
    weight_decay: float = Field(0.3, ge=0, le=1e4)
    """Decoupled weight decay of matrices (norms have none). Heavy repetition wants far more than the usual 0.1.
    Source: arXiv:2509.14786."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of `train_tokens` spent warming up (the paper: 5 %)."""
    batch_tokens: Count = 8_192
    """Tokens per optimizer step."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW beta1."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW beta2."""
    clip: float = Field(1.0, gt=0, le=1e9)
    """Largest gradient norm."""
    evals: Size = 20
    """Validation losses taken over a run; each comes with a checkpoint that can be resumed."""


class Server(Section):
    """An OpenAI-compatible completions endpoint: vLLM, SGLang, llama.cpp. Its key, if it wants one, is read from the
    environment variable SYNTHBOOT_API_KEY."""

    url: Url = "http://127.0.0.1:8000/v1"
    """The address before `/completions`, with http:// or https://."""
    model: Text = "synthesizer"
    """The name that the server gave the model."""
    concurrency: int = Field(32, ge=1, le=10_000)
    """Requests under way at once."""
    retries: int = Field(5, ge=0, le=20)
    """Times that a request is tried again, after 1, 2, 4, ... seconds, where the server is busy, broken or gone."""
    timeout: float = Field(600, gt=0, le=86_400)
    """Seconds that a request may take, from the connection to the last byte of its answer."""

    @field_validator("url", mode="before")
    @classmethod
    def _address(cls, url: object) -> object:
        """Nothing of the address is told: where it is wrong it may hold a password."""
        try:
            parts = urlsplit(url) if isinstance(url, str) else None
            known = parts is None or bool(parts.scheme in ("http", "https") and parts.hostname)
            port = parts and parts.port
        except ValueError:  # half of an IPv6 address, a port that is no number
            known, port = False, None
        if not known or port == 0 or any(c.isspace() or not c.isprintable() for c in str(url)):
            raise ValueError("needs the form http://host:port/v1 or https://...")
        if parts and (parts.username is not None or parts.password is not None):
            raise ValueError("has a name or password in it; put the key into SYNTHBOOT_API_KEY")
        if set("?#") & set(str(url)):
            raise ValueError("ends in a query; only what stands before /completions is wanted")
        return url


class Engine(Section):
    """Where and how the work runs. Never part of a fingerprint: it does not change what is computed, but for the order in which
    numbers are rounded."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU if there is one."""
    jobs: int = Field(0, ge=0, le=10_000)
    """Processes side by side, one thread each; 0 takes one per core, or one per GPU."""
    processes: int = Field(1, ge=1, le=100_000)
    """Processes that train one model together, started by torchrun: one per GPU, each with a share of every step's rows."""
    launch: Command | None = None
    """The command that starts the `processes` where they are on several machines, say `srun torchrun --nnodes 4 ...`
    (docs/scaling-out.md); `-m synthboot.ranks JOB` is added to it. torchrun on this machine unless set."""
    shard: Switch = False
    """With `processes`: every process holds a shard of the weights (FSDP2) rather than a copy (DDP)."""
    checkpoint_activations: Switch = False
    """Compute activations again in the backward pass rather than keep them: less memory, a third more time."""
    micro_batch_tokens: Count | None = None
    """Tokens per forward pass of training; gradients accumulate up to `optim.batch_tokens`. The whole batch at once unless
    set."""
    embed_batch: Size = 32
    """sentence-transformers: texts in a batch, sorted by length beforehand."""
    sample_batch: Size | None = None
    """Rows decoded together; chosen from memory and a quick measurement unless set."""
    server: Server = Server()
    """Where the server is, for `synthesize.sampler: server`."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Let torch compile the blocks of a model that trains. It costs a minute or two before the first step, less when torch
    finds them in its cache; `auto`: on a GPU, where a run would take ten minutes or more. On a CPU the compiled
    loops that come with the package are faster (docs/decisions.md)."""
    track: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Where figures go while a model trains, besides the report; each has to be installed."""


class World(Section):
    """A generated corpus of which everything is known: entities, and documents that tell some of their attributes."""

    entities: int = Field(600, ge=1, le=100_000)
    """Entities, each with a value for every attribute."""
    many_share: float = Field(0.5, ge=0, le=1)
    """Share of the entities that have `many_docs` documents; the others have one."""
    many_docs: int = Field(4, ge=1, le=10_000)
    """Documents of an entity that has many."""
    attributes: int = Field(8, ge=1, le=16)
    """Attributes of every entity."""
    values: int = Field(24, ge=2, le=500)
    """Different values of each attribute."""
    revealed: int = Field(5, ge=1, le=16)
    """Attributes that a document tells."""
    wordings: int = Field(6, ge=1, le=8)
    """Ways to say an attribute."""
    distractors: int = Field(1, ge=0, le=100)
    """Sentences of a document that say nothing about its entity."""
    oracle_docs: int = Field(0, ge=0, le=10**9)
    """Documents beside D_pretrain's, for oracles: about any entity, each as likely."""
    seed: Seed = 0
    """Another seed is another world."""

    @model_validator(mode="after")
    def _told(self) -> World:
        if self.revealed > self.attributes:
            raise ValueError(
                f"revealed {self.revealed} must lie between 1 and the {self.attributes} attributes"
            )
        return self


class Corpus(Section):
    """Where the text comes from and how it is cleaned, split and tokenized."""

    source: Sources
    """Files or folders: JSONL and text (plain, .gz, .zst), Parquet, a saved Hugging Face dataset; globs work
    (docs/formats.md has the rules).
    `hub:owner/name` or `hub:owner/name:split` streams a data set from the Hugging Face hub (needs the network). `world` is
    the generated corpus that `corpus.world` describes."""
    world: World = World()
    """The generated corpus, for `source: world`."""
    replay: Sources | None = None
    """Files as in `source` with text of the kind that `model.init_from` was trained on, mixed into all training so that it is
    not forgotten: see `budget.replay_share`. It is neither paired nor held out, and what equals the corpus is dropped."""
    split_field: Text | None = None
    """A field that says where a document goes: `validation`, `test`, `pretrain` or `oracle` (real text for oracles alone).
    Unless set, documents are drawn by a hash of their id."""
    id_field: Text = "id"
    """Field holding the document's id; the path below the source, and the line, stand in where it is absent."""
    text_field: Text = "text"
    """Field holding the document's text."""
    max_document_bytes: int = Field(4_000_000, ge=1, le=2**30)
    """Longer documents are quarantined."""
    max_quarantine: float = Field(0.01, ge=0, le=1)
    """Stop when more than this share of the records is bad."""
    near_duplicates: Literal["remove", "flag", "off"] = "remove"
    """Keep one of each group of near-duplicates, or keep all and mark them; either way a group is never split between
    training and held-out text. `off` looks for exact duplicates only."""
    near_duplicate_jaccard: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of word 5-grams from which two documents are near-duplicates."""
    validation_docs: Count = 500
    """Documents for every choice: checkpoint, when to stop."""
    test_docs: Count = 500
    """Documents that only `evaluate` reads."""
    tokenizer: Text = "train"
    """`train` fits a byte-level BPE on D_pretrain alone; anything else is a Hugging Face tokenizer's folder or name.
    With `model.init_from` the model's own tokenizer is used."""
    vocab_size: int = Field(4_096, ge=258, le=10_000_000)
    """Entries of a trained tokenizer, special tokens included: 256 bytes and 2 of these at least."""
    tokenizer_bytes: Count = 200_000_000
    """At most this much of D_pretrain is read to train the tokenizer."""
    shard_docs: Size = 8_192
    """Documents per shard: the unit of work and of memory. Fewer where they are long: 256 MiB are read at most."""

    @model_validator(mode="after")
    def _two_fields(self) -> Corpus:
        if self.id_field == self.text_field:
            raise ValueError(f"id_field and text_field are both {self.id_field!r}")
        return self


class Embed(Section):
    """One unit vector per document."""

    model: Text = "self"
    """`self` (TF-IDF, SVD and a discriminant fitted on this corpus, nothing external), `file`, or the name or folder of a
    sentence-transformers model (the paper: `Qwen/Qwen3-Embedding-0.6B`)."""
    dim: Size = 256
    """Dimensions of `self`."""
    hash_features: int = Field(262_144, ge=1, le=2**30)
    """Buckets of the hashed words of `self`."""
    fit_docs: Count = 20_000
    """Documents `self` is fitted on."""
    path: Text | None = None
    """`file`: Parquet with `id` and `vector`; or an .npy or .safetensors array with the ids of its rows beside it, one a
    line, in a file of the same name and the suffix .ids. Matched by id."""
    unknown_ids: Literal["error", "ignore"] = "error"
    """`file`: what to do with vectors of documents that are neither in D_pretrain nor in validation, such as those that the
    corpus stage dropped or the test set's."""
    max_tokens: Count | None = None
    """sentence-transformers: tokens the model sees at once; what the model was made for unless set. `self` reads a whole
    document, whatever its length."""
    long: Literal["head", "windows"] = "head"
    """sentence-transformers: of a document longer than `max_tokens`, its head, or the mean over windows of `max_tokens`,
    weighted by their tokens."""
    prompt: Annotated[str, Field(max_length=10_000)] = ""
    """sentence-transformers: put before every text. The same for all: related is a symmetric thing."""

    @model_validator(mode="after")
    def _file(self) -> Embed:
        if self.model == "file" and self.path is None:
            raise ValueError("`model: file` needs `path`, the file of vectors")
        return self


class Pair(Section):
    """Which ordered pairs (d1, d2) the synthesizer learns from."""

    num_neighbors: Size = 16
    """Nearest neighbours looked at per document. Deviation: the paper takes 200 of 582M documents."""
    search: Literal["auto", "exact", "ivf"] = "auto"
    """Compare all with all, or by k-means clusters; `auto` goes by size."""
    exact_docs: Count = 20_000
    """`auto`: up to this many documents are compared all with all."""
    min_recall: float = Field(0.95, gt=0, lt=1)
    """`ivf`: share of the true neighbours to find. Documents look as far as it takes, by the lower end of a 95 % interval
    over `recall_queries` documents."""
    probe_radius: float | None = Field(None, ge=0, le=2)
    """`ivf`: how much less similar than its nearest a trial may be for a document to look into it, instead of as much as
    it takes; too little for `min_recall` is an error."""
    recall_queries: Count = 500
    """Documents whose exact neighbours are found for the sake of comparison: half choose, half report."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] | Literal["auto"] = "auto"
    """Alpha: keep pairs more similar than this. `auto` takes the larger of two values: the similarity that
    `auto_pairs_per_doc` neighbours per document exceed, and the one that `auto_chance` of random pairs exceed."""
    auto_pairs_per_doc: float = Field(4.0, gt=0, le=1e6)
    """`auto`: neighbours kept per document, on average, before anything is dropped."""
    auto_chance: float = Field(0.01, gt=0, lt=1)
    """`auto`: largest share of random pairs that may pass."""
    max_similarity: float | None = Field(None, ge=-1, le=1)
    """Drop pairs more similar than this; none are unless set."""
    direction: Literal["directed", "symmetric", "mutual"] = "directed"
    """d2 among d1's nearest, or either among the other's, or each among the other's. The last two give both orders."""
    max_overlap: float = Field(0.5, gt=0, le=1)
    """Drop pairs sharing more than this share of the shorter one's shingles: they would teach copying."""
    shingle_tokens: Size = 13
    """Tokens in a shingle."""
    max_per_d1: Count | None = None
    """Most pairs with the same d1, the most similar ones; `num_neighbors` at most anyway unless `symmetric`."""
    max_per_d2: Count | None = 64
    """Most pairs with the same d2, the most similar ones: a hub, near to everything, would be learned by heart."""
    source_field: Text | None = None
    """A field of the corpus; documents that agree in it are never paired (chunks of one file)."""
    label_field: Text | None = None
    """A field of the corpus, such as a category; the report says how often pairs agree in it, by similarity."""
    heldout_share: float = Field(0.05, ge=0, lt=0.5)
    """Share of D_pretrain's documents kept out of tuning, to measure p(d2|d1) on."""

    @model_validator(mode="after")
    def _window(self) -> Pair:
        low, high = self.min_similarity, self.max_similarity
        if high is not None and low != "auto" and low >= high:
            raise ValueError(
                f"min_similarity {low} is not below max_similarity {high}: no pair could pass"
            )
        return self


class Tune(Section):
    """The synthesizer p(d2|d1), tuned from base's best-validation checkpoint."""

    lr: float = Field(5e-4, gt=0, le=100)
    """Peak learning rate; warm-up, then cosine to nothing. Deviation: a small constant rate in the paper; with one, our small
    models lost more to the noise of the rate than they gained from d1 (EXPERIMENTS.md)."""
    weight_decay: float = Field(0.1, ge=0, le=1e4)
    """Decoupled weight decay."""
    batch_tokens: Count = 8_192
    """Tokens per step, padding included."""
    max_epochs: float = Field(4.0, gt=0, le=1e6)
    """Most passes over the pairs."""
    d1_share: float = Field(1 / 3, gt=0, lt=1)
    """Share of the window that d1 is entitled to, here and in synthesis; what one document leaves, the other may use.
    Deviation: halves in the paper; d1 has only to say what d2 is about, and a cut d2 has no end to learn from."""
    max_tokens: Count | None = None
    """Most tokens spent, padding included; whichever of the two comes first."""
    evals: Size = 10
    """Held-out losses taken over the tuning; each comes with a checkpoint that can be resumed."""
    patience: Count = 5
    """Stop after this many held-out losses without a new best; the best is kept."""
    eval_pairs: Count = 256
    """Held-out pairs the loss is taken on."""
    sweep: dict[Literal["lr", "weight_decay"], Annotated[list[float], Field(min_length=1)]] = {}
    """Values to try, every combination, one synthesizer each; the one of least loss on held-out pairs writes. The rate may
    decide whether a small synthesizer copies from d1 or answers from memory (EXPERIMENTS.md)."""

    @model_validator(mode="after")
    def _sweep(self) -> Tune:
        trials(self)
        return self

    def trials(self) -> dict[str, Tune]:
        """Every combination of the sweep by name; these settings themselves under no name where there is no sweep."""
        return trials(self)


class Synthesize(Section):
    """Sampling S_pretrain from the synthesizer. Source: arXiv:2509.15248 (temperature 1, top-p 0.9 likely)."""

    temperature: float = Field(1.0, ge=0, le=100)
    """Softmax temperature; 0 is greedy."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus mass."""
    max_tokens: Count | None = None
    """Longest d2; what the window leaves after d1 unless set."""
    min_tokens: int = Field(16, ge=1, le=1_000_000)
    """Shorter outputs are dropped as empty."""
    keep_unfinished: Switch = False
    """Keep outputs that hit the length limit before their end token."""
    max_loop_share: float = Field(0.5, gt=0, le=1)
    """Drop an output when more than this share of its 8-grams repeat an earlier one of it."""
    chunk: Size = 256
    """Requests per chunk, the unit that is committed and redone."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights and of the key-value cache while sampling; `auto`: as `optim.precision` chooses."""
    sampler: Literal["embedded", "vllm", "server"] = "embedded"
    """What samples: the built-in engine, vLLM in this process (pip install vllm), or a server that speaks OpenAI's
    completions, with the synthesizer already loaded."""

    @model_validator(mode="after")
    def _room(self) -> Synthesize:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}: all would be dropped"
            )
        return self


class Arm(Section):
    """A recipe: where an arm's text comes from and how it is laid out. Arms differ in nothing else."""

    synthetic: Literal["related", "random_pairs", "scratch", "unconditional"] | None = None
    """Synthetic text from a synthesizer tuned on related pairs (the method), from one tuned on random pairs, from one tuned
    on related pairs but not started from base, or sampled from base with no d1 (three controls); none for real text alone."""
    share: float = Field(0.0, ge=0, lt=1)
    """Share of `train_tokens` that is synthetic."""
    order: Literal["mixed", "synthetic_first"] = "mixed"
    """Spread evenly over the run (the paper), or before all real text."""
    layout: Literal["shuffled", "packed_pairs", "megadoc"] = "shuffled"
    """Documents in random order (the paper); or `packed_pairs`: real text alone, each document followed by its most similar
    one not yet read (in-context pretraining, arXiv:2310.10638); or `megadoc`: the synthetic documents of a d1 right before
    it, as many as fit a window with it (arXiv:2603.18534)."""
    noise: float = Field(0.0, ge=0, lt=1)
    """Share of the input tokens that are replaced by random ones, anew at every step (arXiv:2606.16246); targets stay."""
    rounds: int = Field(1, ge=1, le=100)
    """Rounds of bootstrapping: in round 2 the synthesizer starts from the model of the arm with the same recipe and
    `rounds: 1`, not from base, and so on; that arm has to be there too. Pairs and real text stay those of D_pretrain."""
    match: Literal["tokens", "flops"] = "tokens"
    """What is equal to repetition: tokens trained on (the paper); or FLOPs, with embedding, pairing, tuning and synthesis
    paid out of `train_tokens`, so that the arm trains on fewer."""
    unique_tokens: Count | Literal["all"] | None = None
    """Unique real tokens of this arm when not `budget.unique_tokens`: makes it an oracle."""
    epochs: float | None = Field(None, gt=0, le=1e6)
    """Real text alone: passes over it, where fewer than fill `train_tokens` are better. Set by `sweep`."""
    weight_decay: float | None = Field(None, ge=0, le=1e4)
    """In the place of `optim.weight_decay`. Set by `sweep`: arms that differ in it by hand are not compared."""
    lr: float | None = Field(None, gt=0, le=100)
    """In the place of `optim.lr`. Set by `sweep`."""
    sweep: dict[
        Literal["share", "noise", "epochs", "weight_decay", "lr"],
        Annotated[list[float], Field(min_length=1)],
    ] = {}
    """Values to try, every combination, one model each with the first seed; the one of least validation loss is the arm, and
    the report shows them all."""

    @model_validator(mode="after")
    def _recipe(self) -> Arm:
        if (self.synthetic is None) != (self.share == 0.0 and "share" not in self.sweep):
            raise ValueError("`synthetic` and a `share` above 0 go together")
        if self.synthetic is None and (
            self.rounds > 1 or self.match == "flops" or self.order != "mixed"
        ):
            raise ValueError(
                "`rounds`, `order` and `match: flops` are about synthetic text, and this arm has none"
            )
        if self.synthetic == "scratch" and self.rounds > 1:
            raise ValueError(
                "`synthetic: scratch` starts from fresh weights in every round; drop `rounds`"
            )
        if self.layout == "packed_pairs" and (
            self.synthetic is not None or self.unique_tokens is not None
        ):
            raise ValueError(
                "`layout: packed_pairs` is about D_pretrain alone; drop `synthetic` and `unique_tokens`"
            )
        if self.layout == "megadoc" and self.synthetic in (None, "unconditional"):
            raise ValueError("`layout: megadoc` needs synthetic text that has a d1")
        if self.synthetic is not None and (self.epochs is not None or "epochs" in self.sweep):
            raise ValueError("`epochs` is about real text alone")
        trials(self)
        return self

    @property
    def kind(self) -> Literal["repetition", "method", "control", "oracle"]:
        """What the arm is for, by its recipe: an oracle has more real text than the others; the method is synthetic text
        from related pairs; repetition is D_pretrain as it is; everything else is a control."""
        if self.unique_tokens is not None:
            return "oracle"
        if self.synthetic == "related":
            return "method"
        plain = self.model_copy(
            update={"sweep": {}, "epochs": None, "weight_decay": None, "lr": None}
        )
        return (
            "repetition"
            if plain == Arm() and not {"share", "noise"} & set(self.sweep)
            else "control"
        )

    def trials(self) -> dict[str, Arm]:
        """Every combination of the sweep by name; the arm itself under no name where there is no sweep."""
        return trials(self)


class Pretrain(Section):
    """Training every arm from scratch."""

    seeds: list[Seed] = Field([0], min_length=1, max_length=1_000)
    """One model per arm and seed; the seed sets the initial weights and the order of the text."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(
                f"{seeds} names a seed twice; two models of one seed are the same model"
            )
        return seeds


class Evaluate(Section):
    """Held-out scores and their intervals."""

    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint of an arm the verdict is about: the one of best validation loss, or the last. Both are shown.
    Deviation: the paper reads the last; `best` gives repetition the early stopping it needs when it overfits."""
    tasks: list[Text] = []
    """Questions to ask every model: JSON-lines files of one's own, names of known tasks (files in `task_folder`), the groups
    `paper` and `small`, `world` (a world's facts), or `lm-eval:NAME` for a task of lm-eval (pip install lm-eval). `NAME@5`
    puts five worked examples before every question."""
    task_folder: Text = "."
    """Folder with the files of known tasks, such as blimp.jsonl.zst."""
    task_items: Count | None = None
    """At most so many items of a task, drawn at random; all unless set."""
    group_field: Text | None = None
    """A field of the corpus; test losses are also given by its values."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Mass of the intervals."""


class Analyze(Section):
    """Measuring the synthetic text beside the real."""

    docs: Count = 2_000
    """Documents sampled from each kind of text."""
    copy_tokens: Count = 13
    """A run of this many tokens in common counts as copied."""
    examples: Count = 24
    """Examples for the report."""


class Config(Section):
    """A whole experiment."""

    name: Name
    """Name of the run folder: letters, digits, '.', '_' and '-'."""
    root: Text = "runs"
    """Folder that run folders live in."""
    seed: Seed = 0
    """Seed of pairing, tuning and sampling; arms have `pretrain.seeds`."""
    model: Model = Model()
    budget: Budget
    optim: Optim = Optim()
    engine: Engine = Engine()
    corpus: Corpus
    embed: Embed = Embed()
    pair: Pair = Pair()
    tune: Tune = Tune()
    synthesize: Synthesize = Synthesize()
    arms: dict[Name, Arm]
    """Recipes by name; `repetition` must be among them."""
    pretrain: Pretrain = Pretrain()
    evaluate: Evaluate = Evaluate()
    analyze: Analyze = Analyze()

    @model_validator(mode="after")
    def _arms(self) -> Config:
        base = self.arms.get("repetition")
        if base is None or base.model_copy(update={"sweep": {}}) != Arm():
            raise ValueError(
                "`arms` needs `repetition: {}`, or with a `sweep`: base, which everything is compared with"
            )
        for name, arm in self.arms.items():
            for key in ("weight_decay", "lr", "epochs"):
                if getattr(arm, key) is not None:
                    told = f"set optim.{key} for all, or `sweep: {{{key}: [...]}}` to have it chosen by validation loss"
                    raise ValueError(
                        f"arms.{name}.{key}: arms may differ in their data alone; {told}"
                    )
            if arm.rounds > 1 and self.before(arm) is None:
                raise ValueError(
                    f"arms.{name}: needs an arm with the same recipe and `rounds: {arm.rounds - 1}` to go on from"
                )
        if self.model.init_from and self.corpus.tokenizer not in ("train", self.model.init_from):
            raise ValueError(
                "corpus.tokenizer: model.init_from has a tokenizer of its own; leave this out"
            )
        if (self.corpus.replay is None) != (self.budget.replay_share == 0):
            raise ValueError(
                "`corpus.replay`, the text, and a `budget.replay_share` above 0 go together"
            )
        if self.corpus.replay is not None and self.model.init_from is None:
            raise ValueError(
                "`corpus.replay` keeps what a model already knows, and this one starts from nothing; drop it"
            )
        if self.optim.batch_tokens < self.model.seq_len:
            raise ValueError(
                f"optim.batch_tokens {self.optim.batch_tokens} is less than one row ({self.model.seq_len})"
            )
        if self.budget.train_tokens < self.optim.batch_tokens:
            raise ValueError(
                "budget.train_tokens is less than one optimizer step (optim.batch_tokens)"
            )
        return self

    def before(self, arm: Arm) -> str | None:
        """The name of the arm of the round before; None in the first."""
        wanted = arm.model_copy(update={"rounds": arm.rounds - 1})
        return next((name for name, other in self.arms.items() if other == wanted), None)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.root) / self.name
