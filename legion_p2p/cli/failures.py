"""What an exception means to the user of a command: one line, what to do, and an exit code.

Exit codes: 0 done; 1 something else went wrong; 2 usage; 3 could not join, or nobody there; 4 this peer does not fit the run, or
this machine is too small for it; 5 done, but the model could not be written where it was asked for; 128 + the signal's number
when a signal ended it.
"""

import errno
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from legion_p2p.errors import (
    ClosedError,
    ConfigError,
    IncompatibleModelError,
    JoinError,
    LegionError,
    NetworkError,
    NoContactError,
    NotSavedError,
    TooLargeError,
    UnknownRunError,
    UsageError,
    short_name,
)
from legion_p2p.files.paths import shown

DONE, FAILED, USAGE, NOT_JOINED, MISFIT, NOT_SAVED = 0, 1, 2, 3, 4, 5

_IN_THE_SYSTEM = {
    errno.EMFILE: "this process may open no more files and connections; raise the limit: ulimit -n 4096",
    errno.ENFILE: "this machine may open no more files; raise fs.file-max, or end other programs",
    errno.EAGAIN: "this user may start no more processes or threads; raise the limit: ulimit -u",
    errno.ENOSPC: "no space left; free some, or name another place",
    errno.EDQUOT: "your share of the disk is used up; free some, or name another place",
    errno.EROFS: "the file system is read-only; name another place",
    errno.EBADF: "what it goes to was closed when this command began (>&-)",
    errno.EIO: "the disk or the terminal does not answer",
}


OTHER_NAMES = {
    "memory": (MISFIT, "There is too little memory: of the machine, of its container, or of what the process may use."),
    "system": (FAILED, "The operating system refused: a file, a disk, or a limit of this user. The message names what."),
    "unicode": (USAGE, "A name or a text is not valid Unicode."),
    "installation": (FAILED, "A part of the installation cannot be loaded. Install the package again."),
    "mistake": (FAILED, "A mistake in the program. `legion-ctl bugreport` writes what a report of it needs."),
}
"""Exit code and meaning of what ends a command but is no LegionError, by name."""


@dataclass(frozen=True)
class CommandFailure:
    """What is said of an exception."""

    text: str
    code: int
    hint: str = ""
    details: str = ""
    """The traceback, where the program itself seems to be at fault."""
    name: str = ""
    """The short name of the error, as in docs/errors.md."""


def failure_of(bad: BaseException, command: str) -> CommandFailure:
    """What the user is told of the exception that ended a command."""
    for text in filter(None, map(memory_problem, causes(bad))):
        hint = "a smaller --preset needs less; legion-peer --dry-run shows what a run needs"
        return CommandFailure(text, MISFIT, hint, name="memory")
    failed = [cause for cause in causes(bad) if isinstance(cause, LegionError)]
    if failed:
        told, at_fault = failed[0], next((one for one in failed if not isinstance(one, ClosedError)), failed[0])
        return CommandFailure(str(told), exit_code_of(at_fault), hint_for(at_fault, command), name=short_name(type(at_fault)))
    for cause in causes(bad):
        if isinstance(cause, OSError):
            return CommandFailure(system_problem(cause), FAILED, name="system")
        if isinstance(cause, UnicodeError):
            return CommandFailure(
                f"a name or text that is not valid Unicode: {cause.reason if hasattr(cause, 'reason') else cause}",
                USAGE,
                name="unicode",
            )
        if isinstance(cause, RuntimeError) and "can't start new thread" in str(cause):
            return CommandFailure(_IN_THE_SYSTEM[errno.EAGAIN], FAILED, name="system")
        if isinstance(cause, ImportError):
            text = f"a part of the installation cannot be loaded: {_first_line(str(cause))}"
            return CommandFailure(
                text, FAILED, "install the package again; legion-peer --version shows which this is", name="installation"
            )
    root = list(causes(bad))[-1]
    text = f"an unexpected {type(root).__name__}: {_first_line(str(root)) or 'without a message'}"
    return CommandFailure(
        text, FAILED, "this is a mistake in the program; please report it with the lines above",
        "".join(traceback.format_exception(bad)), "mistake",
    )  # fmt: skip


def causes(bad: BaseException) -> Iterator[BaseException]:
    """The exception itself, those that it groups, and what they were raised from, from the outside to the inside; each once."""
    seen: set[int] = set()
    waiting = [bad]
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
        if cause.__cause__ is not None:
            waiting.append(cause.__cause__)


def memory_problem(bad: BaseException) -> str | None:
    """What is said of too little memory; None for any other error."""
    from legion_p2p.observe.human import bytes_text
    from legion_p2p.observe.memory import free_memory, is_out_of_memory, used_memory, wanted_memory

    if not is_out_of_memory(bad):
        return None
    amount = wanted_memory(bad)
    wanted = f" for {amount} more" if amount else ""
    free = free_memory()
    return (
        f"there is too little memory{wanted}: this process has {bytes_text(used_memory())}, and may have "
        f"{bytes_text(max(0, free.n_bytes))} more ({free.bound_by})"
    )


def system_problem(failed: OSError) -> str:
    """What the system refused, and of which file or stream."""
    where = f"{shown(str(failed.filename))}: " if isinstance(failed.filename, str) else ""
    known = _IN_THE_SYSTEM.get(failed.errno) if failed.errno is not None else None
    return where + (known or (failed.strerror or _first_line(str(failed)) or type(failed).__name__).lower())


def exit_code_of(bad: LegionError) -> int:
    if isinstance(bad, UsageError):
        return USAGE
    if isinstance(bad, JoinError | NetworkError):
        return NOT_JOINED
    if isinstance(bad, NotSavedError):
        return NOT_SAVED
    return MISFIT if isinstance(bad, IncompatibleModelError | TooLargeError) else FAILED


def hint_for(bad: LegionError, command: str) -> str:
    """What the user can do about it, where the message does not say so."""
    if isinstance(bad, UsageError) and not isinstance(bad, ConfigError) and "\n" not in str(bad):
        return f"see {command} --help"
    if isinstance(bad, NoContactError):
        return "check that one of them runs and that its address is right; legion-bootstrap starts one and prints its address"
    if isinstance(bad, UnknownRunError):
        return "if the run exists, check its name, and that the addresses given belong to the same network"
    return ""


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else ""
