"""legion-ctl pause, resume, finish, leave, limits: controlling a running peer of this user."""

import re
from typing import Annotated

from cyclopts import Parameter

from legion_p2p.cli.failures import DONE
from legion_p2p.cli.find_peer import PeerOption, chosen_peer
from legion_p2p.cli.output import print_json
from legion_p2p.core.control import MAX_PAUSE_S, NO_LIMIT, Command, Finish, Leave, Pause, Resume, SetLimits
from legion_p2p.errors import UsageError
from legion_p2p.files.paths import user_data_folder
from legion_p2p.observe import human
from legion_p2p.observe.status import ControlStatus

TIME_FORM = "a number and s, m, h or d, such as 90m or 2h"
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def pause(
    *,
    for_: Annotated[str, Parameter(name="--for", metavar="TIME")] = "",
    peer: PeerOption = "",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Pause a peer's training, for a time or until it is resumed. The peer goes on serving others, and nobody waits for it.

    Example: legion-ctl pause --for 2h

    Parameters
    ----------
    for_
        How long, such as 90m or 2h. [default: until legion-ctl resume]
    peer
        HOST:PORT of its status, or PORT. Needed only where several peers run on this machine.
    json
        Print the resulting state as JSON, on one line.
    """
    return _tell(Pause(parse_time(for_) if for_ else None), peer, json)


def resume(*, peer: PeerOption = "", json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Resume a paused peer's training.

    Example: legion-ctl resume

    Parameters
    ----------
    peer
        HOST:PORT of its status, or PORT. Needed only where several peers run on this machine.
    json
        Print the resulting state as JSON, on one line.
    """
    return _tell(Resume(), peer, json)


def finish(*, peer: PeerOption = "", json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Let a peer push what it has trained, and then leave its run.

    Example: legion-ctl finish

    Parameters
    ----------
    peer
        HOST:PORT of its status, or PORT. Needed only where several peers run on this machine.
    json
        Print the resulting state as JSON, on one line.
    """
    return _tell(Finish(), peer, json)


def leave(*, peer: PeerOption = "", json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Let a peer leave its run at once, as Ctrl+C does.

    Example: legion-ctl leave

    Parameters
    ----------
    peer
        HOST:PORT of its status, or PORT. Needed only where several peers run on this machine.
    json
        Print the resulting state as JSON, on one line.
    """
    return _tell(Leave(), peer, json)


def limits(
    *,
    upload: Annotated[str, Parameter(metavar="RATE")] = "",
    download: Annotated[str, Parameter(metavar="RATE")] = "",
    max_cpu: Annotated[str, Parameter(metavar="SHARE")] = "",
    peer: PeerOption = "",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Change the limits on what a running peer may use. Limits that are not named stay as they are; none removes a limit.

    Example: legion-ctl limits --upload 5mbit --max-cpu 50%

    Parameters
    ----------
    upload
        Limit on sending, such as 5mbit, or none.
    download
        Limit on receiving, such as 20mbit, or none.
    max_cpu
        Share of this machine's processors that it may take, such as 50%, or none.
    peer
        HOST:PORT of its status, or PORT. Needed only where several peers run on this machine.
    json
        Print the resulting state as JSON, on one line.
    """
    command = SetLimits(upload or None, download or None, max_cpu or None)
    if command == SetLimits():
        raise UsageError(f"no limit is given: use --upload, --download or --max-cpu; {NO_LIMIT} takes one away")
    command.check()
    return _tell(command, peer, json)


def parse_time(text: str) -> float:
    """Seconds. Raises: UsageError, naming the allowed form."""
    found = _TIME.fullmatch(text.strip().lower())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= MAX_PAUSE_S:
        raise UsageError(f"--for {text!r}: allowed is {TIME_FORM}, at most {MAX_PAUSE_S / 86400:.0f}d")
    return seconds


def control_lines(status: ControlStatus) -> list[str]:
    """A peer's state in words."""
    until = "" if status.until is None else f" until {human.clock_text(status.until)}"
    what = {
        "train": "training",
        "pause": f"paused: {', '.join(map(human.clean, status.reasons))}{until}",
        "finish": "finishing: it pushes what it has trained, and leaves",
        "leave": "leaving",
    }.get(status.wish, human.clean(status.wish))
    return [what, f"limits: {limits_text(status)}"]


def limits_text(status: ControlStatus) -> str:
    """The limits that hold."""
    named = [
        f"upload {human.rate_text(status.upload_bps)}" if status.upload_bps is not None else "",
        f"download {human.rate_text(status.download_bps)}" if status.download_bps is not None else "",
        f"CPU {human.percent_text(status.max_cpu)}" if status.max_cpu is not None else "",
    ]
    return ", ".join(filter(None, named)) or "none"


def _tell(command: Command, peer: str, as_json: bool) -> int:
    import trio

    from legion_p2p.net.control_http import send_command
    from legion_p2p.store.control_key import load_or_create_control_key

    host, port = chosen_peer(peer)
    status = trio.run(send_command, host, port, load_or_create_control_key(user_data_folder()), command)
    if as_json:
        return print_json(status)
    print("\n".join(control_lines(status)))
    return DONE
