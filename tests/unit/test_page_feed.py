"""What goes to browsers: all of it once, then what is new, and never a page that fails to the end."""

import json

from legion_p2p.web.feed import EVERY_S, ClientState, Feed, encoded
from legion_p2p.web.page_blocks import Chart, ChartMark, Facts, Figure, Head, Line, Prose, Table, TableColumn, WebPage

HEAD = Head("stories", "peer x", "training", (Figure("step", "7"),))


def chart(n: int, marks: tuple[ChartMark, ...] = ()) -> Chart:
    xs = tuple(float(i) for i in range(n))
    return Chart("loss", "Learning", "Loss", "loss", (Line("mine", xs, xs, xs), Line("theirs", xs[:1], xs[:1], xs[:1])), marks)


def page(*blocks) -> WebPage:
    return WebPage(HEAD, blocks)


def told(sent: ClientState, now: WebPage) -> dict:
    return json.loads(sent.update(encoded(now)))


FACTS = Facts("traffic", "Traffic", "Traffic", (("sent", "1 MB"),))


def test_a_client_that_comes_is_told_all_of_it() -> None:
    update = told(ClientState(), page(chart(3), FACTS))

    assert update["order"] == ["loss", "traffic"]
    assert [block["type"] for block in update["blocks"]] == ["chart", "facts"]
    assert update["points"]["loss"][0]["x"] == [0, 1, 2] and update["points"]["loss"][1]["x"] == [0]
    assert update["head"]["title"] == "stories"


def test_then_it_is_told_of_what_has_changed_and_of_further_points_alone() -> None:
    sent = ClientState()
    told(sent, page(chart(3), FACTS))

    update = told(sent, page(chart(5), FACTS))

    assert update["blocks"] == []
    assert update["points"]["loss"][0] == {"label": "mine", "x": [3, 4], "y": [3, 4], "step": [3, 4]}
    assert update["points"]["loss"][1]["x"] == []
    assert told(sent, page(chart(5), FACTS))["points"] == {}


def test_a_curve_that_was_thinned_goes_on_where_the_client_is() -> None:
    sent = ClientState()
    told(sent, page(chart(9)))
    thinner = Line("mine", (0.0, 4.0, 8.0, 12.0), (0.0, 4.0, 8.0, 12.0), (0.0, 4.0, 8.0, 12.0))

    theirs = Line("theirs", (0.0,), (0.0,), (0.0,))

    update = told(sent, page(Chart("loss", "Learning", "Loss", "loss", (thinner, theirs))))

    assert update["points"]["loss"][0]["x"] == [12]


def test_a_line_that_is_new_among_the_others_brings_all_points_again() -> None:
    def with_lines(*labels: str) -> WebPage:
        lines = tuple(Line(label, (1.0, 2.0), (1.0, 2.0), (1.0, 2.0)) for label in labels)
        return page(Chart("loss", "Learning", "Loss", "loss", lines))

    sent = ClientState()
    told(sent, with_lines())
    told(sent, with_lines("peer-1"))

    update = told(sent, with_lines("alone", "peer-1"))

    assert [line["label"] for line in update["blocks"][0]["lines"]] == ["alone", "peer-1"]
    assert [line["x"] for line in update["points"]["loss"]] == [[1, 2], [1, 2]]
    assert told(sent, with_lines("alone", "peer-1"))["points"] == {}


def test_a_new_mark_is_a_change_of_the_chart() -> None:
    sent = ClientState()
    told(sent, page(chart(3)))

    update = told(sent, page(chart(3, (ChartMark(1.0, "a peer is here"),))))

    assert update["blocks"][0]["marks"][0]["text"] == "a peer is here"
    assert update["blocks"][0]["lines"][0]["x"] == []


def test_a_block_that_comes_back_is_told_again() -> None:
    sent = ClientState()
    told(sent, page(FACTS))
    told(sent, page())

    assert [block["id"] for block in told(sent, page(FACTS))["blocks"]] == ["traffic"]


def test_names_of_strangers_stay_text_in_the_json() -> None:
    name = '</script><img src=x onerror="alert(1)">'
    rows = Table("members", "Peers", "Members", (TableColumn("region"),), ((name,),))

    assert told(ClientState(), page(rows, Prose("p", "Peers", "P", name)))["blocks"][0]["rows"] == [[name]]


def test_a_page_is_made_once_for_all_who_look_in_the_same_second() -> None:
    now, made = [0.0], []
    feed = Feed(lambda: made.append(1) or page(FACTS), lambda: now[0])

    feed.look()
    feed.look()
    now[0] += EVERY_S
    feed.look()

    assert len(made) == 2
    feed.refresh()
    feed.look()
    assert len(made) == 3


def test_a_page_that_cannot_be_made_says_so_and_keeps_what_it_had() -> None:
    now, broken = [0.0], [False]

    def make() -> WebPage:
        if broken[0]:
            raise RuntimeError("no status")
        return page(FACTS)

    feed, sent = Feed(make, lambda: now[0]), ClientState()
    sent.update(feed.look())
    broken[0] = True
    now[0] += EVERY_S

    update = json.loads(sent.update(feed.look()))

    assert "no status" in update["head"]["notices"][0]["text"]
    assert update["order"] == ["traffic"]
    broken[0] = False
    now[0] += EVERY_S
    assert json.loads(sent.update(feed.look()))["head"]["title"] == "stories"
