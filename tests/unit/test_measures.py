"""The numbers that monitoring reads: documented, drawn, and parsed by Prometheus's own parser."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from legion_p2p.observe.measures import MEASURES, measured
from legion_p2p.observe.prometheus import metrics_text
from legion_p2p.observe.status import MemberStatus, RoundStatus, RunStatus, ShardStatus, Status

ROOT = Path(__file__).parents[2]
ME = "12D3KooWMe"
MEMBERS = (
    MemberStatus(ME, "eu", "alive", 10, 50.0, loss=2.0, training=True),
    MemberStatus("12D3KooWOther", "eu", "alive", 12, 100.0, loss=3.0, training=True),
    MemberStatus("12D3KooWHelper", "eu", "alive", 0, 0.0),
)
STATUS = Status(
    peer_id=ME, addresses=(), run=RunStatus("bafyrun", 'a "run"\n'), region="eu", state="training", step=10, members=MEMBERS,
    shards=(ShardStatus(0, 3, "00", ME, None), ShardStatus(1, 3, "00", "12D3KooWOther", ME)), sent_bytes=10, received_bytes=20,
    last_round=RoundStatus(0, 3, 1.0, n_included=2, n_expected=3), errors=(), rounds=6, loss=2.0, tokens=4096, tokens_per_s=55.0,
    run_step=12, local_steps=5, blocked_fraction=0.01, upload_bps=2e6, bytes_in_region=25, bytes_across=5,
)  # fmt: skip


def told_of(status: Status) -> dict[str, float]:
    families = text_string_to_metric_families(metrics_text(status).decode())
    return {sample.name: sample.value for family in families for sample in family.samples if sample.name.startswith("legion_")}


def test_prometheus_reads_the_numbers_of_a_peer_in_a_run() -> None:
    told = told_of(STATUS)

    assert told["legion_step"] == 10 and told["legion_run_step"] == 12 and told["legion_tokens_total"] == 4096
    assert told["legion_members"] == 3 and told["legion_training_members"] == 2 and told["legion_mean_loss"] == 2.5
    assert told["legion_swarm_tokens_per_second"] == 155 and told["legion_owned_shards"] == 1 and told["legion_shards"] == 2
    assert told["legion_included_members"] == 2 and told["legion_expected_members"] == 3
    assert "legion_download_bits_per_second" not in told, "nothing is told of what is not known"


def test_the_run_the_peer_and_its_state_are_labels_whatever_a_stranger_called_the_run() -> None:
    families = text_string_to_metric_families(metrics_text(STATUS).decode())

    (info,) = (sample for family in families for sample in family.samples if sample.name == "legion_run_info")
    assert info.labels["run_id"] == "bafyrun" and info.labels["peer_id"] == ME and info.labels["state"] == "training"
    assert info.labels["run"].startswith('a "run"') and "\n" not in info.labels["run"]


def test_every_measure_has_a_name_of_its_own_that_prometheus_allows_and_a_meaning() -> None:
    names = [measure.full_name for measure in MEASURES]

    assert len(set(names)) == len(names)
    assert all(
        re.fullmatch(r"legion_[a-z_]+", name) and not measure.name.endswith("_total")
        for name, measure in zip(names, MEASURES, strict=True)
    )
    assert all(measure.meaning.endswith(".") for measure in MEASURES)
    assert {measure.name for measure, _ in measured(STATUS)} <= {measure.name for measure in MEASURES}


def test_the_page_lists_every_measure_as_the_code_has_it() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")

    rows = re.findall(r"^\| `(legion_\w+)` \| (\w+) \| (.+) \| (.+) \|$", page, re.MULTILINE)

    of = {False: "every node", True: "peers in a run"}
    assert rows == [(m.full_name, m.kind, of[m.of_run], m.meaning) for m in MEASURES]


def test_the_grafana_dashboard_draws_what_exists() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "legion.json").read_text(encoding="utf-8"))
    told = {measure.full_name for measure in MEASURES} | {"legion_run_info"}

    drawn = {
        name for panel in dashboard["panels"] for target in panel["targets"] for name in re.findall(r"legion_\w+", target["expr"])
    }

    assert drawn <= told
    assert {"legion_loss", "legion_members", "legion_sent_bytes_total", "legion_swarm_tokens_per_second"} <= drawn
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
