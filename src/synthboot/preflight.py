"""What can be known to be wrong before anything is made is said before anything is made, not hours
later."""

from __future__ import annotations

import itertools
import json
from importlib.util import find_spec
from pathlib import Path

from synthboot import config
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.pairs import NOTHING_TO_STOP_BY, Chosen
from synthboot.artifacts.spool import GIVE_UP_AFTER
from synthboot.data import documents, files, tasks, tokenizer
from synthboot.errors import BudgetError, ConfigError, DataError, unloadable
from synthboot.lm.batches import LEAST_CONTEXT, context_room, rows_by_source

_BUILT_IN = ("self", "file")


def check(cfg: config.Config) -> None:
    """Raise BudgetError, ConfigError or DataError for oracles without more text, for shares of text
    that come to nothing, for questions that are none, for steps that cannot be shared, and for
    models, packages and a GPU that are not here."""
    check_executor(cfg)
    check_anywhere(cfg)
    _check_processes(cfg)
    _check_several_models(cfg)
    _check_questions(cfg)
    _check_contexts(cfg)
    _check_packages(cfg)
    _check_keys(cfg)
    _check_models(cfg)


def check_executor(cfg: config.Config) -> None:
    """Raise ConfigError where processes cannot run where they are to."""
    if cfg.engine.executor == "local":
        return
    if find_spec("ray") is None:
        raise ConfigError(
            "engine.executor: ray: is not installed: pip install 'synthboot[ray]', or use `local`"
        )
    if cfg.engine.launch is not None:
        raise ConfigError(
            "engine.launch: starts processes past Ray, which would count them twice; "
            "leave it out, or set engine.executor=local"
        )


def check_anywhere(cfg: config.Config) -> None:
    """Raise BudgetError or ConfigError for what is wrong on every machine, with any text."""
    _check_oracles(cfg)
    _check_shares(cfg)


def _check_oracles(cfg: config.Config) -> None:
    """Raise BudgetError for an oracle that is to read as much text as all arms.

    Whether other numbers come to the same documents shows once there is a corpus.
    """
    for name, arm in cfg.arms.items():
        # with marks there may be text that oracles alone read
        has_more = arm.unique_tokens == "all" and cfg.corpus.split_field is not None
        is_same = arm.unique_tokens == cfg.budget.unique_tokens and not has_more
        if is_same and _is_repetition(arm):
            raise BudgetError(
                f"arms.{name}.unique_tokens: {arm.unique_tokens} is what all arms have "
                f"(budget.unique_tokens), and the arm repetition by another name; lower "
                f"budget.unique_tokens, or drop the arm"
            )


def _is_repetition(oracle: config.Arm) -> bool:
    """Whether an oracle without more text would be repetition."""
    return oracle.model_copy(update={"unique_tokens": None}).kind == "repetition"


def _check_shares(cfg: config.Config) -> None:
    """Raise ConfigError for a share that rounds to none or to all of its rows: the arm would be
    another than it says, and might be compared with itself."""
    seq_len = cfg.model.seq_len
    batch_rows = cfg.optim.batch_tokens // seq_len
    rows = cfg.budget.train_tokens // (batch_rows * seq_len) * batch_rows
    room = "budget.train_tokens"
    for name, arm in cfg.arms.items():
        for trial in arm.trials().values():
            dealt = rows_by_source(rows, trial.share, cfg.budget.replay_share)
            own = rows - dealt.replayed
            _check_share("budget.replay_share", cfg.budget.replay_share, dealt.replayed, rows, room)
            _check_share(f"arms.{name}.share", trial.share, dealt.synthetic, own, room)
            if trial.noise and not round(trial.noise * rows * seq_len):
                raise ConfigError(
                    f"arms.{name}.noise: {trial.noise:g} of {rows * seq_len:,} tokens comes to "
                    f"none; raise it or budget.train_tokens"
                )

    if not _tunes(cfg) or cfg.tune.max_tokens is None:
        return  # how many rows the pairs fill shows once there are pairs
    for tune in cfg.tune.trials().values():
        batch_rows = max(1, tune.batch_tokens // cfg.tune_seq_len)
        rows = max(1, cfg.tune.max_tokens // (batch_rows * cfg.tune_seq_len)) * batch_rows
        plain = round(tune.plain_share * rows)
        _check_share("tune.plain_share", tune.plain_share, plain, rows, "tune.max_tokens")


def _check_share(where: str, share: float, chosen: int, rows: int, room: str) -> None:
    """`room` is the setting by which there would be more rows."""
    if share == 0 or 0 < chosen < rows:
        return
    comes_to = "none" if chosen == 0 else "all of them"
    change = "raise" if chosen == 0 else "lower"
    raise ConfigError(
        f"{where}: {share:g} of {rows:,} rows of training comes to {comes_to}; "
        f"{change} it, or raise {room}"
    )


def _tunes(cfg: config.Config) -> bool:
    """Whether there is a synthesizer to be tuned."""
    kinds = {arm.synthetic for arm in cfg.arms.values()} - {None}
    if cfg.tune.init_from is None:
        kinds.discard("unconditional")
    return bool(kinds) and cfg.tune.base_share != 1


def _check_processes(cfg: config.Config) -> None:
    if cfg.engine.processes > 1:
        from synthboot.lm import parallel  # it takes torch

        group = parallel.Group(0, cfg.engine.processes)
        rows = cfg.optim.batch_tokens // cfg.model.seq_len
        parallel.share(rows, group, "optim.batch_tokens / model.seq_len")
        # what cannot be packed, which only a model from outside can be, pads its rows
        is_own = cfg.model.init_from is None and cfg.tune.init_from is None
        if is_own and _tunes(cfg):
            rows = max(1, cfg.tune.batch_tokens // cfg.tune_seq_len)
            parallel.share(rows, group, "tune.batch_tokens / model.seq_len")


def _check_questions(cfg: config.Config) -> None:
    of_harness = []
    for name in tasks.names(cfg.evaluate):
        if name.startswith(tasks.LM_EVAL):
            of_harness.append(name.removeprefix(tasks.LM_EVAL))
        elif name != tasks.WORLD:
            tasks.read(name, cfg.evaluate, cfg.seed)
    if of_harness:
        # imported here, since it takes torch, which takes seconds
        from synthboot.lm.questions import known_to_harness

        known_to_harness(of_harness, cfg.evaluate.task_folder)


def _check_contexts(cfg: config.Config) -> None:
    seq_len = cfg.tune_seq_len
    room = context_room(seq_len, cfg.tune.d1_share, cfg.tune.contexts)
    if cfg.tune.contexts > 1 and room < LEAST_CONTEXT:
        setting = "model.seq_len" if cfg.tune.init_from is None else "tune.seq_len"
        raise ConfigError(
            f"tune.contexts: {cfg.tune.contexts} documents have {max(0, room)} tokens each of what "
            f"d1 gets of {setting} {seq_len:,}, and {LEAST_CONTEXT} are needed: "
            f"lower it, or raise tune.d1_share or {setting}"
        )


def _check_packages(cfg: config.Config) -> None:
    if (cfg.tune.lora.rank or cfg.optim.lora.rank) and find_spec("peft") is None:
        setting = "tune.lora" if cfg.tune.lora.rank else "optim.lora"
        raise ConfigError(
            f"{setting}: needs the package peft: pip install 'synthboot[lora]', or set rank to 0"
        )
    for package in cfg.engine.track:
        if find_spec(package) is None:
            raise ConfigError(
                f"engine.track: {package}: is not installed: pip install {package}, or leave it out"
            )
    if cfg.synthesize.sampler == "vllm" and find_spec("vllm") is None:
        raise ConfigError(
            "synthesize.sampler: vllm: needs vLLM: pip install vllm, or use `embedded`"
        )


def _check_keys(cfg: config.Config) -> None:
    """Raise ConfigError for the key of a server that is to be asked, where no header holds it."""
    from synthboot.lm.endpoint import key  # and httpx, which only a server needs

    if cfg.synthesize.sampler == "server":
        key("SYNTHBOOT_API_KEY")
    if any(judge.startswith("server:") for judge in cfg.analyze.judges):
        key("SYNTHBOOT_JUDGE_API_KEY")


def _check_models(cfg: config.Config) -> None:
    """The GPU, and every model that comes from outside."""
    if cfg.engine.device == "cuda" and cfg.engine.executor == "local":
        from synthboot.lm.model import device

        device("cuda")
    built_in = "synthesize.contrast" if cfg.synthesize.contrast else ""
    if cfg.tune.pointer:
        built_in = "tune.pointer"
    if cfg.tune.init_from is not None:
        _model(cfg.tune.init_from, "tune", built_in)
    if cfg.model.init_from is not None:
        # an external model samples in its place
        _model(cfg.model.init_from, "model", "" if cfg.tune.init_from else built_in)
    elif cfg.corpus.tokenizer != "train":
        tokenizer.from_hugging_face(cfg.corpus.tokenizer)
    if cfg.embed.model not in _BUILT_IN:
        _embedder(cfg.embed.model)
    for judge in cfg.analyze.judges:
        kind, _, source = judge.partition(":")
        if kind == "local":
            from synthboot.lm.model import outline

            outline(source, "analyze.judges: local")
    if cfg.embed.model == "file" and not Path(cfg.embed.path or "").is_file():
        path = cfg.embed.path or ""
        raise ConfigError(f"embed.path: {path}{files.seen_from(path)}: no such file")


def _check_several_models(cfg: config.Config) -> None:
    """Raise ConfigError for what ensembles and their teaching cannot do."""
    by_harness = [name for name in tasks.names(cfg.evaluate) if name.startswith(tasks.LM_EVAL)]
    for name, arm in cfg.arms.items():
        if arm.ensemble > 1 and by_harness:
            raise ConfigError(
                f"evaluate.tasks: {by_harness[0]}: lm-eval takes a model's folder, and "
                f"arms.{name} is {arm.ensemble} models; drop one of them"
            )
        if arm.distill is not None and cfg.engine.processes > 1:
            raise ConfigError(
                f"arms.{name}.distill: a teacher is asked by one process alone; "
                f"set engine.processes=1"
            )


def check_source(cfg: config.Config) -> None:
    """Raise DataError where no record of the source, as far as one reads before giving up, is a
    document.

    Asked before a finished corpus makes room for another: a misspelt field would cost it.
    """
    first = ""
    looked_at = 0
    for record in itertools.islice(documents.records(cfg.corpus), GIVE_UP_AFTER):
        found = documents.parse(record, cfg.corpus)
        if isinstance(found, documents.Document):
            return
        looked_at += 1
        first = first or f"{found.file} line {found.line}: {found.reason}"
    raise DataError(
        f"corpus.source: {cfg.corpus.source}: none of the first {looked_at:,} records is a "
        f"document ({first or 'there are none'}); the finished corpus of other settings is left as "
        f"it is"
    )


def check_against_corpus(cfg: config.Config, corpus: Corpus) -> None:
    """Raise what can be known to be wrong once there is a corpus, hours before it would be met.

    BudgetError where an oracle asks for more text than it holds, or for what all arms have,
    DataError where a question does not fit into `model.seq_len`.
    """
    for name, arm in cfg.arms.items():
        if arm.unique_tokens is None:
            continue
        # counted by the index alone; no token is read
        where = f"arms.{name}.unique_tokens"
        docs = len(corpus.pool)
        if arm.unique_tokens != "all":
            docs = corpus.pool.docs_holding(arm.unique_tokens, where)
        if docs == corpus.pretrain_docs and _is_repetition(arm):
            raise BudgetError(
                f"{where}: {arm.unique_tokens} is the {docs:,} documents of D_pretrain, and the "
                f"arm repetition by another name; lower budget.unique_tokens, or drop the arm"
            )
    if len(corpus.test) < 2:
        raise DataError(
            f"corpus: the test set has {len(corpus.test)} documents, and two are the least that "
            f"say how sure a difference is; mark more as test (corpus.split_field)"
        )
    check_questions_fit(cfg, corpus.tokenizer)


def check_against_pairs(chosen: Chosen) -> None:
    """Raise DataError where nothing can be tuned on the pairs, before the model is made that tuning
    starts from."""
    if chosen.pairs is not None and not chosen.pairs.validation:
        raise DataError(f"pair: {NOTHING_TO_STOP_BY}")


def check_questions_fit(cfg: config.Config, corpus_tokenizer: tokenizer.Tokenizer) -> None:
    """Raise DataError where a choice is longer than `model.seq_len`: cut, it would be likelier than
    it is."""
    seq_len = cfg.model.seq_len
    for name in tasks.names(cfg.evaluate):
        if name == tasks.WORLD or name.startswith(tasks.LM_EVAL):
            continue
        identifiers = []
        texts = []
        for item in tasks.read(name, cfg.evaluate, cfg.seed):
            for text in item.continuations:
                # a token has a byte at least, so what is shorter need not be encoded
                if len(text.encode()) > seq_len:
                    identifiers.append(item.id)
                    texts.append(text)

        encoded = corpus_tokenizer.encode(texts)
        for identifier, tokens in zip(identifiers, encoded, strict=True):
            if len(tokens) > seq_len:
                raise DataError(
                    f"evaluate.tasks: {name}: question {identifier} has a choice of "
                    f"{len(tokens):,} tokens, and model.seq_len is {seq_len:,}; "
                    f"shorten it or leave it out"
                )


def _model(source: str, section: str, built_in: str) -> None:
    """Raise ConfigError unless `init_from` of the `section` names a model and its tokenizer.

    `built_in` is the setting, if any, for which the built-in sampler has to know its layout.
    """
    from transformers import AutoConfig

    from synthboot.lm.sampling.engines import is_native

    where = f"{section}.init_from"
    try:
        layout = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, KeyError, by what is wrong with the folder
        raise ConfigError(
            f"{where}: {source}{files.seen_from(source)}: {unloadable(error)}"
        ) from None
    if built_in and not is_native(layout):
        raise ConfigError(
            f"{built_in}: the built-in sampler, which alone has it, does not know the "
            f"layout of {source} ({layout.model_type}); leave it out"
        )
    # of a model that the arms continue from the corpus has the tokenizer
    setting = "corpus.tokenizer" if section == "model" else where
    fitted = tokenizer.from_hugging_face(source, setting)
    # special tokens may come beyond a model's rows, which then get fresh ones; text may not
    spelling = fitted.backend.get_vocab_size(with_added_tokens=False)
    rows = getattr(layout.get_text_config(), "vocab_size", None)
    if isinstance(rows, int) and spelling > rows:
        raise ConfigError(
            f"{where}: {source}: its tokenizer spells text in {spelling:,} tokens, "
            f"its model knows {rows:,}; they do not belong together"
        )


def _embedder(source: str) -> None:
    if find_spec("sentence_transformers") is None:
        raise ConfigError(
            f"embed.model: {source}: needs sentence-transformers: "
            f"pip install 'synthboot[embed]', or use `self`"
        )
    if not Path(source).exists():
        # no name on the hub looks like this
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise ConfigError(f"embed.model: {source}{files.seen_from(source)}: no such folder")
        return

    modules = Path(source) / "modules.json"
    if not modules.exists():
        if not (Path(source) / "config.json").exists():
            raise ConfigError(
                f"embed.model: {source}: holds no model (neither modules.json nor config.json)"
            )
        return
    try:
        kinds = [str(module["type"]) for module in json.loads(modules.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"embed.model: {modules}: unreadable ({error})") from None
    for kind in kinds:
        if not kind.startswith("sentence_transformers."):
            reason = unloadable(ValueError("custom code"))
            raise ConfigError(f"embed.model: {source}: {kind}: {reason}")
