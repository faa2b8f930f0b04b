"""Synthetic Bootstrapped Pretraining: pair, tune, synthesize, pretrain, and show what that bought.

Source: Yang et al., arXiv:2509.15248. Names are imported when first used, so that
`import synthboot` is quick.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "Run": "synthboot.api",
    "Study": "synthboot.api",
    "Synthesizer": "synthboot.api",
    "Document": "synthboot.data.documents",
    "Tokens": "synthboot.data.tokens",
    "Pairs": "synthboot.artifacts.pairs",
    "SynthbootError": "synthboot.errors",
    "config": "synthboot.config",
    "corpus": "synthboot.stages.corpus",
    "embed": "synthboot.stages.embed",
    "pair": "synthboot.stages.pair",
    "tune": "synthboot.stages.tune",
    "synthesize": "synthboot.stages.synthesize",
    "pretrain": "synthboot.stages.pretrain",
    "evaluate": "synthboot.stages.evaluate",
    "analyze": "synthboot.stages.analyze",
    "report": "synthboot.report.page",
    "study": "synthboot.api",
}
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'synthboot' has no attribute {name!r}")
    module = import_module(_NAMES[name])
    return module if _NAMES[name] == f"synthboot.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
