"""What a connection proves to carry, from transfers that overlap."""

import pytest

from legion_p2p.core.rate_estimator import MIN_SAMPLE_BYTES, WINDOW_S, RateEstimator


def transfer(estimator: RateEstimator, began: float, ended: float, n_bytes: int, waited_s: float = 0.0) -> None:
    estimator.begin(began)
    estimator.moved(n_bytes, ended)
    estimator.end(ended, began, waited_s)


def test_nothing_is_known_before_the_first_transfer():
    assert RateEstimator(best=True).rate_bps(0.0) is None


def test_transfers_that_overlap_count_together():
    estimator = RateEstimator(best=True)

    estimator.begin(10.0)
    estimator.begin(10.0)
    for at in (10.5, 11.0):
        estimator.moved(100_000, at)
        estimator.end(at, 10.0)

    assert estimator.rate_bps(11.0) == pytest.approx(8 * 200_000)


def test_time_between_transfers_and_the_wait_for_a_confirmation_do_not_count():
    estimator = RateEstimator(best=True)

    transfer(estimator, 0.0, 0.2, 100_000, waited_s=0.1)
    transfer(estimator, 50.0, 50.2, 100_000, waited_s=0.1)

    assert estimator.rate_bps(51.0) == pytest.approx(8e6)


def test_the_wait_for_confirmations_does_not_count_between_transfers_that_overlap():
    """Each moves for 10 ms, and is confirmed 190 ms later, when the next has long begun."""
    estimator = RateEstimator(best=True)
    estimator.begin(0.0)
    for i in range(1, 5):
        estimator.begin(0.1 * i)
        estimator.moved(10_000, 0.1 * i + 0.1)
        estimator.end(0.1 * i + 0.1, 0.1 * (i - 1), waited_s=0.19)
    estimator.moved(10_000, 0.6)
    estimator.end(0.6, 0.4, waited_s=0.19)

    assert estimator.rate_bps(1.0) == pytest.approx(8 * 50_000 / 0.05)


def test_the_time_of_a_transfer_that_failed_does_not_count():
    estimator = RateEstimator(best=True)
    estimator.begin(0.0)
    estimator.end(100.0, None)

    transfer(estimator, 100.0, 100.1, 100_000)

    assert estimator.rate_bps(101.0) == pytest.approx(8e6)


def test_one_sample_is_not_enough_where_it_may_be_of_a_transfer_that_stood_still():
    estimator = RateEstimator(best=True, n_samples=2)
    transfer(estimator, 0.0, 8.0, 100_000)
    after_one = estimator.rate_bps(8.0)
    transfer(estimator, 9.0, 9.1, 100_000)

    assert after_one is None and estimator.rate_bps(10.0) == pytest.approx(8e6)


def test_small_transfers_add_up_until_they_say_something():
    estimator = RateEstimator(best=True)

    transfer(estimator, 0.0, 0.1, MIN_SAMPLE_BYTES // 2)
    before = estimator.rate_bps(0.1)
    transfer(estimator, 1.0, 1.1, MIN_SAMPLE_BYTES // 2)

    assert before is None and estimator.rate_bps(1.1) == pytest.approx(8 * MIN_SAMPLE_BYTES / 0.2)


def test_a_long_transfer_is_measured_before_it_ends():
    estimator = RateEstimator(best=True)
    estimator.begin(0.0)
    for second in range(1, 8):
        estimator.moved(125_000, float(second))

    assert estimator.rate_bps(7.0) == pytest.approx(1e6)


def test_upwards_the_best_counts_and_downwards_the_median():
    up, down = RateEstimator(best=True), RateEstimator(best=False)
    for i, n_bytes in enumerate((100_000, 300_000, 200_000)):
        for estimator in (up, down):
            transfer(estimator, float(i), i + 0.5, n_bytes)

    assert (up.rate_bps(3.0), down.rate_bps(3.0)) == (pytest.approx(4.8e6), pytest.approx(3.2e6))


def test_old_samples_are_forgotten():
    estimator = RateEstimator(best=True)
    transfer(estimator, 0.0, 0.1, 1_000_000)
    transfer(estimator, 100.0, 101.0, 1_000_000)

    assert estimator.rate_bps(WINDOW_S) == pytest.approx(8e7)
    assert estimator.rate_bps(WINDOW_S + 1.0) == pytest.approx(8e6)
    assert estimator.rate_bps(101.0 + WINDOW_S + 0.1) is None
