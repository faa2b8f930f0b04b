"""Every setting on one page, in the order of the pipeline, and what the settings of one section ask
of each other.

The text under a field is its help text (docs/config.md is made from it). Sections are frozen, and
an unknown key is an error that names the nearest known one (`loading.py`). Nothing here imports
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from synthboot.errors import UndeclaredSetting
from synthboot.schema import (
    Command,
    Count,
    Judge,
    Name,
    Seed,
    Size,
    Sources,
    Switch,
    Text,
    Url,
    Window,
    given,
    trials,
)

TUNED = ("weight_decay", "lr", "final_weight_decay", "dropout", "ema_decay", "tail_average")
"""What an arm's `sweep` may choose instead of the setting of `optim` of that name."""

_URL_FORM = "needs the form http://host:port/v1 or https://..."


class Section(BaseModel):
    """Base class of all sections: frozen, documented, strictly typed (`true` is not 1), no unknown
    keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )
    _given = model_validator(mode="before")(given)

    def holding(self, values: Mapping[str, Any]) -> Any:
        """A section of this kind that has only these settings; reading another raises
        UndeclaredSetting."""
        partial = self.model_copy()  # a new section would make its defaults first, which is slow
        partial.__dict__.clear()
        partial.__dict__.update(values)
        return partial

    # Hidden from type checkers, for which `__getattr__` would make every name a valid one.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in type(self).model_fields:
                section = type(self).__name__.lower()
                raise UndeclaredSetting(
                    f"{section}.{name}: read by a stage that does not declare it"
                )
            return super().__getattr__(name)


class Model(Section):
    """The language model: Llama 3 layout with QK-norm (`Qwen3Config` in transformers). Source:
    arXiv:2509.15248."""

    layers: int = Field(default=4, ge=1, le=1_000)
    """Number of transformer blocks."""
    width: Size = 256
    """Hidden size."""
    heads: Size = 4
    """Number of query heads."""
    kv_heads: Size | None = None
    """Number of key/value heads. Default: as many as query heads."""
    ffn: Size | None = None
    """Inner size of the gated MLP. Default: three times `width`."""
    seq_len: int = Field(default=512, ge=8, le=1_000_000)
    """Context length in tokens: one training row, and the room that d1 and d2 share. Deviation: the
    paper tunes at twice its pretraining length; one length for both means that tuning meets no
    position for the first time."""
    rope_theta: float = Field(default=10_000.0, gt=1, le=1e12)
    """Base of the rotary position embedding (the paper: 5e5 at 4,096 tokens)."""
    init_scale: float = Field(default=0.6, gt=0, le=100)
    """Initial weights have standard deviation init_scale / sqrt(width). The usual constant 0.02 is
    too small for narrow models."""
    init_from: Text | None = None
    """Folder or name of a Hugging Face model to continue from. Its tokenizer is used, and the sizes
    above are ignored."""

    @model_validator(mode="after")
    def _check_heads(self) -> Model:
        if self.init_from is None and self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of twice the heads ({2 * self.heads})"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


class Budget(Section):
    """Token budgets. All arms train on exactly as many tokens, so that they are matched in compute;
    those with `ensemble` or `distill` are not, and are marked."""

    unique_tokens: Count | Literal["all"]
    """Size of D_pretrain: the unique real tokens that every arm but the oracle may use. `all`:
    everything that is neither validation nor test set; with `corpus.split_field`, everything marked
    `pretrain`."""
    replay_share: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of `train_tokens` that every arm reads from `corpus.replay`. Other shares
    (`arms.NAME.share`) are fractions of the rest."""
    train_tokens: Count
    """Tokens every arm trains on, rounded down to whole batches. Repetition makes train_tokens /
    unique_tokens epochs."""


class Lora(Section):
    """Low-rank adapters: instead of a weight matrix the product of two narrow ones is trained, and
    added to it. Saved models have them merged, so that whatever reads one finds an ordinary folder.
    Needs the package peft. Source: arXiv:2106.09685."""

    rank: int = Field(default=0, ge=0, le=65_536)
    """Rank of an adapter. 0: no adapters, all weights are trained."""
    alpha: float | None = Field(default=None, gt=0, le=1e6)
    """Scale: what an adapter adds is multiplied by alpha / rank. Default: twice the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of an adapter's inputs that is dropped in training."""
    targets: list[Text] = []
    """Names of the linear layers that get adapters, such as `q_proj`. Default: all of the
    blocks."""

    @property
    def passes(self) -> int:
        """What a training step costs, in forward passes. The backward pass takes one for the
        gradients of activations and one for those of weights, which with adapters is next to
        nothing."""
        return 2 if self.rank else 3


class Optim(Section):
    """The optimizer and its learning-rate schedule. Lengths are in tokens."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW with decoupled weight decay; or `muon`: Muon (torch's, its rate scaled to match
    AdamW's) for the weight matrices of the blocks, AdamW for the rest."""
    lr: float = Field(default=3e-3, gt=0, le=100)
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After warm-up: cosine decay to the final rate; or `wsd`, constant with linear decay at the
    end."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """`wsd`: fraction of `train_tokens` spent decaying."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of matmuls and activations; weights and gradients stay float32. `auto` times both at
    this model's sizes, for about a second, and takes bfloat16 where it is clearly faster (on a GPU:
    not slower). Decided once per run, before the first model is trained."""
    z_loss: float = Field(default=0.0, ge=0, le=1)
    """Weight of the z-loss, the squared log-partition of the softmax, which keeps logits from
    drifting."""
    max_spike: float = Field(default=3.0, gt=0, le=1e9)
    """Stop training when the loss is this many nats above its mean over the last 50 steps."""
    document_mask: Switch = False
    """Mask attention between the documents of a row, except in layouts that place related documents
    side by side. Better by 0.07 nats after two epochs, worse by 0.06 after eight
    (experiments/2026-11-23-document-mask), so try both. Free on a CPU; on a GPU it gives up flash
    attention."""
    min_lr_fraction: float = Field(default=0.05, ge=0, le=1)
    """Final learning rate as a fraction of the peak."""
    weight_decay: float = Field(default=0.3, ge=0, le=1e4)
    """Decoupled weight decay of weight matrices; norms have none. Heavy repetition wants far more
    than the usual 0.1. Source: arXiv:2509.14786."""
    final_weight_decay: float | None = Field(default=None, ge=0, le=1e4)
    """Weight decay at the end, reached in a straight line. Default: `weight_decay` throughout."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Residual dropout: fraction of the embeddings and of the outputs of attention and MLP that is
    dropped in training base and the arms. With `engine.processes` or `engine.micro_batch_tokens`
    other elements are dropped."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights, such as 0.999; the average is
    what is evaluated and saved. 0: the weights themselves."""
    tail_average: float = Field(default=0.0, ge=0, le=1)
    """Evaluate and save the mean of the weights over this last fraction of the steps. 0: the
    weights themselves."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of `train_tokens` spent warming up (the paper: 5 %)."""
    batch_tokens: Count = 8_192
    """Batch size: tokens per optimizer step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW beta1."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW beta2."""
    clip: float = Field(default=1.0, gt=0, le=1e9)
    """Gradient clipping: largest global norm."""
    evals: Size = 20
    """Number of validation losses computed during a run; each comes with a checkpoint to resume
    from."""
    lora: Lora = Lora()
    """Adapters for base and the arms, with `model.init_from`."""

    @model_validator(mode="after")
    def _check_averages(self) -> Optim:
        if self.ema_decay and self.tail_average:
            raise ValueError("`ema_decay` and `tail_average` are two averages; set one of them")
        return self


class Endpoint(Section):
    """A server that speaks OpenAI's API."""

    url: Url = "http://127.0.0.1:8000/v1"
    """Base address, the part before `/completions` or `/chat/completions`; http:// or https://."""
    concurrency: int = Field(default=32, ge=1, le=10_000)
    """Number of concurrent requests, of all processes of a run together."""
    retries: int = Field(default=10, ge=0, le=20)
    """Retries per request when the server is busy, failing or unreachable, after 1, 2, 4, ..., 60,
    60, ... seconds and up to a quarter more: ten wait five minutes, as a restart may take."""
    timeout: float = Field(default=600, gt=0, le=86_400)
    """Most seconds for a request, from connecting to the last byte of the answer."""

    @field_validator("url", mode="before")
    @classmethod
    def _address(cls, url: object) -> object:
        """The address; error messages never repeat it, as it may hold a password."""
        text = str(url)
        try:
            parts = urlsplit(url) if isinstance(url, str) else None
            port = parts and parts.port
        except ValueError:  # half of an IPv6 address, or a port that is no number
            raise ValueError(_URL_FORM) from None

        # A value that is no text is left to the field's type, which says so.
        if parts is not None and not (parts.scheme in ("http", "https") and parts.hostname):
            raise ValueError(_URL_FORM)
        if port == 0 or any(c.isspace() or not c.isprintable() for c in text):
            raise ValueError(_URL_FORM)
        if parts and (parts.username is not None or parts.password is not None):
            raise ValueError(
                "has a name or password in it; put the key into SYNTHBOOT_API_KEY, "
                "that of a judge into SYNTHBOOT_JUDGE_API_KEY"
            )
        if "?" in text or "#" in text:
            raise ValueError("ends in a query; only what stands before /completions is wanted")
        return url


class JudgeEndpoint(Endpoint):
    """A server that judges."""

    prices: dict[
        Text, Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=2, max_length=2)]
    ] = {}
    """Dollars for a million tokens of prompts and of answers, by the name of a model, such as
    `{gpt: [0.15, 0.60]}`. With them, what judging has cost is shown beside its tokens."""


class Server(Endpoint):
    """An OpenAI-compatible completions endpoint (vLLM, SGLang, llama.cpp). Its API key, if it needs
    one, is read from the environment variable SYNTHBOOT_API_KEY."""

    model: Text = "synthesizer"
    """Name under which the server offers the model."""


class Engine(Section):
    """Where and how the work runs. Never part of a fingerprint: it changes nothing that is
    computed, except the order in which numbers are rounded."""

    executor: Literal["local", "ray"] = "local"
    """Where processes run: on this machine, or on the nodes of a Ray cluster (docs/scaling-out.md),
    which the environment variable RAY_ADDRESS names; without it one is started on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train and sample on. `auto`: the GPU if there is one, whose results differ from a
    CPU's by rounding."""
    jobs: int = Field(default=0, ge=0, le=10_000)
    """Number of worker processes, one thread each. 0: one per core, or one per GPU, of the machine
    or the cluster."""
    processes: int = Field(default=1, ge=1, le=100_000)
    """Data-parallel processes per model, started by torchrun: one per GPU, each with a share of the
    rows of every step. Gradients are summed in another order: they differ by rounding."""
    launch: Command | None = None
    """Command that starts the `processes` on several machines, for example `srun torchrun --nnodes
    4 ...` (docs/scaling-out.md); `-m synthboot.runner.torchrun JOB` is appended. Default: torchrun
    on this machine. As with any number of `processes`, weights differ by rounding."""
    shard: Switch = False
    """With `processes`: shard the weights over the processes (FSDP2) instead of replicating them
    (DDP). They differ by rounding."""
    checkpoint_minutes: float = Field(default=30.0, gt=0, le=100_000)
    """Minutes after which training writes a checkpoint between evaluations, each of which comes
    with one: a killed run loses that much at most, and the step in hand."""
    checkpoint_activations: Switch = False
    """Activation checkpointing: recompute activations in the backward pass. Less memory, a third
    more time."""
    micro_batch_tokens: Count | None = None
    """Tokens per forward pass of training; gradients accumulate up to `optim.batch_tokens`,
    and differ by rounding. Default: the whole batch at once."""
    embed_batch: Size = 32
    """Batch size of sentence-transformers, in texts; texts are sorted by length first. Vectors
    differ by rounding."""
    sample_batch: Size | None = None
    """Batch size of sampling, in rows. Default: chosen from free memory and a short measurement,
    once for each synthesis. Another batch rounds differently: set it where a run begun anew has to
    give the same text."""
    server: Server = Server()
    """The server, for `synthesize.sampler: server`."""
    judge: JudgeEndpoint = JudgeEndpoint()
    """The server for `analyze.judges: [server:NAME]`, with a chat endpoint. Its API key, if it
    needs one, is read from the environment variable SYNTHBOOT_JUDGE_API_KEY."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for the blocks of a model in training. It adds seven to twenty seconds before
    the first step, less with a warm cache. `auto`: on a GPU, for runs of half a minute or more
    (1e16 FLOPs). On a CPU the compiled loops that ship with the package are faster
    (docs/decisions.md). Compiled, weights differ by rounding."""
    track: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Experiment trackers to log training to, besides the report; each must be installed."""


class World(Section):
    """A generated corpus with known ground truth: entities, and documents that state some of their
    attributes."""

    entities: int = Field(default=600, ge=1, le=100_000)
    """Number of entities; each has a value for every attribute."""
    many_share: float = Field(default=0.5, ge=0, le=1)
    """Fraction of entities with `many_docs` documents; the others have one."""
    many_docs: int = Field(default=4, ge=1, le=10_000)
    """Documents per entity, for entities that have several."""
    attributes: int = Field(default=8, ge=1, le=16)
    """Number of attributes per entity."""
    values: int = Field(default=24, ge=2, le=500)
    """Number of possible values per attribute."""
    revealed: int = Field(default=5, ge=1, le=16)
    """Number of attributes that one document states."""
    wordings: int = Field(default=6, ge=1, le=8)
    """Number of ways to phrase an attribute."""
    distractors: int = Field(default=1, ge=0, le=100)
    """Sentences per document that say nothing about its entity."""
    oracle_docs: int = Field(default=0, ge=0, le=10**9)
    """Extra documents for oracles, beyond D_pretrain; every entity is equally likely."""
    seed: Seed = 0
    """Random seed of the world."""

    @model_validator(mode="after")
    def _check_revealed(self) -> World:
        if self.revealed > self.attributes:
            raise ValueError(
                f"revealed {self.revealed} must lie between 1 and the {self.attributes} attributes"
            )
        return self


class Canaries(Section):
    """Documents of random words, planted in D_pretrain a known number of times. How much likelier a
    model finds them than others like them, which it never read, is how much it remembers. Source:
    arXiv:1802.08232."""

    count: int = Field(default=0, ge=0, le=10_000)
    """Number of canaries for each number of `copies`. 0: nothing is planted."""
    copies: Annotated[list[Count], Field(min_length=1, max_length=20)] = [1, 4, 16]
    """Numbers of copies: how many documents of D_pretrain a canary is. They come on top of
    `budget.unique_tokens`, and lie anywhere among its documents."""
    words: int = Field(default=8, ge=1, le=1_000)
    """Words of a canary, drawn at random from those of D_pretrain."""
    candidates: int = Field(default=1_023, ge=1, le=1_000_000)
    """Number of canaries that are drawn in the same way and never planted. The planted ones are
    ranked among them: exposure is at most log2(candidates + 1)."""
    seed: Seed = 0
    """Random seed of the words and of where they are planted."""

    @field_validator("copies")
    @classmethod
    def _distinct(cls, copies: list[int]) -> list[int]:
        if len(set(copies)) != len(copies):
            raise ValueError(f"{copies} names a number of copies twice")
        return copies


class Corpus(Section):
    """Where the text comes from, and how it is cleaned, split and tokenized."""

    source: Sources
    """Files or folders, globs included: JSONL, CSV and text (plain, .gz, .zst), Parquet, a saved
    Hugging Face dataset; or URLs, such as `s3://bucket/folder` (docs/formats.md). `hub:owner/name`
    or `hub:owner/name:split` streams a dataset from the Hugging Face hub (needs the network).
    `world` is the generated corpus of `corpus.world`."""
    world: World = World()
    """The generated corpus, for `source: world`."""
    replay: Sources | None = None
    """Sources of text like that on which `model.init_from` was trained, mixed into all training
    against forgetting; see `budget.replay_share`. It is never paired or held out, and duplicates of
    the corpus are dropped."""
    split_field: Text | None = None
    """Field that assigns a document to a split: `validation`, `test`, `pretrain` or `oracle` (real
    text for oracles only). Default: split at random, by a hash of the id."""
    id_field: Text = "id"
    """Field with the document's id. Where absent: the path below the source, and the line."""
    text_field: Text = "text"
    """Field with the document's text."""
    max_document_bytes: int = Field(default=4_000_000, ge=1, le=2**30)
    """Longer documents are quarantined."""
    max_quarantine: float = Field(default=0.01, ge=0, le=1)
    """Stop when more than this fraction of the records is bad."""
    near_duplicates: Literal["remove", "flag", "off"] = "remove"
    """`remove` keeps one document of each group of near-duplicates, `flag` keeps all and marks
    them; either way no group is split between training and held-out text. `off` finds exact
    duplicates only."""
    near_duplicate_jaccard: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word 5-grams at which two documents are near-duplicates."""
    validation_docs: Count = 500
    """Size of the validation set (model selection, early stopping), in documents."""
    test_docs: int = Field(default=500, ge=2, le=1_000_000_000)
    """Size of the test set, in documents; only `score` and `evaluate` read it."""
    tokenizer: Text = "train"
    """`train` fits a byte-level BPE on D_pretrain alone; otherwise the folder or name of a Hugging
    Face tokenizer. With `model.init_from`, that model's tokenizer is used."""
    vocab_size: int = Field(default=4_096, ge=258, le=10_000_000)
    """Vocabulary size of a trained tokenizer, special tokens included; at least 256 bytes and 2 of
    these."""
    tokenizer_bytes: Count = 200_000_000
    """Most bytes of D_pretrain to train the tokenizer on."""
    shard_docs: Size = 8_192
    """Documents per shard, the unit of work and memory. Fewer where documents are long: a shard
    reads at most 256 MiB."""
    canaries: Canaries = Canaries()
    """Canaries, planted to see what models remember."""

    @model_validator(mode="after")
    def _check_fields(self) -> Corpus:
        if self.id_field == self.text_field:
            raise ValueError(f"id_field and text_field are both {self.id_field!r}")
        if self.source == "world" and self.canaries.count:
            raise ValueError(
                "canaries: of a generated world the truth of every document is known, "
                "and a canary has none; set canaries.count=0"
            )
        return self


class Embed(Section):
    """Document embeddings: one unit vector per document."""

    model: Text = "self"
    """`self`: TF-IDF, SVD and a discriminant fitted on this corpus, nothing external. `file`:
    vectors of your own. Otherwise the name or folder of a sentence-transformers model (the paper:
    `Qwen/Qwen3-Embedding-0.6B`)."""
    dim: Size = 256
    """`self`: dimensions of the vectors."""
    hash_features: int = Field(default=262_144, ge=1, le=2**30)
    """`self`: number of buckets for hashed words."""
    fit_docs: Count = 20_000
    """`self`: number of documents to fit on."""
    path: Text | None = None
    """`file`: Parquet with `id` and `vector`; or an .npy or .safetensors array, with the ids of its
    rows, one per line, in a file of the same name and suffix .ids. Matched by id."""
    unknown_ids: Literal["error", "ignore"] = "error"
    """`file`: what to do about vectors of documents that are in neither D_pretrain nor the
    validation set, for example dropped ones or those of the test set."""
    max_tokens: Count | None = None
    """sentence-transformers: longest input in tokens. Default: the model's own limit. `self` always
    reads whole documents."""
    long: Literal["head", "windows"] = "head"
    """sentence-transformers: embed the first `max_tokens` of a longer document, or the mean over
    windows of `max_tokens`, weighted by length."""
    prompt: Annotated[str, Field(max_length=10_000)] = ""
    """sentence-transformers: prefix of every text. One for all, since relatedness is symmetric."""

    @model_validator(mode="after")
    def _check_path(self) -> Embed:
        if self.model == "file" and self.path is None:
            raise ValueError("`model: file` needs `path`, the file of vectors")
        return self


class Pair(Section):
    """Which ordered pairs (d1, d2) the synthesizer is trained on."""

    num_neighbors: Size = 16
    """Nearest neighbours considered per document. Deviation: the paper takes 200 of 582M
    documents."""
    search: Literal["auto", "exact", "ivf"] = "auto"
    """Nearest-neighbour search: exact, or over k-means clusters (`ivf`). `auto` decides by the
    number of documents."""
    exact_docs: Count = 20_000
    """`auto`: search exactly up to this many documents. A GPU does so in seconds for a quarter of a
    million, faster than by clusters."""
    min_recall: float = Field(default=0.95, gt=0, lt=1)
    """`ivf`: recall to reach. The number of clusters probed is chosen so that the lower end of a 95
    % interval over `recall_queries` documents reaches it."""
    probe_radius: float | None = Field(default=None, ge=0, le=2)
    """`ivf`: probe every cluster whose similarity to the document is at most this much below that
    of its nearest cluster. Default: as much as `min_recall` needs; too little for it is an
    error."""
    recall_queries: Count = 500
    """Documents searched exactly to measure recall: half to choose the probe radius, half to
    report."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] | Literal["auto"] = "auto"
    """Alpha: keep pairs more similar than this. `auto` takes the larger of two thresholds: the one
    that `auto_pairs_per_doc` neighbours per document exceed, and the one that a fraction
    `auto_chance` of random pairs exceeds."""
    auto_pairs_per_doc: float = Field(default=4.0, gt=0, le=1e6)
    """`auto`: mean number of neighbours kept per document, before anything is dropped."""
    auto_chance: float = Field(default=0.01, gt=0, lt=1)
    """`auto`: largest fraction of random pairs that may pass."""
    max_similarity: float | None = Field(default=None, ge=-1, le=1)
    """Drop pairs more similar than this. Default: no limit."""
    direction: Literal["directed", "symmetric", "mutual"] = "directed"
    """`directed`: d2 is among d1's nearest neighbours. `symmetric`: either is among the other's.
    `mutual`: each is among the other's. The last two yield both orders."""
    max_overlap: float = Field(default=0.5, gt=0, le=1)
    """Drop pairs that share more than this fraction of the shorter document's shingles; they would
    teach copying."""
    shingle_tokens: Size = 13
    """Length of a shingle in tokens."""
    max_per_d1: Count | None = None
    """Most pairs per d1; the most similar are kept. Default: no limit, though unless `symmetric`
    there are at most `num_neighbors`."""
    max_per_d2: Count | None = 64
    """Most pairs per d2; the most similar are kept. A hub, a document near to everything, would be
    memorized."""
    source_field: Text | None = None
    """Field of the corpus; documents that agree in it are never paired (chunks of one file)."""
    label_field: Text | None = None
    """Field of the corpus, such as a category; the report shows how often pairs agree in it, by
    similarity."""
    heldout_share: float = Field(default=0.05, ge=0, lt=0.5)
    """Fraction of D_pretrain's documents held out from tuning, to measure p(d2|d1) on."""

    @model_validator(mode="after")
    def _check_similarities(self) -> Pair:
        low = self.min_similarity
        high = self.max_similarity
        if high is not None and low != "auto" and low >= high:
            raise ValueError(
                f"min_similarity {low} is not below max_similarity {high}: no pair could pass"
            )
        return self


class Tune(Section):
    """Fine-tuning the synthesizer p(d2|d1), from base's checkpoint of best validation loss."""

    init_from: Text | None = None
    """Folder or name of a Hugging Face model to tune instead of base: an *external* synthesizer,
    with a tokenizer of its own. Documents are tokenized again for it, and what it writes is
    tokenized for the arms. It writes `random_pairs` and `unconditional` too, tuned for the latter
    on the same d2 without their d1. It knows more than the corpus: plan, `show`, report and verdict
    say so."""
    seq_len: int | None = Field(default=None, ge=8, le=1_000_000)
    """With `init_from`: context length of the synthesizer, in its own tokens. Default:
    `model.seq_len`."""
    lora: Lora = Lora()
    """Adapters for the synthesizer."""
    lr: float = Field(default=5e-4, gt=0, le=100)
    """Peak learning rate; warm-up, then cosine decay to zero. Deviation: the paper has a small
    constant rate; with one, our small models lost more to the noise of the rate than they gained
    from d1 (experiments/2026-11-22-three-arms)."""
    weight_decay: float = Field(default=0.1, ge=0, le=1e4)
    """Decoupled weight decay."""
    batch_tokens: Count = 8_192
    """Batch size: tokens per step, padding included."""
    max_epochs: float = Field(default=4.0, gt=0, le=1e6)
    """Most epochs over the pairs."""
    d1_share: float = Field(default=1 / 3, gt=0, lt=1)
    """Fraction of the context that d1 is entitled to, in tuning and in sampling; what one document
    leaves free the other may use. Deviation: the paper has halves; d1 only has to say what d2 is
    about, and a truncated d2 has no end to learn from."""
    contexts: int = Field(default=1, ge=1, le=8)
    """Most documents that d2 is conditioned on. Before d1 stand, in tuning, other d1 of the same
    d2; in synthesis, documents that are d1 to d1 itself. Each is cut to an equal part of d1's room,
    and d1 comes last, next to d2. `similarity` and copying are measured against d1 alone.
    Deviation: the paper has one."""
    plain_share: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the tuning rows that are documents of D_pretrain as base reads them, not pairs,
    against forgetting; none whose pairs are held out. `max_epochs` counts the pairs, `max_tokens`
    everything. A plain row has a loss on all of its tokens, a row of pairs on those of d2."""
    max_tokens: Count | None = None
    """Most tokens to train on, padding included, if that is less than `max_epochs`."""
    evals: Size = 10
    """Number of held-out losses computed during tuning; each comes with a checkpoint to resume
    from."""
    patience: Count = 5
    """Early stopping: stop after this many held-out losses without improvement; the best checkpoint
    is kept."""
    base_share: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of base's weights that is averaged into the tuned ones in the end, against
    forgetting. `auto`: the one of 0, 0.1, ..., 0.9 of least loss on held-out pairs, and of 1 where
    there is a `pointer`. Source: arXiv:2109.01903. With 1 nothing is tuned: base stays as it is,
    finds no d1 in its prompt, and reads it by the `pointer` alone. From fresh weights (`scratch`)
    there is no base to average with."""
    pointer: Switch = False
    """A pointer over d1: where the last words written stand in d1 too, what follows there may be
    copied, with weights by the length of the match that are fitted on held-out pairs
    (synthboot.lm.pointer). Nothing is forgotten for it. It reads the first `model.seq_len` tokens
    of each d1. The built-in engine alone has it. Deviation: the paper has none."""
    eval_pairs: Count = 256
    """Number of held-out pairs in that loss."""
    sweep: dict[
        Literal["lr", "weight_decay", "plain_share"], Annotated[list[float], Field(min_length=1)]
    ] = {}
    """Grid search: values to try, one synthesizer per combination; the one of lowest loss on
    held-out pairs, which is the one of highest net worth, generates the text. The learning rate may
    decide whether a small synthesizer copies from d1 or answers from memory
    (experiments/2026-11-23-world-tuning-rate)."""

    @model_validator(mode="after")
    def _check_sweep(self) -> Tune:
        if self.seq_len is not None and self.init_from is None:
            raise ValueError(
                "`seq_len` is that of a model named by `init_from`; base has model.seq_len"
            )
        if self.base_share == 1 and not self.pointer:
            raise ValueError(
                "`base_share: 1` leaves nothing but base, which reads no d1; set `pointer: true`"
            )
        trials(self)  # raises for a value that its setting does not take
        return self

    def trials(self) -> dict[str, Tune]:
        """Every combination of the sweep by name; without a sweep, these settings under the empty
        name."""
        return trials(self)

    def base_shares(self, conditional: bool) -> tuple[float, ...]:
        """The shares of base's weights that are tried, in the order in which they are; the last may
        leave d1 to the pointer alone."""
        if self.base_share != "auto":
            return (self.base_share,) if self.base_share else ()
        tried = tuple(tenths / 10 for tenths in range(10))
        return (*tried, 1.0) if self.pointer and conditional else tried


class Synthesize(Section):
    """Sampling S_pretrain from the synthesizer. Source: arXiv:2509.15248 (temperature 1, top-p 0.9
    likely)."""

    temperature: float = Field(default=1.0, ge=0, le=100)
    """Softmax temperature; 0 is greedy decoding."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus sampling threshold."""
    contrast: float = Field(default=0.0, ge=0, le=10)
    """Contrast against no d1: sample from the logits given d1 plus this many times what d1 adds to
    those given nothing. It leans on d1 more, and copies more; log-probabilities are then of that
    mixture. Costs a second decoding; the built-in engine alone has it. Source: arXiv:2305.14739."""
    max_tokens: Count | None = None
    """Longest d2 in tokens. Default: what d1 leaves of the context."""
    min_tokens: int = Field(default=16, ge=1, le=1_000_000)
    """Shorter outputs are dropped."""
    keep_unfinished: Switch = False
    """Keep outputs that reach the length limit without an end token."""
    max_loop_share: float = Field(default=0.5, gt=0, le=1)
    """Drop an output when more than this fraction of its 8-grams repeat an earlier one in it."""
    chunk: Size = 256
    """Requests per chunk, the unit that is committed, and redone after a crash. A GPU samples as
    many chunks together as fill it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of weights and key/value cache in sampling. `auto`: as `optim.precision`."""
    sampler: Literal["embedded", "vllm", "server"] = "embedded"
    """Inference engine: the built-in one, vLLM in this process (pip install vllm), or an
    OpenAI-compatible server that has the synthesizer loaded."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Synthesize:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}: "
                "all would be dropped"
            )
        if self.contrast and self.sampler != "embedded":
            raise ValueError(f"`contrast` needs `sampler: embedded`, not {self.sampler}")
        return self


_PACKED_PAIRS = (
    "`layout: packed_pairs` is about D_pretrain alone; drop `synthetic` and `unique_tokens`"
)
_MEGADOC = "`layout: megadoc` needs synthetic text that has a d1"


class Filter(Section):
    """Which samples of its synthetic text an arm may read. A sample that lies outside of a window
    [least, most], or that a judge calls faulty, is thrown away, and counted under the first reason
    that holds, in the order below. The ends of a window lie inside."""

    times: float = Field(default=2.0, ge=1, le=1_000)
    """Tokens that are sampled for each that the arm reads, for the filter to choose from."""
    loss: Window | None = None
    """Nats a token that a sample costs base."""
    similarity: Window | None = None
    """Similarity to its d1, by the embedding of the pairs."""
    novelty: Window | None = None
    """Share of its runs of `novelty_tokens` that D_pretrain, all of it, does not hold."""
    novelty_tokens: Size = 5
    """Length of these runs, in tokens."""
    judged: dict[
        Literal["repetition", "nonfactual", "irrelevance", "copying"],
        Literal["rules", "embedding", "likelihood"],
    ] = {}
    """Who judges which question, as in `analyze.judges`; `embedding` and `likelihood` judge
    irrelevance alone. Planted cases tell from which score on a text is faulty; a judge that cannot
    tell them apart is an error."""
    near_duplicates: list[Literal["corpus", "samples"]] = []
    """Near-duplicates that are thrown away: those of documents of D_pretrain (`corpus`), and those
    of other samples (`samples`), of which the first that is left stays."""

    @field_validator("loss", "similarity", "novelty")
    @classmethod
    def _ordered(cls, window: list[float] | None) -> list[float] | None:
        if window is not None and not window[0] <= window[1]:
            raise ValueError(f"{window} is no window: the least value comes first")
        return window

    @model_validator(mode="after")
    def _check_filter(self) -> Filter:
        if self.times != Filter.model_fields["times"].default and not self.chooses:
            raise ValueError(
                "`times` is for a filter, and this one throws nothing away; name `loss`, "
                "`similarity`, `novelty`, `judged` or `near_duplicates`"
            )
        for question, judge in self.judged.items():
            if judge != "rules" and question != "irrelevance":
                raise ValueError(f"`judged`: {judge} judges irrelevance alone, not {question}")
        return self

    @property
    def chooses(self) -> bool:
        """Whether it throws anything away."""
        return bool(self.windows or self.judged or self.near_duplicates)

    @property
    def windows(self) -> dict[str, tuple[float, float]]:
        """The windows that there are, by what is measured."""
        named = {"loss": self.loss, "similarity": self.similarity, "novelty": self.novelty}
        return {name: (window[0], window[1]) for name, window in named.items() if window}

    @property
    def needs_d1(self) -> bool:
        """Whether it compares samples with their d1, which not all have."""
        return self.similarity is not None or bool({"irrelevance", "copying"} & set(self.judged))

    @property
    def name(self) -> str:
        """What it throws away, in as many characters as it takes to tell it from other filters."""
        parts = []
        for name, window in self.windows.items():
            low, high = (repr(end).removesuffix(".0") for end in window)
            parts.append(f"{name}={low}..{high}")
        if self.novelty is not None:
            parts.append(f"novelty_tokens={self.novelty_tokens}")
        parts += [f"{question}={judge}" for question, judge in sorted(self.judged.items())]
        if self.near_duplicates:
            parts.append(f"near_duplicates={'+'.join(sorted(set(self.near_duplicates)))}")
        return ",".join(parts)


class Arm(Section):
    """The recipe of one arm: its training text and the layout of it. Arms differ in nothing
    else, but for how many models there are (`ensemble`) and who teaches them (`distill`)."""

    synthetic: Literal["related", "random_pairs", "scratch", "unconditional"] | None = None
    """Where synthetic text comes from. `related`: a synthesizer tuned on related pairs (the
    method). Controls: `random_pairs`, tuned on random pairs; `scratch`, tuned on related pairs from
    fresh weights; `unconditional`, sampled from base without d1. Default: none, real text only."""
    share: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of `train_tokens` that is synthetic."""
    filter: Filter = Filter()
    """Which samples may be read; all that `synthesize` has kept unless it is set."""
    order: Literal["mixed", "synthetic_first"] = "mixed"
    """Synthetic text mixed evenly into the run (the paper), or all of it before the real text."""
    layout: Literal["shuffled", "packed_pairs", "megadoc"] = "shuffled"
    """Order of documents. `shuffled`: random (the paper). `packed_pairs`, real text only: each
    document is followed by its most similar unread one (in-context pretraining, arXiv:2310.10638).
    `megadoc`: the synthetic documents of a d1 come right before it, as many as fit into the context
    (arXiv:2603.18534)."""
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of input tokens replaced by random ones, redrawn at every step; targets are
    unchanged (arXiv:2606.16246)."""
    rounds: int = Field(default=1, ge=1, le=100)
    """Rounds of bootstrapping. In round 2 the synthesizer starts from the arm with the same recipe
    and `rounds: 1` instead of base, and so on; that arm must be configured too. Pairs and real text
    are always those of D_pretrain."""
    match: Literal["tokens", "flops"] = "tokens"
    """What is equal to that of repetition: training tokens (the paper); or FLOPs, where embedding,
    pairing, tuning and synthesis count against `train_tokens`, so that the arm trains on fewer."""
    unique_tokens: Count | Literal["all"] | None = None
    """Unique real tokens of this arm instead of `budget.unique_tokens`; makes it an oracle."""
    ensemble: int = Field(default=1, ge=1, le=100)
    """Number of models that differ in their seed alone, each trained on `train_tokens`; the arm is
    the mean of their probabilities. It takes that many times the compute of another arm, and is
    marked so: what it gains is no gain at equal compute. Source: arXiv:2509.14786."""
    distill: Name | None = None
    """Real text only: name of an arm with `ensemble` that reads D_pretrain as it is too, the
    teacher, whose probabilities of the next token are targets beside the token itself. One model,
    on as many tokens as every arm; training and asking the teacher count as FLOPs.
    Source: arXiv:1503.02531, at temperature 1; for text that is repeated, arXiv:2509.14786."""
    distill_weight: float = Field(default=0.5, gt=0, le=1)
    """`distill`: weight of the teacher's probabilities in the targets; the text has the rest."""
    epochs: float | None = Field(default=None, gt=0, le=1e6)
    """Real text only: number of epochs, where fewer than fill `train_tokens` are better. Set by
    `sweep`."""
    weight_decay: float | None = Field(default=None, ge=0, le=1e4)
    """Overrides `optim.weight_decay`. Set by `sweep` only: arms that differ in it by hand are not
    compared."""
    lr: float | None = Field(default=None, gt=0, le=100)
    """Overrides `optim.lr`. Set by `sweep` only."""
    final_weight_decay: float | None = Field(default=None, ge=0, le=1e4)
    """Overrides `optim.final_weight_decay`. Set by `sweep` only."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides `optim.dropout`. Set by `sweep` only."""
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    """Overrides `optim.ema_decay`. Set by `sweep` only."""
    tail_average: float | None = Field(default=None, ge=0, le=1)
    """Overrides `optim.tail_average`. Set by `sweep` only."""
    sweep: dict[
        Literal[
            "share",
            "noise",
            "epochs",
            "weight_decay",
            "lr",
            "final_weight_decay",
            "dropout",
            "ema_decay",
            "tail_average",
            "distill_weight",
        ],
        Annotated[list[float], Field(min_length=1)],
    ] = {}
    """Grid search: values to try, one model per combination, with the first seed. The one of lowest
    validation loss becomes the arm; the report shows all."""

    @model_validator(mode="after")
    def _check_recipe(self) -> Arm:
        has_share = self.share > 0 or "share" in self.sweep
        if (self.synthetic is not None) != has_share:
            raise ValueError("`synthetic` and a `share` above 0 go together")

        if self.synthetic is None:
            self._check_real_text()
        else:
            self._check_synthetic_text()
        self._check_several_models()

        trials(self)  # raises for a value that its setting does not take
        return self

    def _check_several_models(self) -> None:
        if self.ensemble > 1 and (self.rounds > 1 or self.match == "flops" or self.distill):
            raise ValueError(
                "`ensemble` is several models at several times the compute; "
                "drop `rounds`, `match: flops` and `distill`"
            )
        if self.distill is None:
            if self.distill_weight != Arm.model_fields["distill_weight"].default:
                raise ValueError("`distill_weight` needs `distill`, the arm of the teacher")
            if "distill_weight" in self.sweep:
                raise ValueError("a `sweep` of `distill_weight` needs `distill`")
            return
        # what the teacher has not read, or read otherwise, would be another difference
        if not self.reads_pool_as_it_is:
            raise ValueError(
                "`distill` is about D_pretrain as it is; "
                "drop `synthetic`, `unique_tokens`, `noise` and `layout`"
            )

    @property
    def reads_pool_as_it_is(self) -> bool:
        """Whether the arm reads D_pretrain, all of it and nothing else, in the common layout."""
        noisy = self.noise > 0 or "noise" in self.sweep
        is_other = self.synthetic is not None or self.unique_tokens is not None or noisy
        return not is_other and self.layout == "shuffled"

    def _check_real_text(self) -> None:
        is_about_samples = self.rounds > 1 or self.match == "flops" or self.filter.chooses
        if is_about_samples or self.order != "mixed":
            raise ValueError(
                "`rounds`, `order`, `filter` and `match: flops` are about synthetic text, "
                "and this arm has none"
            )
        # Neighbours are known within D_pretrain alone, and an oracle reads more than that.
        if self.layout == "packed_pairs" and self.unique_tokens is not None:
            raise ValueError(_PACKED_PAIRS)
        if self.layout == "megadoc":
            raise ValueError(_MEGADOC)

    def _check_synthetic_text(self) -> None:
        if self.synthetic == "scratch" and self.rounds > 1:
            raise ValueError(
                "`synthetic: scratch` starts from fresh weights in every round; drop `rounds`"
            )
        if self.layout == "packed_pairs":
            raise ValueError(_PACKED_PAIRS)
        if self.layout == "megadoc" and self.synthetic == "unconditional":
            raise ValueError(_MEGADOC)
        if self.filter.needs_d1 and self.synthetic == "unconditional":
            raise ValueError(
                "`filter`: samples of `synthetic: unconditional` have no d1; drop `similarity`, "
                "`irrelevance` and `copying`"
            )
        if self.epochs is not None or "epochs" in self.sweep:
            raise ValueError("`epochs` is about real text alone")

    @property
    def kind(self) -> Literal["repetition", "method", "control", "oracle", "ensemble"]:
        """What the arm is for, by its recipe. `ensemble`: more compute than the others; `oracle`:
        more real text; `method`: synthetic text from related pairs; `repetition`: D_pretrain as it
        is; `control`: anything else."""
        if self.ensemble > 1:
            return "ensemble"
        if self.unique_tokens is not None:
            return "oracle"
        if self.synthetic == "related":
            return "method"

        # Repetition may be tuned in how it is trained; in what it reads, it would be a control.
        tuning: dict[str, Any] = {"sweep": {}, "epochs": None, **dict.fromkeys(TUNED)}
        sweeps_text = "share" in self.sweep or "noise" in self.sweep
        if self.model_copy(update=tuning) == Arm() and not sweeps_text:
            return "repetition"
        return "control"

    def trials(self) -> dict[str, Arm]:
        """Every combination of the sweep by name; without a sweep, the arm itself under the empty
        name."""
        return trials(self)


class Pretrain(Section):
    """Training every arm, from scratch or from `model.init_from`."""

    seeds: list[Seed] = Field(default=[0], min_length=1, max_length=1_000)
    """Random seeds: one model per arm and seed. A seed sets the initial weights and the order of
    the text."""
    text_per_seed: Switch = False
    """Every seed of an arm reads synthetic text of its own, another draw of the same synthesizer.
    Intervals over seeds then are about what it writes, not about one text; sampling is done once
    for every seed. The first seed reads what all would read without."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(
                f"{seeds} names a seed twice; two models of one seed are the same model"
            )
        return seeds


class Evaluate(Section):
    """Test losses, questions, and confidence intervals."""

    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint of each arm that the verdict is about: lowest validation loss, or the last; both
    are reported. Deviation: the paper reads the last; `best` gives repetition the early stopping it
    needs when it overfits."""
    tasks: list[Text] = []
    """Questions to ask every model: JSONL files of your own, names of known tasks (files in
    `task_folder`), the groups `paper` and `small`, `world` (facts of a generated world), or
    `lm-eval:NAME` for a task of lm-eval (pip install lm-eval). `NAME@5` is 5-shot."""
    task_folder: Text = "."
    """Folder with the files of known tasks, such as blimp.jsonl.zst."""
    task_items: Count | None = None
    """Most items per task, sampled at random. Default: all."""
    group_field: Text | None = None
    """Field of the corpus by whose values test losses are also reported. Without one: whether
    D_pretrain has a document as similar as those of a pair are."""
    topics: int = Field(default=0, ge=0, le=10_000)
    """Number of topics, clusters of D_pretrain's vectors, by which test losses are also reported
    where there is no `group_field`. 0: none. As many as `analyze.topics` are the same ones."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of the intervals."""


class Extract(Section):
    """What can be got out of the models again: texts that they were trained on, by their beginning,
    and canaries (`corpus.canaries`). Source: arXiv:2202.07646."""

    docs: int = Field(default=0, ge=0, le=10**9)
    """Number of documents of D_pretrain that every model is asked to continue, and of the test set,
    which none has read. 0: no document is; with canaries these alone are looked for."""
    prefix_tokens: Count = 50
    """Tokens of a document's beginning that are given."""
    continuation_tokens: Count = 50
    """Tokens that follow, to be given back: greedily, the likeliest token each time."""
    samples: Count = 100
    """How likely one of this many samples at temperature 1 is exact is reported too, computed from
    the probability that the model gives to the continuation; none is drawn. Source:
    arXiv:2410.19482."""


class Analyze(Section):
    """Measuring synthetic text beside real text."""

    docs: Count = 2_000
    """Documents sampled from each kind of text."""
    copy_tokens: Count = 13
    """Length in tokens from which a shared run counts as copied."""
    examples: Count = 24
    """Number of examples in the report."""
    duplicate_docs: Count | None = None
    """Most documents of each kind of text in the curve of duplicates, which grows with their
    number (Duplicate@1M of the paper is 1,000,000). Default: `docs`."""
    judges: list[Judge] = []
    """Who judges the text, beside what is counted: `rules` (overlap of words, contradictions by
    number and date), `embedding` (similarity, by the embedding of the pairs), `likelihood` (the
    run's own synthesizer: is d2 likelier given its d1 than given another?), `local:FOLDER` (a
    language model in a Hugging Face folder), `server:NAME` (a model at `engine.judge`). Each one's
    own error is measured on planted cases, and its rates are corrected for it (docs/quality.md)."""
    judge_items: Count = 200
    """Most texts of a kind, or pairs, that each judge is asked each question about."""
    judge_cases: Count = 200
    """Most cases with a planted fault, and most without, by which a judge's error is measured for
    each question; one half of them chooses its threshold."""
    judge_tokens: Count | None = None
    """Most tokens of prompts and answers that language models may spend on judging, an equal part
    for each model and question; a few requests that are under way may exceed it. What has been
    judged by then counts, and the report says what has not. Default: no limit. A server that does
    not tell its tokens is not stopped."""
    topics: int = Field(default=20, ge=0, le=10_000)
    """Number of topics, clusters of D_pretrain's vectors, by which real and synthetic text are
    compared. 0: none."""

    @field_validator("judges")
    @classmethod
    def _distinct(cls, judges: list[str]) -> list[str]:
        if len(set(judges)) != len(judges):
            raise ValueError(f"{judges} names a judge twice")
        return judges
