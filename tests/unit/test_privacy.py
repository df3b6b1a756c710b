"""Differential privacy of pushes: the settings, the mechanism, what is spent, and what is written down of it."""

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.privacy import Privacy, PrivacyBooks, Spent, parse_privacy
from legion_p2p.errors import StoreError, UsageError
from legion_p2p.services.shards.privacy import accountant
from legion_p2p.store.spent_file import SpentFile
from legion_p2p.tensor.privacy import released, secret_generator

SETTINGS = Privacy(noise=1.0, clip=0.5, delta=1e-6)


def test_the_settings_are_read() -> None:
    assert parse_privacy("noise=1,clip=0.5,delta=1e-6") == parse_privacy(" delta=1e-6, clip = 0.5 ,noise=1.0 ") == SETTINGS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not understood"),
        ("noise=1", "clip is missing"),
        ("noise=1,clip=1,delta=1e-6,epsilon=3", "'epsilon=3' is not understood"),
        ("noise=1,noise=1,clip=1,delta=1e-6", "'noise=1' is not understood"),
        ("noise=much,clip=1,delta=1e-6", "noise 'much' is not a number"),
        ("noise=0.1,clip=1,delta=1e-6", "protects nothing"),
        ("noise=0,clip=1,delta=1e-6", "protects nothing"),
        ("noise=nan,clip=1,delta=1e-6", "noise nan"),
        ("noise=inf,clip=1,delta=1e-6", "noise inf"),
        ("noise=1,clip=0,delta=1e-6", "clip 0"),
        ("noise=1,clip=-1,delta=1e-6", "clip -1"),
        ("noise=1,clip=inf,delta=1e-6", "clip inf"),
        ("noise=1,clip=1,delta=0", "delta 0"),
        ("noise=1,clip=1,delta=0.1", "probability that the promise fails"),
    ],
)
def test_settings_that_say_nothing_or_protect_nothing_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_privacy(text)


def test_the_weakest_noise_that_is_allowed_spends_an_epsilon_of_eleven_in_a_round() -> None:
    assert accountant()(0.5, 1e-6) > 11


def exact_delta(noise: float, epsilon: float) -> float:
    """The least delta of one Gaussian release, by the closed form of Balle and Wang (1805.06530)."""
    below = NormalDist().cdf
    return below(0.5 / noise - epsilon * noise) - math.exp(epsilon) * below(-0.5 / noise - epsilon * noise)


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0, 3.0, 20.0, 100.0])
def test_the_accountant_says_at_least_what_was_spent_and_little_more(noise: float) -> None:
    said = accountant()(noise, 1e-6)
    assert exact_delta(noise, said) <= 1e-6 < exact_delta(noise, said / 1.15)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_all_shards_together_are_one_release_of_the_whole_model(sizes: list[int]) -> None:
    whole = sum(sizes)
    assert math.hypot(*(SETTINGS.longest(size, whole) for size in sizes)) == pytest.approx(SETTINGS.clip)
    assert sum(SETTINGS.cost(size, whole) for size in sizes) == pytest.approx(1 / SETTINGS.noise**2)


def test_as_many_rounds_cost_as_one_with_less_noise() -> None:
    books = PrivacyBooks()
    for _ in range(16):
        books.charge(SETTINGS.cost(10, 10), 1.0)
    assert books.spent.noise == pytest.approx(SETTINGS.noise / 4) and books.spent.rounds == 16


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(0, 59))
def test_after_a_kill_at_any_moment_no_less_is_counted_than_was_spent(sizes: list[int], killed_at: int) -> None:
    """`written` is what the disk holds when a release is sent."""
    written, books, spent = Spent(), PrivacyBooks(), 0.0
    for i, size in enumerate(sizes):
        cost = SETTINGS.cost(size, 100)
        written = books.charge(cost, size / 100) or written
        spent += cost
        assert written.total >= spent - 1e-12
        if i == killed_at:
            books = PrivacyBooks(written)
    assert books.spent.total >= spent - 1e-12
    assert books.spent.total <= spent + SETTINGS.cost(1, 1) * (2 if killed_at < len(sizes) else 1) + 1e-9


def test_little_is_written() -> None:
    books = PrivacyBooks()
    writes = sum(books.charge(SETTINGS.cost(1, 100), 0.01) is not None for _ in range(1000))
    assert writes <= 11


def test_a_change_is_shortened_and_gets_noise() -> None:
    change = torch.full((10_000,), 3.0)

    made = released(change, 0.5, 0.25, secret_generator())

    assert made.clipped and made.value.dtype == torch.float32 and torch.equal(change, torch.full((10_000,), 3.0))
    noise = made.value - 0.5 / 100
    assert float(noise.std()) == pytest.approx(0.25, rel=0.05) and abs(float(noise.mean())) < 0.02


def test_a_short_change_stays_as_long_as_it_is() -> None:
    made = released(torch.full((4,), 0.1), 0.5, 0.0, secret_generator())
    assert not made.clipped and torch.allclose(made.value, torch.full((4,), 0.1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_of_what_is_not_finite_nothing_is_shown_but_noise(value: float) -> None:
    change = torch.zeros(1000)
    change[3] = value
    made = released(change, 0.5, 1.0, np.random.default_rng(1))
    assert made.clipped and bool(torch.isfinite(made.value).all())


def test_noise_is_another_each_time() -> None:
    first, second = (released(torch.zeros(8), 1.0, 1.0, secret_generator()).value for _ in range(2))
    assert not torch.equal(first, second)


def test_what_was_spent_is_found_again(tmp_path: Path) -> None:
    file = SpentFile.beside(str(tmp_path / "new" / "peer.key"))
    assert file.load("run") == Spent()
    file.save("run", Spent(2.0, 3.0))
    file.save("other", Spent(1.0, 1.0))
    assert file.load("run") == Spent(2.0, 3.0) and file.path.name == "peer.privacy.json"


@pytest.mark.parametrize("text", ["", "[]", '{"run": 3}', '{"run": {"total": -1}}', '{"run": {"total": 1e999}}'])
def test_a_file_that_says_something_else_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    file = SpentFile(tmp_path / "peer.privacy.json")
    file.path.write_text(text)
    with pytest.raises(StoreError, match=r"peer\.privacy\.json"):
        file.load("run")
