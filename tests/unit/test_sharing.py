"""Which members share a text: those that train, as soon as that changes."""

from types import SimpleNamespace

from legion_p2p.core.identity import Identity
from legion_p2p.core.observers import Observers
from legion_p2p.observe.events import Events
from legion_p2p.train.sharing import share_text

ME, A, B = (Identity.generate().peer_id for _ in range(3))


class Members:
    """What `share_text` asks of a run's members."""

    def __init__(self):
        self.announcements, self.roles_changed = Observers(), Observers()
        self.roster = self
        self.said = {peer: SimpleNamespace(peer_id=str(peer), training=False, chunks=b"", epoch=0) for peer in (ME, A)}

    def everyone(self):
        return tuple(self.said.values())


class Reader:
    def __init__(self, me, living):
        self.living = living


def shared():
    members = Members()
    engine = SimpleNamespace(me=ME, members=members, events=Events())
    return members, share_text(SimpleNamespace(call=lambda task: task()), engine, Reader)


def test_a_peer_alone_has_the_whole_text():
    _, reader = shared()

    assert list(reader.living()) == [ME]


def test_a_member_counts_once_it_trains_and_no_longer_when_it_is_gone():
    members, reader = shared()

    members.said[A].training = True
    members.roles_changed.tell(None)
    assert set(reader.living()) == {ME, A}

    del members.said[A]  # it died: nobody announces that
    members.roles_changed.tell(None)
    assert list(reader.living()) == [ME]
