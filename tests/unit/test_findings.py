"""legion-ctl doctor: what is judged of a machine, and what is printed; and that no fault of one look hides the others."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from legion_p2p.cli import ctl, doctor
from legion_p2p.cli.running import run_app
from legion_p2p.config import NewRun
from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.findings import (
    FEW_DISK_BYTES,
    FEW_FILES,
    FEW_MEMORY_BYTES,
    MIN_DISK_BYTES,
    MIN_FILES,
    MIN_MEMORY_BYTES,
    SLOW_BPS,
    SLOW_S,
    ContactFacts,
    Health,
    has_problem,
    judge_addresses,
    judge_clock,
    judge_contact,
    judge_disk,
    judge_files,
    judge_mapping,
    judge_memory,
    judge_reach,
    judge_speed,
    no_speed,
    ok,
    problem,
    warning,
)
from legion_p2p.errors import NetworkError, StoreError
from legion_p2p.train.described import described

ADDRESS = "/ip4/1.2.3.4/tcp/1"
OK, WARNING, PROBLEM = Health.OK, Health.WARNING, Health.PROBLEM


@pytest.mark.parametrize(
    ("finding", "health"),
    [
        (judge_disk(MIN_DISK_BYTES - 1, "x"), PROBLEM),
        (judge_disk(FEW_DISK_BYTES - 1, "x"), WARNING),
        (judge_disk(FEW_DISK_BYTES, "x"), OK),
        (judge_files(MIN_FILES - 1), PROBLEM),
        (judge_files(FEW_FILES - 1), WARNING),
        (judge_files(FEW_FILES), OK),
        (judge_files(None), OK),
        (judge_memory(MIN_MEMORY_BYTES - 1, "x"), PROBLEM),
        (judge_memory(FEW_MEMORY_BYTES - 1, "x"), WARNING),
        (judge_memory(FEW_MEMORY_BYTES, "x"), OK),
        (judge_clock(1970, 2026, None), PROBLEM),
        (judge_clock(2030, 2026, False), WARNING),
        (judge_clock(2030, 2026, None), OK),
        (judge_addresses([]), PROBLEM),
        (judge_addresses(["192.168.1.2"]), OK),
        (judge_contact(ADDRESS, ContactFacts("refused")), PROBLEM),
        (judge_contact(ADDRESS, ContactFacts(rtt_s=0.05, other_version="it speaks 2")), PROBLEM),
        (judge_contact(ADDRESS, ContactFacts(rtt_s=SLOW_S + 0.1)), WARNING),
        (judge_contact(ADDRESS, ContactFacts(rtt_s=0.05, version="3")), OK),
        (judge_mapping(4710, "UPnP", True, False), OK),
        (judge_mapping(None, "", True, False), WARNING),
        (judge_mapping(None, "", True, True), OK),
        (judge_mapping(None, "", False, False), OK),
        (judge_speed(SLOW_BPS - 1, 50e6, "abcdefgh"), WARNING),
        (judge_speed(10e6, 50e6, "abcdefgh"), OK),
        (no_speed(["it refuses: it is busy at the moment"]), WARNING),
        (no_speed([]), WARNING),
        (judge_reach("relayed", "symmetric", "nobody could dial it"), WARNING),
        (judge_reach("unknown", "unknown", ""), WARNING),
        (judge_reach("public", "none", ""), OK),
    ],
)
def test_a_finding_is_judged_and_whatever_is_not_well_has_a_remedy(finding: Any, health: Health) -> None:
    assert finding.health is health
    assert bool(finding.remedy) is (health is not OK) and finding.text


def test_each_line_says_how_it_is_and_the_last_one_counts() -> None:
    lines = doctor.lines_of(
        [ok("Python", "3.11"), warning("disk", "2 GB", "free some"), problem("clock", "it says 1970", "set it")]
    )

    assert lines[0] == "ok       Python: 3.11"
    assert lines[1:3] == ["warning  disk: 2 GB", "         -> free some"]
    assert lines[-1] == "1 problem and 1 warning"
    assert doctor.lines_of([ok("Python", "3.11")])[-1] == "nothing is wrong here"


def test_the_exit_code_tells_whether_there_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [warning("disk", "2 GB", "free some")]
    monkeypatch.setattr(doctor, "examine", lambda contacts, run, network_key: found)
    assert run_app(ctl.app, ["doctor"]) == 0

    found.append(problem("clock", "it says 1970", "set it"))
    assert run_app(ctl.app, ["doctor", "--json"]) == 1
    assert [row["health"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])] == ["warning", "problem"]


def test_a_look_that_fails_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise StoreError("the disk does not answer")

    broken.__name__ = "disk"
    monkeypatch.setattr(doctor, "disk", broken)
    monkeypatch.setattr(doctor, "torch_and_devices", lambda: ok("device", "none"))  # loading torch takes seconds

    findings = doctor.examine()

    assert [f.name for f in findings] == ["Python", "packages", "device", "disk", "open files", "memory", "clock", "addresses"]
    assert findings[3].health is WARNING and "does not answer" in findings[3].text


async def refuse(peer: object, body: bytes) -> bytes:
    raise NetworkError("in no run")


async def test_contacts_are_tried_and_named_with_their_delay_or_with_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from legion_p2p.core.identity import Identity
    from legion_p2p.net import checkup
    from legion_p2p.net.host import open_network
    from legion_p2p.net.limits import NetConfig

    async with open_network(
        Identity.generate(), listen=("/ip4/127.0.0.1/tcp/0",), config=NetConfig(speed_tests=1)
    ) as node:  # fmt: skip
        (address,) = node.addresses()[:1]
        node.messenger.serve(refuse)
        monkeypatch.setattr(checkup, "REACH_S", 0.1)
        monkeypatch.setattr(checkup, "MAPPING_S", 0.1)
        found = await checkup.examine_network((address,))
        again = await checkup.examine_network((address,))
        dead = await checkup.examine_network((f"/ip4/127.0.0.1/tcp/1/p2p/{node.peer_id}",))

    assert [f.name for f in found] == ["initial peer", "reach", "port mapping", "bandwidth"]
    assert found[0].health is OK and " ms" in found[0].text and "version 5 of the protocol" in found[0].text
    assert found[3].health is OK and node.peer_id[-8:] in found[3].text
    assert again[3].health is WARNING and "too many have asked" in again[3].text
    assert [f.health for f in dead] == [PROBLEM] and has_problem(dead)


def test_whether_the_data_of_a_run_are_here_is_looked_at(tmp_path: Path) -> None:
    built_in = described(NewRun("some", preset="xxs"))
    cid = str(Cid.of(b"data", DAG_CBOR))
    prepared = msgspec.structs.replace(built_in, data="books", dataset=cid)
    own = msgspec.structs.replace(built_in, data="books")

    here, absent, own_text = (doctor.data_of(spec, str(tmp_path / "store")) for spec in (built_in, prepared, own))
    (tmp_path / "store-data" / cid).mkdir(parents=True)
    (tmp_path / "store-data" / cid / "dataset.cbor").touch()
    fetched = doctor.data_of(prepared, str(tmp_path / "store"))

    assert [one.health for one in (here, absent, own_text, fetched)] == [OK, WARNING, WARNING, OK]
    assert here.text == "stdlib is part of legion_p2p" and cid in fetched.text
    assert f"{cid}, which are not here" in absent.text and "as it joins" in absent.remedy
    assert "give the text that you have of it with --data" in own_text.text
