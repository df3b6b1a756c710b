"""Files of settings, as TOML."""

import tomllib
from typing import Any

from legion_p2p.errors import ConfigError, StoreError, UsageError
from legion_p2p.files.paths import shown, user_path
from legion_p2p.files.reading import read_text

MAX_CONFIG_BYTES = 1 << 20


def read_table(path: str) -> dict[str, Any]:
    """The table in a TOML file. Raises: ConfigError, naming the file."""
    try:
        return tomllib.loads(read_text(user_path(path), MAX_CONFIG_BYTES))
    except StoreError as bad:  # it names the file
        raise ConfigError(str(bad)) from bad
    except (tomllib.TOMLDecodeError, UsageError) as bad:
        raise ConfigError(f"{shown(path)}: {bad}") from bad
