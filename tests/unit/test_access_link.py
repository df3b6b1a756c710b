"""What comes out of an emulated link, and when; no clock but the numbers given."""

import itertools
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legion_p2p.core.access_link import MAX_WAITING_BYTES, MIN_RTO_S, MSS_BYTES, QUEUE_S, Flow, LinkDirection, LinkProfile
from legion_p2p.core.profiles import MAX_LOSS, PROFILES, parse_link
from legion_p2p.errors import UsageError

MBIT_S = LinkProfile(up_bps=1e6)  # 125 kB a second


def direction(profile: LinkProfile, seed: int = 0) -> LinkDirection:
    return LinkDirection(profile, profile.up_bps, Random(seed))


def drain(
    direction: LinkDirection, *flows: Flow, until_s: float, every_s: float = 0.001
) -> dict[Flow, list[tuple[float, bytes]]]:
    """What comes out of each flow, and when somebody who looks every millisecond sees it."""
    out: dict[Flow, list[tuple[float, bytes]]] = {flow: [] for flow in flows}
    for tick in range(int(until_s / every_s) + 1):
        now = tick * every_s
        direction.advance(now)
        for flow in flows:
            data = bytes(direction.take(flow, 1 << 30, now))
            if data:
                out[flow].append((now, data))
    return out


def test_bytes_come_after_the_delay_and_their_time_on_the_link():
    link = direction(LinkProfile(up_bps=1e6, rtt_s=0.1))
    flow = link.flow(path_s=0.06)

    link.add(flow, bytes(1000), 0.0)

    assert flow.next_due() == pytest.approx(8000 / 1e6 + 0.05 + 0.03)
    assert link.take(flow, 1000, 0.087) == b""
    assert len(link.take(flow, 1000, 0.0881)) == 1000


def test_a_delay_costs_no_throughput():
    near, far = direction(MBIT_S), direction(LinkProfile(up_bps=1e6, rtt_s=2.0))
    flows = near.flow(), far.flow()

    for link, flow in zip((near, far), flows, strict=True):
        link.add(flow, bytes(125_000), 0.0)
    arrived = [drain(link, flow, until_s=2.1)[flow] for link, flow in zip((near, far), flows, strict=True)]

    assert [sum(len(data) for _, data in pieces) for pieces in arrived] == [125_000, 125_000]
    assert arrived[0][-1][0] == pytest.approx(1.0, abs=0.002)
    assert arrived[1][-1][0] == pytest.approx(2.0, abs=0.002)


def test_connections_share_the_rate_in_equal_parts():
    link = direction(MBIT_S)
    flows = [link.flow() for _ in range(4)]

    for flow in flows:
        link.add(flow, bytes(125_000), 0.0)
    arrived = drain(link, *flows, until_s=1.0)

    sizes = [sum(len(data) for _, data in pieces) for pieces in arrived.values()]
    assert sum(sizes) == pytest.approx(125_000, rel=0.02)
    assert max(sizes) - min(sizes) <= 2 * link.chunk_bytes + 1e6 / 8 * QUEUE_S  # the first found the queue empty


def test_who_wakes_late_loses_no_rate():
    link = direction(MBIT_S)
    flow = link.flow()

    link.add(flow, bytes(125_000), 0.0)
    arrived = drain(link, flow, until_s=1.1, every_s=0.8 * QUEUE_S)[flow]

    assert arrived[-1][0] <= 1.0 + 0.8 * QUEUE_S + 0.001


def test_a_line_is_closed_while_bytes_wait_and_open_again_as_they_pass():
    link = direction(MBIT_S)
    flow = link.flow()
    queue_bytes = 1e6 / 8 * QUEUE_S

    link.add(flow, bytes(MAX_WAITING_BYTES + int(queue_bytes) + link.chunk_bytes), 0.0)
    was_open = flow.is_open
    drain(link, flow, until_s=0.1)

    assert not was_open and flow.is_open


def test_a_reader_who_takes_nothing_stops_the_line_and_holds_up_nobody_else():
    link = direction(LinkProfile(up_bps=8e6, rtt_s=0.1))
    stuck, other = link.flow(), link.flow()

    for _ in range(100):
        link.add(stuck, bytes(100_000), 0.0)
    for tick in range(20_000):
        link.advance(tick * 0.001)
    link.add(other, bytes(1000), 20.0)

    assert stuck.n_flying < link.limit_bytes(stuck) + link.chunk_bytes
    assert link.next_time() is None
    assert other.next_due() == pytest.approx(20.0 + 0.001 + 0.05)

    link.take(stuck, 50_000, 20.0)
    assert link.next_time() is not None


def test_a_limit_that_changes_holds_from_then_on():
    link = direction(MBIT_S)
    flow = link.flow()

    link.add(flow, bytes(250_000), 0.0)
    first = drain(link, flow, until_s=1.0)[flow]
    link.rate_bps = 4e6
    rest = drain(link, flow, until_s=1.3)[flow]

    assert sum(len(data) for _, data in first) == pytest.approx(125_000, rel=0.02)
    assert rest[-1][0] == pytest.approx(1.0 + 0.25, abs=0.06)  # what passed under the old limit still takes its time


def test_what_is_lost_comes_a_round_trip_later_or_after_a_timeout():
    link = direction(LinkProfile(rtt_s=0.1, loss=0.2))
    late = []
    for _ in range(2000):
        flow = link.flow()
        link.add(flow, b"x", 0.0)
        late.append(round(flow.next_due() - 0.05, 6))

    assert late.count(0.0) / 2000 == pytest.approx(0.8, abs=0.03)
    assert sorted(set(late))[:3] == [0.0, 0.3, 0.9]  # one segment alone: nothing behind it tells, so the timer does

    link = direction(LinkProfile(rtt_s=0.1, loss=0.2))
    flow = link.flow()
    link.add(flow, bytes(10 * MSS_BYTES), 0.0)
    assert round(flow.next_due() - 0.05, 6) in (0.0, 0.1, 0.7, 1.9)


def test_jitter_stays_within_its_bounds_and_wanders_slowly():
    link = direction(LinkProfile(rtt_s=0.1, jitter_s=0.02))
    delays = []
    for tick in range(5000):
        flow = link.flow()
        link.add(flow, b"x", tick * 0.001)
        delays.append(flow.next_due() - tick * 0.001)

    assert 0.03 <= min(delays) < 0.035 and 0.065 < max(delays) <= 0.07
    assert sum(delays) / len(delays) == pytest.approx(0.05, abs=0.003)
    assert max(abs(a - b) for a, b in itertools.pairwise(delays)) < 0.001


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*PROFILES.values(), LinkProfile(), MBIT_S, LinkProfile(rtt_s=0.01, jitter_s=0.5, loss=MAX_LOSS)]),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20_000), st.integers(0, 50)), max_size=30),
    st.integers(1, 30_000),
    st.integers(0, 1 << 30),
)
def test_whatever_happens_all_bytes_come_out_in_order(profile, events, most_bytes, seed):
    link = direction(profile, seed)
    flows = [link.flow(path_s=0.01 * i) for i in range(3)]
    sent, received = [bytearray() for _ in flows], [bytearray() for _ in flows]
    random = Random(seed)
    now = 0.0

    def look() -> None:
        for flow, got in zip(flows, received, strict=True):
            got += link.take(flow, most_bytes, now)

    for which, size, wait_ms in events:
        data = random.randbytes(size)
        sent[which] += data
        link.add(flows[which], data, now)
        now += wait_ms / 1000
        look()
    for _ in range(1_000_000):
        times = [t for t in (link.next_time(), *(flow.next_due() for flow in flows)) if t is not None]
        if not times:
            break
        now = max(now, min(times))
        link.advance(now)
        look()

    assert received == sent
    assert all(flow.is_empty and flow.n_flying == 0 and flow.n_waiting == 0 for flow in flows)


def test_the_rate_is_the_one_that_is_set_for_every_profile():
    for name, profile in PROFILES.items():
        for rate_bps in (profile.up_bps, profile.down_bps):
            link = LinkDirection(profile, rate_bps, Random(1))
            flow = link.flow()
            n_bytes = int(rate_bps / 8 * 20) if rate_bps < 3e6 else int(rate_bps / 8 * 2)
            sent = got = 0
            now = first = 0.0
            while got < n_bytes:
                while flow.is_open and sent < n_bytes:
                    link.add(flow, bytes(min(MAX_WAITING_BYTES, n_bytes - sent)), now)
                    sent += min(MAX_WAITING_BYTES, n_bytes - sent)
                times = [t for t in (link.next_time(), flow.next_due()) if t is not None]
                now = max(now, min(times))
                link.advance(now)
                got += len(link.take(flow, 1 << 30, now))
                first = first or (now if got else 0.0)
            tail_s = profile.jitter_s + (2 * (profile.rtt_s + MIN_RTO_S) if profile.loss else 0)
            assert 0.98 <= (now - first) / (8 * n_bytes / rate_bps) <= 1.02 + tail_s / 2, name


def test_paths_between_places_have_their_own_round_trips():
    link = parse_link("place=1,inside=5ms,across=120ms,2-1=80ms")

    assert (link.path_s(1), link.path_s(2), link.path_s(3)) == (0.005, 0.08, 0.12)
    assert link.path_s(0) == 0.0
    assert parse_link("across=120ms").path_s(2) == 0.0


def test_a_link_is_a_profile_settings_or_both():
    assert parse_link("cable") == PROFILES["cable"]
    assert parse_link("up=20mbit, down=100mbit,rtt=50ms,jitter=5ms,loss=0.5%") == LinkProfile(
        up_bps=20e6, down_bps=100e6, rtt_s=0.05, jitter_s=0.005, loss=0.005
    )
    changed = parse_link("cable,rtt=0ms")
    assert (changed.rtt_s, changed.up_bps) == (0.0, PROFILES["cable"].up_bps)


def test_messages_of_a_lane_have_a_link_of_their_own():
    link = parse_link("cable,bulk.loss=1%,bulk.up=5mbit,control.delay=20ms")

    assert dict(link.lanes) == {"bulk": LinkProfile(loss=0.01, up_bps=5e6), "control": LinkProfile(rtt_s=0.04)}
    assert link.up_bps == PROFILES["cable"].up_bps


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' is not known; allowed is a profile \\(good, cellular"),
        ("cabel", "'cabel' is not known"),
        ("rtt=5ms,cable", "'cable' is not known"),
        ("up=20", "up: rate '20': allowed is a number and bit, kbit, mbit or gbit"),
        ("up=1bit", "between 8kbit and 1000gbit"),
        ("rtt=50", "duration '50': allowed is a number and us, ms or s"),
        ("rtt=61s", "at most 60s"),
        ("loss=60%", "60%, at most 50%"),
        ("loss=0.1", "share '0.1': allowed is a percentage"),
        ("place=0", "place '0': a whole number from 1 to 250"),
        ("1-251=5ms", "place '251'"),
        ("bulk.down=1mbit", "of the lanes control and bulk, up, delay, jitter, loss can be set"),
        ("gossip.loss=1%", "of the lanes control and bulk"),
        ("speed=5ms", "speed: nothing of this name can be set"),
        ("x" * 2000, "link of 2000 characters, at most 1000"),
    ],
)
def test_a_link_that_cannot_be_is_refused_with_what_is_allowed(text, told):
    with pytest.raises(UsageError, match=told):
        parse_link(text)


@settings(max_examples=50)
@given(st.text(max_size=40) | st.from_regex(r"(up|rtt|loss|1-2)=[0-9.]{1,4}(mbit|ms|%)?", fullmatch=True))
def test_any_text_is_a_link_or_refused(text):
    try:
        profile = parse_link(text)
    except UsageError:
        return

    assert profile.up_bps > 0 and 0 <= profile.loss <= MAX_LOSS and math.isfinite(profile.rtt_s)
