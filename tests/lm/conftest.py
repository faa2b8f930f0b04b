from typing import Any

import torch

from synthboot import config
from synthboot.lm import model as models
from synthboot.lm import pointer
from synthboot.lm.sampling import nucleus


def small_model(kv_heads: int = 1, vocab_size: int = 280, seed: int = 0, width: int = 32) -> Any:
    """A random model whose predictions are far from uniform. Its four heads are narrower than the compiled attention takes,
    unless `width` is 64 or more."""
    model = models.build(config.Model(layers=2, width=width, heads=4, kv_heads=kv_heads, seq_len=64), vocab_size, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5)
    return model.eval()


def draw(logits: torch.Tensor, seeds: torch.Tensor, steps: torch.Tensor, temperature: float, top_p: float) -> Any:
    """Tokens and log-probabilities, asked for until all are accepted."""
    tries = torch.zeros_like(seeds)
    token, logprob, accepted = nucleus.sample_top_p(logits, seeds, steps, tries, temperature, top_p)
    while not accepted.all():
        tries += nucleus.TRIES
        again = nucleus.sample_top_p(logits, seeds, steps, tries, temperature, top_p)
        token, logprob = (torch.where(accepted, old, new) for old, new in zip((token, logprob), again[:2], strict=True))
        accepted = accepted | again[2]
    return token.numpy(), logprob.numpy()


def looked_for(d1: list[int], written: list[int]) -> tuple[int, list[int]]:
    """The length of the longest match of the last tokens written, and what follows it in d1."""
    for length in range(min(pointer.LONGEST_MATCH, len(written)), 0, -1):
        tail = written[-length:]
        following = [d1[i + length] for i in range(len(d1) - length) if d1[i : i + length] == tail]
        if following:
            return length, following
    return 0, []
