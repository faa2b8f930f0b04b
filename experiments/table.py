"""Write an experiment's table of arms from the loss of every test document, and keep these losses beside it.

python experiments/table.py experiments/NAME --run runs/NAME          # keeps them; two arms are compared by the seeds of both
python experiments/table.py experiments/NAME                          # again from what was kept
python experiments/table.py experiments/NAME --control self random    # beside repetition, against other arms than `self` alone
python experiments/table.py experiments/NAME --beside experiments/OTHER    # with arms of another that has the same documents
"""

from __future__ import annotations

import argparse
import runpy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthboot import statistics
from synthboot.artifacts.scores import Scores
from synthboot.recipes import folder_of

ROOT = Path(__file__).parent.parent
REPETITION = "repetition"


def kept(runs: list[Path]) -> pa.Table:
    """arm, seed, doc, tokens, loss (nats): the best checkpoint of every model, of the first run that has it, by document."""
    folders: dict[tuple[str, int], Path] = {}
    for run in runs:
        for folder in sorted(folder_of(run, "score").glob("*/seed-*")):
            folders.setdefault((folder.parent.name, int(folder.name.removeprefix("seed-"))), folder)
    rows = []
    for (arm, seed), folder in sorted(folders.items()):
        documents = zip(*Scores.open(folder).by_document("best"), strict=True)
        rows += [(arm, seed, doc, int(tokens), np.float32(loss)) for doc, (loss, tokens) in enumerate(documents)]
    names = ("arm", "seed", "doc", "tokens", "loss")
    return pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))


@dataclass(frozen=True)
class Arm:
    """The losses (seed, doc) of an arm, by the seeds that it was trained with."""

    seeds: list[int]
    loss: np.ndarray

    def against(self, other: Arm, tokens: np.ndarray) -> statistics.Estimate:
        """How much more it loses, by the seeds of both."""
        both = sorted(set(self.seeds) & set(other.seeds))
        ours, theirs = (arm.loss[[arm.seeds.index(seed) for seed in both]] for arm in (self, other))
        return statistics.difference(ours, theirs, tokens)


def joined(own: pa.Table, other: pa.Table) -> pa.Table:
    """The losses of two experiments with the same test documents; an arm that both have is `NAME again` here."""
    documents = [table.group_by("doc").aggregate([("tokens", "max")]).sort_by("doc") for table in (own, other)]
    assert documents[0].equals(documents[1]), "not the same test documents"
    theirs = set(other["arm"].to_pylist())
    names = [f"{name} again" if name in theirs else name for name in own["arm"].to_pylist()]
    own = own.set_column(0, own.schema.field("arm"), pa.array(names))
    return pa.concat_tables([own, other])


def losses(table: pa.Table) -> tuple[dict[str, Arm], np.ndarray]:
    """Every arm by its name, repetition first, and the tokens of each document."""
    table = table.sort_by([("arm", "ascending"), ("seed", "ascending"), ("doc", "ascending")])
    docs = len(set(table["doc"].to_pylist()))
    names = table["arm"].to_pylist()[::docs]  # of each model
    seeds = table["seed"].to_pylist()[::docs]
    loss = table["loss"].to_numpy().astype(float).reshape(-1, docs)  # (model, doc)
    by_arm = {}
    for name in sorted(set(names), key=lambda name: (name != REPETITION, name)):
        models = [i for i, of in enumerate(names) if of == name]
        by_arm[name] = Arm([seeds[i] for i in models], loss[models])
    return by_arm, table["tokens"].to_numpy()[:docs]


def markdown(by_arm: dict[str, Arm], tokens: np.ndarray, controls: list[str]) -> str:
    """A row for every arm; p adjusted by Holm for the arms that are no oracle.

    An arm whose name ends like a control's, as `sbp_10` and `self_10` do, is held against that one.
    """
    against = {name: arm.against(by_arm[REPETITION], tokens) for name, arm in by_arm.items()}
    tested = {n: d.p for n, d in against.items() if n != REPETITION and not n.startswith(("oracle", "ensemble"))}
    adjusted = statistics.holm(tested)
    heads = "".join(f" against {control} | p |" for control in controls)
    lines = [
        f"| arm | loss | by seed | against repetition | p | adjusted |{heads}",
        "|---|---|---|---|--:|--:|" + "---|--:|" * len(controls),
    ]
    for name, arm in by_arm.items():
        mean = statistics.estimate(arm.loss, tokens)
        cells = [name, f"{mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}]", ", ".join(f"{x:.4f}" for x in mean.by_seed)]
        cells += ["", "", ""] if name == REPETITION else [span(against[name]), p(against[name].p), p(adjusted.get(name))]
        for control in controls:
            like = control + name[name.find("_") :] if "_" in name else control
            like = like if like in by_arm else control
            compared = like in by_arm and name not in (like, REPETITION)
            other = arm.against(by_arm[like], tokens) if compared else None
            cells += [span(other), p(other.p)] if other else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def span(found: statistics.Estimate) -> str:
    """A difference with its interval."""
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def p(value: float | None) -> str:
    """A p-value with two digits."""
    return "" if value is None else f"{value:.2g}"


def main() -> None:
    """Keep the losses where a run is given, and write the table into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--run", type=Path, nargs="+", help="run folders that have scores")
    parser.add_argument("--control", nargs="+", default=["self"], help="arms that others are held against beside repetition")
    parser.add_argument("--beside", type=Path, help="an experiment whose arms stand in the table too")
    args = parser.parse_args()
    store = args.experiment / "losses.parquet"
    if args.run:
        pq.write_table(kept(args.run), store, compression="zstd", use_dictionary=["arm"])
    every = pq.read_table(store)
    if args.beside:
        every = joined(every, pq.read_table(args.beside / "losses.parquet"))
    table = markdown(*losses(every), args.control)
    page = args.experiment / "README.md"
    text = page.read_text("utf-8")
    start, end = "<!-- table -->\n", "<!-- /table -->"
    head, rest = text.split(start)
    page.write_text(f"{head}{start}{table}\n{end}{rest.split(end)[1]}", "utf-8")
    print(table)
    runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="__main__")


if __name__ == "__main__":
    main()
