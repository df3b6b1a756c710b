"""Little stories for little models: simple English, put together by chance from the words and sentences of tales.toml.

A model of 250,000 parameters that has read some megabytes of them writes such stories by itself; of real books it learns little
more than spelling. That small models learn to write from stories in few words is from TinyStories (Eldan and Li, 2305.07759).
The text is made where it is needed, has the same bytes everywhere, and nobody else has a right to it.

A story is an opening, the beats of a plot and an end. Who is in it, and where, is drawn once and stays.
"""

import random
import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any, TypeVar

N_BYTES = 2_000_000
SEPARATOR = "\n\n"
PRONOUNS = {"he": ("he", "him", "his"), "she": ("she", "her", "her")}

T = TypeVar("T")


def tales_text(n_bytes: int = N_BYTES) -> bytes:
    """Stories, an empty line after each, in at least this many bytes: the same on every machine and every Python."""
    book = tomllib.loads(resources.files("legion_p2p.train").joinpath("tales.toml").read_text("utf-8"))
    draws = random.Random(0)  # whose random() is promised to stay the same
    stories: list[str] = []
    length = 0
    while length < n_bytes:
        stories.append(tale(book, draws))
        length += len(stories[-1]) + len(SEPARATOR)
    return SEPARATOR.join([*stories, ""]).encode("ascii")


def tale(book: dict[str, Any], draws: random.Random) -> str:
    """One story."""
    cast = _cast(book, draws)
    beats = (book["parts"]["openings"], *_one(draws, book["plots"])["beats"], book["parts"]["ends"])
    told = " ".join(_one(draws, beat).format_map(cast) for beat in beats)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", told)


def _cast(book: dict[str, Any], draws: random.Random) -> dict[str, str]:
    """Who and what a story is about, by the names that sentences have for it."""
    names, words, parts = book["names"], book["words"], book["parts"]
    (he, him, his), (he2, him2, his2) = (PRONOUNS[_one(draws, tuple(PRONOUNS))] for _ in range(2))
    first = _one(draws, names[he])
    (kind, kind2), (trait, trait2), (colour, colour2) = (_some(draws, words[of], 2) for of in ("kinds", "traits", "colours"))
    place, place2, place3 = _some(draws, words["places"], 3)
    return {
        "A": first, "he": he, "him": him, "his": his, "He": he.title(), "His": his.title(),
        "B": _one(draws, [name for name in names[he2] if name != first]),
        "he2": he2, "him2": him2, "his2": his2, "He2": he2.title(), "His2": his2.title(),
        "kind": kind, "kind2": kind2, "trait": trait, "trait2": trait2, "colour": colour, "colour2": colour2,
        "place": place, "place2": place2, "place3": place3, "home": _one(draws, parts["homes"]).format(place=place),
        "thing": _one(draws, words["things"]), "food": _one(draws, words["foods"]), "skill": _one(draws, words["skills"]),
        "time": _one(draws, parts["times"]), "weather": _one(draws, parts["weathers"]),
    }  # fmt: skip


def _one(draws: random.Random, of: Sequence[T]) -> T:
    return of[int(draws.random() * len(of))]


def _some(draws: random.Random, of: Sequence[str], n: int) -> list[str]:
    """Different ones."""
    left = list(of)
    return [left.pop(int(draws.random() * len(left))) for _ in range(n)]
