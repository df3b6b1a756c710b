"""What the commands share: where the values of their options come from, and how they are checked."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import App, Group, Parameter, Token
from cyclopts.config import Dict

from legion_p2p.cli.environment import from_environment
from legion_p2p.errors import UsageError

SOURCES_HELP = (
    "Every option is also read from LEGION_* variables (--local-steps is LEGION_LOCAL_STEPS) and from a TOML file given with "
    "--config (local-steps = 20). Options on the command line win over variables, and those over the file."
)


def make_app(name: str, help_text: str, **kwargs: Any) -> App:
    """A command that reads flags, then LEGION_* variables, then the file of `--config`."""
    app = App(
        name=name, help=help_text, version=version_text, help_format="plaintext", suppress_keyboard_interrupt=False,
        default_parameter=Parameter(show_default=_telling_default),
        config=[from_environment, _from_toml], **kwargs,
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
    """Take from the file that `--config` or LEGION_CONFIG names the options that neither flags nor variables set."""
    named = [token.value for argument in arguments if "--config" in argument.names for token in argument.tokens]
    if not named:
        return
    from legion_p2p.config import read_table

    path = named[-1]
    Dict(read_table(path), source=path, use_commands_as_keys=False)(app, commands, arguments)


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
