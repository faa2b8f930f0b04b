"""synthesize: the synthesizer and the corpus in, S_pretrain out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthboot import config
from synthboot.rng import rng
from synthboot.settings import Synthesis
from synthboot.steps.context import Context, Outcome, conditional, upstream_flops
from synthboot.steps.filter import filtered

if TYPE_CHECKING:
    from synthboot.stages.synthesize import Job

_ROOM = 2**22
"""Tokens that a GPU samples in one call at most: minutes, which a killed run does again."""


def synthesize(c: Context) -> Outcome:
    """S_pretrain in chunks, or what a filter leaves of one. The FLOPs count every prompt and
    sampled token once."""
    told = _told(c)
    if told.filter is not None:
        return filtered(c, told.filter, told.budget_tokens)
    from synthboot.lm import model as models
    from synthboot.stages.synthesize import synthesize as stage

    job = _job(c)
    if c.cfg.synthesize.contrast and job.conditional and not job.is_prompted:
        c.note(
            "synthesize.contrast has nothing to do: tune.base_share chose base as it is, whose "
            "prompt has no d1; the pointer alone reads it"
        )
    counts = stage(
        job=job,
        budget_tokens=told.budget_tokens,
        folder=c.folder,
        workers=_workers(c),
        progress=c.progress,
    )
    counts["upstream_flops"] = upstream_flops(c)
    if job.external:
        counts["external"] = c.cfg.tune.init_from

    sampled = counts["sampled_tokens"]
    read = counts["prompt_tokens"] + sampled
    if c.cfg.synthesize.contrast and job.conditional and job.is_prompted:
        read += sampled  # each once more, without d1
    tokens_per_row = read / max(1, counts["requests"])
    forward = models.flops_per_token(models.load(job.synthesizer), round(tokens_per_row))
    return counts, {"tokens": sampled, "flops": forward * read}


def synthesize_part(c: Context) -> int:
    """Chunks until they meet this part's share of the budget."""
    from synthboot.stages.synthesize import synthesize_part as stage

    return stage(
        job=_job(c),
        budget_tokens=_told(c).budget_tokens,
        folder=c.folder,
        part=c.part,
        workers=_workers(c),
        progress=c.progress,
    )


def _told(c: Context) -> Synthesis:
    """Which text this is."""
    assert c.synthesis is not None  # a unit of this stage has one
    return c.synthesis


def _workers(c: Context) -> int:
    """How many sample side by side; a server has the model elsewhere, and is asked by no more than
    it is to have requests."""
    if c.cfg.synthesize.sampler == "server":
        return min(c.workers, c.cfg.engine.server.concurrency)
    return c.gpu_workers


def _job(c: Context) -> Job:
    """What every chunk depends on."""
    from synthboot.stages.synthesize import Job

    external = c.external
    is_conditional = conditional(c.variant)
    tuning = c.model("synthesizer").tuning if is_conditional else None
    return Job(
        cfg=c.cfg.synthesize,
        synthesizer=c.model("synthesizer").best,
        tokenizer=c.corpus.tokenizer_folder,
        corpus=tuple(external.shards("pretrain") if external else c.corpus.shards("pool")),
        docs=c.corpus.pretrain_docs,
        seq_len=c.cfg.tune_seq_len,
        d1_share=c.cfg.tune.d1_share,
        seed=_text_seed(c),
        conditional=is_conditional,
        engine=of_each(c.cfg.engine, _workers(c)),
        contexts=c.cfg.tune.contexts,
        pairs=c.parents.get("pair"),
        external=external is not None,
        pointer=tuning.pointer if tuning else None,
        is_prompted=tuning.is_prompted if tuning else True,
        at_once=at_once(c.cfg),
    )


def _text_seed(c: Context) -> int:
    """What a text is drawn by: the run's seed, or one of its own for each seed of the arms."""
    own = _told(c).text_of_seed
    if own is None:
        return c.cfg.seed
    return int(rng(c.cfg.seed, "synthesize.text", own).integers(2**63))


def of_each(engine: config.Engine, workers: int) -> config.Engine:
    """The engine as each of so many workers has it: a server's requests are dealt out to them."""
    concurrency = max(1, engine.server.concurrency // workers)
    server = engine.server.model_copy(update={"concurrency": concurrency})
    return engine.model_copy(update={"server": server})


def at_once(cfg: config.Config) -> int:
    """How many requests fill the device: a CPU is full with a chunk, a server has a queue of its
    own, and a GPU wants some batches of thousands of rows."""
    from synthboot.lm.model import device

    sampler = cfg.synthesize.sampler
    is_gpu = sampler == "embedded" and device(cfg.engine.device).type != "cpu"
    return _ROOM // cfg.tune_seq_len if is_gpu or sampler == "vllm" else 1
