"""The commands of docs/bootstrap-node.md, as far as they work without a rented server: in a network namespace with a firewall."""

import re
import shlex
from pathlib import Path

import pytest

from tests.netns import Commands, Internet, Namespace, skip_reason

pytestmark = pytest.mark.skipif(bool(skip_reason()), reason=skip_reason() or "-")

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "bootstrap-node.md").read_text(encoding="utf-8")
UNIT = (DOCS / "systemd" / "legion-bootstrap.service").read_text(encoding="utf-8")


def found(pattern: str, text: str) -> str:
    """What stands there in the place of the group."""
    (only,) = set(re.findall(pattern, text, re.MULTILINE))
    return str(only)


OPEN_A_PORT = found(r"`(nft insert rule [^`]+)`", PAGE)
CHECK = shlex.split(found(r"^\$ (legion-ctl runs) ", PAGE))

FIREWALL = """
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iifname "lo" accept
        ct state established,related accept
        %s
    }
}
"""


def checked_from(outside: Namespace, commands: Commands, name: str, address: str) -> str:
    """What step 5 of the page says there."""
    commands.start(outside, name, "legion_p2p.cli.ctl", *CHECK[1:], address)
    commands[-1].process.wait()
    return commands[-1].text()


def test_a_node_behind_a_firewall_is_found_from_outside_once_the_page_was_followed(
    internet: Internet, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, outside = internet.host("server"), internet.host("outside")
    server.nft(FIREWALL % "")
    _, *words = shlex.split(found(r"^ExecStart=(.*)", UNIT))
    monkeypatch.setenv("LEGION_ANNOUNCE", f"/ip4/{server.address}/tcp/4710")
    commands.start(server, "node", "legion_p2p.cli.bootstrap", *(word.replace("/var/lib/legion", ".") for word in words))
    monkeypatch.delenv("LEGION_ANNOUNCE")
    line = commands[0].line_with("--initial-peers", server.address)
    address = next(word for word in line.split() if server.address in word)
    assert address.startswith(f"/ip4/{server.address}/tcp/4710/p2p/")

    assert "none of 1 initial peers answered" in PAGE
    assert "none of 1 initial peers answered" in checked_from(outside, commands, "before", address)
    server.run(OPEN_A_PORT)
    assert "no peer that can be reached there is in a run" in PAGE
    assert "no peer that can be reached there is in a run" in checked_from(outside, commands, "after", address)

    assert (commands[0].folder / "bootstrap.key").exists()  # that step 4 tells to keep


def test_the_rule_that_the_page_puts_into_the_firewalls_file_does_what_the_command_does(internet: Internet) -> None:
    by_command, by_file = internet.host("a"), internet.host("b")
    by_command.nft(FIREWALL % "")
    by_command.run(OPEN_A_PORT)
    rule = found(r"and `([^`]+)` in the same chain of /etc/nftables.conf", PAGE)

    by_file.nft(FIREWALL % rule)

    assert rule in by_command.run("nft list ruleset") and rule in by_file.run("nft list ruleset")


def test_variables_that_the_page_names_are_options_of_the_node(commands: Commands, internet: Internet) -> None:
    names = set(re.findall(r"LEGION_[A-Z]+", PAGE))
    commands.start(internet.host("a"), "help", "legion_p2p.cli.bootstrap", "--help")
    commands[0].process.wait()

    assert len(names) >= 4
    assert [name for name in names if f"--{name.removeprefix('LEGION_').lower()}" not in commands[0].text()] == []
