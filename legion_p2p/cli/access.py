"""legion-ctl id, token and ban: whose id a key file has, who may take part in a private run, and which peers this user has
banned."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from legion_p2p.cli.failures import DONE
from legion_p2p.core.admission import FOREVER, as_text, make_revocation, make_token, open_revocation, open_token
from legion_p2p.core.identity import public_key_of
from legion_p2p.core.run import looks_like_run_id
from legion_p2p.errors import DecodeError, UsageError
from legion_p2p.files.paths import user_data_folder, user_path

token = App(name="token", help="Admit peers to a private run, or revoke that. Both are signed with the key of the run's creator.")

_Identity = Annotated[
    str, Parameter(metavar="FILE", help="Key file of this user's peer. [default: peer.key in the user's data folder]")
]
_Token = Annotated[str, Parameter(name="TOKEN", help="The line that token make or revoke printed, or a file with it.")]
_Run = Annotated[str, Parameter(metavar="ID", help="Id of the run, as legion-ctl status shows it.")]
_For = Annotated[str, Parameter(name="--for", metavar="PEER", help="Id of the peer, as legion-ctl id prints it there.")]


def show_id(*, identity: _Identity = "") -> int:
    """Print the id of a key file; the file is made if it is not there.

    Example: legion-ctl id --identity lab.key
    """
    from legion_p2p.store.identity import load_or_create_identity, read_identity

    path = _key(identity)
    if path.exists():
        print(read_identity(path).peer_id)
    else:
        made = load_or_create_identity(path)
        made.release()
        print(made.peer_id)
    return DONE


@token.command
def make(*, run: _Run, peer: _For, until: Annotated[str, Parameter(metavar="DATE")], identity: _Identity = "") -> int:
    """Print a token that admits one peer to one run until a date.

    Send the line to the peer's user, who saves it and starts the peer with --token FILE. The token is no secret, because only
    that peer can use it.

    Example: legion-ctl token make --run bafkrei... --for 12D3KooW... --until 2027-03-31 > guest.token

    Parameters
    ----------
    until
        Last day of the token, as 2027-03-31 (UTC).
    """
    from legion_p2p.store.identity import read_identity

    end = _end_of(until)
    if end <= time.time():
        raise UsageError(f"--until {until} is over")
    print(as_text(make_token(read_identity(_key(identity)), _checked_run(run), peer, end)))
    return DONE


@token.command
def revoke(*, run: _Run, peer: _For, until: Annotated[str, Parameter(metavar="DATE")] = "", identity: _Identity = "") -> int:
    """Revoke the tokens of a peer. This user's peer tells all members as soon as it runs.

    Example: legion-ctl token revoke --run bafkrei... --for 12D3KooW...

    Parameters
    ----------
    until
        Only tokens that end by this day. [default: all, also those made later]
    """
    from legion_p2p.store.access_lists import AccessFiles
    from legion_p2p.store.identity import read_identity

    key = _key(identity)
    revocation = make_revocation(read_identity(key), _checked_run(run), peer, _end_of(until) if until else FOREVER)
    AccessFiles(key).revoke(revocation)
    print(as_text(revocation))
    return DONE


@token.command
def show(text: _Token) -> int:
    """Print what a token or a revocation says, and check its signature.

    Example: legion-ctl token show guest.token
    """
    from legion_p2p.observe.human import clean
    from legion_p2p.store.access_lists import token_of

    data = token_of(text)
    try:
        permit, verb = open_token(data), "admits"
    except DecodeError:
        permit, verb = open_revocation(data), "revokes the tokens of"
    last = "for ever" if permit.until == FOREVER else f"until {datetime.fromtimestamp(permit.until, UTC):%Y-%m-%d %H:%M} UTC"
    print(f"{verb} {clean(permit.peer)} {last}\nrun     {clean(permit.run)}\nsigned  {clean(permit.signer)}")
    return DONE


def ban(peer: str, *, identity: _Identity = "") -> int:
    """Ban a peer: this user's peer no longer answers it and accepts nothing from it. A running peer follows within seconds.

    Other members are not told.

    Example: legion-ctl ban 12D3KooW...

    Parameters
    ----------
    peer
        Its id, as legion-ctl status shows it.
    """
    from legion_p2p.store.access_lists import AccessFiles

    _check_peer(peer)
    print("banned" if AccessFiles(_key(identity)).ban(peer) else "banned already")
    return DONE


def unban(peer: str, *, identity: _Identity = "") -> int:
    """Lift a ban.

    Example: legion-ctl unban 12D3KooW...

    Parameters
    ----------
    peer
        Its id.
    """
    from legion_p2p.store.access_lists import AccessFiles

    _check_peer(peer)
    print("not banned any more" if AccessFiles(_key(identity)).unban(peer) else "was not banned")
    return DONE


def _key(identity: str) -> Path:
    return user_path(identity) if identity else user_data_folder() / "peer.key"


def _check_peer(peer: str) -> None:
    try:
        public_key_of(peer)
    except DecodeError as bad:
        raise UsageError(str(bad)) from bad


def _checked_run(run: str) -> str:
    if not looks_like_run_id(run):
        raise UsageError(f"--run {run}: the run's id is needed, as legion-ctl status shows it; others may have the same name")
    return run


def _end_of(day: str) -> int:
    """The last second of a day, UTC."""
    try:
        begin = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as bad:
        raise UsageError(f"--until {day}: a day is written as 2027-03-31") from bad
    return int(begin.timestamp()) + 24 * 3600
