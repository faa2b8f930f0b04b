"""The tokenizer: a byte-level BPE trained on D_pretrain alone, or any Hugging Face tokenizer.

Two tokens have a meaning of their own: `end` closes every document (and stands before the first, so that a document
always follows an end), and `separator` stands between d1 and d2. No text becomes one of them, or another control token: added
tokens are not looked for in text, and where a vocabulary holds their spelling too, it is cut in two before it is looked up.

Deviation: the paper's separator is not known; a token of its own cannot be confused with text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from synthboot.errors import ConfigError, CorruptArtifact, DataError, unloadable

END, SEPARATOR = "<|end|>", "<|separator|>"
FILE = "tokenizer.json"
_CONTROL, _BYTE = re.compile(r"<\|.*\|>"), re.compile(r"<0x[0-9A-F]{2}>")
_LETTERS = ["é", "ж", "字", "ア", "ह", "ع", "🙂"]
"""What any text may hold."""
LONGEST = 128
"""Characters in the longest piece that is merged as one. Training and encoding take the square of a piece's length."""
_MANY = f"{{1,{LONGEST}}}"
_PIECE = (  # GPT-2's, but for the bound
    rf"'(?:[sdmt]|ll|ve|re)| ?\p{{L}}{_MANY}| ?\p{{N}}{_MANY}| ?[^\s\p{{L}}\p{{N}}]{_MANY}|\s{_MANY}(?!\S)|\s{_MANY}"
)


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer`, the ids of its two special tokens, of all tokens that no text may become, and of the one
    that stands for what it does not know, if it has one."""

    backend: Any
    end: int
    separator: int
    control: frozenset[int]
    unknown: int | None

    @property
    def vocab_size(self) -> int:
        """Entries, special tokens included: one more than the largest id."""
        return max(self.ids()) + 1

    def ids(self) -> set[int]:
        """The ids that stand for something."""
        return set(self.backend.get_vocab(with_added_tokens=True).values())

    def absent(self, size: int) -> list[int]:
        """The ids below `size`, a model's vocabulary, that stand for nothing: room that was left, or holes."""
        return sorted(set(range(size)) - self.ids())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens: text that spells `<|end|>` stays text."""
        found = [
            e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ]
        for text, ids in zip(texts, found, strict=True):
            if not self.control.isdisjoint(ids):
                token = self.backend.id_to_token(next(i for i in ids if i in self.control))
                raise DataError(
                    f"corpus.tokenizer: {text[:60]!r} becomes the control token {token!r}; choose another tokenizer"
                )
        return found

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, closed by `end`."""
        return [[*ids, self.end] for ids in self.encode(texts)]

    def starts(self, text: str) -> list[int]:
        """Where in the text each of its tokens begins, in characters, the space before a word left out."""
        spans = self.backend.encode(text, add_special_tokens=False).offsets
        return [
            next((i for i in range(start, end) if not text[i].isspace()), start)
            for start, end in spans
        ]

    def decode(self, ids: Iterable[int] | Integer[np.ndarray, " token"]) -> str:
        """The text of the ids, special tokens left out."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write it as a Hugging Face tokenizer folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.hugging_face().save_pretrained(folder)

    def hugging_face(self) -> Any:
        """The same tokenizer as a transformers object."""
        from transformers import PreTrainedTokenizerFast

        end, separator = (
            self.backend.id_to_token(self.end),
            self.backend.id_to_token(self.separator),
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=self.backend,
            eos_token=end,
            bos_token=end,
            pad_token=end,
            sep_token=separator,
        )


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` entries, the same for the same texts."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    if vocab_size < 258:
        raise ConfigError(
            f"corpus.vocab_size: {vocab_size} is too small; 256 bytes and 2 special tokens need 258"
        )
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECE), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _with_specials(backend, END)


def load(source: str | Path) -> Tokenizer:
    """The tokenizer in a folder that `save` wrote. Raises CorruptArtifact where there is none."""
    from tokenizers import Tokenizer as Backend

    path = Path(source) / FILE
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CorruptArtifact(
            f"{path}: not a tokenizer ({error}); delete its folder and run again"
        ) from None
    names = _special_names(Path(source))
    return _with_specials(backend, names[0], names[1])


def from_hugging_face(source: str) -> Tokenizer:
    """Any fast Hugging Face tokenizer, its own end-of-text token kept and a separator added."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, ImportError, and what tokenizers raises
        raise ConfigError(f"corpus.tokenizer: {source}: {unloadable(error)}") from None
    if not found.is_fast or found.eos_token is None:
        raise ConfigError(
            f"corpus.tokenizer: {source}: needs a fast tokenizer with an end-of-text token"
        )
    found.add_special_tokens({"sep_token": SEPARATOR})
    fitted = _with_specials(
        _guarded(found.backend_tokenizer, found.all_special_tokens), found.eos_token
    )
    if fault := _fault(fitted):
        kind = type(fitted.backend.model).__name__
        raise ConfigError(
            f"corpus.tokenizer: {source}: its {kind} {fault}; choose another, or `train`"
        )
    return fitted


def _guarded(backend: Any, named: Sequence[str]) -> Any:
    """The same tokenizer, with nothing in it that turns text into a control token: those `named` and added as special, and
    `<|...|>` by whatever flag. Its bytes, `<0x0A>`, are text."""
    from tokenizers import Regex, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    settings, unknown = json.loads(backend.to_str()), _unknown(backend)
    named = [*named, *([] if unknown is None else [backend.id_to_token(unknown)])]
    added = [
        t for t in settings["added_tokens"] if not _BYTE.fullmatch(t["content"])
    ]  # bytes are text
    for token in added:
        if token["special"] or token["content"] in named or _CONTROL.fullmatch(token["content"]):
            token |= {
                "special": True,
                "normalized": False,
            }  # what is not special is looked for in text
    guarded = Backend.from_str(json.dumps(settings | {"added_tokens": added}))
    guarded.add_special_tokens(
        [name for name in named if name not in {t["content"] for t in added}]
    )
    control = {*named, *(t["content"] for t in settings["added_tokens"] if t["special"])}
    # last, so that what a vocabulary looks up never holds a whole spelling, however the text was normalized before
    first = "|".join(
        f"{re.escape(c[0])}(?={re.escape(c[1:])})" for c in sorted(control) if len(c) > 1
    )
    cut = pre_tokenizers.Split(Regex(first), "isolated")
    before = [guarded.pre_tokenizer] if guarded.pre_tokenizer else []
    guarded.pre_tokenizer = pre_tokenizers.Sequence([*before, cut])
    return guarded


def _fault(fitted: Tokenizer) -> str:
    """What is wrong with a tokenizer for documents of any kind, by trying it; nothing where all is well."""
    names = [fitted.backend.id_to_token(i) for i in fitted.control]
    forms = "{}", "a{}b", " {} ", "{0}{0}"
    spelled = [form.format(name) for name in names for form in forms]
    try:
        fitted.encode([*spelled, *(text.swapcase() for text in spelled)])
    except DataError as error:
        return (
            str(error)
            .removeprefix("corpus.tokenizer: ")
            .partition(";")[0]
            .join(("lets text end documents: ", ""))
        )
    except Exception as error:  # the library raises bare Exception
        return f"cannot encode what it does not know ({error})"
    silent = [text for text, ids in zip(_LETTERS, fitted.encode(_LETTERS), strict=True) if not ids]
    return f"drops what it does not know without a word, such as {silent[0]!r}" if silent else ""


def _with_specials(backend: Any, end: str, separator: str = SEPARATOR) -> Tokenizer:
    backend.encode_special_tokens = True  # untrusted text must not be able to end a document
    backend.no_padding()
    backend.no_truncation()
    ids = [backend.token_to_id(token) for token in (end, separator)]
    if None in ids:
        raise ConfigError(
            f"corpus.tokenizer: it has no token {(end, separator)[ids.index(None)]!r}, which it says ends a document"
        )
    unknown = _unknown(backend)
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special} - {
        unknown
    }
    return Tokenizer(backend, ids[0], ids[1], frozenset({*ids, *special}), unknown)


def _unknown(backend: Any) -> int | None:
    """The id of what a vocabulary does not hold."""
    model = json.loads(backend.to_str())["model"]
    found = (
        model.get("unk_id")
        if model["type"] == "Unigram"
        else backend.token_to_id(model.get("unk_token") or "")
    )
    return None if found is None else int(found)


def _special_names(folder: Path) -> tuple[str, str]:
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        return settings["eos_token"], settings["sep_token"]
    except (OSError, ValueError, KeyError) as error:
        raise CorruptArtifact(
            f"{folder}/tokenizer_config.json: unreadable ({error}); run again to rebuild"
        ) from None
