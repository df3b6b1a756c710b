"""What is known of meetings with other regions: how long versions take, and how far a copy goes by itself."""

import pytest
import torch

from legion_p2p.services.inter_region.links import LastSync


def test_a_version_that_comes_right_after_a_meeting_does_not_look_like_a_short_one():
    met = LastSync(last=0, at_s=0.0)
    met.note("west", 10, 10.0)

    assert met.version_s(11, 10.01) == pytest.approx((0.01 + 4.0) / 5)
    assert met.version_s(10, 10.5) == pytest.approx(1.0)


def test_rounds_that_become_longer_are_seen():
    met = LastSync(last=0, at_s=0.0)
    met.note("west", 10, 10.0)

    assert met.version_s(60, 510.0) == pytest.approx(10.0, rel=0.1)


def test_nothing_is_known_of_versions_before_there_was_one():
    assert LastSync(last=5, at_s=0.0).version_s(5, 100.0) is None


def test_how_far_a_copy_goes_is_that_between_two_meetings_however_long_one_has_to_wait_for_an_answer():
    met = LastSync(last=0, at_s=0.0, every=2)
    met.look(torch.zeros(4), 0)

    after_4 = met.travelled(torch.full((4,), 1.0), 4)
    met.look(torch.zeros(4), 4)
    long_after = met.travelled(torch.full((4,), 2500.0), 4004)

    assert after_4 == pytest.approx(2.0)
    assert long_after == pytest.approx(5.0)
