"""The stories that a demo learns from: the same everywhere, and English."""

import hashlib
import random
import re
import tomllib
from importlib import resources

import pytest

from legion_p2p.train.corpus import open_text
from legion_p2p.train.tales import N_BYTES, SEPARATOR, tale, tales_text

BOOK = tomllib.loads(resources.files("legion_p2p.train").joinpath("tales.toml").read_text("utf-8"))
NAMES = {name for names in BOOK["names"].values() for name in names}


def test_the_stories_are_the_same_on_every_machine() -> None:
    text = tales_text()

    assert N_BYTES <= len(text) < N_BYTES + 1000
    assert hashlib.sha256(text).hexdigest() == "5164c731a4a9b8e65329869b1700b844c430ee9021cd410c34898567615c25a4"


def test_each_story_is_sentences_about_two_whose_names_differ() -> None:
    stories = tales_text(100_000).decode().split(SEPARATOR)[:-1]

    assert len(set(stories)) == len(stories) > 200
    for story in stories:
        assert re.fullmatch(r"[A-Z][A-Za-z ,.:?!\"-]+[.!?]\"?", story), story
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|  | [.,]", story), story
        assert story.count('"') % 2 == 0, story
        assert 1 <= len(NAMES & set(re.findall(r"\w+", story))) <= 2, story


@pytest.mark.parametrize("plot", BOOK["plots"], ids=lambda plot: plot["about"])
def test_every_sentence_speaks_only_of_what_a_story_has(plot: dict[str, object]) -> None:
    book = {**BOOK, "plots": [plot]}
    told = [tale(book, random.Random(seed)) for seed in range(40)]

    assert len(set(told)) == 40
    assert not any("{" in story or "}" in story for story in told)


def test_a_run_may_name_them_as_its_text() -> None:
    text = open_text("tales", context=128)

    assert text.name == "tales" and text.vocab_size == 256
    assert len(text.train) + len(text.validation) == len(tales_text()) and 19 * len(text.validation) <= len(text.train) + 19
