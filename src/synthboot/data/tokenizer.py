"""The tokenizer: a byte-level BPE trained on D_pretrain alone, or any Hugging Face tokenizer.

Two tokens have a meaning of their own: `end` closes every document (and stands before the first, so
that a document always follows an end), and `separator` stands between d1 and d2. No text becomes
one of them, or another control token: added tokens are not looked for in text, and where a
vocabulary holds their spelling too, it is cut in two before it is looked up.

Deviation: the paper's separator is not known; a token of its own cannot be confused with text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Integer

from synthboot.data.disk import require_regular
from synthboot.data.files import seen_from
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError, CorruptArtifact, DataError, unloadable

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

END = "<|end|>"
SEPARATOR = "<|separator|>"
FILE = "tokenizer.json"
_CONTROL = re.compile(r"<\|.*\|>")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LETTERS = ["é", "ж", "字", "ア", "ह", "ع", "🙂"]
"""What any text may hold."""
LONGEST = 128
"""Characters in the longest piece that is merged as one.

Training and encoding take the square of a piece's length.
"""
_MANY = f"{{1,{LONGEST}}}"
_PIECE = (  # GPT-2's, but for the bound
    r"'(?:[sdmt]|ll|ve|re)"
    rf"| ?\p{{L}}{_MANY}"
    rf"| ?\p{{N}}{_MANY}"
    rf"| ?[^\s\p{{L}}\p{{N}}]{_MANY}"
    rf"|\s{_MANY}(?!\S)"
    rf"|\s{_MANY}"
)


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` and the ids that mean something to us.

    `end` and `separator` are its two special tokens, `control` all tokens that no text may become,
    `unknown` stands for what it does not know, if it has one.
    """

    backend: Backend
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
        """The ids below `size`, a model's vocabulary, that stand for nothing.

        They are room that was left, or holes.
        """
        return sorted(set(range(size)) - self.ids())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens: text that spells `<|end|>` stays text."""
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        result = [encoding.ids for encoding in encoded]
        for text, ids in zip(texts, result, strict=True):
            if self.control.isdisjoint(ids):
                continue
            token = self.backend.id_to_token(next(i for i in ids if i in self.control))
            raise DataError(
                f"corpus.tokenizer: {text[:60]!r} becomes the control token {token!r}; "
                f"choose another tokenizer"
            )
        return result

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, closed by `end`."""
        return [[*ids, self.end] for ids in self.encode(texts)]

    def starts(self, text: str) -> list[int]:
        """Where in the text each of its tokens begins, in characters.

        The space before a word is left out.
        """
        starts = []
        for start, end in self.backend.encode(text, add_special_tokens=False).offsets:
            visible = (i for i in range(start, end) if not text[i].isspace())
            starts.append(next(visible, start))
        return starts

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

        end = self.backend.id_to_token(self.end)
        separator = self.backend.id_to_token(self.separator)
        return PreTrainedTokenizerFast(
            tokenizer_object=self.backend,
            eos_token=end,
            bos_token=end,  # a document always follows an end
            pad_token=end,
            sep_token=separator,
        )


@dataclass(frozen=True)
class Decoded(Sequence[str]):
    """The texts of documents, each decoded when it is asked for; of all, or of the `chosen` ones by
    their numbers."""

    tokens: Tokens
    tokenizer: Tokenizer
    chosen: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.tokens if self.chosen is None else self.chosen)

    def __getitem__(self, index: Any) -> Any:
        doc = int(index) if self.chosen is None else self.chosen[int(index)]
        # the end token, which closes a document, is no text
        return self.tokenizer.decode(self.tokens[doc][:-1])


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
    to_bytes = pre_tokenizers.ByteLevel(False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
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
        require_regular(path)
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CorruptArtifact(
            f"{path}: not a tokenizer ({error}); delete its folder and run again"
        ) from None
    end, separator = _special_names(Path(source))
    return _with_specials(backend, end, separator)


def from_hugging_face(source: str, setting: str = "corpus.tokenizer") -> Tokenizer:
    """Any fast Hugging Face tokenizer, its own end-of-text token kept and a separator added.

    Raises ConfigError, naming the `setting` that has it, for one that documents cannot be trusted
    to.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, ImportError, and what tokenizers raises
        raise ConfigError(f"{setting}: {source}{seen_from(source)}: {unloadable(error)}") from None
    if not loaded.is_fast or loaded.eos_token is None:
        raise ConfigError(f"{setting}: {source}: needs a fast tokenizer with an end-of-text token")
    loaded.add_special_tokens({"sep_token": SEPARATOR})
    backend = _guarded(loaded.backend_tokenizer, loaded.all_special_tokens)
    fitted = _with_specials(backend, loaded.eos_token)
    fault = _fault(fitted)
    if fault:
        # of a model it is the tokenizer that it has
        advice = "choose another" if setting != "corpus.tokenizer" else "choose another, or `train`"
        kind = type(fitted.backend.model).__name__
        raise ConfigError(f"{setting}: {source}: its {kind} {fault}; {advice}")
    return fitted


def _guarded(
    backend: Backend,
    named: Sequence[str],
) -> Backend:
    """The same tokenizer, with nothing in it that turns text into a control token.

    Control tokens are those `named` and added as special, and `<|...|>` by whatever flag. Its
    bytes, `<0x0A>`, are text.
    """
    from tokenizers import Regex, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    settings = json.loads(backend.to_str())
    unknown = _unknown(backend)
    named = list(named)
    if unknown is not None:
        named.append(str(backend.id_to_token(unknown)))

    # Bytes are text. Of what is left, added tokens that are not special are looked for in text.
    added = [t for t in settings["added_tokens"] if not _BYTE.fullmatch(t["content"])]
    for token in added:
        content = token["content"]
        if token["special"] or content in named or _CONTROL.fullmatch(content):
            token["special"] = True
            token["normalized"] = False
    guarded = Backend.from_str(json.dumps(settings | {"added_tokens": added}))
    contents = {token["content"] for token in added}
    guarded.add_special_tokens([name for name in named if name not in contents])

    control = set(named)
    for token in settings["added_tokens"]:
        if token["special"]:
            control.add(token["content"])
    # A spelling is cut behind its first character. The cut comes last, so that what a vocabulary
    # looks up never holds a whole spelling, however the text was normalized before.
    cuts = []
    for spelling in sorted(control):
        if len(spelling) > 1:
            cuts.append(f"{re.escape(spelling[0])}(?={re.escape(spelling[1:])})")
    first = "|".join(cuts)
    cut = pre_tokenizers.Split(Regex(first), "isolated")
    before = [guarded.pre_tokenizer] if guarded.pre_tokenizer else []
    guarded.pre_tokenizer = pre_tokenizers.Sequence([*before, cut])
    return guarded


def _fault(fitted: Tokenizer) -> str:
    """What is wrong with a tokenizer for documents of any kind; nothing where all is well.

    It is found by trying it.
    """
    spelled = []
    for number in fitted.control:
        name = str(fitted.backend.id_to_token(number))
        spelled += [name, f"a{name}b", f" {name} ", f"{name}{name}"]
    try:
        fitted.encode([*spelled, *(text.swapcase() for text in spelled)])
    except DataError as error:
        reason, _, _ = str(error).removeprefix("corpus.tokenizer: ").partition(";")
        return f"lets text end documents: {reason}"
    except Exception as error:  # the library raises bare Exception
        return f"cannot encode what it does not know ({error})"
    for text, ids in zip(_LETTERS, fitted.encode(_LETTERS), strict=True):
        if not ids:
            return f"drops what it does not know without a word, such as {text!r}"
    return ""


def _with_specials(
    backend: Backend,
    end: str,
    separator: str = SEPARATOR,
) -> Tokenizer:
    backend.encode_special_tokens = True  # untrusted text must not be able to end a document
    backend.no_padding()
    backend.no_truncation()
    ids = []
    for token in (end, separator):
        number = backend.token_to_id(token)
        if number is None:
            raise ConfigError(
                f"corpus.tokenizer: it has no token {token!r}, which it says ends a document"
            )
        ids.append(number)

    unknown = _unknown(backend)
    control = set(ids)
    for number, added in backend.get_added_tokens_decoder().items():
        if added.special and number != unknown:
            control.add(number)
    return Tokenizer(
        backend=backend,
        end=ids[0],
        separator=ids[1],
        control=frozenset(control),
        unknown=unknown,
    )


def _unknown(backend: Backend) -> int | None:
    """The id of what a vocabulary does not hold."""
    model = json.loads(backend.to_str())["model"]
    if model["type"] == "Unigram":
        number = model.get("unk_id")
    else:
        number = backend.token_to_id(model.get("unk_token") or "")
    return None if number is None else int(number)


def _special_names(folder: Path) -> tuple[str, str]:
    try:
        require_regular(folder / "tokenizer_config.json")
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        end, separator = settings["eos_token"], settings["sep_token"]
        if not (isinstance(end, str) and isinstance(separator, str)):
            raise TypeError("eos_token and sep_token are no text")
        return end, separator
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(
            f"{folder}/tokenizer_config.json: unreadable ({error}); run again to rebuild"
        ) from None
