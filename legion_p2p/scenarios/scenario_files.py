"""Scenarios in files: those that come with the package, those that a user writes, and how one is written."""

import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from legion_p2p.config import read_table
from legion_p2p.config.fields import struct_of
from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.files.paths import shown, user_path
from legion_p2p.scenarios.scenario import Scenario

SUFFIX = ".toml"
_READY = files("legion_p2p.scenarios") / "ready"


def ready_names() -> tuple[str, ...]:
    """The scenarios that come with the package."""
    return tuple(sorted(entry.name.removesuffix(SUFFIX) for entry in _READY.iterdir() if entry.name.endswith(SUFFIX)))


def read_data(named: str) -> tuple[str, dict[str, Any]]:
    """The name of a scenario and its table: one that comes with the package, by name, or a file. Raises: ConfigError."""
    if named in ready_names():
        return named, read_table(str(_READY / f"{named}{SUFFIX}"))
    path = user_path(named)
    if not path.exists() and path.suffix != SUFFIX:
        raise ConfigError(
            f"no scenario and no file is called {shown(named)}; known are {', '.join(ready_names())}, or give a TOML file"
        )
    data = read_table(named)
    here = path.resolve().parent
    for group in data.get("peers", ()) if isinstance(data.get("peers"), list) else ():
        if isinstance(group, dict) and isinstance(group.get("trace"), str) and group["trace"]:
            group["trace"] = str(here / group["trace"])
    return path.stem, data


def scenario_of(data: Mapping[str, Any], source: str = "") -> Scenario:
    """Raises: ConfigError, naming the source and the field."""
    try:
        return struct_of(Scenario, data)
    except UsageError as bad:
        raise ConfigError(f"{shown(source)}: {bad}" if source else str(bad)) from bad


def read_scenario(named: str) -> tuple[str, Scenario]:
    """The name and the scenario. Raises: ConfigError."""
    name, data = read_data(named)
    return name, scenario_of(data, named)


def changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table with other values at these places: `duration_s`, `rounds.local_steps`, `peers.home.count` or `faults.0.at_s`.

    Raises: ConfigError, where there is no such place.
    """
    copy: dict[str, Any] = msgspec.json.decode(json.dumps(data))
    for place, value in changes.items():
        *way, last = place.split(".")
        at: Any = copy
        for word in way:
            at = _below(at, word, place)
        if isinstance(at, list):
            raise ConfigError(f"{place}: {last} is one of several; name a field of it")
        at[last] = value
    return copy


def _below(at: Any, word: str, place: str) -> Any:
    if isinstance(at, dict):
        below = at.setdefault(word, {})
        if not isinstance(below, dict | list):
            raise ConfigError(f"{place}: {word} has no fields")
        return below
    if word.isdecimal() and int(word) < len(at):
        return at[int(word)]
    named = [row for row in at if word in (row.get("name"), row.get("kind"))]
    if len(named) != 1:
        names = ", ".join(str(row.get("name", row.get("kind", i))) for i, row in enumerate(at[:8]))
        raise ConfigError(f"{place}: {word} is {'several' if named else 'none'} of {names}")
    return named[0]


def smaller(scenario: Scenario, n_peers: int | None = None, duration_s: float | None = None) -> Scenario:
    """The same with about this many peers, and squeezed into this much time. Sessions and rates of faults are squeezed as well;
    steps are not, so there are fewer of them."""
    share = 1.0 if n_peers is None else n_peers / sum(group.count for group in scenario.peers)
    pace = 1.0 if duration_s is None else duration_s / scenario.duration_s
    replace = msgspec.structs.replace
    groups = tuple(
        replace(
            group,
            count=max(1, round(group.count * share)),
            joins=replace(group.joins, at_s=group.joins.at_s * pace, over_s=group.joins.over_s * pace),
            stays=replace(
                group.stays, mean_s=group.stays.mean_s * pace, day_s=group.stays.day_s * pace, away_s=group.stays.away_s * pace
            ),
            present=tuple((begin * pace, end * pace) for begin, end in group.present),
        )
        for group in scenario.peers
    )
    faults = tuple(
        replace(
            fault,
            **{
                name: None if (value := getattr(fault, name)) is None else value * pace
                for name in ("at_s", "every_s", "from_s", "until_s", "for_s")
            },
            count=max(1, round(fault.count * share)),
        )
        for fault in scenario.faults
    )
    return replace(
        scenario, peers=groups, faults=faults, duration_s=scenario.duration_s * pace, sample_s=scenario.sample_s * pace
    )


def scenario_toml(scenario: Scenario) -> str:
    """The scenario as a file, with the fields that differ from their defaults."""
    return "\n".join(_table(_said(scenario), "")).strip() + "\n"


def _said(value: msgspec.Struct) -> dict[str, Any]:
    """The fields that differ from their defaults, tables as dicts."""
    told: dict[str, Any] = {}
    for field in msgspec.structs.fields(value):
        given = getattr(value, field.name)
        if given is None or (not field.required and given == field.default):
            continue
        if isinstance(given, msgspec.Struct):
            given = _said(given)
        elif isinstance(given, tuple) and given and isinstance(given[0], msgspec.Struct):
            given = [_said(one) for one in given]
        told[field.name] = given
    return told


def _table(table: Mapping[str, Any], path: str) -> list[str]:
    """Plain values first, then the tables below: otherwise TOML would take them for fields of those."""
    lines = [f"{key} = {_plain(value)}" for key, value in table.items() if not _is_below(value)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{path}{key}]", *_table(value, f"{path}{key}.")]
        elif _is_below(value):
            for row in value:
                lines += ["", f"[[{path}{key}]]", *_table(row, f"{path}{key}.")]
    return lines


def _is_below(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _plain(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float() if math.isinf(value):
            return "inf"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value)
        case _:
            return f"[{', '.join(map(_plain, value))}]"


def path_of_ready(name: str) -> Path:
    """Where a scenario of the package is."""
    return Path(str(_READY / f"{name}{SUFFIX}"))
