"""The command line itself, `main`, what its verbs have in common, and how they end."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import click

from synthboot.cli.output import say
from synthboot.terminal import one_line


class Verb(click.Command):
    """A command whose user errors are one line and exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        """Run it, turning errors into exit codes."""
        from synthboot.data.disk import storage_errors
        from synthboot.errors import SynthbootError
        from synthboot.pool import stoppable

        _allow_files()
        with stoppable() as came:
            try:
                with storage_errors(Path.cwd()):
                    return super().invoke(context)
            except SynthbootError as error:
                say(f"error: {one_line(str(error))}", err=True)
                sys.exit(2)
            except KeyboardInterrupt:
                # The terminal may be what went away.
                with suppress(OSError):
                    say(
                        "stopped; finished shards are kept, the same command goes on from there",
                        err=True,
                    )
                # As a shell reports a signal.
                sys.exit(128 + came[0] if came else 130)


class Verbs(click.Group):
    """The command line itself, on terminals of any encoding."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run it; characters that a stream's encoding lacks are written as escapes."""
        for stream in (sys.stdout, sys.stderr):
            # What stands in their place may have no encoding to set.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **options)


def _allow_files() -> None:
    """Open as many files as the system lets a process have: every shard of tokens is one."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="synthboot")
def main() -> None:
    """Synthetic Bootstrapped Pretraining: pair related documents, tune a synthesizer p(d2|d1),
    sample a corpus from it, pretrain on both, and show what that bought."""


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb a configuration, read with what `--set` overrides."""

    @click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
    @click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a setting, e.g. pair.num_neighbors=8.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.option(
        "--verify",
        is_flag=True,
        help="Hash the files that the run reads again, also those whose size and times are as "
        "they were.",
    )
    @wraps(function)
    def wrapped(
        config_file: Path, sets: tuple[str, ...], as_json: bool, verify: bool, **rest: Any
    ) -> Any:
        from synthboot import loading
        from synthboot.data import hashes

        cfg = loading.load(config_file, set=loading.parse_set(sets))
        if verify:
            hashes.forget(cfg.folder)
        return function(cfg, as_json, **rest)

    return wrapped


replacing = click.option(
    "--replace",
    is_flag=True,
    help="Give up more than ten minutes of work, finished or half made, where settings are others.",
)


taking = click.option(
    "--from",
    "others",
    metavar="RUN",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Take over what another run folder has finished of the same, as hard links.",
)
