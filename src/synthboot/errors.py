"""Every error a user can meet. Each message says where, what, and what to do about it.

The command line prints these as one line and exits with 2; anything else is a bug and exits with 1.
"""

import re
import stat

_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


class SynthbootError(Exception):
    """Base of all errors that the user, not the programmer, can mend.

    Always one line, whatever names it quotes.
    """

    def __str__(self) -> str:
        return _BREAKS.sub(" ", super().__str__())


class ConfigError(SynthbootError):
    """The configuration asks for something that does not exist or cannot be."""


class DataError(SynthbootError):
    """The user's files are missing, unreadable, or hold too many bad records."""


class BudgetError(SynthbootError):
    """There is not enough text for the tokens that were asked for."""


class UndeclaredSetting(SynthbootError):
    """A stage read a setting that `settings.READS` does not declare.

    That is a fault of the program, not of its user.
    """


class MissingArtifact(SynthbootError):
    """A stage was asked for before the stages it reads have run."""


class CorruptArtifact(SynthbootError):
    """A file on disk is not the file that its manifest describes."""


class UnfairComparison(SynthbootError):
    """The arms differ in more than their data, so no comparison of them would mean anything."""


class StorageError(SynthbootError):
    """The disk is full or the run folder cannot be written."""


class LockedRun(SynthbootError):
    """Another process is working on this run folder."""


class FinishedWork(SynthbootError):
    """Hours of finished work would be made anew, which nobody has asked for."""


class TrainingError(SynthbootError):
    """A model cannot be trained, or a checkpoint does not fit the model it is loaded into."""


class Diverged(TrainingError):
    """Training has gone wrong by its own settings.

    `reason` says how, in a line: neither where it lies nor what was read. `leap` is how many nats
    the loss lay above its mean, where that alone stopped it. `steps` and `evaluations` were made
    until then; whoever knows what these take adds its `cost`, as a finished model has it.
    """

    def __init__(
        self,
        message: str,
        reason: str = "",
        leap: float | None = None,
        steps: int = 0,
        evaluations: int = 0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.leap = leap
        self.steps = steps
        self.evaluations = evaluations
        self.cost: dict[str, float] = {}


class SamplingError(SynthbootError):
    """The engine or the server that samples has failed."""


def brief(error: object, most: int | None = 200) -> str:
    """What a library says of its error, in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


def irregular(mode: int) -> str:
    """What is said of a path of this mode (`os.stat`) that is no regular file; empty of one.

    A pipe is waited for until somebody writes to it, a device may never end, and neither can be
    read again, as a run does that goes on.
    """
    if stat.S_ISREG(mode):
        return ""
    special = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a folder",
    }
    what = special.get(stat.S_IFMT(mode), "a device")
    return f"is {what}, not a file"


def below(value: float, bound: float, digits: int) -> str:
    """A value that is less than a bound, with so many digits, or with as many as it takes not to be
    rounded up to the bound."""
    while digits < 16 and round(value, digits) >= bound:
        digits += 1
    return f"{value:.{digits}f}"


def unloadable(error: Exception) -> str:
    """Why a library could not load a model or a tokenizer, in a line.

    Its own code is never run (`trust_remote_code`).
    """
    reason = brief(error, None)
    if "trust_remote_code" in reason or "custom code" in reason:
        return (
            "it wants to run code of its own, which synthboot never does; "
            "choose a model that its library knows"
        )
    return f"cannot be loaded: {reason[:300]}"
