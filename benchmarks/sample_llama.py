"""llama.cpp as a peer of benchmarks/smollm.py, which runs this in an environment of its own.

    python -m venv llama && llama/bin/pip install xllamacpp     # llama.cpp's server, built for AVX2
    python benchmarks/smollm.py --llama llama/bin/python

Reads a job (a GGUF file, prompts as token ids, tokens to sample) from its first argument, and for every line on standard input
runs the job once, a slot of the server for each row, and prints the seconds and the tokens sampled.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import xllamacpp


def main(job: Path) -> None:
    """Load, then a run a line."""
    asked = json.loads(job.read_text("utf-8"))
    longest = max(map(len, asked["prompts"])) + asked["tokens"] + 1
    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.n_parallel = min(asked["rows"], len(asked["prompts"]))
    params.n_ctx = params.n_parallel * longest
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_batch, params.n_ubatch = 2_048, 512
    params.cont_batching, params.cache_prompt, params.cache_ram_mib = True, False, 0
    params.warmup, params.fit_params = False, False
    server = xllamacpp.Server(params)
    request = {
        "prompt": asked["prompts"],
        "n_predict": asked["tokens"],
        "max_tokens": asked["tokens"],
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "samplers": ["top_p", "temperature"],
        "ignore_eos": True,
        "cache_prompt": False,
    }
    for _ in sys.stdin:
        begun = time.perf_counter()
        answer = server.handle_completions(request)
        seconds = time.perf_counter() - begun
        # its count of tokens is of the first prompt alone
        assert all(choice["finish_reason"] == "length" for choice in answer["choices"])
        print(json.dumps([seconds, asked["tokens"] * len(answer["choices"])]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
