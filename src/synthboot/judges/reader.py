"""A language model that is asked: yes or no?

The prompts lie beside this file, two for each question: in the second the documents and the two
answers stand in the other order. What is kept of an answer is how much likelier `yes`, which is the
fault, is than `no`; where a server gives no probabilities, what it says.

The texts in a prompt are nobody's to trust: tokens that would end a message are broken up in them
for a local model; a server has to do that for itself, as chat endpoints do.
A text may still argue with its judge; planted cases do not, so they do not measure that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from importlib import resources
from typing import Any, Protocol, runtime_checkable

import numpy as np
import regex

from synthboot import config
from synthboot.artifacts.judged import Question, Spent
from synthboot.errors import ConfigError, unloadable
from synthboot.judges.protocol import QUESTIONS, Item, OnScore
from synthboot.lm import layouts
from synthboot.lm import model as models
from synthboot.lm.endpoint import Asked, Endpoint, Refused, key, log_probability, one_choice, shown

PASSES = 2
_ANSWERS = {"yes": 1.0, "no": -1.0}
_TOP = 20  # alternatives to the first token of an answer: the most that servers give
_ANSWER_TOKENS = 4
_ANSWER_BYTES = 2**17
_WORD = regex.compile(r"\p{L}+")


def prompt(question: Question, pass_number: int) -> str:
    """The prompt of a pass, with places for `{text}`, `{d1}` and `{references}`."""
    file = resources.files("synthboot.judges") / "prompts" / f"{question}-{pass_number + 1}.txt"
    return file.read_text("utf-8")


def prompt_hashes() -> dict[str, str]:
    """By the name of each prompt, 16 hex digits of its hash."""
    hashes = {}
    for question in QUESTIONS:
        for pass_number in range(PASSES):
            text = prompt(question, pass_number).encode()
            name = f"{question}-{pass_number + 1}"
            hashes[name] = hashlib.blake2b(text, digest_size=8).hexdigest()
    return hashes


@runtime_checkable
class Model(Protocol):
    """Whatever answers prompts."""

    def prefer(self, prompts: Sequence[str], on_score: OnScore) -> None:
        """Hand to `on_score`, for every prompt, how much likelier `yes` is than `no`, in nats;
        not-a-number where it is neither."""
        ...


class Reader:
    """A language model as a judge."""

    def __init__(self, name: str, model: Model, identity: Mapping[str, str]) -> None:
        self.name = name
        self.model = model
        self.identity: Mapping[str, str] = {**identity, **prompt_hashes()}

    def passes(self, question: Question) -> int:
        """Twice, in both orders."""
        return PASSES

    def score(
        self, question: Question, items: Sequence[Item], pass_number: int, on_score: OnScore
    ) -> None:
        """How much likelier `yes` is than `no`, in nats, for every item."""
        template = prompt(question, pass_number)
        prompts = []
        for item in items:
            references = "\n\n".join(item.references)
            prompts.append(template.format(text=item.text, d1=item.d1, references=references))
        self.model.prefer(prompts, on_score)


class Served:
    """A model behind an OpenAI-compatible chat endpoint."""

    def __init__(self, model: str, server: config.Endpoint) -> None:
        self.model = model
        self._endpoint = Endpoint(
            server, "chat/completions", "engine.judge", key("SYNTHBOOT_JUDGE_API_KEY")
        )

    def prefer(self, prompts: Sequence[str], on_score: OnScore) -> None:
        """As `Model` has it. Raises SamplingError where a request fails for good."""
        asked = []
        for text in prompts:
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": _ANSWER_TOKENS,
                "temperature": 0,
                "seed": 0,
                "logprobs": True,
                "top_logprobs": _TOP,
            }
            asked.append(Asked(body, _ANSWER_BYTES, _answered))

        def answered(index: int, answer: tuple[float, Spent]) -> None:
            on_score(index, *answer)

        self._endpoint.ask(asked, answered)


class Local:
    """A model in a Hugging Face folder, or of a name on the hub, one prompt at a time."""

    def __init__(self, source: str, device: str) -> None:
        self.source = source
        self.device = device

    def prefer(self, prompts: Sequence[str], on_score: OnScore) -> None:
        """As `Model` has it.

        Raises ConfigError where the model cannot be loaded or has no room for a prompt.
        """
        import torch

        model, tokens_of, yes, no = self._loaded
        longest = layouts.setting(model, "max_position_embeddings")
        where = next(model.parameters()).device
        for index, text in enumerate(prompts):
            ids = tokens_of(text)
            if longest and len(ids) > longest:
                raise ConfigError(
                    f"analyze.judges: local:{self.source}: has room for {longest:,} tokens, and a "
                    f"prompt has {len(ids):,}; choose another model"
                )
            with torch.no_grad():
                inputs = torch.tensor([ids], device=where)  # (1, token)
                logits = model(input_ids=inputs, use_cache=False).logits[0, -1].double()
            gap = torch.logsumexp(logits[yes], 0) - torch.logsumexp(logits[no], 0)
            on_score(index, float(gap), Spent(prompt=len(ids)))

    @cached_property
    def _loaded(self) -> tuple[Any, Callable[[str], list[int]], list[int], list[int]]:
        """The model, what makes tokens of a prompt, and the tokens of yes and of no."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        models.quiet()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                self.source, dtype="float32", trust_remote_code=False
            )
        except Exception as error:  # OSError, ValueError, KeyError, by what is wrong with it
            raise ConfigError(f"analyze.judges: local:{self.source}: {unloadable(error)}") from None
        models.moved(model, models.device(self.device)).eval()

        first = {}
        for answer in _ANSWERS:
            spellings = [answer, f" {answer}", answer.title(), f" {answer.title()}"]
            encoded = [tokenizer.encode(text, add_special_tokens=False) for text in spellings]
            first[answer] = sorted({ids[0] for ids in encoded if len(ids) == 1})
        if not (first["yes"] and first["no"]) or set(first["yes"]) & set(first["no"]):
            raise ConfigError(
                f"analyze.judges: local:{self.source}: its tokenizer has no token for `yes` and "
                f"`no`; choose another model"
            )
        return model, partial(_message, tokenizer), first["yes"], first["no"]


def _message(tokenizer: Any, text: str) -> list[int]:
    """A prompt as the model is spoken to: as a message where it has a form for that."""
    # those of a chat's form are not always named special
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]):
        # there are tokens for runs of spaces, which speak for nobody
        if len(token) > 1 and not token.isspace():
            text = text.replace(token, f"{token[0]} {token[1:]}")
    if tokenizer.chat_template is None:
        return list(tokenizer.encode(f"{text.strip()}\nAnswer:"))
    message = [{"role": "user", "content": text}]
    spoken = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(spoken, add_special_tokens=False))


def _answered(answer: object) -> tuple[float, Spent]:
    """What was answered, and what it took. Raises Refused as `_preference` does."""
    preference = _preference(answer)
    usage = answer.get("usage") if isinstance(answer, dict) else None
    counts = []
    for name in ("prompt_tokens", "completion_tokens"):
        count = usage.get(name) if isinstance(usage, dict) else None
        if type(count) is not int or count < 0:
            return preference, Spent(untold=1)
        counts.append(count)
    return preference, Spent(*counts)


def _preference(answer: object) -> float:
    """How much likelier yes is than no; +1 and -1 where the server gives no probabilities, and
    not-a-number where it will not speak of such a text.

    Raises Refused for an answer that is none of a chat endpoint.
    """
    choice = one_choice(answer)
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {}
    said = message.get("content")
    if not isinstance(said, str):
        # a text of many, and the same whenever it is asked about
        if choice.get("finish_reason") == "content_filter" or message.get("refusal"):
            return math.nan
        raise Refused('the answer has no "message" with text; is it a chat endpoint?')
    alternatives = _alternatives(choice)
    if alternatives:
        return _gap(alternatives)
    word = _WORD.search(said[:100])
    return math.nan if word is None else _ANSWERS.get(word[0].lower(), math.nan)


def _alternatives(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(token, log-probability) of what might have been said first; empty where it is not told."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return []
    top = content[0].get("top_logprobs")
    found = []
    for entry in top if isinstance(top, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
            raise Refused(f"{shown(entry)} is no token with its probability")
        found.append((entry["token"], log_probability(entry.get("logprob"))))
    return found


def _gap(alternatives: Sequence[tuple[str, float]]) -> float:
    """How much likelier yes is than no; what is not among the alternatives is as likely as the
    least of them."""
    by_answer: dict[str, list[float]] = {answer: [] for answer in _ANSWERS}
    for token, logprob in alternatives:
        word = token.strip().lower()
        if word in by_answer:
            by_answer[word].append(logprob)
    if not any(by_answer.values()):
        return math.nan
    least = min(logprob for _, logprob in alternatives)
    yes, no = (np.logaddexp.reduce(by_answer[answer] or [least]) for answer in ("yes", "no"))
    return float(yes - no)
