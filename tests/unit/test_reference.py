"""The generated reference: every public name, command and event has its place in it, and Sphinx can read what we write."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import legion_p2p
from legion_p2p.observe.catalogue import EVENTS, FIELDS

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "tools"))  # as where it is run as a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return module


reference = load()
PUBLIC = [name for name in legion_p2p.__all__ if not name.startswith("__")]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.pages()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_page_and_says_what_it_is(name: str, pages: dict[str, str]) -> None:
    page = f"api-{reference.page_name(name)}.md"

    assert re.search(rf"^\.\. auto\w+:: (legion_p2p\.)?{name}$", pages[page], re.MULTILINE)
    assert f"| [`{name}`]({page}) | {reference.summary(getattr(legion_p2p, name))} |" in pages["api.md"]
    assert reference.summary(getattr(legion_p2p, name)).endswith((".", "!", "?", ":"))


def test_no_two_names_share_a_page_even_where_case_does_not_count() -> None:
    names = [reference.page_name(name) for name in PUBLIC]

    assert len({name.lower() for name in names}) == len(PUBLIC)


def test_every_event_and_every_field_is_on_the_page_of_events(pages: dict[str, str]) -> None:
    assert [kind.name for kind in EVENTS if f"| `{kind.name}` | {kind.meaning}" not in pages["events.md"]] == []
    assert [name for name in FIELDS if f"| `{name}` |" not in pages["events.md"]] == []


def test_the_page_of_a_command_has_the_help_of_every_subcommand(pages: dict[str, str]) -> None:
    headings = re.findall(r"^## (.*)$", pages["legion-ctl.md"], re.MULTILINE)

    assert {"legion-ctl", "legion-ctl status", "legion-ctl plan", "legion-ctl checkpoint", "legion-ctl checkpoint verify"} <= set(
        headings
    )
    assert pages["legion-ctl.md"].count("\nUsage: ") == len(headings)


def test_every_page_of_the_repository_has_a_place_in_the_site(pages: dict[str, str]) -> None:
    placed = {
        (ROOT / "docs" / "reference" / name).resolve() for name in re.findall(r"^(\.\./.*)$", pages["index.md"], re.MULTILINE)
    }
    placed |= {ROOT / name for name in re.findall(r"^/(.*)$", pages["index.md"], re.MULTILINE)}
    placed |= {ROOT / "docs" / "reference" / name for name in re.findall(r"^([a-z][\w-]+)$", pages["index.md"], re.MULTILINE)}
    there = [*ROOT.glob("*.md"), ROOT / "tests" / "README.md", *(ROOT / "docs").rglob("*.md")]
    theirs = [path for path in there if "reference" not in path.parts and path != ROOT / "docs" / "records" / "README.md"]

    assert [str(path) for path in theirs if path.with_suffix("") not in placed] == []
    assert {ROOT / "docs" / "reference" / name.removesuffix(".md") for name in pages if "api-" not in name} - placed == {
        ROOT / "docs" / "reference" / "index"
    }


def test_every_link_of_a_generated_page_leads_somewhere(pages: dict[str, str]) -> None:
    broken = []
    for page, text in pages.items():
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if ":" not in target and target not in pages and not (ROOT / "docs" / "reference" / target).resolve().exists():
                broken.append((page, target))

    assert broken == []


def test_pages_that_are_no_longer_made_are_removed_and_the_same_ones_stay_untouched(tmp_path: Path, monkeypatch) -> None:
    made = {"a.md": "text"}
    monkeypatch.setattr(reference, "pages", lambda: made)
    (tmp_path / "old.md").write_text("of an earlier version")

    reference.write(tmp_path)
    before = (tmp_path / "a.md").stat().st_mtime_ns
    reference.write(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["a.md"]
    assert (tmp_path / "a.md").stat().st_mtime_ns == before


def test_a_docstring_becomes_text_that_sphinx_takes_for_text() -> None:
    ours = [
        "Adds *args to `x_`: 2 * 3.",
        "",
        "    code(*args)",
        "",
        "After.",
        "",
        "Args:",
        "    a: one,",
        "        and more.",
        "    b: two.",
    ]

    assert reference.as_rest(ours) == [
        r"Adds \*args to ``x_``: 2 \* 3.", "", "::", "", "    code(*args)", "", "", "After.", "", "Args:",
        "", "* a: one,", "  and more.", "", "* b: two.", "",
    ]  # fmt: skip


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126)).map(lambda text: text.replace("`", "")), max_size=8))
def test_no_word_of_a_docstring_gets_lost(lines: list[str]) -> None:
    told = "".join(reference.as_rest(lines)).replace("\\", "").replace("::", "").replace("* ", "")

    wanted = "".join(lines).replace("\\", "").replace("::", "").replace("* ", "")
    assert re.sub(r"\s", "", told) == re.sub(r"\s", "", wanted)


def test_a_link_to_a_folder_becomes_its_text_on_the_site() -> None:
    source = ["see [the examples](../examples), [the map](ARCHITECTURE.md) and [a site](https://example.org)"]

    reference.unlink_folders(None, "docs/index", source)

    assert source == ["see the examples, [the map](ARCHITECTURE.md) and [a site](https://example.org)"]
