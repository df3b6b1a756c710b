"""The colours of the page: text is readable in light and dark, and curves are told apart by people who see colours differently.

Each curve also has dashes of its own, and each region on the map a shape, so colour is never all there is.
"""

import itertools
import re

import pytest

from legion_p2p.web.static_files import file_bytes

Rgb = tuple[float, float, float]

CSS = file_bytes("/page.css").decode()
LIGHT, DARK = [
    dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", CSS, flags=re.S)[:2]
]
THEMES = {"light": LIGHT, "dark": DARK}

# Machado, Oliveira and Fernandes 2009, full severity
SEEN = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
LEAST_TEXT, LEAST_CURVE = 4.5, 3.0  # contrast, by WCAG 2.2 level AA
LEAST_APART = 12.0  # of any two curves, as a distance in CIELAB; 2 is just visible side by side


def linear(colour: str) -> Rgb:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return red, green, blue


def luminance(colour: str) -> float:
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def lab(rgb: Rgb) -> Rgb:
    red, green, blue = (min(1.0, max(0.0, c)) for c in rgb)
    xyz = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883,
    )
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def apart(one: str, other: str, seen: str) -> float:
    def as_seen(colour: str) -> Rgb:
        rgb = linear(colour)
        red, green, blue = (sum(m * c for m, c in zip(row, rgb, strict=True)) for row in SEEN[seen])
        return lab((red, green, blue))

    return sum((a - b) ** 2 for a, b in zip(as_seen(one), as_seen(other), strict=True)) ** 0.5


@pytest.mark.parametrize("theme", THEMES)
def test_text_is_readable_on_all_that_it_stands_on(theme: str) -> None:
    colours = THEMES[theme]
    pairs = [(text, on) for text in ("text", "dim", "accent", "bad", "warn", "good") for on in ("card", "page")]
    pairs += [("text", "bad-page"), ("text", "warn-page"), ("text", "info-page"), ("accent-text", "accent")]

    low = {pair: round(contrast(colours[pair[0]], colours[pair[1]]), 2) for pair in pairs}

    assert {pair: value for pair, value in low.items() if value < LEAST_TEXT} == {}


@pytest.mark.parametrize("theme", THEMES)
def test_every_curve_stands_out_from_its_card(theme: str) -> None:
    colours = THEMES[theme]

    assert {i: c for i in range(6) if (c := contrast(colours[f"c{i}"], colours["card"])) < LEAST_CURVE} == {}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("theme", THEMES)
def test_any_two_curves_are_told_apart_by_whoever_looks(theme: str, seen: str) -> None:
    colours = [THEMES[theme][f"c{i}"] for i in range(6)]

    close = {
        (i, k): round(apart(colours[i], colours[k], seen), 1)
        for i, k in itertools.combinations(range(6), 2)
        if apart(colours[i], colours[k], seen) < LEAST_APART
    }
    assert close == {}
