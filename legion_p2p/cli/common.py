"""What the commands share: where values come from, how errors are told, and what signals do.

Exit codes: 0 done; 1 something else went wrong; 2 usage; 3 could not join, or nobody there; 4 this peer does not fit the run;
128 + the signal's number when a signal ended it.
"""

import atexit
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from cyclopts import App, CycloptsError, Group, Parameter, Token, UnusedCliTokensError
from cyclopts.config import Dict, Env

from legion_p2p.errors import (
    ConfigError,
    IncompatibleModelError,
    JoinError,
    LegionError,
    NetworkError,
    NoContactError,
    UnknownRunError,
    UsageError,
)

DONE, FAILED, USAGE, NOT_JOINED, MISFIT = 0, 1, 2, 3, 4
ENV_PREFIX = "LEGION_"
ECHO_S = 0.1  # `timeout` and some shells deliver one signal twice; a person's second Ctrl+C comes later

SOURCES_HELP = (
    "Every option is also read from LEGION_* variables (--local-steps is LEGION_LOCAL_STEPS) and from a TOML file given with "
    "--config (local-steps = 20). Options on the command line win over variables, and those over the file."
)


def make_app(name: str, help_text: str, **kwargs: Any) -> App:
    """A command that reads flags, then LEGION_* variables, then the file of `--config`."""
    app = App(
        name=name, help=help_text, version=version_text, help_format="plaintext",
        default_parameter=Parameter(show_default=_telling_default),
        config=[Env(ENV_PREFIX, command=False, show=False), _from_toml], **kwargs,
    )  # fmt: skip
    about = Group("About", sort_key=1 << 20)
    app["--help"].group = about
    app["--version"].group = about
    return app


def _telling_default(value: Any) -> str | None:
    """A default as the help shows it; where it only means that nothing is set, the option's own words say what then happens."""
    if value in ("", (), None, False, 0):
        return None
    return " ".join(value) if isinstance(value, tuple) else str(value)


def version_text() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"legion_p2p {version('legion_p2p')}"
    except PackageNotFoundError:
        return "legion_p2p (not installed)"


def _from_toml(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Fill in from the file that `--config` or LEGION_CONFIG names what neither flags nor variables said."""
    named = [token.value for argument in arguments if "--config" in argument.names for token in argument.tokens]
    if not named:
        return
    from legion_p2p.config import read_toml

    path = named[-1]
    data = read_toml(path, dict)
    Dict(data, source=path, use_commands_as_keys=False)(app, commands, arguments)


def given_by(token: Token) -> str:
    """Where a value came from, as an error says it: the flag, the variable, or the file and the key in it."""
    if token.source in ("", "cli"):
        return token.keyword or "the command line"
    if token.source == "env":
        return f"{token.keyword} in the environment"
    return f"{token.keyword or 'a value'} in {token.source}"


def addresses_of_peers(_type: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Converter of addresses that name a peer; expands `@file`."""
    from legion_p2p.core.addresses import parse_addresses

    found: dict[str, None] = {}
    for token in tokens:
        try:
            found.update(dict.fromkeys(parse_addresses([token.value])))
        except UsageError as bad:
            raise UsageError(f"{given_by(token)}: {bad}") from bad
    return tuple(found)


def checked(parse: Callable[[str], object]) -> Callable[[Any, Sequence[Token]], str]:
    """Converter of a text that must be something `parse` understands; the text itself is kept."""

    def convert(_type: Any, tokens: Sequence[Token]) -> str:
        try:
            if tokens[-1].value:
                parse(tokens[-1].value)
        except UsageError as bad:
            raise UsageError(f"{given_by(tokens[-1])}: {bad}") from bad
        return tokens[-1].value

    return convert


def at_least(low: float) -> Callable[[Any, Any], None]:
    """Validator of a finite number that is not below `low`; None passes, and a word that may stand instead."""

    def check(_type: Any, value: Any) -> None:
        if value is not None and not isinstance(value, str) and not low <= value < math.inf:  # written so that NaN fails
            raise ValueError(f"it must be a number of at least {low}")

    return check


def listen_addresses(_type: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Converter of addresses to listen on or to announce, which need not name a peer."""
    from legion_p2p.core.addresses import split_address

    found: dict[str, None] = {}
    for token in tokens:
        for word in token.value.replace(",", " ").split():
            try:
                split_address(word)
            except UsageError as bad:
                raise UsageError(f"{given_by(token)}: {bad}") from bad
            found.setdefault(word)
    return tuple(found)


def run_app(app: App, argv: Iterable[str] | None = None) -> int:
    """Run the command to its end and return the exit code. What was raised on purpose becomes one line on stderr."""
    name = app.name[0]
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        result = app(words, exit_on_error=False, print_error=False, verbose=False, result_action="return_value")
        code = result if isinstance(result, int) and not isinstance(result, bool) else DONE
    except CycloptsError as bad:
        report(name, _told(bad), f"see {name} --help")
        code = USAGE
    except LegionError as bad:
        report(name, str(bad), hint_for(bad, name))
        code = exit_code_of(bad)
    except BrokenPipeError:
        code = 128 + 13  # as if SIGPIPE had ended it: whoever read our lines is gone
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    _flush_quietly()
    return code


def _told(bad: CycloptsError) -> str:
    """What cyclopts found, in our style: lower case, one line, no full stop."""
    if isinstance(bad, UnusedCliTokensError) and bad.unused_tokens:
        return f"nothing is known to be done with {' '.join(map(repr, bad.unused_tokens))}"
    told = " ".join(str(bad).split())
    return told[0].lower() + told[1:].removesuffix(".") if told[:2].istitle() else told.removesuffix(".")


def report(name: str, text: str, hint: str = "") -> None:
    """What went wrong, on one line where it is not a list, and one about what to do."""
    from legion_p2p.observe.human import clean

    first, *more = text.splitlines() or [""]
    print(f"{name}: error: {clean(first)}", file=sys.stderr)
    for line in more:  # indented, so that no stranger's text passes for a line of ours
        print(f"  {clean(line).strip()}", file=sys.stderr)
    if hint:
        print(f"{name}: {hint}", file=sys.stderr)


def exit_code_of(bad: LegionError) -> int:
    if isinstance(bad, UsageError):
        return USAGE
    if isinstance(bad, JoinError | NetworkError):
        return NOT_JOINED
    return MISFIT if isinstance(bad, IncompatibleModelError) else FAILED


def hint_for(bad: LegionError, command: str) -> str:
    """What the reader may do about it, where the message does not say."""
    if isinstance(bad, UsageError) and not isinstance(bad, ConfigError) and "\n" not in str(bad):
        return f"see {command} --help"
    if isinstance(bad, NoContactError):
        return "check that one of them runs and that its address is right; legion-bootstrap starts one and prints its address"
    if isinstance(bad, UnknownRunError):
        return "if the run exists, check its name, and that the addresses given belong to the same network"
    return ""


def _flush_quietly() -> None:
    """Flush stdout here: at the interpreter's exit a reader that has gone would turn the exit code into 120."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_and_exit(app: App) -> NoReturn:
    """`run_app`, then end the process without taking the interpreter apart, which takes a second once torch is loaded.

    What was registered at exit by others still runs: it was registered later, and such functions run in reverse order.
    """
    code = FAILED  # what an exception that nobody expected leaves with

    def end() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        _flush_quietly()
        os._exit(code)

    atexit.register(end)
    code = run_app(app)
    sys.exit(code)


class Signals:
    """SIGINT, SIGTERM and SIGHUP: the first asks to leave in order, the second leaves at once.

    Until `orderly()` has said whom to ask, there is nothing to leave, and the first one leaves at once as well. Signals are read
    from a socket by a thread of its own: Python itself would look at them only when the main thread comes out of a long operation
    of torch. Use on the main thread; the handlers that were there before come back afterwards.
    """

    def __init__(self, before_exit: Callable[[], None] = lambda: None) -> None:
        self._before_exit = before_exit
        self._ask: Callable[[int], None] | None = None
        self._asked_at = 0.0
        self.caught = 0
        """Number of the first signal that came; 0: none."""

    def orderly(self, ask: Callable[[int], None]) -> None:
        """From now on the first signal calls `ask`, on another thread."""
        self._ask = ask

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = {number: signal.getsignal(number) for number in _ours()}
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in self._before:
            signal.signal(number, lambda *_: None)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, where: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _watch(self) -> None:
        while numbers := self._reader.recv(64):
            for number in numbers:
                if number in self._before:
                    self._handle(number)

    def _handle(self, number: int) -> None:
        now = time.monotonic()
        if self._ask is not None and not self.caught:
            self.caught, self._asked_at = number, now
            self._ask(number)
        elif self._ask is None or now - self._asked_at > ECHO_S:
            with contextlib.suppress(Exception):
                self._before_exit()
            os._exit(128 + number)


def _ours() -> list[int]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:  # nohup ignores it, and means it
        numbers.append(hangup)
    return [int(number) for number in numbers]
