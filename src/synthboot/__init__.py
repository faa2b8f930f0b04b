"""Synthetic Bootstrapped Pretraining: pair, tune, synthesize, pretrain, and show what that bought.

Source: Yang et al., arXiv:2509.15248. Names are imported when first used, so that
`import synthboot` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # editors and type checkers read these, and refuse what is not among them
    from synthboot import config as config
    from synthboot.api import Run as Run
    from synthboot.api import Study as Study
    from synthboot.api import Synthesizer as Synthesizer
    from synthboot.api import study as study
    from synthboot.artifacts.pairs import Pairs as Pairs
    from synthboot.data.documents import Document as Document
    from synthboot.data.tokens import Tokens as Tokens
    from synthboot.errors import SynthbootError as SynthbootError
    from synthboot.stages.analyze import analyze as analyze
    from synthboot.stages.corpus import corpus as corpus
    from synthboot.stages.embed import embed as embed
    from synthboot.stages.evaluate import evaluate as evaluate
    from synthboot.stages.pair import pair as pair
    from synthboot.stages.pretrain import pretrain as pretrain
    from synthboot.stages.synthesize import synthesize as synthesize
    from synthboot.stages.tune import tune as tune

# No name of a package of ours (`report`): an import of anything in it would put the package there.
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
    "study": "synthboot.api",
}
__all__ = list(_NAMES)
__version__: str

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            # takes longer than all else here
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("synthboot")
            except PackageNotFoundError:  # a checkout on the path
                raise AttributeError("synthboot is not installed, and has no version") from None
        if name not in _NAMES:
            raise AttributeError(f"module 'synthboot' has no attribute {name!r}")
        module = import_module(_NAMES[name])
        return module if _NAMES[name] == f"synthboot.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
