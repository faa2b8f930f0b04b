"""What the settings of several sections ask of each other.

Each rule takes the sections that it is about, and raises ValueError where they do not go together:
`Config` cannot be made of such, neither from a file nor in Python. What it takes more than the
configuration to know is asked in `preflight.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from synthboot.config.sections import (
    TUNED,
    Analyze,
    Arm,
    Budget,
    Corpus,
    Embed,
    Engine,
    Extract,
    Model,
    Optim,
    Pretrain,
    Synthesize,
    Tune,
)
from synthboot.config.texts import before, text_of

_MOST_NAME_BYTES = 255
"""Longest name of a folder, in every file system."""
_MOST_ARTIFACT_BYTES = _MOST_NAME_BYTES - 35
"""Longest name of an artifact's folder: locks and what is half made are named after it, with up to
35 bytes more."""


def check_arms(arms: Mapping[str, Arm]) -> None:
    """Arms are compared with `repetition`, differ in their data alone, and may name each other."""
    repetition = arms.get("repetition")
    if repetition is None or repetition.model_copy(update={"sweep": {}}) != Arm():
        raise ValueError(
            "`arms` needs `repetition: {}`, or with a `sweep`: "
            "base, which everything is compared with"
        )

    for name, arm in arms.items():
        for key in (*TUNED, "epochs"):
            if getattr(arm, key) is not None:
                raise ValueError(
                    f"arms.{name}.{key}: arms may differ in their data alone; "
                    f"set optim.{key} for all, or `sweep: {{{key}: [...]}}` "
                    "to have it chosen by validation loss"
                )
        if arm.distill is not None:
            _check_teacher(name, arm.distill, arms)
        if arm.rounds > 1 and before(arm, arms) is None:
            raise ValueError(
                f"arms.{name}: needs an arm with the same recipe and "
                f"`rounds: {arm.rounds - 1}` to go on from"
            )


def _check_teacher(name: str, teacher: str, arms: Mapping[str, Arm]) -> None:
    recipe = arms.get(teacher)
    if recipe is None or recipe.ensemble == 1:
        raise ValueError(
            f"arms.{name}.distill: {teacher} is no arm with `ensemble`; add one, "
            f"for example `{teacher}: {{ensemble: 3}}`"
        )
    # whatever else it had read would reach its student, and be another difference
    if not recipe.reads_pool_as_it_is:
        raise ValueError(
            f"arms.{name}.distill: {teacher} does not read D_pretrain as it is; name an "
            f"ensemble without `synthetic`, `unique_tokens`, `noise` and `layout`"
        )


def check_start(model: Model, corpus: Corpus, budget: Budget) -> None:
    """A model to continue from has a tokenizer, and may know what is to be replayed."""
    start = model.init_from
    if start and corpus.tokenizer not in ("train", start):
        raise ValueError(
            "corpus.tokenizer: model.init_from has a tokenizer of its own; leave this out"
        )
    if (corpus.replay is None) != (budget.replay_share == 0):
        raise ValueError(
            "`corpus.replay`, the text, and a `budget.replay_share` above 0 go together"
        )
    if corpus.replay is not None and start is None:
        raise ValueError(
            "`corpus.replay` keeps what a model already knows, "
            "and this one starts from nothing; drop it"
        )


def check_judges(analyze: Analyze, arms: Mapping[str, Arm], embed: Embed) -> None:
    """A judge needs the synthesizer or the embedding that it asks."""
    writes = any(arm.synthetic == "related" for arm in arms.values())
    if "likelihood" in analyze.judges and not writes:
        raise ValueError(
            "analyze.judges: `likelihood` asks the synthesizer; add an arm with "
            "`synthetic: related`, or leave it out"
        )
    if "embedding" in analyze.judges and embed.model == "file":
        raise ValueError(
            "analyze.judges: `embedding` has to embed synthetic text, and with "
            "`embed.model: file` nothing here can; leave it out"
        )


def check_filters(arms: Mapping[str, Arm], embed: Embed) -> None:
    """A filter needs the embedding that it measures by."""
    if embed.model != "file":
        return
    for name, arm in arms.items():
        chosen = arm.filter
        if chosen.similarity is not None or "embedding" in chosen.judged.values():
            raise ValueError(
                f"arms.{name}.filter: has to embed synthetic text, and with "
                "`embed.model: file` nothing here can; drop `similarity` and `embedding`"
            )
        # facts are held against the documents nearest to a sample, or against its d1
        if "nonfactual" in chosen.judged and arm.synthetic == "unconditional":
            raise ValueError(
                f"arms.{name}.filter: samples of `synthetic: unconditional` have no d1 to hold "
                "facts against, and with `embed.model: file` no document near to them is "
                "found; drop `nonfactual`"
            )


def check_root(root: str) -> None:
    """The run folder has a parent that a file system may have."""
    if root.startswith("~"):
        raise ValueError(
            f"root: {root}: the shell alone knows `~`, and not behind `--set root=`: a "
            f"folder of that name would be made; write the path in full, or ./{root}"
        )
    # bytes, of which a letter may have several
    for part in Path(root).parts:
        if (size := len(part.encode())) > _MOST_NAME_BYTES:
            raise ValueError(
                f"root: a folder's name has {size} bytes, and {_MOST_NAME_BYTES} are the most; "
                f"shorten it"
            )


def check_texts(arms: Mapping[str, Arm], pretrain: Pretrain) -> None:
    """What a filter leaves lies in a folder that a file system may have."""
    for name, arm in arms.items():
        size = max(len(text_of(arm, seed, arms, pretrain).name) for seed in pretrain.seeds)
        if arm.filter.chooses and size > _MOST_ARTIFACT_BYTES:
            raise ValueError(
                f"arms.{name}.filter: the folder that is named after it would have {size} "
                f"bytes, and {_MOST_ARTIFACT_BYTES} are the most; give its windows fewer "
                f"digits, or shorten the arms' names"
            )


def check_extract(extract: Extract, corpus: Corpus, embed: Embed, model: Model) -> None:
    """Canaries have vectors, and what is asked back fits into the context."""
    if corpus.canaries.count and embed.model == "file":
        raise ValueError(
            "corpus.canaries: vectors from a file have none for them; "
            "set corpus.canaries.count=0, or another embed.model"
        )
    asked = extract.prefix_tokens + extract.continuation_tokens
    if extract.docs and asked >= model.seq_len:
        raise ValueError(
            f"extract: {asked} tokens do not fit model.seq_len {model.seq_len} with the "
            "end token before them; lower prefix_tokens or continuation_tokens"
        )


def check_pointer(tune: Tune, synthesize: Synthesize) -> None:
    """The built-in engine alone has a pointer."""
    if tune.pointer and synthesize.sampler != "embedded":
        raise ValueError(
            f"tune.pointer: the built-in engine alone has it; set synthesize.sampler=embedded "
            f"instead of {synthesize.sampler}, or tune.pointer=false"
        )


def check_contrast(synthesize: Synthesize, tune: Tune, arms: Mapping[str, Arm]) -> None:
    """There is a d1 in some prompt to contrast with none."""
    if not synthesize.contrast:
        return
    if tune.base_share == 1:
        raise ValueError(
            "synthesize.contrast: is what a d1 in the prompt adds, and with `tune.base_share: "
            "1` the pointer alone reads d1; set synthesize.contrast=0"
        )
    kinds = {arm.synthetic for arm in arms.values()} - {None}
    if kinds == {"unconditional"}:
        raise ValueError(
            "synthesize.contrast: is what d1 adds, and samples of `synthetic: unconditional` "
            "have none; set synthesize.contrast=0, or add an arm of another kind"
        )


def check_synthesizers(tune: Tune, arms: Mapping[str, Arm]) -> None:
    """A synthesizer starts from one model: an external one, one of the arms', or fresh weights."""
    for name, arm in arms.items():
        if tune.init_from is not None and (arm.synthetic == "scratch" or arm.rounds > 1):
            raise ValueError(
                f"arms.{name}: `synthetic: scratch` and `rounds` tune a model of the arms' "
                "own; they do not go with tune.init_from"
            )
        if tune.lora.rank and arm.synthetic == "scratch":
            raise ValueError(
                f"arms.{name}: `synthetic: scratch` tunes fresh weights, "
                "which adapters would leave as they are; set tune.lora.rank=0"
            )


def check_lora(model: Model, optim: Optim, tune: Tune, engine: Engine) -> None:
    """Adapters have a model to be added to, in one piece."""
    if optim.lora.rank and model.init_from is None:
        raise ValueError(
            "optim.lora: adapters are for a model to continue from; "
            "set model.init_from, or optim.lora.rank=0"
        )
    if engine.shard and (optim.lora.rank or tune.lora.rank):
        raise ValueError("engine.shard: adapters are trained whole; set one of the two")


def check_steps(model: Model, optim: Optim, budget: Budget) -> None:
    """A step has a row at least, and training a step."""
    batch = optim.batch_tokens
    if batch < model.seq_len:
        raise ValueError(
            f"optim.batch_tokens {batch:,} is less than one row of model.seq_len "
            f"{model.seq_len:,}; raise it, or lower model.seq_len"
        )
    if budget.train_tokens < batch:
        raise ValueError(
            f"budget.train_tokens {budget.train_tokens:,} is less than one step of "
            f"optim.batch_tokens {batch:,}; raise it, or lower optim.batch_tokens"
        )
