"""Options of commands that ask the peers of a network, and take part in no run."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from legion_p2p.errors import UsageError

if TYPE_CHECKING:
    from legion_p2p.visit import Visitor

NetworkKeyOption = Annotated[
    str, Parameter(metavar="FILE", help="File with the key that all peers of the network share, where they have one.")
]
TokenOption = Annotated[str, Parameter(metavar="FILE", help="File with the token that admits --identity to a private --run.")]
IdentityOption = Annotated[
    str,
    Parameter(
        metavar="FILE", help="Key file of a peer that a private --run admits. [default: a new key that is forgotten afterwards]"
    ),
]


def visitor_by_options(network_key: str, run: str = "", identity: str = "", token: str = "") -> "AbstractContextManager[Visitor]":
    """The visitor that they describe. Raises: UsageError; StoreError."""
    from legion_p2p.config import Peer
    from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
    from legion_p2p.visit import visitor_of

    if token and not identity:
        raise UsageError("--token names one peer: give the key file of that peer with --identity")
    if identity and not run:
        raise UsageError("--identity is shown to the members of a private run: name it with --run")
    if identity and kind_of(user_path(identity)) is FileKind.MISSING:  # a new one would be admitted nowhere
        raise UsageError(f"--identity: there is no key file {shown(user_path(identity))}")
    return visitor_of(Peer(identity=identity, token=token, network_key=network_key), as_itself=bool(identity))
