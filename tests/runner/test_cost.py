"""What a plan says a run takes, beside what can be counted by hand or was really taken."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from click.testing import CliRunner

from synthboot import config, loading, recipes
from synthboot.artifacts import store
from synthboot.cli import main
from synthboot.errors import ConfigError
from synthboot.runner import cost, machines, work
from synthboot.runner.estimator import Estimator
from synthboot.runner.state import states
from tests.conftest import small_config, tiny_config

PAPER = Path(__file__).parent.parent.parent / "configs" / "paper.yaml"


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The paper's setting, on a machine that has none of its text."""
    monkeypatch.chdir(tmp_path)

    def planned(hardware: str, **sets: Any) -> cost.Plan:
        cfg = loading.load(PAPER, set={key.replace("__", "."): value for key, value in sets.items()})
        units = cost.units_anywhere(cfg)
        return cost.plan(cfg, units, states(cfg, units), hardware)

    return planned


def row(planned: cost.Plan, stage: str) -> cost.Row:
    return next(r for r in planned.rows if r.stage == stage)


def finished(root: Path, place: str, stage: str, seconds: float, reads: Any = None, **spent: float) -> None:
    """A finished artifact of which only the manifest matters."""
    folder = root / place
    folder.mkdir(parents=True)
    manifest = store.Manifest(stage, recipes.VERSIONS[stage], "0" * 32, reads or {}, {}, cost={"seconds": seconds, **spent})
    store.commit(folder, manifest)


def test_a_model_is_counted_as_transformers_builds_it() -> None:
    from synthboot.lm import model as models

    for cfg in (config.Model(layers=2, width=64, heads=4, kv_heads=2), config.Model(layers=1, width=48, heads=3, ffn=100)):
        built = models.build(cfg, 300, 0)
        size = work.model_size(cfg, 300)
        assert size.parameters == sum(p.numel() for p in built.parameters() if p.dim() > 1)
        for seq_len in (16, 512):
            assert size.forward(seq_len) == models.flops_per_token(built, seq_len)


def test_a_model_to_go_on_from_is_counted_by_its_own_configuration(tmp_path: Path) -> None:
    """SmolLM2-135M's, without a weight of it."""
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)
    size = work.model_size(config.Model(init_from=str(tmp_path)), 4_096)
    assert size.parameters == 134_515_008
    assert (size.layers, size.width, size.inner, size.kv_width, size.vocab_size) == (30, 576, 1_536, 192, 49_152)
    assert size.forward(2_048) == pytest.approx(2 * 134_515_008 + 2 * 30 * 576 * 2_048, rel=1e-3)
    with pytest.raises(ConfigError, match=r"model\.init_from: .*nowhere"):
        work.model_size(config.Model(init_from=str(tmp_path / "nowhere")), 4_096)


def test_the_papers_setting_is_planned_without_its_text(paper: Any) -> None:
    planned = paper("h100")
    model = planned.machine
    base = row(planned, "base")
    parameters = 26 * 3072 * (2 * 3072 + 2 * 1024 + 3 * 8064) + 49_152 * 3072
    forward = 2 * parameters + 2 * 26 * 3072 * 4096
    assert base.tokens == 200e9
    assert base.flops == pytest.approx(3 * forward * 200e9, rel=0.01)  # and the validation set 200 times
    assert base.device_hours == pytest.approx(base.flops / (0.4 * 989e12) / 3600, rel=1e-3)
    assert base.dollars == pytest.approx(3 * base.device_hours)
    assert row(planned, "synthesize").tokens == pytest.approx(75e9, rel=1e-3)
    assert row(planned, "embed").flops == pytest.approx(2 * 0.6e9 * 10e9, rel=0.01)
    # one device does one thing after the other
    assert planned.hours == pytest.approx(sum(r.device_hours for r in planned.rows), rel=1e-6)
    assert planned.dollars == pytest.approx(planned.hours * model.dollars_per_device_hour)
    assert "documents as long as the paper's" in planned.corpus.source
    assert all(r.rate for r in planned.rows)


def test_pairing_all_with_all_grows_with_the_square(paper: Any) -> None:
    ten = row(paper("h100", pair__search="exact"), "pair")
    hundred = row(paper("h100", pair__search="exact", budget__unique_tokens=100_000_000_000), "pair")
    documents = 10e9 / 828
    assert ten.flops == pytest.approx(2 * documents**2 * 1024, rel=0.01)
    assert hundred.flops == pytest.approx(100 * ten.flops, rel=0.01)
    assert row(paper("h100"), "pair").flops < ten.flops / 100


def test_one_process_alone_fits_the_embedder_however_many_there_are(paper: Any) -> None:
    core = machines.figures().core
    fitted = 20_000 * 828  # tokens of the documents that are fitted to
    fitting = (8 * 2 * (512 + 10) + 2 * 512) * fitted + 4 * 512**2 * 20_000
    alone = fitting / core.self_fitting_flops.value + core.start_seconds.value
    for tokens in (100_000_000, 10_000_000_000):
        embed = row(paper("h100", embed__model="self", embed__dim=256, budget__unique_tokens=tokens), "embed")
        by_all = 2 * 256 * embed.tokens / core.self_embedding_flops.value
        assert embed.hours == pytest.approx((alone + by_all / 16) / 3600, rel=0.01)


def test_more_devices_take_less_time_and_the_same_work(paper: Any) -> None:
    one = paper("h100")
    eight = paper("8xh100")
    together = paper("8xh100", engine__processes=8)
    assert eight.machine.devices == 8
    for stage in ("base", "pretrain", "tune"):
        assert row(eight, stage).device_hours == pytest.approx(row(one, stage).device_hours, rel=1e-6)
        assert row(together, stage).device_hours == pytest.approx(row(one, stage).device_hours, rel=0.01)
    # A model to a device: the two arms side by side, base before them.
    assert row(eight, "pretrain").hours == pytest.approx(row(one, "pretrain").hours / 2, rel=1e-6)
    assert row(eight, "synthesize").hours == pytest.approx(row(one, "synthesize").hours / 8, rel=1e-3)
    assert one.hours > eight.hours > together.hours
    assert "engine.processes=8" in " ".join(eight.notes)
    # The method's own arm comes after everything that it is made of.
    chain = ("corpus", "embed", "pair", "base", "tune", "synthesize", "pretrain", "score")
    assert eight.hours >= sum(row(eight, stage).hours for stage in chain)


def test_tuning_is_planned_with_all_that_is_read_to_measure_it(finished: dict[str, Any]) -> None:
    """Held-out pairs are read many times over; with few pairs to tune on, that is most of the work."""
    cfg = loading.load(finished)
    units = recipes.units(cfg)
    planned = work.Workload(cfg, work.sizes(cfg, [finished["corpus"]["source"]])).of(units["tune/related"])
    manifest = store.read_manifest(units["tune/related"].folder(cfg.folder))
    assert manifest is not None
    taken = manifest.cost["flops"] + manifest.cost["measuring_flops"]
    assert taken < planned.flops < 2 * taken  # five of thirty documents have a neighbour, which no plan can know
    assert manifest.cost["measuring_flops"] > 0.1 * taken
    more = cfg.model_copy(update={"tune": cfg.tune.model_copy(update={"base_share": "auto"})})
    with_shares = work.Workload(more, work.sizes(more, [finished["corpus"]["source"]])).of(units["tune/related"])
    assert with_shares.flops > 1.2 * planned.flops


def test_an_external_model_is_planned_in_tokens_of_its_own_and_writes_what_has_no_d1_too(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=49_152, architectures=["LlamaForCausalLM"], num_hidden_layers=2).save_pretrained(tmp_path / "own")
    settings = small_config(tmp_path / "none", tmp_path)
    related, plain = ({"synthetic": text, "share": 0.1} for text in ("related", "unconditional"))
    settings |= {"arms": {"repetition": {}, "sbp": related, "self": plain}, "tune": {"init_from": str(tmp_path / "own")}}
    settings["corpus"]["vocab_size"] = 2_048
    cfg = loading.load(settings)
    units = cost.units_anywhere(cfg)
    workload = work.Workload(cfg, work.sizes(cfg, []))
    planned = {name: workload.of(units[f"synthesize/{name}"]) for name in ("related", "unconditional")}
    # a token of a larger vocabulary is more text: 4.4 bytes beside 3.2 (`work._bytes_per_token`)
    budget = units["synthesize/related"].synthesis.budget_tokens
    assert planned["related"].tokens == planned["unconditional"].tokens == pytest.approx(budget * 3.215 / 4.43, rel=1e-3)
    assert planned["unconditional"].flops > planned["unconditional"].tokens * workload.synthesizer.flops_of_weights

    # no second reading of the corpus: its own documents encoded, beside the model
    sizes = workload.corpus
    external = workload.of(units["corpus/external"])
    encoded = sizes.pretrain_tokens + sizes.validation_tokens
    assert external.tokens == pytest.approx(encoded * 3.215 / 4.43, rel=1e-3)
    assert external.core_seconds < workload.of(units["corpus"]).core_seconds
    weights = 4 * workload.synthesizer.parameters
    assert weights < external.kept_bytes < weights + 4 * encoded
    # documents are as long as the paper's, of which the window holds no two
    assert workload.of(units["tune/unconditional"]).tokens == workload.of(units["tune/related"]).tokens

    # as it was counted, once it was
    counts = {"tokens": {"pretrain": round(workload.corpus.pretrain_tokens / 2)}}
    place = recipes.folder_of(cfg.folder, "corpus", "external")
    place.mkdir(parents=True)
    store.commit(place, store.Manifest("corpus", recipes.VERSIONS["corpus"], "0" * 32, {}, {}, counts, cost={"seconds": 9.0}))
    known = work.Workload(cfg, work.sizes(cfg, [])).of(units["synthesize/related"])
    assert known.tokens == pytest.approx(budget / 2, rel=1e-3)


def test_what_is_tuned_without_d1_reads_the_same_d2_and_nothing_else(tmp_path: Path) -> None:
    """As many tokens as stage `tune` counts it: half where both documents are alike in length and fit the window."""
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=512, architectures=["LlamaForCausalLM"], num_hidden_layers=2).save_pretrained(tmp_path / "own")
    settings = small_config(tmp_path / "none", tmp_path, corpus__source="world")
    related, plain = ({"synthetic": text, "share": 0.1} for text in ("related", "unconditional"))
    settings |= {"arms": {"repetition": {}, "sbp": related, "self": plain}}
    cfg = loading.load(settings | {"tune": {"init_from": str(tmp_path / "own"), "seq_len": 4_096, "max_tokens": 50_000}})
    units = cost.units_anywhere(cfg)
    workload = work.Workload(cfg, work.sizes(cfg, []))
    with_d1, without = (workload.of(units[f"tune/{name}"]) for name in ("related", "unconditional"))
    assert with_d1.tokens <= 50_000
    assert without.tokens == pytest.approx(with_d1.tokens / 2)
    assert without.flops == pytest.approx(with_d1.flops / 2)


def test_memory_is_that_of_the_model_that_is_trained_and_of_what_of_it_is(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from synthboot.lm import adapters

    sizes = {"hidden_size": 96, "intermediate_size": 200, "num_attention_heads": 6, "num_key_value_heads": 2}
    own = LlamaConfig(vocab_size=20_000, architectures=["LlamaForCausalLM"], num_hidden_layers=3, **sizes)
    own.save_pretrained(tmp_path / "own")

    def planned(**tune: Any) -> work.Workload:
        settings = small_config(tmp_path / "none", tmp_path)
        settings |= {"arms": {"sbp": {"synthetic": "related", "share": 0.1}, "repetition": {}}}
        cfg = loading.load(settings | {"tune": {"init_from": str(tmp_path / "own"), **tune}})
        units = cost.units_anywhere(cfg)
        rows = cost.plan(cfg, units, states(cfg, units), "h100")
        seen.update({r.stage: r.memory_bytes for r in rows.rows})
        return work.Workload(cfg, work.sizes(cfg, []))

    seen: dict[str, float] = {}
    workload = planned()
    whole = seen["tune"]
    assert seen["base"] == seen["pretrain"] < whole / 3
    planned(lora={"rank": 4})
    assert seen["tune"] < whole

    # what is trained beside the weights is as many numbers as the library's adapters have
    adapted = LlamaForCausalLM(own)
    adapters.add(adapted, config.Lora(rank=4), 0, "tune")
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    size = workload.synthesizer
    assert workload.state_bytes(size, config.Lora(rank=4)) == 6 * size.parameters + 18 * trained
    assert workload.state_bytes(size, config.Lora()) == 18 * size.parameters


def test_a_finished_corpus_is_counted_as_it_is_and_what_is_replayed_is_no_pool(tmp_path: Path) -> None:
    settings = small_config(tmp_path / "x.jsonl", tmp_path, budget__unique_tokens=3_000)
    counts = {
        "documents": {"pool": 900, "validation": 30, "test": 30, "replay": 40},
        "tokens": {"pool": 45_000, "validation": 1_500, "test": 1_500, "replay": 400_000},
        "pretrain_docs": 55,
        "pretrain_tokens": 3_021,
        "vocab_size": 400,
    }
    place = recipes.folder_of(loading.load(settings).folder, "corpus")
    place.mkdir(parents=True)
    reads = {"budget.unique_tokens": 3_000}
    store.commit(place, store.Manifest("corpus", recipes.VERSIONS["corpus"], "0" * 32, reads, {}, counts))
    found = work.sizes(loading.load(settings), [])
    assert (found.documents, found.tokens, found.document_tokens) == (960, 48_000, 50)
    assert (found.pretrain_documents, found.pretrain_tokens) == (55, 3_021)
    # of another budget it is an estimate again
    other = work.sizes(loading.load(settings, set={"budget.unique_tokens": 5_000}), [])
    assert (other.pretrain_documents, other.pretrain_tokens) == (100, 5_000)
    everything = work.sizes(loading.load(settings, set={"budget.unique_tokens": "all"}), [])
    assert everything.pretrain_tokens == 45_000


@pytest.mark.parametrize(
    ("hardware", "sets"),
    [
        ("h100", {"engine__micro_batch_tokens": 65_536}),
        ("a100", {"engine__micro_batch_tokens": None}),
        ("h100", {"model__layers": 60}),
        ("h100", {"engine__sample_batch": 4_096}),
        ("laptop", {}),
    ],
)
def test_a_machine_that_is_too_small_gets_no_hours_but_what_would_do(paper: Any, hardware: str, sets: Any) -> None:
    planned = paper(hardware, **sets)
    assert planned.misfits
    assert planned.hours is None
    assert planned.dollars is None
    assert all(r.hours is None and r.device_hours is None and r.dollars is None for r in planned.rows)
    assert "hours" not in cost.totals(planned)

    # What it says would fit does, on as many devices as it asks for.
    for _ in range(3):
        said = dict(re.findall(r"(engine\.\w+)=(\w+)", planned.misfits[0]))
        if not said:
            assert hardware == "laptop"
            return
        told = {key.replace(".", "__"): json.loads(value) for key, value in said.items()}
        sets = {**sets, **told}
        planned = paper(f"{sets.get('engine__processes', 1)}x{hardware}", **sets)
        if not planned.misfits:
            return
    raise AssertionError(planned.misfits)


def test_more_processes_than_devices_are_said(paper: Any) -> None:
    planned = paper("8xh100", engine__processes=32)
    assert planned.misfits == ["engine.processes is 32, and 8 x H100 SXM has 8 devices: take more devices, or fewer processes"]


def test_a_machine_of_ones_own(tmp_path: Path) -> None:
    cfg = loading.load(small_config(tmp_path / "x.jsonl", tmp_path))
    own = {
        "flops": {"bfloat16": "1e12"},
        "memory_bytes": "8e9",
        "memory_bytes_per_second": "1e11",
        "network_bytes_per_second": "1e9",
        "disk_bytes_per_second": "1e9",
        "cores": 4,
    }
    path = tmp_path / "own.yaml"

    def written(**changes: Any) -> str:
        path.write_text(yaml.safe_dump({**own, **changes}).replace("'", ""))
        return str(path)

    found = machines.machine(written(), cfg)
    assert found.flops == {"bfloat16": 1e12}
    assert (found.devices, found.dollars_per_device_hour, found.dtype("float32")) == (1, 0, "bfloat16")
    for changes, said in (
        ({"memory": 5}, "memory: extra"),
        ({"cores": 0}, "cores: input should be greater"),
        ({"flops": {"float12": 1.0}}, "flops.float12: input should be"),
        ({"flops": {"bfloat16": float("nan")}}, "flops.bfloat16: input should be"),
        ({"memory_bytes": float("inf")}, "memory_bytes: input should be"),
        ({"dollars_per_device_hour": float("nan")}, "dollars_per_device_hour: input should be"),
    ):
        with pytest.raises(ConfigError, match=f"own.yaml line [0-9]+: {said}"):
            machines.machine(written(**changes), cfg)
    for wrong in ("h1000", "0xh100", "8x", str(tmp_path / "none.yaml")):
        with pytest.raises(ConfigError):
            machines.machine(wrong, cfg)
    for name in machines.figures().machines:
        assert machines.machine(f"3x{name}", cfg).devices == 3 * machines.machine(name.upper(), cfg).devices


@pytest.mark.parametrize(("times", "chosen"), [(0.13, "float32"), (1.2, "float32"), (2.1, "bfloat16")])
def test_where_auto_leads_bfloat16_its_rate_is_what_a_plan_takes(
    times: float, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"float32": 1e11, "bfloat16": times * 1e11}
    monkeypatch.setattr(machines, "core_flops", rates.__getitem__)
    here = machines.this(loading.load(small_config(tmp_path / "x.jsonl", tmp_path)))
    assert here.flops == rates
    assert here.dtype("auto") == chosen  # as a run would choose, by the same margin
    assert here.dtype("float32") == "float32"


def test_the_memory_that_a_cluster_is_asked_for_is_about_what_units_took(finished: dict[str, Any]) -> None:
    """Most of a small model's is what its process imports."""
    cfg = loading.load(finished)
    units = recipes.units(cfg)
    asked = cost.host_memory(cfg, units)
    for name in ("base", "pretrain/sbp/seed-1", "score/sbp/seed-0", "evaluate"):
        manifest = store.read_manifest(units[name].folder(cfg.folder))
        assert manifest is not None
        assert 0.4 < asked[name] / manifest.cost["peak_memory_bytes"] < 2.5


def test_the_memory_of_a_processor_is_that_of_whole_processes(tmp_path: Path) -> None:
    """As finished runs of half a million parameters had it (experiments/2026-11-25-reading-map and others), in GB."""
    took = {"base": 0.92, "tune": 1.9, "score": 1.13, "synthesize": 1.1}
    settings = small_config(tmp_path / "none", tmp_path)
    settings |= {"arms": {"sbp": {"synthetic": "related", "share": 0.1}, "repetition": {}}}
    settings |= {"model": {"layers": 3, "width": 96, "heads": 6, "kv_heads": 6, "seq_len": 384}}
    settings["corpus"] = {**settings["corpus"], "vocab_size": 2_048}
    cfg = loading.load(settings)
    units = cost.units_anywhere(cfg)
    for hardware in ("this", "laptop"):
        seen = {r.stage: r.memory_bytes / 1e9 for r in cost.plan(cfg, units, states(cfg, units), hardware).rows}
        assert seen["report"] == pytest.approx(0.6, abs=0.1)
        for stage, expected in took.items():
            assert 0.5 < seen[stage] / expected < 2
    asked = cost.host_memory(cfg, units)
    assert max(asked[name] for name, unit in units.items() if unit.stage == "tune") > 1.3e9


def test_a_processors_cores_have_one_memory(tmp_path: Path) -> None:
    """What fits alone and not as often as there are cores is told; what does not fit has no hours."""
    laptop = machines.figures().machines["laptop"].model_dump()
    settings = small_config(tmp_path / "none", tmp_path)
    settings |= {"arms": {"sbp": {"synthetic": "related", "share": 0.1}, "repetition": {}}}
    cfg = loading.load(settings, set={"pretrain.seeds": list(range(8))})
    units = cost.units_anywhere(cfg)
    needed = max(cost.host_memory(cfg, units).values())

    def planned(memory: float) -> cost.Plan:
        own = tmp_path / "own.yaml"
        own.write_text(json.dumps({**laptop, "devices": 8, "memory_bytes": memory / 8}))
        return cost.plan(cfg, units, states(cfg, units), str(own))

    roomy = planned(20 * needed)
    assert not roomy.misfits
    assert not any("engine.jobs" in note for note in roomy.notes)
    crowded = planned(4 * needed)  # a core's share is half of what one artifact takes
    assert not crowded.misfits
    [note] = [note for note in crowded.notes if "engine.jobs" in note]
    each = cost.host_memory(cfg, units)["pretrain/sbp/seed-0"]
    assert f"engine.jobs={int(0.9 * 4 * needed / each)} would fit, and take longer" in note
    small = planned(0.5 * needed)
    assert small.hours is None
    assert all("of the memory of 8 x core of a laptop can be planned for" in misfit for misfit in small.misfits)
    assert any(misfit.startswith("tune needs") for misfit in small.misfits)


@pytest.mark.parametrize(
    ("groups", "limits", "allowed"),
    [
        ("", {}, None),
        ("0::/job_1/step_0\n", {"job_1/memory.max": "3000000\n", "job_1/step_0/memory.max": "max\n"}, 3e6),
        ("0::/elsewhere/on/the/machine\n", {"memory.max": "5000000\n"}, 5e6),
        ("0::/\n", {"memory.max": "max\n"}, None),
        (
            "3:cpuset:/job_1\n4:cpu,memory:/slurm/job_1\n0::/\n",
            {"memory/slurm/job_1/memory.limit_in_bytes": "2000000\n", "memory/memory.limit_in_bytes": str(2**63 - 4096)},
            2e6,
        ),
    ],
)
def test_memory_is_what_a_job_is_given(tmp_path: Path, groups: str, limits: dict[str, str], allowed: float | None) -> None:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in limits.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    installed = psutil.virtual_memory().total
    assert machines.memory_bytes(tmp_path) == pytest.approx(allowed or installed)
    cfg = loading.load(small_config(tmp_path / "x.jsonl", tmp_path))
    assert machines.this(cfg).memory_bytes <= machines.memory_bytes() / 2  # two jobs


def test_this_machine_is_measured_once(tmp_path: Path) -> None:
    cfg = loading.load(small_config(tmp_path / "x.jsonl", tmp_path))
    first = machines.this(cfg)
    assert machines.this(cfg) == first
    kept = tmp_path / machines.KEPT
    rates = json.loads(kept.read_text())
    kept.write_text(json.dumps(dict.fromkeys(rates, 1.5e9)))
    assert machines.this(cfg).flops["float32"] == 1.5e9
    for damaged in ("{", "[1]", json.dumps(dict.fromkeys(rates, "fast")), json.dumps(dict.fromkeys(rates, -1))):
        kept.write_text(damaged)
        assert machines.this(cfg).flops["float32"] > 1e8
        assert json.loads(kept.read_text()).keys() == rates.keys()


def test_rates_are_those_of_finished_artifacts_of_this_run_else_of_others(tmp_path: Path) -> None:
    cfg = loading.load(small_config(tmp_path / "x.jsonl", tmp_path, corpus__source="world"))
    units = recipes.units(cfg)

    def base_hours() -> tuple[float, str]:
        found = row(cost.plan(cfg, units, states(cfg, units)), "base")
        assert found.device_hours is not None
        return found.device_hours, found.rate

    assumed, said = base_hours()
    assert "TFLOP/s" in said
    flops = row(cost.plan(cfg, units, states(cfg, units)), "base").flops
    start = machines.figures().core.start_seconds.value
    finished(tmp_path, "other/04-base", "base", 100 + start, flops=flops)
    hours, said = base_hours()
    assert hours == pytest.approx((100 + start) / 3600)
    assert said == f"as 1 finished artifact of runs in {tmp_path}"
    # over before anything could be told; another stage; a run's own goes before those of others
    finished(tmp_path, "quick/04-base", "base", 0.1, flops=flops)
    finished(tmp_path, "other/05-tune/related", "tune", 1_000, flops=flops)
    assert base_hours()[0] == hours
    finished(tmp_path, "small/04-base/lr=1", "base", 10 + start, flops=flops)
    hours, said = base_hours()
    assert hours == pytest.approx((10 + start) / 3600)
    assert said == "as 1 finished artifact of this run"
    assert assumed != hours
    # one that was killed and gone on with says less than another, and more than none
    resumed = {"flops": flops, "earlier_seconds": 800.0}
    finished(tmp_path, "small/04-base/lr=2", "base", 900 + start, **resumed)
    assert base_hours()[0] == hours
    shutil.rmtree(tmp_path / "small/04-base/lr=1")
    assert base_hours()[0] == pytest.approx((900 + start) / 3600)
    # on another machine it says nothing
    assert "H100s" in row(cost.plan(cfg, units, states(cfg, units), "h100"), "base").rate


def test_scoring_takes_what_it_took_in_this_run_however_many_checkpoints_were_scored(tmp_path: Path) -> None:
    cfg = loading.load(small_config(tmp_path / "x.jsonl", tmp_path, corpus__source="world"))
    units = recipes.units(cfg)
    planned = row(cost.plan(cfg, units, states(cfg, units)), "score")
    start = machines.figures().core.start_seconds.value
    # the plan counts two checkpoints of each model; one was scored
    tokens = planned.tokens / planned.artifacts / 2
    finished(tmp_path, "small/08-score/repetition/seed-9", "score", 20 + start, tokens=tokens)
    hours = row(cost.plan(cfg, units, states(cfg, units)), "score").device_hours
    assert hours == pytest.approx(planned.artifacts * (20 + start) / 3600)


def test_predictions_are_held_to_what_was_taken_each_without_itself(tmp_path: Path) -> None:
    cfg = loading.load(small_config(tmp_path / "x.jsonl", tmp_path, corpus__source="world"))
    units = recipes.units(cfg)
    assert cost.check(cfg, units) == []
    flops = row(cost.plan(cfg, units, states(cfg, units)), "base").flops
    start = machines.figures().core.start_seconds.value
    reads = json.loads(json.dumps(units["base"].reads))
    finished(tmp_path, "small/04-base", "base", 40 + start, reads, flops=flops)
    finished(tmp_path, "other/04-base", "base", 10 + start, flops=flops)
    finished(tmp_path, "small/05-tune/related", "tune", 7, {"tune.lr": 1.0}, flops=flops)  # by other settings
    [checked] = cost.check(cfg, units)
    assert (checked.artifact, checked.actual) == ("base", 40 + start)
    assert checked.predicted == pytest.approx(10 + start)
    assert checked.ratio == pytest.approx((10 + start) / (40 + start))
    off = [cost.Checked("a", ratio, 1.0, "") for ratio in (0.5, 2.0, 1.1, 0.9, 4.0)]
    assert cost.median_error(off) == pytest.approx(2)


def test_the_demos_record_is_predicted_to_a_third_in_the_median(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a quiet machine of two cores; the share that training reaches was fitted to it, nothing else was."""
    root = PAPER.parent.parent
    monkeypatch.chdir(root)
    record = (root / "experiments" / "2026-11-23-demo" / "README.md").read_text("utf-8")
    laptop = machines.figures().machines["laptop"].model_dump()
    own = tmp_path / "two-cores.yaml"
    own.write_text(json.dumps({**laptop, "devices": 2, "cores": 2, "flops": {"float32": 74e9}}))
    cfg = loading.load(root / "configs" / "demo.yaml", set={"root": str(tmp_path)})
    units = recipes.units(cfg)
    estimator = Estimator(
        cfg, work.Workload(cfg, work.sizes(cfg, units["corpus"].outside["files"])), machines.machine(str(own), cfg), {}
    )
    checked = []
    needs = estimator.needs(units)
    for name, seconds in re.findall(r"^\[[0-9]+/14\] (\S+): ([0-9.]+) s", record, re.M):
        if name != "evaluate":  # which scored all models then
            predicted = estimator.seconds(units[name], estimator.workload.of(units[name]), needs[name], 1)
            checked.append(cost.Checked(name, predicted, float(seconds), ""))
    assert len(checked) == 13
    assert cost.median_error(checked) < 1.33
    assert all(0.5 < row.ratio < 2 for row in checked if row.actual > 0.2)


def test_plan_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["plan", str(PAPER), *arguments])

    said = call("--hardware", "8xh100").stdout
    assert re.search(r"^base +1 +200,000,000,000 ", said, re.M)
    assert re.search(r"on 8 x H100 SXM about [\d,]+ hours", said)
    assert re.search(r"^money: \$[\d,]+, 8 x [\d,]+ hours at \$3\.00", said, re.M)
    assert "rate of base, tune, pretrain, score: 40% of 989 TFLOP/s in bfloat16 (Llama 3" in said
    found = json.loads(call("--hardware", "8xh100", "--json").stdout)
    assert found["plan"]["hours"] == found["estimate"]["hours"] > 1
    assert not list(tmp_path.iterdir())  # a plan for another machine leaves nothing here

    small = call("--hardware", "h100", "--set", "engine.micro_batch_tokens=65536").stdout
    assert "does not fit: training needs" in small
    assert " hours" not in small.partition("to do:")[2].partition("\n")[0]
    for arguments, wrong in (
        (["--hardware", "h1"], "--hardware: 'h1' is not known"),
        (["--hardware", "this", "--check"], "plan --check: no"),
    ):
        failed = call(*arguments)
        assert failed.exit_code == 2
        assert wrong in failed.stderr
        assert failed.stderr.count("\n") == 1
    # without a machine it is `run`'s plan: what is missing is an error, as it was
    assert call().exit_code == 2


def test_durations_and_sizes_in_words() -> None:
    assert [work.duration(h) for h in (0.001, 0.5, 12.34, 1234.5)] == ["1 minute", "30 minutes", "12.3 hours", "1,234 hours"]
    assert [work.size(b) for b in (12, 1_500, 2e12, 3e18)] == ["12 B", "1.5 kB", "2 TB", "3e+03 PB"]
    assert math.isclose(cost.median_error([cost.Checked("a", 1.0, 1.0, "")]), 1)


def test_what_is_finished_here_is_planned_whole_for_another_machine(finished: dict[str, Any]) -> None:
    cfg = loading.load(finished)
    units = recipes.units(cfg)
    standing = states(cfg, units)
    assert {state.status for state in standing.values()} == {"done"}
    assert not cost.plan(cfg, units, standing).rows
    there = cost.plan(cfg, units, standing, "h100")
    assert {row.stage for row in there.rows} == {unit.stage for unit in units.values()}
    assert there.dollars


SMALL = {
    "tune__max_tokens": 100_000,
    "budget__unique_tokens": 150_000,
    "budget__train_tokens": 4_300_000,
    "optim__batch_tokens": 1_536,
    "corpus__vocab_size": 2_048,
    "corpus__validation_docs": 200,
    "model": {"layers": 3, "width": 96, "heads": 6, "seq_len": 384},
    "pretrain__seeds": list(range(10)),
}


def test_a_small_model_takes_a_gpu_as_long_as_its_kernels_are_launched(paper: Any) -> None:
    """Measured: 35 s a model alone and 60 to 82 beside fourteen others, on one H100 (docs/scaling-out.md)."""
    alone, shared, eight = (paper(h, **SMALL, engine__jobs=jobs) for h, jobs in (("h100", 0), ("h100", 10), ("8xh100", 0)))
    models = row(alone, "pretrain").artifacts
    each = row(alone, "pretrain").hours * 3600 / models
    assert each == pytest.approx(35, rel=0.05)
    assert row(alone, "pretrain").device_hours == row(alone, "pretrain").hours
    assert 60 < row(shared, "pretrain").hours * 3600 / -(-models // 10) < 82
    # the card is held less, as its time is shared
    assert row(shared, "pretrain").device_hours < row(alone, "pretrain").device_hours / 5
    hint = r"leaves most of a GPU idle: engine.jobs=16 trains 16 side by side"
    assert any(re.search(hint, note) for note in alone.notes)
    assert not any("idle" in note for note in paper("h100", **SMALL, engine__jobs=16).notes)
    assert not any("idle" in note for note in paper("h100").notes)
    # several processes train one model, and a cluster gives each model a GPU
    assert not any("idle" in note for note in paper("8xh100", **SMALL, engine__processes=2).notes)
    assert not any("idle" in note for note in paper("h100", **SMALL, engine__executor="ray").notes)
    assert row(eight, "pretrain").hours * 3600 == pytest.approx(each * -(-models // 8))


def test_jobs_that_share_a_busy_gpu_save_nothing(paper: Any) -> None:
    alone = paper("h100", pretrain__seeds=[0, 1, 2])
    shared = paper("h100", pretrain__seeds=[0, 1, 2], engine__jobs=16)
    assert row(shared, "pretrain").hours == pytest.approx(row(alone, "pretrain").hours, rel=0.01)
    assert row(shared, "pretrain").device_hours == pytest.approx(row(alone, "pretrain").device_hours, rel=0.01)


def test_a_gpu_here_is_one_however_many_jobs_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines.pool, "gpus", lambda: ["0"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    settings = tiny_config(tmp_path) | {"engine": {"device": "cuda", "jobs": 14}}
    here = machines.this(loading.load(settings))
    assert (here.title, here.devices) == ("H100 SXM", 1)


def test_what_is_kept_is_said_in_the_unit_of_the_table() -> None:
    totals = {"train_tokens": 1e6, "sampled_tokens": 0.0, "flops": 1e12, "hours": 2.0, "bytes": 5.2e6}
    assert cost.sentence(totals).endswith(" (to a factor of two) and 5.2 MB to keep")
