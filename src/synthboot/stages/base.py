"""Train the language model on real text alone: D_pretrain -> base.

Its checkpoint of best validation loss is where the synthesizer starts; base is also the repetition arm of its seed, so
nothing is trained twice.

Source: arXiv:2509.15248, the synthesizer starts from an LM pretrained on the same D_pretrain. Deviation: from its best
validation loss, not from its end; a synthesizer started from an over-trained base loses the subject of d1.
"""

from __future__ import annotations

from pathlib import Path

from synthboot import config
from synthboot.data.artifacts import Progress, silent
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.lm.arm import Sources, Trained, train_arm


def base(
    cfg: config.Config, seed: int, text: Sources, validation: Tokens, tokenizer: Tokenizer, folder: Path,
    progress: Progress = silent, recipe: config.Arm | None = None,
) -> Trained:  # fmt: skip
    """The LM trained on D_pretrain alone (and what is to be replayed) for `budget.train_tokens`, or as `recipe`, one trial of
    repetition's sweep, says."""
    return train_arm(
        cfg, recipe or config.Arm(), seed, text, validation, tokenizer, folder, progress
    )
