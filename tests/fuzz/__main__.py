"""`make fuzz`: ten thousand inputs for each fuzzer, a line each, failures by kind with the smallest input of each."""

import argparse
import faulthandler
import sys
import tempfile
from pathlib import Path

from hypothesis import settings

from tests.fuzz import FUZZERS
from tests.fuzz.fuzzer import run


def main() -> int:
    """The number of fuzzers that found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="for each fuzzer")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs")
    parser.add_argument("--only", choices=list(FUZZERS), nargs="+", default=list(FUZZERS))
    asked = parser.parse_args()
    faulthandler.enable()
    profile = settings(settings.get_profile("full"), max_examples=asked.inputs)
    memory = Path("/dev/shm")  # what is written is small and there is a lot of it: no disk has to bear it
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None) as place:
        for name in asked.only:
            here = Path(place, name)
            here.mkdir()
            with FUZZERS[name](here) as fuzzer:
                tally = run(fuzzer, profile, asked.seed, Path(tempfile.gettempdir(), f"fuzz-last-{name}"))
            print(f"{name}: {tally}", flush=True)
            for found, count in tally.faults.most_common():
                words, example = tally.smallest[found]
                print(f"  {count:,} x {found}: {words[:300]}\n    {example[:1_000]}", flush=True)
            failed += bool(tally.faults)
    return failed


if __name__ == "__main__":
    sys.exit(main())
