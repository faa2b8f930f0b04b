"""openvino-genai as a peer of benchmarks/sample.py, which runs this in an environment of its own: it wants another torch.

    python -m venv ov && ov/bin/pip install openvino-genai optimum-intel
    python benchmarks/sample.py --openvino ov/bin/python

Reads a job (a model's folder, prompts as token ids, tokens to sample) from its first argument, converts the model, and for
every line on standard input runs the job once with continuous batching and prints the seconds and the tokens sampled.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import numpy as np
import openvino
import openvino_genai
from optimum.intel import OVModelForCausalLM


def main(job: Path) -> None:
    """Convert, then a run a line."""
    asked = json.loads(job.read_text("utf-8"))
    folder = job.parent / "openvino"
    OVModelForCausalLM.from_pretrained(asked["model"], export=True, compile=False, load_in_8bit=False).save_pretrained(folder)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs, scheduler.max_num_batched_tokens = asked["rows"], 4_096
    scheduler.cache_size, scheduler.dynamic_split_fuse = 2, True
    properties = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": asked["precision"], "PERFORMANCE_HINT": "THROUGHPUT"}
    pipe = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens, settings.do_sample, settings.temperature, settings.top_p = asked["tokens"], True, 1.0, 0.9
    settings.stop_token_ids = {0}
    prompts = [openvino.Tensor(np.array([p], np.int64)) for p in asked["prompts"]]
    for _ in sys.stdin:
        begun = time.perf_counter()
        results = pipe.generate(prompts, [settings] * len(prompts))
        sampled = sum(len(r.m_generation_ids[0]) for r in results)
        print(json.dumps([time.perf_counter() - begun, sampled]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
