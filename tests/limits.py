"""How long something may take in a test."""

import sys


def limit(seconds: float) -> float:
    """These seconds, ten times as many where every line is traced (`make coverage`, a debugger)."""
    coverage = sys.modules.get("coverage")
    is_measured = coverage is not None and coverage.Coverage.current() is not None
    return 10 * seconds if is_measured or sys.gettrace() else seconds
