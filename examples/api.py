"""The whole method from Python. Run from the repository's root: `python examples/api.py [CONFIG]`."""

import sys

import numpy as np

import synthboot as sb

run = sb.Run(sys.argv[1] if len(sys.argv) > 1 else "configs/demo.yaml")

for d1, d2, similarity in run.pair().sample(2):
    print(f"similarity {similarity:.3f}\n  d1: {d1[:90]}\n  d2: {d2[:90]}")

synthesizer = run.tune()
d1, d2, _ = run.pair().sample(1)[0]
print("sampled:", synthesizer.sample(given=d1, n=1)[0][:90])
print("log p(d2|d1):", round(synthesizer.logprob(text=d2, given=d1), 1))

print(run.evaluate().summary())
print(run.report().path)

# any stage works alone, on plain values
tokens = sb.Tokens.of([[5, 6, 7, 8, 0], [5, 6, 9, 8, 0], [1, 2, 3, 4, 0]])
vectors = np.array([[1.0, 0.0], [0.9, 0.436], [0.0, 1.0]])
pairs = sb.pair(vectors, tokens, sb.config.Pair(min_similarity=0.8, heldout_share=0))
print([(d1, d2, round(similarity, 3)) for d1, d2, similarity in pairs])
