"""Options from LEGION_* variables, and other variables whose names look like them."""

import os
import re
from typing import Any

from cyclopts import App
from cyclopts.config import Env

from legion_p2p.config.old_names import FLAGS
from legion_p2p.errors import UsageError

ENV_PREFIX = "LEGION_"

_SERVICE = re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+")
"""What Kubernetes puts into NAME_PORT for a service of that name: one that is called "legion" sets LEGION_PORT."""


def from_environment(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Take from LEGION_* variables the options that the flags did not set. Empty variables and those of Kubernetes are ignored.

    Raises: UsageError, for a variable of an option that has another name now.
    """
    known = {name for argument in arguments for name in argument.names}
    for old, new in FLAGS.items():
        if new in known and not says_nothing(os.environ.get(variable_of(old), "")):
            raise UsageError(f"{variable_of(old)} in the environment is called {variable_of(new)} now")
    Env(ENV_PREFIX, command=False, show=False)(app, commands, arguments)
    for argument in arguments:
        argument.tokens[:] = [token for token in argument.tokens if not (token.source == "env" and says_nothing(token.value))]


def variable_of(flag: str) -> str:
    """The variable that sets the same option as a flag: LEGION_LOCAL_STEPS for --local-steps."""
    return ENV_PREFIX + flag.lstrip("-").replace("-", "_").upper()


def says_nothing(value: str) -> bool:
    """True for a value that counts as unset."""
    return not value.strip() or _SERVICE.fullmatch(value) is not None
