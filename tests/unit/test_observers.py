"""One way to tell others what happened."""

import pytest

from legion_p2p.core.observers import Observers


def test_every_observer_hears_every_event_in_the_order_of_adding() -> None:
    heard: list[tuple[str, int]] = []
    happened: Observers[int] = Observers()
    happened.add(lambda event: heard.append(("first", event)))
    happened.add(lambda event: heard.append(("second", event)))

    happened.tell(1)

    assert heard == [("first", 1), ("second", 1)]


def test_an_observer_can_be_removed_also_while_it_is_told() -> None:
    heard: list[int] = []
    happened: Observers[int] = Observers()

    def once(event: int) -> None:
        heard.append(event)
        remove()

    remove = happened.add(once)
    happened.add(heard.append)

    happened.tell(1)
    happened.tell(2)
    remove()

    assert heard == [1, 1, 2]


def test_what_an_observer_raises_reaches_whoever_told() -> None:
    happened: Observers[int] = Observers()

    def fail(event: int) -> None:
        raise ValueError(f"cannot take {event}")

    happened.add(fail)

    with pytest.raises(ValueError, match="cannot take 3"):
        happened.tell(3)
