"""What lies beside a finished run's data, damaged: manifests, counts, summaries, progress; and the verbs that read them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import strategies as st

from synthboot.artifacts import store
from synthboot.cli import main
from synthboot.data import disk
from synthboot.errors import SynthbootError
from synthboot.lm import precision
from synthboot.runner import machines
from tests.fuzz.configurations import one_line
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.mutations import Change, Edit, changed, changes, edited, edits

FILES = [
    "01-corpus/manifest.json",
    "01-corpus/corpus.json",
    "01-corpus/quarantine.jsonl",
    "01-corpus/pool/shards.json",
    "01-corpus/pool/000000/part.json",
    "01-corpus/pool/000000/counts.json",
    "02-embed/manifest.json",
    "03-pair/related/manifest.json",
    "03-pair/related/pairs.json",
    "04-base/manifest.json",
    "04-base/last/part.json",
    "06-synthesize/related/manifest.json",
    "08-score/sbp/seed-0/manifest.json",
    "09-evaluate/manifest.json",
    "09-evaluate/evaluate.json",
    "11-report/manifest.json",
    "01-corpus/progress.json",
    "precision.json",
]
VERBS = ["plan", "status", "compare", "verify", "begin", "show pairs", "show quarantine"]
VERBS += ["show synthetic", "show copies"]

Damage = tuple[str, str, list[Change], bool, list[Edit]]


def inputs() -> st.SearchStrategy[Damage]:
    """A file, a verb, changes to the file's value, whether its hash is made to fit them, changes to its bytes."""
    return st.tuples(st.sampled_from(FILES), st.sampled_from(VERBS), changes(), st.booleans(), edits(2))


def rewritten(data: bytes, asked: list[Change], sealed: bool) -> bytes:
    """The JSON after the changes, with the hash that `disk.write_record` would give it."""
    value = changed(json.loads(data), asked)
    if sealed and isinstance(value, dict):
        value.pop("hash", None)
        value["hash"] = disk.record_hash(value)
    return json.dumps(value).encode()


@contextmanager
def fuzzer(place: Path, settings: dict[str, Any] | None = None) -> Iterator[Fuzzer[Any]]:
    """One file of a finished run changed, one verb asked; `settings` are those of a run that is there already."""
    if settings is None:
        from synthboot import api
        from tests.conftest import small_config, world_documents, write_jsonl

        world = write_jsonl(place / "world.jsonl", [*world_documents(), "{"])
        settings = small_config(world, place, pretrain={"seeds": [0]}, corpus__max_quarantine=0.5)
        api.Run(settings).run()
    run, runner = Path(settings["root"]) / settings["name"], CliRunner()
    (place / "fuzz.yaml").write_text(yaml.safe_dump(settings))
    before = {name: (run / name).read_bytes() if (run / name).exists() else None for name in FILES}

    def check(example: Damage) -> None:
        name, verb, asked, sealed, damage = example
        path, whole = run / name, before[name] or b'{"fingerprint": "0"}'
        if asked and not name.endswith(".jsonl"):
            whole = rewritten(whole, asked, sealed)
        path.write_bytes(edited(whole, damage))
        try:
            _ask(verb, path)
        finally:
            path.unlink(missing_ok=True)
            if (kept := before[name]) is not None:
                path.write_bytes(kept)

    def _ask(verb: str, path: Path) -> None:
        if verb == "verify":
            manifest = store.read_manifest(path.parent)
            if manifest is not None:
                store.verify(path.parent, manifest)
        elif verb == "begin":
            folder = place / "begun"
            folder.mkdir(exist_ok=True)
            (folder / store.PROGRESS).write_bytes(path.read_bytes())
            store.begin(folder, "0" * 32)
        else:
            word, *what = verb.split()
            arguments = [str(place / "fuzz.yaml")] if verb == "plan" else [str(run), *what]
            found = runner.invoke(main, [word, *arguments])
            one_line(found)
            if found.exit_code:
                raise SynthbootError(found.stderr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machines, "core_flops", lambda _: 1e9)
        patch.setattr(precision, "undecided", lambda cfg: False)
        yield Fuzzer("manifests", inputs(), check)
