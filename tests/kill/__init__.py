"""Random kills over the real command line: `make kill`, or `python -m tests.kill --kills 20`.

A campaign is one run folder: `synthboot run` is started, hit in one stage, started again, hit in the next, and so on,
then run to its end. What it leaves has to be what a run leaves that nobody touched: the same files, the same bytes, and
no process.
"""
