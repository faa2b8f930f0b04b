"""What every sampler takes and gives: requests (prompt, seed, limit) -> results (tokens, finish
reason, log-probability).

Nothing but temperature and top-p shapes what is drawn, whatever generation settings a model came
with, and entries of a model's vocabulary that the tokenizer does not have (`absent`) are never
drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from synthboot.lm.pointer import Weights


@dataclass(frozen=True)
class Sampling:
    """How a model that is loaded here draws.

    `batch` rows are decoded together; without one the sampler finds its own, unless `agree`, which
    is given what times one, knows one already. Entries of the vocabulary that are `absent` from the
    tokenizer are never drawn. The built-in engine alone has a `contrast`, the `weights` of a
    pointer and a batch to `agree` on.
    """

    temperature: float
    top_p: float
    batch: int | None = None
    dtype: str = "auto"
    absent: Sequence[int] = ()
    contrast: float = 0.0
    weights: Weights | None = None
    agree: Callable[[Callable[[], int]], int] = lambda timed: timed()


@dataclass(frozen=True)
class Request:
    """A prompt to continue by at most `max_tokens`.

    Equal seeds give equal continuations of equal prompts. `alone` is the prompt without what it is
    conditioned on, ending in the same token and no longer, for a sampler that contrasts the two.
    `source` is what a sampler with a pointer may copy from.
    """

    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    alone: tuple[int, ...] = ()
    source: tuple[int, ...] = ()


@dataclass(frozen=True)
class Result:
    """A continuation, its end token left out.

    `logprob` is the sum over its tokens, the end token included, under the model at temperature 1
    and before truncation.
    """

    tokens: tuple[int, ...]
    finish: Literal["end", "length"]
    logprob: float


@runtime_checkable
class Sampler(Protocol):
    """Anything that continues prompts."""

    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order."""
        ...


def too_large(device: object, rows: int, least: int = 1) -> str:
    """What to say of a batch of `rows`, `least` of which there always are, that does not fit the
    memory of a device."""
    fewer = f"engine.sample_batch={max(least, rows // 2)}, or " if rows > least else ""
    return (
        f"{rows:,} rows at once do not fit the memory that is free on {device}: "
        f"set {fewer}a smaller engine.jobs or synthesize.max_tokens"
    )
