"""Several models as one, which gives the mean of their probabilities.

On disk a checkpoint of it is a folder of Hugging Face folders, `member-0`, `member-1` and so on.

Source: arXiv:2509.14786, ensembles where text is fixed and compute is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from synthboot.rng import rng


class EnsembleConfig(PretrainedConfig):
    """What an ensemble says of itself; its members have their layouts' configurations."""

    model_type = "ensemble"


class Ensemble(PreTrainedModel, GenerationMixin):
    """A causal LM whose logits are the logarithm of the mean probability over its members.

    It keeps no cache: `generate` reads a text anew for every token.
    """

    config_class = EnsembleConfig
    main_input_name = "input_ids"

    def __init__(self, members: Sequence[PreTrainedModel]) -> None:
        first = members[0].config.get_text_config()
        layout = EnsembleConfig()
        layout.vocab_size = first.vocab_size
        layout.max_position_embeddings = getattr(first, "max_position_embeddings", None)
        super().__init__(layout)
        self.members = torch.nn.ModuleList(members)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_: object,
    ) -> CausalLMOutput:
        """Logits (row, token, vocab), normalized: exp of them adds up to one."""
        total: Tensor | None = None
        for member in self.members:
            logits = member(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=False,
            ).logits
            log_probs = logits.float().log_softmax(-1)
            # one after the other, so that no more than two tables of logits are held
            total = log_probs if total is None else torch.logaddexp(total, log_probs)
        assert total is not None
        return CausalLMOutput(logits=total - math.log(len(self.members)))


def folders(checkpoint: Path) -> list[Path]:
    """The folders of the members of a checkpoint, in order; none where it is one model."""
    members: list[Path] = []
    while (folder := member(checkpoint, len(members))).is_dir():
        members.append(folder)
    return members


def member(folder: Path, number: int) -> Path:
    """Where a folder has a member."""
    return folder / f"member-{number}"


def seeds(seed: int, members: int) -> list[int]:
    """The seed of every member.

    Of 63 bits, so that no two ensembles share a member, nor has one the seed of another arm's
    model: what is shared by two seeds of an arm would make their difference look sure.
    """
    return [int(rng(seed, "train.member", number).integers(2**63)) for number in range(members)]


def mean_losses(
    losses: Float32[np.ndarray, "member token"],
) -> Float64[np.ndarray, "member token"]:
    """The loss of every token, in nats, by the mean probability of the first member alone, of the
    first two, and so on to all of them."""
    summed = np.logaddexp.accumulate(-losses.astype(np.float64))
    counts = np.arange(1, len(losses) + 1)[:, None]  # (member, 1)
    result: np.ndarray = np.log(counts) - summed
    return result
