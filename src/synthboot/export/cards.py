"""The README.md of what is handed on, from what the run has measured: nothing in it is written by
hand, so nothing in it is better than the run.

Whatever comes from the user's files or settings stands in code spans, in which Markdown and HTML
have no meaning; the header is written by a YAML library.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from synthboot import config
from synthboot.artifacts.evaluation import Contamination
from synthboot.artifacts.model import TokenCounts
from synthboot.data.canaries import planted
from synthboot.data.items import titles
from synthboot.data.remote import Url, is_url
from synthboot.export.finished import Finished, Made
from synthboot.export.mixture import FILE, SOURCES
from synthboot.export.models import Chosen
from synthboot.export.texts import REAL_COLUMNS, SYNTHETIC_COLUMNS
from synthboot.report import quality
from synthboot.report.leaks import sentence
from synthboot.statistics import Interval

FILE_NAME = "README.md"
_TAGS = ["synthboot", "synthetic-bootstrapped-pretraining"]
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")
"""What a hub takes for the id of a licence."""
_UNKNOWN_LICENCE = (
    "**Not known.** Whoever exported this did not say under which licences the sources are. "
    "They have to be stated here before anything of this is published "
    "(`synthboot export --license`)."
)


def synthetic_card(
    run: Finished, parts: Mapping[str, Mapping[str, int]], license: str | None
) -> str:
    """The card of synthetic text."""
    configs: list[dict[str, object]] = []
    rows = []
    for kind, counted in parts.items():
        # what is named nothing is what comes first
        is_first = {} if configs else {"default": True}
        configs.append({"config_name": kind, "data_files": f"{kind}/*.parquet", **is_first})
        counts = run.made(f"synthesize/{kind}").manifest.counts
        dropped = sum(counts["dropped"].values())
        of_outside = counts.get("external")
        rows.append(
            [
                code(kind),
                f"{counted['documents']:,}",
                f"{counted['tokens']:,}",
                f"{dropped:,} of {counts['requests']:,}",
                f"external: {code(of_outside)}" if of_outside else "this corpus alone",
            ]
        )
    header = ["config", "documents", "tokens", "samples dropped", "the synthesizer comes from"]
    return _page(
        _header(license, {"task_categories": ["text-generation"], "configs": configs}, "synthetic"),
        f"# {code(run.cfg.name)}: synthetic text",
        "Documents that a small language model wrote after related documents of a fixed corpus "
        "(Synthetic Bootstrapped Pretraining, arXiv:2509.15248). "
        "**Nothing in them is known to be true**; they are made to be trained on, not to be read.",
        *_table(header, rows),
        "## Columns",
        *_table(["column", "what it is"], [[code(k), v] for k, v in SYNTHETIC_COLUMNS.items()]),
        "`seed_id` and `seed_title` name documents of the corpus: look at them before publishing.",
        *_quality(run),
        *_verdict(run),
        *_corpus(run),
        *_licence(license),
        *_provenance(run, [run.made(f"synthesize/{kind}") for kind in parts]),
    )


def real_card(run: Finished, parts: Mapping[str, Mapping[str, int]], license: str | None) -> str:
    """The card of real text."""
    files = [{"split": split, "path": f"{split}/*.parquet"} for split in parts]
    configs = [{"config_name": "default", "data_files": files}]
    rows = []
    for split, counted in parts.items():
        rows.append([split, f"{counted['documents']:,}", f"{counted['tokens']:,}"])
    return _page(
        _header(license, {"task_categories": ["text-generation"], "configs": configs}, "real"),
        f"# {code(run.cfg.name)}: real text",
        "The documents of a corpus, cleaned and split as a run of synthboot trained on them: "
        "`train` is what the models read, `validation` chose among them, `test` scored them. "
        "Train on `train` alone, or figures of `test` mean nothing.",
        *_table(["split", "documents", "tokens"], rows),
        "## Columns",
        *_table(["column", "what it is"], [[code(k), v] for k, v in REAL_COLUMNS.items()]),
        *_corpus(run),
        *_licence(license),
        *_provenance(run, [run.made("corpus")]),
    )


def model_card(run: Finished, chosen: Chosen, license: str | None) -> str:
    """The card of one model."""
    counts = chosen.model.token_counts
    members = len(counts.members)
    loading = "`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load it."
    if members:
        loading = (
            f"An ensemble: each of `member-0` to `member-{members - 1}` is a model that "
            f"`AutoModelForCausalLM.from_pretrained` loads; "
            f"what was measured is the mean of their probabilities."
        )
    seeds = ", ".join(map(str, chosen.seeds))
    why = "the only one asked for"
    if len(chosen.seeds) > 1:
        why = f"of seeds {seeds} the one of the least validation loss"
    return _page(
        _header(license, {"library_name": "transformers", "pipeline_tag": "text-generation"}),
        f"# {code(run.cfg.name)}: arm {code(chosen.arm)}",
        f"A small research model of {counts.parameters:,} parameters, trained to compare ways "
        f"of training. It knows next to nothing, follows no instructions, and was neither aligned "
        f"nor tested for safety: not for use on people or decisions. {loading}",
        *_outside(run, chosen),
        "## What it is",
        *_table(["", ""], _facts(run, chosen, counts, why)),
        *_verdict(run, chosen.arm),
        *_given_back(run, chosen.arm),
        *(_quality(run) if counts.synthetic_tokens else []),
        *_corpus(run),
        "## Settings",
        "Those that are not synthboot's defaults, of the model's training.",
        *_table(["setting", "value"], _settings(chosen.made)),
        *_licence(license),
        *_provenance(run, [chosen.made]),
    )


def mixture_card(run: Finished, record: Mapping[str, Any], license: str | None) -> str:
    """The card of an arm's tokens."""
    shape = f"{record['rows']:,} rows of {record['row_tokens']:,} tokens"
    notes = []
    if not record["documents_see_each_other"]:
        notes.append(f"Documents must not see each other: mask at token {record['end']}.")
    if record["noise"]:
        notes.append(f"The arm replaces {record['noise']:.1%} of its inputs by noise; not in here.")
    if record["taught_by"]:
        teacher = code(record["taught_by"])
        notes.append(f"The targets of {teacher}, which teaches the arm, are not in here.")
    reads_synthetic = record["synthetic_tokens"] > 0
    written = run.written(record["arm"], record["seed"]) if reads_synthetic else []
    dtype, width = record["dtype"], record["row_tokens"]
    return _page(
        _header(license, {}),
        f"# {code(run.cfg.name)}: the tokens of arm {code(record['arm'])}",
        f"`{FILE}` holds {shape}, in the order in which seed {record['seed']} trains on them, "
        f"{record['rows_a_step']:,} rows a step: no header, {dtype}, little-endian. "
        f"A row is the token before its first target, then its targets. `sources.npy` has a number "
        f"a row: {', '.join(f'{i} {name}' for i, name in enumerate(SOURCES))}.",
        *notes,
        "```python\n"
        "import numpy as np\n"
        f'rows = np.memmap("{FILE}", "{dtype}", "r").reshape(-1, {width})\n'
        "inputs, targets = rows[:, :-1], rows[:, 1:]\n"
        "```",
        *_table(["", ""], [[key.replace("_", " "), code(v)] for key, v in record.items()]),
        *_corpus(run),
        *_licence(license),
        *_provenance(run, [run.made("corpus"), *map(run.made, written)]),
    )


def code(value: object) -> str:
    """A value as a code span on one line: no Markdown, HTML or link in it means anything."""
    shown = "".join(char if char.isprintable() else " " for char in str(value))
    shown = " ".join(shown.split()) or "-"  # nothing is no code span
    # in a table a bar ends the cell, in a code span too
    shown = shown.replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def plain(sentence: str) -> str:
    """A sentence with names from the settings in it, of which none is Markdown or HTML."""
    shown = "".join(char if char.isprintable() else " " for char in sentence)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(shown, quote=False))


def _page(*blocks: str) -> str:
    return "\n\n".join(blocks) + "\n"


def _header(license: str | None, more: Mapping[str, Any], *tags: str) -> str:
    """The YAML that hubs and `datasets` read."""
    header: dict[str, Any] = {}
    if license is not None and _LICENCE_ID.fullmatch(license):
        header["license"] = license
    elif license is not None:
        header |= {"license": "other", "license_name": license}
    header |= {"tags": [*_TAGS, *tags], **more}
    # one line a value: readers look for the next line of dashes
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1 << 20)
    return f"---\n{text}---"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["\n".join(f"| {' | '.join(cells)} |" for cells in lines)]


def _facts(
    run: Finished,
    chosen: Chosen,
    counts: TokenCounts,
    why: str,
) -> list[list[str]]:
    """What the model is, and what it read."""
    real = f"{counts.real_tokens:,} tokens, {counts.unique_real_tokens:,} of them unique"
    synthetic = f"{counts.synthetic_tokens:,} tokens, each read once at most"
    rows = [
        ["arm", f"{code(chosen.arm)} ({chosen.kind})"],
        ["seed", f"{chosen.seed}, {why}"],
        ["checkpoint", f"{chosen.checkpoint}, validation loss {chosen.loss:.4f} nats a token"],
        ["architecture", f"{code(counts.architecture)}, vocabulary {counts.vocab_size:,}"],
        ["trained on", f"{counts.train_tokens:,} tokens, {counts.train_flops:.2g} FLOPs"],
        ["real text", f"{real}, {counts.real_epochs:.1f} epochs"],
        ["synthetic text", synthetic if counts.synthetic_tokens else "none"],
    ]
    if counts.replayed_tokens:
        rows.append(["replayed text", f"{counts.replayed_tokens:,} tokens"])
    if run.cfg.model.init_from is not None:
        rows.append(["started from", code(run.cfg.model.init_from)])
    return rows


def _outside(run: Finished, chosen: Chosen) -> list[str]:
    """A warning where a model from outside the corpus has a part in this one."""
    notes = []
    if run.cfg.tune.init_from is not None and run.cfg.arms[chosen.arm].synthetic:
        outside = code(run.cfg.tune.init_from)
        notes.append(
            f"**External**: {outside}, a model from outside the corpus, wrote its synthetic text; "
            f"that model's licence and data are part of this one's."
        )
    if run.cfg.model.init_from is not None:
        outside = code(run.cfg.model.init_from)
        notes.append(f"**External**: its weights started from {outside}, not from scratch.")
    return notes


def _verdict(run: Finished, arm: str | None = None) -> list[str]:
    """What training on the text bought, as far as that has been measured."""
    if run.evaluation is None:
        return ["## Results", "**Not evaluated**: the comparison of the arms is not finished."]
    chosen = run.evaluation.chosen
    rows = []
    for name, result in chosen.arms.items():
        gap = result.difference
        rows.append(
            [
                f"**{code(name)}**" if name == arm else code(name),
                chosen.kinds[name],
                _interval(result.loss),
                "" if gap is None else _interval(gap.interval, sign="+"),
                "" if gap is None else f"{gap.p:.2g}",
                "" if result.p_adjusted is None else f"{result.p_adjusted:.2g}",
            ]
        )
    blocks = [
        "## Results",
        plain(chosen.verdict),
        f"Nats a token of {chosen.docs:,} test documents, {chosen.seeds} "
        f"{'seed' if chosen.seeds == 1 else 'seeds'} an arm, "
        f"{100 * chosen.confidence:g}% intervals; below zero is better than repetition.",
        *_table(["arm", "kind", "test loss", "against repetition", "p", "p adjusted"], rows),
    ]
    if chosen.more_compute:
        blocks.append(plain(chosen.more_compute))
    return [*blocks, *_contamination(run.evaluation.contamination)]


def _contamination(by_task: Mapping[str, Contamination]) -> list[str]:
    """How many questions were left out, because a training text holds them."""
    sentences = []
    for title, counts in zip(titles(list(by_task)), by_task.values(), strict=True):
        sentences.append(
            f"{code(title)}: {counts.items:,} questions, {counts.seen:,} left out because "
            f"the training text holds them, {counts.short:,} too short to tell."
        )
    return [" ".join(sentences)] if sentences else []


def _given_back(run: Finished, arm: str) -> list[str]:
    """What can be got out of the model again, as far as that has been measured."""
    if run.extraction is None:
        return [
            "## What can be got out again",
            "**Not measured** (`extract.docs`): a model may give back passages of its corpus.",
        ]
    blocks = ["## What can be got out again"]
    said = sentence(run.extraction, arm)
    blocks.append(said or "**Not measured**: too few documents are long enough.")
    if run.extraction.canaries:
        blocks.append(
            f"The corpus holds {run.extraction.canaries:,} canaries, documents of random words "
            f"that were planted to measure this: the model was trained on them."
        )
    return blocks


def _quality(run: Finished) -> list[str]:
    """The measures of `analyze`: synthetic text beside real text."""
    if run.analysis is None:
        return ["## Quality", "**Not measured**: `synthboot analyze` has not been run."]
    measured = quality.measures(run.analysis)
    _, *kinds = measured.headers
    header = ["", *map(code, kinds)]
    counts = "Counts that anyone can repeat; *unseen real* is the bar."
    pretrain = run.cfg.pretrain
    if pretrain.text_per_seed and len(pretrain.seeds) > 1:
        counts += (
            f" Of the texts that seeds have of their own, that of seed {pretrain.seeds[0]} was "
            f"measured; the others are further draws of the same synthesizers."
        )
    if not run.analysis.judged:
        return ["## Quality", f"{counts} Truth was not judged.", *_table(header, measured.rows)]

    judged = quality.table(run.analysis)
    return [
        "## Quality",
        counts,
        *_table(header, measured.rows),
        "What judges say, corrected for their own errors: q0 and q1 are the shares of known clean "
        "and faulty cases that they told right; a judge without skill is refused.",
        *_table(judged.headers, [[plain(cell) for cell in row] for row in judged.rows]),
    ]


def _corpus(run: Finished) -> list[str]:
    """Where the real text came from, and what was left out of it."""
    summary = run.corpus.summary
    unique = f"{summary.pretrain_docs:,} documents, {summary.pretrain_tokens:,} tokens"
    rows = [
        *origins(run.cfg.corpus),
        ["records", f"{summary.records:,}"],
        ["D_pretrain", unique],
        *([["canaries", _canaries(run)]] if run.corpus.canaries else []),
        ["left out: bad records", _counted(summary.quarantined, summary.reasons)],
    ]
    for why, count in summary.dropped.items():
        rows.append([f"left out: {why.replace('_', ' ')}", f"{count:,}"])
    return ["## The corpus", *_table(["", ""], rows)]


def origins(corpus: config.Corpus) -> list[list[str]]:
    """What the text was read from, and what was replayed beside it, as rows of a table."""
    rows = []
    for what, given in {"sources": corpus.source, "replayed": corpus.replay}.items():
        if given is None:
            continue
        names = []
        for name in [given] if isinstance(given, str) else given:
            # on the hub a name says whose the text is
            is_of_hub = name.startswith(("hub:", "hf://"))
            names.append(code(name if is_of_hub else _last(name)))
        rows.append([what, ", ".join(names)])
    return rows


def _last(source: str) -> str:
    """The last part of a source's name: a path says how somebody's disk is laid out, and an address
    may have a key in it, before its host or behind its path."""
    if not is_url(source):
        return source.rstrip("/").rpartition("/")[2] or source
    host, *path = Url(source, 0, "").parts or ("",)
    return path[-1] if path else host.rpartition("@")[2]


def _canaries(run: Finished) -> str:
    """How many documents of D_pretrain are planted."""
    found = planted(run.corpus.canaries)
    copies = sum(canary.copies for canary in found)
    return f"{len(found):,}, random words, planted as {copies:,} of these documents"


def _counted(total: int, reasons: Mapping[str, int]) -> str:
    named = ", ".join(f"{code(why)} {count:,}" for why, count in list(reasons.items())[:5])
    return f"{total:,} ({named})" if named else f"{total:,}"


def _settings(made: Made) -> list[list[str]]:
    return [[code(key), code(value)] for key, value in made.manifest.reads.items()]


def _licence(license: str | None) -> list[str]:
    return ["## Licence of the sources", _UNKNOWN_LICENCE if license is None else code(license)]


def _provenance(run: Finished, artifacts: Sequence[Made]) -> list[str]:
    """What it was made by, to hold it against a run."""
    rows = []
    for made in artifacts:
        version = made.manifest.environment.get("synthboot", "unknown")
        rows.append([code(made.unit.name), code(made.manifest.fingerprint), code(version)])
    header = [f"artifact of run {code(run.cfg.name)}", "fingerprint", "synthboot"]
    return ["## Provenance", *_table(header, rows)]


def _interval(figure: Interval, sign: str = "") -> str:
    value, low, high = (format(number, f"{sign}.4f") for number in figure)
    return f"{value} ({low} to {high})"
