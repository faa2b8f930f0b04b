"""What a stage may read of the configuration, and what of that is in its fingerprint.

`READS` declares, stage by stage, the settings that decide what an artifact holds. A stage is handed
`view`, a configuration that has these and no others: reading another one raises UndeclaredSetting,
so that nothing can be read that the fingerprint does not hold. `RUNTIME` says where and how work
runs; every stage may read it, and it is in no fingerprint. `WATCHING`, which is declared as all
else, is in none either. `Training` and `Synthesis` are what no setting says: which of several
models or texts it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from synthboot.config import Arm, Config, Filter, Section

RUNTIME = ("engine", "name", "root")
"""Settings that change where and how work runs, and nothing that is computed but for rounding."""

WATCHING = ("optim.max_spike",)
"""Settings that say when work is given up, and change nothing in what is finished: in no
fingerprint, so that what is raised after an error goes on from where it stopped."""

_WORLD = ("corpus.source", "corpus.world")
_TRAINING = (
    "model",
    "optim",
    "budget.train_tokens",
    "budget.replay_share",
)

ASKING = (
    "evaluate.checkpoint",
    "evaluate.task_items",
    "evaluate.task_folder",
    "seed",
    *_WORLD,
)
"""What scoring reads beside READS where there are questions to ask."""

READ_BY_EXTERNAL = ("tune.init_from", "tune.seq_len", "model.seq_len", "seed")
"""What preparing an external synthesizer reads beside READS of `corpus`."""

READ_BY_LIKELIHOOD = ("tune.seq_len", "tune.d1_share", "tune.pointer")
"""What judging by the likelihood of d2 reads beside READS of `analyze`, or of a filter."""

READ_BY_FILTER = ("embed", "analyze.judge_cases")
"""What throwing samples away reads beside READS of `synthesize`."""

READS: Mapping[str, tuple[str, ...]] = {
    "corpus": ("corpus", "budget.unique_tokens", "model.init_from"),
    "embed": ("embed", "seed"),
    # canaries are left out of what is calibrated, where earlier pairs had them in it
    "pair": ("pair", "corpus.canaries.count", "seed"),
    "base": _TRAINING,
    "tune": ("tune", "model.seq_len", "optim.precision", "seed"),
    "synthesize": (
        "synthesize",
        "tune.d1_share",
        "tune.contexts",
        "tune.init_from",
        "tune.seq_len",
        "model.seq_len",
        "seed",
    ),
    "pretrain": _TRAINING,
    "score": ("model.seq_len", "evaluate.tasks"),
    "evaluate": (
        "evaluate",
        "arms",
        "pretrain.text_per_seed",
        "tune.init_from",
        "embed",
        "seed",
        *_WORLD,
    ),
    "analyze": ("analyze", "embed", "model.seq_len", "seed", *_WORLD),
    "extract": (
        "extract",
        "evaluate.checkpoint",
        "evaluate.confidence",
        "model.seq_len",
    ),
    "report": tuple(name for name in Config.model_fields if name not in RUNTIME),
}
"""By stage, the dotted names of the settings that its artifacts depend on; a section stands for all
that is in it."""


@dataclass(frozen=True)
class Training:
    """Which model is trained."""

    arm: str
    """Name of its arm: `repetition` for base, whichever arms share it."""
    recipe: Arm
    """What it is trained on; that of a trial has the values of its combination."""
    seed: int
    """One of `pretrain.seeds`."""
    ready: bool = False
    """Whether one of the trials of its sweep is this model already."""

    @property
    def reads(self) -> dict[str, Any]:
        """What of this its artifact is known by: not what the arm is called."""
        return {"arm": changed(self.recipe), "unit.seed": self.seed}


@dataclass(frozen=True)
class Synthesis:
    """Which synthetic text is sampled, or chosen among the samples of another unit."""

    budget_tokens: int
    """Tokens that there have to be at least."""
    text_of_seed: int | None = None
    """The seed whose own text this is; None: that of all seeds, or of the first."""
    filter: Filter | None = None
    """What chooses; None: these are the samples."""

    @property
    def reads(self) -> dict[str, Any]:
        """What of this its artifact is known by."""
        known: dict[str, Any] = {"unit.budget_tokens": self.budget_tokens}
        if self.text_of_seed is not None:
            known["unit.text_of_seed"] = self.text_of_seed
        if self.filter is not None:
            chosen = changed(self.filter)
            chosen.pop("times", None)  # it says how much there is to choose from, not which samples
            known["filter"] = chosen
        return known


def view(cfg: Config, paths: Collection[str]) -> Config:
    """`cfg` with the settings under `paths` and RUNTIME, frozen, and no others.

    Raises nothing itself; reading a setting that is left out raises UndeclaredSetting.
    """
    seen: Config = _only(cfg, {*paths, *RUNTIME}, prefix="")
    return seen


def changed(cfg: Section) -> dict[str, object]:
    """The settings of a view (or of a section) that are not their default, by dotted name.

    RUNTIME and WATCHING are left out. Defaults are left out so that a setting added later, at a
    default that does what was done before, makes no finished artifact stale. Whoever changes a
    default has to raise the stage's number in `recipes.VERSIONS`.
    """
    settings: dict[str, object] = {}
    for name in _present(cfg):
        is_runtime = isinstance(cfg, Config) and name in RUNTIME
        if not is_runtime:
            settings |= _leaves(getattr(cfg, name), _default(cfg, name), name)
    return {name: value for name, value in settings.items() if name not in WATCHING}


def leaves(section: type[Section] = Config, prefix: str = "") -> list[str]:
    """The dotted name of every setting of the schema; recipes stand under `arms.*`."""
    names: list[str] = []
    for name, field in section.model_fields.items():
        nested = field.annotation
        if name == "arms":
            names += leaves(Arm, prefix=f"{prefix}arms.*.")
        elif isinstance(nested, type) and issubclass(nested, Section):
            names += leaves(nested, prefix=f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def default(path: str) -> Any:
    """The default of a setting, by its dotted name; None where it is required, or no setting."""
    section: Any = Config
    *above, name = path.split(".")
    for part in above:
        field = section.model_fields.get(part)
        # Below `arms` stand recipes, by names that are in no schema.
        section = field.annotation if field and part != "arms" else Arm
        if not (isinstance(section, type) and issubclass(section, Section)):
            return None
    field = section.model_fields.get(name)
    if field is None or field.is_required():
        return None
    return field.get_default(call_default_factory=True)


def _only(section: Section, paths: Collection[str], prefix: str) -> Any:
    """A copy of a section with what `paths` names; `prefix` is its own dotted name and a dot."""
    kept: dict[str, object] = {}
    for name in _present(section):
        path = prefix + name
        value = getattr(section, name)
        if path in paths:
            kept[name] = value
        elif isinstance(value, Section) and any(p.startswith(f"{path}.") for p in paths):
            # Declared in part: `model.seq_len` and nothing else of `model`.
            kept[name] = _only(value, paths, prefix=f"{path}.")
    return section.holding(kept)


def _leaves(value: Any, default: object, path: str) -> dict[str, object]:
    """What differs from the default, by dotted name."""
    if isinstance(value, Section):
        inner = {name: getattr(value, name) for name in _present(value)}
        defaults = {name: _default(value, name) for name in inner}
    # Arms have no default: each is compared with that of its recipe.
    elif path == "arms":
        inner = dict(value)
        defaults = dict.fromkeys(inner)
    else:
        return {} if value == default else {path: value}
    differing: dict[str, object] = {}
    for name, part in inner.items():
        differing |= _leaves(part, defaults[name], f"{path}.{name}")
    return differing


def _present(section: Section) -> list[str]:
    # A view holds some settings only; in the order of the schema, whatever order they came in.
    return [name for name in type(section).model_fields if name in section.__dict__]


def _default(section: Section, name: str) -> object:
    return type(section).model_fields[name].get_default(call_default_factory=True)
