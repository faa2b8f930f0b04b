"""The tokenizer: a byte-level BPE trained on D_pretrain alone, or any Hugging Face tokenizer.

Two tokens have a meaning of their own: `end` closes every document (and stands before the first, so that a document
always follows an end), and `separator` stands between d1 and d2.

Deviation: the paper's separator is not known; a token of its own cannot be confused with text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from synthboot.errors import ConfigError, CorruptArtifact

END, SEPARATOR = "<|end|>", "<|separator|>"
FILE = "tokenizer.json"
LONGEST = 128
"""Characters in the longest piece that is merged as one. Training and encoding take the square of a piece's length."""
_MANY = f"{{1,{LONGEST}}}"
_PIECE = (  # GPT-2's, but for the bound
    rf"'(?:[sdmt]|ll|ve|re)| ?\p{{L}}{_MANY}| ?\p{{N}}{_MANY}| ?[^\s\p{{L}}\p{{N}}]{_MANY}|\s{_MANY}(?!\S)|\s{_MANY}"
)


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` and the ids of its two special tokens."""

    backend: Any
    end: int
    separator: int

    @property
    def vocab_size(self) -> int:
        """Entries, special tokens included: one more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens: text that spells `<|end|>` stays text."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, closed by `end`."""
        return [[*ids, self.end] for ids in self.encode(texts)]

    def starts(self, text: str) -> list[int]:
        """Where in the text each of its tokens begins, in characters, the space before a word left out."""
        spans = self.backend.encode(text, add_special_tokens=False).offsets
        return [next((i for i in range(start, end) if not text[i].isspace()), start) for start, end in spans]

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

        end, separator = self.backend.id_to_token(self.end), self.backend.id_to_token(self.separator)
        return PreTrainedTokenizerFast(
            tokenizer_object=self.backend, eos_token=end, bos_token=end, pad_token=end, sep_token=separator
        )


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` entries, the same for the same texts."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    if vocab_size < 258:
        raise ConfigError(f"corpus.vocab_size: {vocab_size} is too small; 256 bytes and 2 special tokens need 258")
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECE), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
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
        raise CorruptArtifact(f"{path}: not a tokenizer ({error}); delete its folder and run again") from None
    names = _special_names(Path(source))
    return _with_specials(backend, names[0], names[1])


def from_hugging_face(source: str) -> Tokenizer:
    """Any fast Hugging Face tokenizer, its own end-of-text token kept and a separator added."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"corpus.tokenizer: {source}: cannot be loaded: {' '.join(str(error).split())}") from None
    if not found.is_fast or found.eos_token is None:
        raise ConfigError(f"corpus.tokenizer: {source}: needs a fast tokenizer with an end-of-text token")
    found.add_special_tokens({"sep_token": SEPARATOR})
    return _with_specials(found.backend_tokenizer, found.eos_token)


def _with_specials(backend: Any, end: str, separator: str = SEPARATOR) -> Tokenizer:
    backend.encode_special_tokens = True  # untrusted text must not be able to end a document
    backend.no_padding()
    backend.no_truncation()
    ids = [backend.token_to_id(token) for token in (end, separator)]
    if None in ids:
        raise ConfigError(
            f"corpus.tokenizer: it has no token {(end, separator)[ids.index(None)]!r}, which it says ends a document"
        )
    return Tokenizer(backend, *ids)


def _special_names(folder: Path) -> tuple[str, str]:
    import json

    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        return settings["eos_token"], settings["sep_token"]
    except (OSError, ValueError, KeyError) as error:
        raise CorruptArtifact(f"{folder}/tokenizer_config.json: unreadable ({error}); run again to rebuild") from None
