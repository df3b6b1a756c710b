"""What the commands of legion-sim share: which scenario is meant, with which fields changed."""

import tomllib
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from legion_p2p.errors import UsageError

if TYPE_CHECKING:
    from legion_p2p.scenarios.scenario import Scenario

INFRA = {"task": {"kind": "none", "size": 16}}

ScenarioName = Annotated[str, Parameter(metavar="SCENARIO")]
Changes = Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative=(), metavar="FIELD=VALUE...")]
AsJsonLine = Annotated[bool, Parameter(negative=())]


def chosen_scenario(
    named: str, changes: tuple[str, ...], infra: bool = False, peers: int | None = None, minutes: float | None = None
) -> "tuple[str, Scenario]":
    """The scenario of that name or file, with what else the command line says. Raises: UsageError."""
    from legion_p2p.scenarios.scenario_files import changed, read_data, scenario_of, smaller

    name, data = read_data(named)
    given = dict(change_of(text) for text in changes)
    if infra:
        data = {**data, **INFRA}
        given = {"rounds.shard_elements": 1, **given}
    scenario = scenario_of(changed(data, given), named)
    if peers is not None or minutes is not None:
        scenario = smaller(scenario, peers, None if minutes is None else 60 * minutes)
    return name, scenario


def change_of(text: str) -> tuple[str, Any]:
    """FIELD=VALUE, the value as TOML has it or a plain word. Raises: UsageError."""
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise UsageError(f"{text!r}: the form is FIELD=VALUE, as in rounds.local_steps=20")
    return field, value_of_text(value)


def value_of_text(text: str) -> Any:
    """A value as TOML has it; what is none is a word."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
