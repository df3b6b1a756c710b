"""A report of a fault holds nothing that its author would not want strangers to read; planted secrets are the test."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.cli import bugreport, ctl
from legion_p2p.cli.running import run_app
from legion_p2p.core.admission import TEXT_PREFIX
from legion_p2p.core.masking import Masker
from legion_p2p.files.reading import read_tail

SECRETS = (
    "8f" * 32, "hf_AbCdEfGhIjKlMnOp", "hunter2secret", f"{TEXT_PREFIX}gqRib2R5xAA", "203.0.113.77", "2001:db8::dead:beef",
    "node.example.org", "/home/alice", "C:\\Users\\alice", "alice",
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "seed {0}", "HF_TOKEN is {1}", "password={2}", '"api_key": "{2}"', "token {3}, taken", "dialed /ip4/{4}/tcp/4710 in vain",
        "listens on {4}:47110", "/ip6/{5}/tcp/4710", "connect to [{5}]:4710", "/dns4/{6}/tcp/4710/p2p/12D3KooWabc",
        "/dnsaddr/{6}", "cannot read {7}/data/peer.key", "in {8}\\data", "user {9} may not", "/Users/alice/x and /home/bob/y",
    ],
)  # fmt: skip
def test_a_planted_secret_is_not_in_what_comes_out(text: str) -> None:
    masked = Masker("/home/alice", "alice").mask(text.format(*SECRETS))

    assert not any(secret in masked for secret in SECRETS)
    assert masked.split()[0] == text.split()[0] or "<" in masked.split()[0] or "~" in masked.split()[0]


def test_an_address_has_one_number_wherever_it_stands_and_this_machine_keeps_its_own() -> None:
    masker = Masker()

    assert masker.mask("203.0.113.7 then 8.8.8.8 then 203.0.113.7") == "<address-1> then <address-2> then <address-1>"
    assert masker.mask("203.0.113.7 and 127.0.0.1:47110 and ::1") == "<address-1> and 127.0.0.1:47110 and ::1"


@pytest.mark.parametrize(
    "text",
    [
        "12:03:59 run joined",
        "legion_p2p 0.1.0, torch 2.13.0",
        "12D3KooWLWCHr96HxvboZSb2LYC6nsx7aMuajjXLL1tLrrf9HQVE",
        "step 1234",
    ],
)
def test_what_is_needed_to_understand_a_fault_stays(text: str) -> None:
    assert Masker("/home/alice", "alice").mask(text) == text


@given(st.ip_addresses(), st.text(alphabet=" ,;()='\"", min_size=1, max_size=3))
def test_no_address_of_another_machine_comes_through(address: object, around: str) -> None:
    plain = str(address)
    if plain in ("127.0.0.1", "0.0.0.0", "::", "::1"):
        return

    assert plain not in Masker().mask(f"at{around}{plain}{around}now")


def test_the_command_writes_one_file_with_all_parts_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def statuses() -> list[tuple[str, str]]:
        return [("127.0.0.1:47110", json.dumps({"addresses": ["/ip4/203.0.113.77/tcp/1"], "errors": [{"text": "8f" * 32}]}))]

    monkeypatch.setattr(bugreport, "_statuses", statuses)
    monkeypatch.setattr(bugreport, "examine", list)
    events, out = tmp_path / "metrics.jsonl", tmp_path / "report.txt"
    events.write_text('{"event":"push.failed","reason":"2001:db8::dead:beef refused, HF hf_AbCdEfGhIjKlMnOp"}\n')

    assert run_app(ctl.app, ["bugreport", "--out", str(out), "--events", str(events)]) == 0

    text = out.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## versions", "## doctor", "## peer at 127.0.0.1:47110", "## last events",
    ]  # fmt: skip
    assert not any(secret in text for secret in SECRETS) and "push.failed" in text
    assert "read it before you send it" in capsys.readouterr().err


def test_of_a_long_file_only_whole_lines_of_the_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(b"%05d\n" % n for n in range(1000)))

    assert read_tail(path, 20) == b"00997\n00998\n00999\n"
    assert len(read_tail(path, 10**6)) == 6000
