"""Sampling by vLLM in this process: one of its offline engines for each worker and GPU.

vLLM keeps its own key-value cache, shares the prefill of equal prompts, and batches by itself. It
comes from its own environment (`pip install vllm`); nothing here is imported unless
`synthesize.sampler` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.data.disk import read_json
from synthboot.errors import ConfigError, SamplingError, brief
from synthboot.lm.sampling.protocol import Request, Result


class VllmSampler:
    """A vLLM engine over the model in a folder.

    Seeds are per request, so results repeat on the same GPU and version.
    """

    def __init__(
        self,
        folder: Path,
        end: int,
        cfg: config.Synthesize,
        batch: int | None = None,
    ) -> None:
        try:
            import vllm
        except ImportError:
            raise ConfigError(
                "synthesize.sampler: vllm: needs vLLM: pip install vllm, or use `embedded`"
            ) from None
        self._vllm: Any = vllm
        self.folder = folder
        self.end = end
        self.cfg = cfg
        self.batch = batch
        vocab_size = int(read_json(folder / "config.json").get("vocab_size", 0))
        absent = tokenizers.load(folder).absent(vocab_size)
        self._bias = dict.fromkeys(absent, -100.0) or None  # the least that it takes
        self._engine: Any = None

    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order.

        The engine is rebuilt once where it fails; then SamplingError, with its reason.
        """
        prompts = [{"prompt_token_ids": list(r.prompt)} for r in requests]
        settings = [self._settings(r) for r in requests]
        for attempt in range(2):
            try:
                if self._engine is None:
                    self._engine = self._open()
                outputs = self._engine.generate(prompts, settings, use_tqdm=False)
                break
            except Exception as error:  # whatever the engine died of
                self._engine = None
                if attempt:
                    reason = f"{type(error).__name__}: {brief(error, 300)}"
                    raise SamplingError(
                        f"synthesize: vLLM failed twice on these {len(requests):,} requests "
                        f"({reason}); what is done is kept: run again, with fewer rows "
                        f"(engine.sample_batch) if memory ran out"
                    ) from None
        return [self._result(output.outputs[0]) for output in outputs]

    def _open(self) -> Any:
        """A fresh engine."""
        return self._vllm.LLM(
            model=str(self.folder),
            dtype=self.cfg.dtype,
            enable_prefix_caching=True,
            skip_tokenizer_init=True,
            max_num_seqs=self.batch or 256,
            trust_remote_code=False,
            generation_config="vllm",  # not the model's own
        )

    def _settings(self, request: Request) -> Any:
        """Its sampling parameters for a request: temperature and top-p, and nothing else."""
        return self._vllm.SamplingParams(
            temperature=self.cfg.temperature,
            top_p=self.cfg.top_p,
            max_tokens=request.max_tokens,
            seed=request.seed & (2**63 - 1),  # it takes no more than 63 bits
            stop_token_ids=[self.end],
            logprobs=0,  # of the token itself alone
            detokenize=False,
            logit_bias=self._bias,
            ignore_eos=True,  # what else the model came with as an end; `end` still ends
            top_k=-1,
            min_p=0.0,
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
        )

    def _result(self, output: Any) -> Result:
        tokens = tuple(output.token_ids)
        ended = bool(tokens) and tokens[-1] == self.end
        if ended:
            tokens = tokens[:-1]
        return Result(tokens, "end" if ended else "length", float(output.cumulative_logprob))
