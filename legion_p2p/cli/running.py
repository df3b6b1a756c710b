"""Running a command to its end, whatever ends it: its exit code, and what is said on stderr."""

import atexit
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterable
from typing import NoReturn

from cyclopts import App, CycloptsError

from legion_p2p.cli.failures import DONE, FAILED, USAGE, CommandFailure, failure_of
from legion_p2p.cli.near_misses import meant
from legion_p2p.cli.process_one import reap_orphans_as_process_one
from legion_p2p.cli.signals import termination_as_interrupt
from legion_p2p.cli.standard_streams import flush, prepare_streams
from legion_p2p.files.paths import shown

COLLECT_AFTER = (50_000, 20, 100)
"""Thresholds of the garbage collector. With its defaults it goes through all that torch makes, again and again, while that is
imported: a sixth of the CPU time until a command begins its work."""
READER_GONE = 128 + 13  # as if SIGPIPE had ended it: whoever read our lines is gone


def run_app(app: App, argv: Iterable[str] | None = None) -> int:
    """Run the command to its end and return the exit code. Whatever it raises becomes a line or two on stderr."""
    name = app.name[0]
    prepare_streams()
    with termination_as_interrupt() as caught:
        try:
            code = _run(app, name, list(sys.argv[1:] if argv is None else argv))
            flush(sys.stdout)
        except KeyboardInterrupt:
            code = 128 + (caught[0] if caught else signal.SIGINT)
        except BrokenPipeError:
            code = READER_GONE
        except OSError as failed:  # at the last flush
            code = _tell(name, failure_of(failed, name))
    with contextlib.suppress(OSError):
        flush(sys.stdout)
    with contextlib.suppress(OSError):
        flush(sys.stderr)
    return code


def _run(app: App, name: str, words: list[str]) -> int:
    try:
        result = app(words, exit_on_error=False, print_error=False, verbose=False, result_action="return_value")
        return result if isinstance(result, int) and not isinstance(result, bool) else DONE
    except CycloptsError as bad:
        return _tell(name, CommandFailure(meant(name, bad) or _told(bad), USAGE, f"see {name} --help", name="usage"))
    except BrokenPipeError:
        return READER_GONE
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else DONE
    except KeyboardInterrupt:
        raise
    except BaseException as bad:  # the last net: a library may raise anything, and a user should read what it means
        if _is_interrupt(bad):
            raise KeyboardInterrupt from bad
        return _tell(name, failure_of(bad, name))


def report(name: str, text: str, hint: str = "", details: str = "", kind: str = "") -> None:
    """What went wrong, on one line where it is not a list, and one about what to do. Never fails: stderr may be closed.

    `kind`: the short name of the error, in brackets behind the first line.
    """
    first, *more = text.splitlines() or [""]
    lines = [f"{name}: error: {shown(first)}" + (f" [{kind}]" if kind else "")]
    lines += (f"  {shown(line.strip())}" for line in more)  # indented, so that no stranger's text passes for a line of ours
    lines += (f"  {shown(line)}" for line in details.splitlines())
    if hint:
        lines.append(f"{name}: {hint}")
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(lines), file=sys.stderr, flush=True)


def run_and_exit(app: App) -> NoReturn:
    """`run_app`, then end the process without taking the interpreter apart, which takes a second once torch is loaded.

    What was registered at exit by others still runs: it was registered later, and such functions run in reverse order.
    """
    code = FAILED  # what an exception that nobody expected leaves with

    def end() -> None:
        for stream in (sys.stderr, sys.stdout):
            with contextlib.suppress(OSError, ValueError):
                flush(stream)
        os._exit(code)

    atexit.register(end)
    gc.set_threshold(*COLLECT_AFTER)
    reap_orphans_as_process_one()
    code = run_app(app)
    sys.exit(code)


def _tell(name: str, failure: CommandFailure) -> int:
    report(name, failure.text, failure.hint, failure.details, failure.name)
    return failure.code


def _is_interrupt(bad: BaseException) -> bool:
    """A group of nothing but Ctrl+C, as a nursery raises it."""
    return isinstance(bad, BaseExceptionGroup) and bad.split(KeyboardInterrupt)[1] is None


def _told(bad: CycloptsError) -> str:
    """What cyclopts found, in our style: lower case, one line, no full stop."""
    told = " ".join(str(bad).split())
    return told[0].lower() + told[1:].removesuffix(".") if told[:2].istitle() else told.removesuffix(".")
